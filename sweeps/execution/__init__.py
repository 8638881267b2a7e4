"""Running a plan: engine, Ray cluster, worker, failures, status."""
