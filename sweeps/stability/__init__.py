"""Stability studies: the learning rates at which each injection trains."""
