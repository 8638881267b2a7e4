"""Sweeps of runs: configuration, plan, training on Ray, tracking in MLflow, tuning, reports and the command line."""
