"""Sparse weights in files: the format that docs/format.md describes."""
