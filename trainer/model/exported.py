"""The layout of exported models, which Transformers loads: a folder that holds

    config.json         the settings of `ModelConfig` under their own names, `recurrence` (T), what the model was
                        trained with and its losses; `auto_map` names the classes of modeling_isoloop.py
    model.safetensors   the weights, under the names that our parameters have

`isoloop.trainer.huggingface` adds the rest: code, tokenizer, model card.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from isoloop.trainer.config import Config, ModelConfig, Recurrence, RecurrenceConfig
from isoloop.trainer.files import open_atomically, write_atomically
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.language_model import LanguageModel
from isoloop.trainer.model.pretrained import check_tensors, read_weights
from isoloop.trainer.rules import broken_rules

MODEL_TYPE, CODE_FILE, WEIGHTS_FILE = "isoloop", "modeling_isoloop.py", "model.safetensors"


class TrainingFacts(Config):
    """What a model card says of a model's training. It is kept in config.json, so that later exports say it, too.

    Attributes:
        name: of the model: its run's id, or the name of its folder.
        rows: of the table, such as tokens and seed; empty if nothing is known.
        caveats: sentences about what the losses depend on.
        datasets: corpora on Hugging Face.
    """

    name: str
    rows: dict[str, str] = Field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()


class Exported(NamedTuple):
    """An exported model.

    Attributes:
        model: float32 on the CPU.
        recurrence: the loops it was trained with.
        loops: T that it runs unless its user says otherwise.
        losses: validation loss by recurrence T, nats per token; empty if unknown.
        precision: of the matrix products in training.
        facts: what else is known of its training; None in exports of older versions.
    """

    model: LanguageModel
    recurrence: RecurrenceConfig
    loops: int
    losses: Mapping[int, float] = MappingProxyType({})
    precision: Literal["float32", "bfloat16"] = "float32"
    facts: TrainingFacts | None = None


class _Settings(BaseModel):
    """What config.json holds beside the model's own configuration."""

    recurrence: Recurrence
    training_recurrence: RecurrenceConfig
    training_precision: Literal["float32", "bfloat16"] = "float32"
    validation_losses: dict[int, float] = Field(default_factory=dict)
    training_facts: TrainingFacts | None = None


def save_exported(folder: Path, exported: Exported, **more: Any) -> None:
    """Write weights, then config.json, with more keys of Transformers' own, into `folder`.

    Injection and block are isoloop's own.

    Raises:
        OSError: the disk is full, or the like.
    """
    from safetensors.torch import save

    model, config = exported.model, exported.model.config
    assert ":" not in config.injection + config.block, "a class of the user's own isn't in the exported code"
    name = CODE_FILE.removesuffix(".py")
    content = {
        "model_type": MODEL_TYPE,
        "architectures": ["IsoloopForCausalLM"],
        "auto_map": {"AutoConfig": f"{name}.IsoloopConfig", "AutoModelForCausalLM": f"{name}.IsoloopForCausalLM"},
        "dtype": "float32",
        "recurrence": exported.loops,
        "mean_recurrence": exported.recurrence.mean,
        **config.all_fields(),
        "vocab_size": config.padded_vocabulary,
        "training_recurrence": exported.recurrence.model_dump(mode="json"),
        "training_precision": exported.precision,
        "validation_losses": dict(exported.losses),
        "training_facts": None if exported.facts is None else exported.facts.model_dump(mode="json"),
        **more,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with open_atomically(folder / WEIGHTS_FILE) as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / "config.json", json.dumps(content, indent=1))


def is_exported(folder: Path) -> bool:
    """Return whether `folder` holds an exported model."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def load_exported(folder: Path) -> Exported:
    """Load a folder for which `is_exported` is True.

    Of one that Transformers has saved, neither losses nor facts are known: its weights may have been trained further.

    Raises:
        ValueError: a file is missing or torn, or its settings or weights aren't those of an exported model.
    """
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("key_value_heads") == content.get("heads"):  # Transformers writes the default as a number
        content["key_value_heads"] = None
    try:
        config = ModelConfig(**{name: content[name] for name in ModelConfig.model_fields if name in content})
        settings = _Settings.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path} must be that of an exported model, but {broken_rules(error)}") from error
    model = build_model(config, mean_recurrence=settings.training_recurrence.mean)
    tensors = read_weights(folder)
    check_tensors(tensors, {name: tensor.shape for name, tensor in model.state_dict().items()}, folder)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    is_saved_again = "transformers_version" in content
    return Exported(
        model,
        settings.training_recurrence,
        settings.recurrence,
        {} if is_saved_again else settings.validation_losses,
        settings.training_precision,
        None if is_saved_again else settings.training_facts,
    )
