"""From text to batches: sources, tokenizers, token shards, prepared corpora, windows."""
