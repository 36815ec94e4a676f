"""Calibration samples on their way through a model, and what is learnt from them block by block."""
