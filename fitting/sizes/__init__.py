"""One fit of runs of several sizes: the loss as a function of size, mean recurrence and tokens, and its best models."""
