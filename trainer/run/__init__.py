"""Output of a run: checkpoints, journal, telemetry, environment, result."""
