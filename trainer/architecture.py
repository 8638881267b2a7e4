"""Model configuration -> model."""

from trainer.config import ModelConfig
from trainer.language_model import LanguageModel
from trainer.parcae import Parcae
from trainer.transformer import Transformer


def build_model(config: ModelConfig, *, recompute_loops: bool = False) -> LanguageModel:
    """The model that `config` describes, its weights not drawn yet.

    Raises:
        ValueError: `recompute_loops` (activation checkpointing) for a model without a loop; a class of the user's own
            can't be imported.
    """
    if config.is_looped:
        return Parcae(config, recompute_loops=recompute_loops)
    if recompute_loops:
        raise ValueError(
            "activation checkpointing works loop by loop, but a fixed-depth Transformer (injection: none) has no loop; "
            "turn it off"
        )
    return Transformer(config)
