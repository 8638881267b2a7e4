"""One run: spec -> model -> result. No other room is imported, and torch only by the files that compute with it."""
