"""A fit as text, whole or on one screen."""
