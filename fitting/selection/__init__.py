"""Choosing between laws: errors on held-out runs and information criteria."""
