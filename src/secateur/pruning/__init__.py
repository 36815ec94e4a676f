"""Prune a model: a walk over its blocks (``walk.py``), from a folder to a folder or in memory."""
