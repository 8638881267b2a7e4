"""What a run writes and reports: checkpoints, journal, telemetry, environment, result."""
