"""The loss of a family of models as one function of size, mean recurrence, tokens and loops at test time."""
