"""Run what was written, where plain transformers cannot."""
