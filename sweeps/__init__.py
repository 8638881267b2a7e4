"""Sweeps: configuration, plan, execution on Ray, tracking in MLflow, report and the command line."""
