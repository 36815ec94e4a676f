"""Prove, from the files alone, that a written model is what its manifest says."""
