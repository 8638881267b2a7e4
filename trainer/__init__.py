"""One run, from its specification to its result. Imports neither `fitting` nor `sweeps`; torch is imported where it computes."""
