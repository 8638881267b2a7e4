"""Sweeps: configuration, plan, execution on Ray, tracking in MLflow, tuning, reports and the command line."""
