"""What to run, and running it: config, grid, Ray, MLflow, report and the command line."""
