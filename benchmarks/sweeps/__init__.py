"""Benchmarks of scheduling, planning and tuning sweeps."""
