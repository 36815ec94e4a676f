"""Make a model smaller: heads and channels, or whole blocks, are removed (structured pruning)."""
