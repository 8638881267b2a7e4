"""Benchmarks of the trainer, as ratios measured side by side in one process; run by `python -m benchmarks`."""
