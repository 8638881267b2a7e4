"""Two sweeps side by side, with intervals on the differences."""
