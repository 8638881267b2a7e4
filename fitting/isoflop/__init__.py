"""isoFLOP curves: parabolas, their minima, power laws through the minima, and the bias of parabolas."""
