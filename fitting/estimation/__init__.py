"""Fitting one law: objective, minimisation, intervals by bootstrap and by profile likelihood."""
