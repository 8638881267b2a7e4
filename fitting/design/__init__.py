"""Design of the next runs: those that leave the least uncertainty about a target for their cost."""
