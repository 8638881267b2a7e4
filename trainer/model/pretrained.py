"""The layout of the published checkpoints (sandyresearch/parcae): a folder that holds

    config.json            `_class_name` (without one, the injection tells) and the architecture
    model.safetensors      or pytorch_model.bin: the weights, named as in the published code; or several files and an
                           index of them

Only plain tensors are unpickled. No published checkpoint of a fixed-depth Transformer or of blocks with residual norms
has been seen: their names here follow the same scheme.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from isoloop.trainer.config import FIXED_DEPTH, ModelConfig, RecurrenceConfig
from isoloop.trainer.files import open_atomically, write_atomically
from isoloop.trainer.hub import HubError, fetch_model, is_repository
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.language_model import LanguageModel
from isoloop.trainer.rules import broken_rules

LOOPED_CLASS, FIXED_CLASS = "ParcaeConfig", "FixedDepthConfig"
WEIGHTS = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}

# Our fields of the model's configuration, and the published ones of the same meaning.
_FIELD_NAMES = {
    "context": "block_size",
    "vocabulary": "vocab_size",
    "width": "n_embd",
    "heads": "num_attention_heads",
    "norm_eps": "norm_eps",
    "prelude_layers": "n_layers_in_prelude",
    "core_layers": "n_layers_in_recurrent_block",
    "coda_layers": "n_layers_in_coda",
}
_INJECTION_NAMES = {"diagonal": "diagonal", "concat": "linear", "addition": "add"}
_SCHEMES = {"poisson": "poisson-truncated-full", "log-normal-poisson": "poisson-lognormal-filling"}
_BLOCK_NAMES = {"pre-norm": "TransformerPreNormBlock", "residual-norm": "SandwichBlock"}
# Published settings that must have these values, because our model has no alternative.
_REQUIRED = {
    "bias": False,
    "qk_bias": False,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "BaseMLP",
    "nonlin_name": "ReLU2",
    "qk_norm": True,
    "clip_qkv": None,
    "padding_multiple": 64,
}
# Our settings that change a model's outputs, and for which there is no published one.
_UNPUBLISHED = ("residual_scale", "embedding_scale", "loop_norm")

# Tensors of a published file that our model derives: the rotary table is computed, a tied head is the token table.
_DERIVED, _TIED = ("freqs_cis",), ("lm_head.weight", "freqs_cis")
# Patterns in the names of our parameters, and their replacements in the published ones, applied in this order.
_RENAMES = {
    r"^embedding\.": "transformer.wte.",
    r"^prelude\.": "transformer.prelude.",
    r"^core\.": "transformer.core_block.",
    r"^coda\.": "transformer.coda.",
    r"^state_to_width\.": "transformer.C.",
    r"^final_norm\.": "transformer.ln_f.",
    r"^head\.": "lm_head.",
    r"^prelude_norm\.": "transformer.ln_prelude.",
    r"^injection\.dt": "transformer.adapter.dt_bias",
    r"^injection\.B\.weight": "transformer.adapter.B",
    r"^injection\.weight": "transformer.adapter.adapter.weight",
    r"^injection\.": "transformer.adapter.",
    r"^value_embeddings\.": "value_embeds.",
    r"\.attention\.query\.": ".attn.c_q.",
    r"\.attention\.key\.": ".attn.c_k.",
    r"\.attention\.value\.": ".attn.c_v.",
    r"\.attention\.out\.": ".attn.c_proj.",
    r"\.attention\.gate\.": ".attn.ve_gate.",
    r"\.mlp\.up\.": ".mlp.fc.",
    r"\.mlp\.down\.": ".mlp.proj.",
}
_NORMS = {
    "pre-norm": ("attention_norm", "mlp_norm"),
    "residual-norm": ("attention_norm", "attention_sum_norm", "mlp_norm", "mlp_sum_norm"),
}


def published_name(name: str, block: str) -> str:
    """Return the published name of our parameter `name` in a model with this kind of block."""
    for ours, theirs in _RENAMES.items():
        name = re.sub(ours, theirs, name)
    for number, norm in enumerate(_NORMS.get(block, ()), start=1):
        name = name.replace(f".{norm}.", f".norm_{number}.")
    return name


def load_published(
    source: str | Path, *, revision: str | None = None, own_classes: bool = False
) -> tuple[LanguageModel, RecurrenceConfig]:
    """Load a model from a folder in the published layout or from Hugging Face, such as `SandyResearch/parcae-140m`.

    Args:
        source: the folder, or OWNER/NAME of the model.
        revision: branch, tag or commit on Hugging Face.
        own_classes: import the injection or block that config.json names as `module:Class`. This runs their code, so
            use it only for folders that you trust.

    Returns:
        The model, float32 on the CPU, and the loops it was trained with.

    Raises:
        ValueError: there is no such folder or model; a file is missing or can't be read; the configuration isn't
            possible with our model; tensors are missing, unexpected or misshapen (each is named).
    """
    folder = published_folder(source, revision)
    config, recurrence = read_config(folder)
    check_own_classes(config, folder, own_classes)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build_model(config).state_dict().items()}

    # Weights: a tied head equal to the table, every tensor of its shape
    tensors = read_weights(folder)
    head, table = tensors.get("lm_head.weight"), tensors.get("transformer.wte.weight")
    if config.tied_head and head is not None and table is not None and not torch.equal(head, table):
        raise ValueError(
            f"a tied head must be the token table, but lm_head.weight and transformer.wte.weight of {folder} "
            "differ; set tie_embeddings to false in its config.json if the head is untied"
        )
    tensors = {
        name: tensor for name, tensor in tensors.items() if name not in (_TIED if config.tied_head else _DERIVED)
    }
    names = {published_name(name, config.block): name for name in shapes}
    check_tensors(tensors, {theirs: shapes[ours] for theirs, ours in names.items()}, folder)

    model = build_model(config)
    model.load_state_dict({names[theirs]: tensor.float() for theirs, tensor in tensors.items()})
    return model, recurrence


class OwnClassError(ValueError):
    """Error raised where a folder names classes of the user's own, and they aren't allowed to be imported."""


def check_own_classes(config: ModelConfig, folder: Path, allowed: bool) -> None:
    """Raise OwnClassError if `folder` names classes of the user's own that aren't `allowed` to be imported."""
    own = [kind for kind in (config.injection, config.block) if ":" in kind]
    if own and not allowed:
        raise OwnClassError(
            f"classes that a checkpoint names must be allowed before they are imported, but {folder} names {own}; if "
            "you trust it, pass own_classes=True"
        )


def save_published(
    folder: Path,
    model: LanguageModel,
    recurrence: RecurrenceConfig,
    *,
    form: Literal["safetensors", "bin"] = "safetensors",
) -> None:
    """Write `model` into `folder` in the published layout: the weights in float32, then config.json.

    Weights of the other form are removed.

    Raises:
        ValueError: the model has a setting that the layout can't say.
        OSError: the disk is full, or the like; older weights are unchanged.
    """
    from safetensors.torch import save

    if not has_published_layout(model.config):
        settings = ", ".join(f"{name}={getattr(model.config, name)}" for name in _UNPUBLISHED)
        raise ValueError(
            f"the published layout has none of the settings {', '.join(_UNPUBLISHED)}, but the model has {settings}; "
            "load the last checkpoint of its run"
        )
    folder.mkdir(parents=True, exist_ok=True)
    block = model.config.block
    tensors = {published_name(name, block): t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    with open_atomically(folder / WEIGHTS[form]) as file:
        if form == "safetensors":
            file.write(save(tensors, metadata={"format": "pt"}))
        else:
            tied = {"lm_head.weight": tensors["transformer.wte.weight"]} if model.config.tied_head else {}
            torch.save(tensors | tied, file)
    for name in WEIGHTS.values():
        if name != WEIGHTS[form]:
            (folder / name).unlink(missing_ok=True)
    write_atomically(folder / "config.json", json.dumps(config_to_published(model.config, recurrence), indent=1))


def has_published_layout(model: ModelConfig) -> bool:
    """Return whether the published layout has all of the model's settings."""
    return not any(getattr(model, name) for name in _UNPUBLISHED)


