"""The looped language model and the fixed-depth baseline: layers, injections, head, published weights."""
