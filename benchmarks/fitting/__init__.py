"""Benchmarks of the fitter against other ways to fit a scaling law."""
