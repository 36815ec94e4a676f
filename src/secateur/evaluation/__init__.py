"""How good a written model is."""
