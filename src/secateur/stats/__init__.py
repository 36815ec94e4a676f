"""What a linear's inputs were like: sums over tokens (``inputs.py``), and their Gram matrix as methods take it."""

from secateur.stats.gram import Gram
from secateur.stats.inputs import InputStats

__all__ = ["Gram", "InputStats"]
