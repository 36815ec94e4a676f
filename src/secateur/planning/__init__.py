"""What pruning a model would take: time, memory, disk and arithmetic, from its config alone."""
