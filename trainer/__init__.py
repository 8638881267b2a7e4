"""One run: spec -> model -> result. Imports nothing of ours; torch is imported by the files that compute with it."""
