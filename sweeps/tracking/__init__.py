"""The tracking store: MLflow, the uploader that feeds it, and run tables read back from it."""
