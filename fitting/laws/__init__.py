"""The scaling laws: their contract, one class per law, and the registry that finds them by name."""
