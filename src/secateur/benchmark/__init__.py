"""How fast a pruned model is where it runs, against itself with dense weights."""
