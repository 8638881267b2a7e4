"""One run, from its specification to its result. Imports neither `fitting` nor `sweeps`."""
