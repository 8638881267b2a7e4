"""The answers that a fit gives: the best model for a budget, its loss, and what the runs do not determine."""
