"""Run folders on any file system, for workers and drivers that share no disk."""
