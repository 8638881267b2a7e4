"""Text to batches: sources, tokenizers, token shards, prepared corpora."""
