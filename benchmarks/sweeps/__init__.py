"""How well sweeps are scheduled, and how fast they are planned."""
