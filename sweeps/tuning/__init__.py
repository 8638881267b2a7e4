"""Hyperparameter search with Optuna, and the check that its result transfers across the sweep."""
