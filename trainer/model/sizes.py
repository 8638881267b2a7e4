"""The published sizes (SPEC "Published sizes"): heads of 128, context 2048, vocabulary 32,768."""

from isoloop.trainer.config import ModelConfig


def _published(width: int, layers: int) -> ModelConfig:
    return ModelConfig(
        width=width,
        heads=width // 128,
        prelude_layers=layers,
        core_layers=layers,
        coda_layers=layers,
        context=2048,
        vocabulary=32_768,
    )


SIZES = {
    "140m": _published(768, 2),
    "370m": _published(1024, 4),
    "770m": _published(1280, 6),
    "1.3b": _published(1536, 8),
}

# What a size says of a model; the rest is free.
SHAPE = frozenset({"width", "heads", "prelude_layers", "core_layers", "coda_layers", "context", "vocabulary"})
