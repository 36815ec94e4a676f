"""Many rows of one table: recipes × seeds × models, each pruned and measured, in whatever order and processes."""
