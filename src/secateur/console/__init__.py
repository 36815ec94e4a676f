"""What people see in a terminal: progress bars on standard error, tables on standard output."""