def config_to_published(model: ModelConfig, recurrence: RecurrenceConfig) -> dict[str, Any]:
    """Return the content of config.json in the published layout."""
    return {
        "_class_name": LOOPED_CLASS if model.is_looped else FIXED_CLASS,
        **{theirs: getattr(model, ours) for ours, theirs in _FIELD_NAMES.items()},
        "padded_vocab_size": model.padded_vocabulary,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": 4 * model.width,
        **_REQUIRED,
        "tie_embeddings": model.tied_head,
        "logit_softcap": model.logit_soft_cap,
        "block_class_name": _BLOCK_NAMES.get(model.block, model.block),
        "rope_settings": {"use_rope": True, "rope_condense_ratio": 1, "rope_base": model.rotary_base},
        "prelude_norm": model.prelude_norm,
        "injection_type": _INJECTION_NAMES.get(model.injection, model.injection),
        "state_init": model.state_init,
        "recurrent_embedding_dimension": model.width,
        "recurrent_intermediation_embedding_dimension": 4 * model.width,
        "mean_recurrence": recurrence.mean,
        "sampling_scheme": "fixed" if recurrence.sampling == "fixed" else _SCHEMES[recurrence.distribution],
        "mean_backprop_depth": recurrence.gradient_loops,
        "recurrent_iteration_method": "per-batch" if recurrence.sampling == "per-batch" else "per-sequence",
    }


