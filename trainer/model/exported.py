"""The layout of exported models, which Transformers loads: a folder that holds

    config.json         the settings of `ModelConfig` under their own names, `recurrence` (T), what the model was
                        trained with and its losses; `auto_map` names the classes of modeling_isoloop.py
    model.safetensors   the weights, under the names that our parameters have

`isoloop.trainer.huggingface` adds the rest: code, tokenizer, model card.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from isoloop.trainer.config import ModelConfig, RecurrenceConfig
from isoloop.trainer.files import open_atomically, write_atomically
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.language_model import LanguageModel

MODEL_TYPE, CODE_FILE, WEIGHTS_FILE = "isoloop", "modeling_isoloop.py", "model.safetensors"


class Exported(NamedTuple):
    """An exported model, as it is read.

    Attributes:
        model: float32 on the CPU.
        recurrence: the loops it was trained with.
        losses: validation loss by recurrence T, nats per token; empty if unknown.
        precision: of the matrix products in training.
    """

    model: LanguageModel
    recurrence: RecurrenceConfig
    losses: dict[int, float]
    precision: Literal["float32", "bfloat16"]


def save_exported(folder: Path, exported: Exported, loops: int, **more: Any) -> None:
    """Write weights, then config.json, with T = `loops` and more keys of Transformers' own, into `folder`.

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
        "recurrence": loops,
        "mean_recurrence": exported.recurrence.mean,
        **config.all_fields(),
        "vocab_size": config.padded_vocabulary,
        "training_recurrence": exported.recurrence.model_dump(mode="json"),
        "training_precision": exported.precision,
        "validation_losses": exported.losses,
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

    Raises:
        ValueError: a file is missing or torn, or its settings or weights aren't those of an exported model.
    """
    from safetensors.torch import load_file

    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        config = ModelConfig(**{name: content[name] for name in ModelConfig.model_fields if name in content})
        recurrence = RecurrenceConfig(**content["training_recurrence"])
        losses = {int(loops): float(loss) for loops, loss in content.get("validation_losses", {}).items()}
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'} must be that of an exported model, but: {error}") from error
    model = build_model(config, mean_recurrence=recurrence.mean)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except Exception as error:  # torn files fail in many ways
        raise ValueError(
            f"an exported model must hold its weights, but {folder / WEIGHTS_FILE} can't be used: {error}; export it "
            "again"
        ) from error
    precision = content.get("training_precision", "float32")
    return Exported(model, recurrence, losses, "bfloat16" if precision == "bfloat16" else "float32")
