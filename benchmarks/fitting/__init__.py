"""Fitting, side by side with what else there is to fit a scaling law with."""
