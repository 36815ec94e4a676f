"""Weights of few bits: grids of levels, and ways to bring weights onto them that keep zeros zero."""