def read_config(folder: Path) -> tuple[ModelConfig, RecurrenceConfig]:
    """Read config.json of the published layout.

    Raises:
        ValueError: it is missing, isn't JSON, isn't of this layout, lacks a key, or has a setting that our model can't
            have.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"a published checkpoint must hold a readable config.json, but {path}: {error}") from error
    kind = content.get("_class_name") if isinstance(content, dict) else None
    if kind is None and isinstance(content, dict) and isinstance(injection := content.get("injection_type"), str):
        kind = FIXED_CLASS if injection == FIXED_DEPTH else LOOPED_CLASS
    if kind not in (LOOPED_CLASS, FIXED_CLASS):
        raise ValueError(
            f"_class_name must be {LOOPED_CLASS} or {FIXED_CLASS}, or be left out beside an injection_type, but {path} "
            f"has {kind!r}"
        )
    try:
        model = _model_config(content, looped=kind == LOOPED_CLASS)
        recurrence = _recurrence_config(content)
    except KeyError as error:
        raise ValueError(f"config.json must have the key {error}, but {path} doesn't") from error
    except ValidationError as error:
        raise ValueError(
            f"a checkpoint's settings must be possible with our model, but of {path} {broken_rules(error)}"
        ) from error

    # Everything else must be as our model has it
    ours = config_to_published(model, recurrence)
    meaningless = [] if model.is_looped else ["prelude_norm", "state_init"]
    meaningless += ["recurrent_iteration_method"] if recurrence.sampling == "fixed" else []
    differing = [
        f"{key} = {content[key]!r} (ours: {value!r})"
        for key, value in ours.items()
        if key in content and key not in meaningless and not _is_same(content[key], value)
    ]
    if differing:
        raise ValueError(
            f"a checkpoint's settings must be possible with our model, but {path} has {'; '.join(differing)}"
        )
    return model, recurrence


def _model_config(content: dict[str, Any], *, looped: bool) -> ModelConfig:
    ours = {theirs: ours for ours, theirs in (*_INJECTION_NAMES.items(), *_BLOCK_NAMES.items())}
    injection = content["injection_type"]
    block = content.get("block_class_name", _BLOCK_NAMES["pre-norm"])
    kv_heads = content.get("num_key_value_heads")
    return ModelConfig(
        **{field: content[published] for field, published in _FIELD_NAMES.items()},
        injection=ours.get(injection, injection) if looped else "none",
        block=ours.get(block, block),
        prelude_norm=content.get("prelude_norm", True) if looped else True,
        state_init=content["state_init"] if looped else "like-init",
        logit_soft_cap=content.get("logit_softcap"),
        key_value_heads=None if kv_heads == content["num_attention_heads"] else kv_heads,
        tied_head=content.get("tie_embeddings") is not False,
        rotary_base=(content.get("rope_settings") or {}).get("rope_base", 50_000.0),
    )


def _recurrence_config(content: dict[str, Any]) -> RecurrenceConfig:
    distributions = {theirs: ours for ours, theirs in _SCHEMES.items()}
    scheme = content["sampling_scheme"]
    if not isinstance(scheme, str) or (scheme != "fixed" and scheme not in distributions):
        raise ValueError(f"sampling_scheme must be one of {', '.join((*distributions, 'fixed'))}, but got {scheme!r}")
    return RecurrenceConfig(
        mean=content["mean_recurrence"],
        backprop_depth=content["mean_backprop_depth"],
        sampling="fixed" if scheme == "fixed" else content["recurrent_iteration_method"],
        distribution=distributions.get(scheme, "poisson"),
    )


def _is_same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return all(theirs.get(key, value) == value for key, value in ours.items())
    return theirs == ours or (theirs is None and ours is not False)  # null means the default


def published_folder(source: str | Path, revision: str | None = None) -> Path:
    """Return a local folder unchanged, or download a model from Hugging Face.

    Raises:
        ValueError: there is no such folder or model, or a folder is to have a revision.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"a revision (--revision) is of a model on Hugging Face, but '{source}' is a folder; leave it out"
            )
        return folder
    if not is_repository(str(source)):
        raise ValueError(
            "a checkpoint must be a folder that exists or the OWNER/NAME of a model on Hugging Face, but got "
            f"'{source}'; check the path"
        )
    try:
        return fetch_model(str(source), revision)
    except HubError as error:
        raise ValueError(
            f"a checkpoint must be a folder that exists or the OWNER/NAME of a model on Hugging Face, but '{source}' "
            f"is no folder, and Hugging Face provides no model of that name ({error}); check the name and the network"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    """List the folder's weight files: safetensors before .bin, of the usual name or in an index before others."""
    for form, name in WEIGHTS.items():
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ValueError(f"an index must map tensors to files, but {index} doesn't: {error}") from error
            if missing := [each for each in names if not (folder / each).is_file()]:
                raise ValueError(
                    f"a checkpoint must hold every file of its index, but {folder} lacks {', '.join(missing)}; fetch it"
                )
            return [folder / each for each in names]
        files = sorted(path for path in folder.glob(f"*.{form}") if not path.name.startswith("."))
        if files:
            return files
    return []


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of the folder's weight files. Raises ValueError if one is missing or can't be read."""
    files = _weight_files(folder)
    if not files:
        raise ValueError(f"a checkpoint must hold weights (.safetensors or .bin), but {folder} has none")
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                from safetensors.torch import load_file

                tensors |= load_file(file)
            else:
                tensors |= torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torn files and other objects than tensors fail in many ways
            raise ValueError(
                f"weights must be plain tensors in a whole file, but {file} can't be read: {error}"
            ) from error
    others = [f"{name} ({type(value).__name__})" for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"weights must be plain tensors by name, but {folder} also holds {', '.join(others)}")
    return tensors


def check_tensors(tensors: dict[str, Tensor], shapes: dict[str, torch.Size], folder: Path) -> None:
    """Raise ValueError naming every tensor that is missing, unexpected or misshapen."""
    problems = [f"missing: {name} {tuple(shapes[name])}" for name in sorted(shapes.keys() - tensors.keys())]
    problems += [f"unexpected: {name} {tuple(tensors[name].shape)}" for name in sorted(tensors.keys() - shapes.keys())]
    problems += [
        f"misshapen: {name} is {tuple(tensors[name].shape)}, must be {tuple(shapes[name])}"
        for name in sorted(shapes.keys() & tensors.keys())
        if tensors[name].shape != shapes[name]
    ]
    if problems:
        raise ValueError(f"the weights in {folder} must be those of its config.json, but\n  " + "\n  ".join(problems))
