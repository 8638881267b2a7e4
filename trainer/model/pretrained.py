"""The layout of the published checkpoints (sandyresearch/parcae): a folder that holds

    config.json            `_class_name` and the architecture
    model.safetensors      or pytorch_model.bin: the weights, named as in the published code

Nothing is unpickled but plain tensors. The fixed-depth Transformer and blocks with residual norms have no published
checkpoint that we have seen: their names below follow the same scheme.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from isoloop.trainer.config import ModelConfig, RecurrenceConfig
from isoloop.trainer.files import write_atomically
from isoloop.trainer.hub import HubError, fetch_model, is_repository
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.language_model import LanguageModel

LOOPED_CLASS, FIXED_CLASS = "ParcaeConfig", "FixedDepthConfig"
WEIGHTS = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
_INJECTIONS = {"diagonal": "diagonal", "concat": "linear", "addition": "add"}
_BLOCKS = {"pre-norm": "TransformerPreNormBlock", "residual-norm": "SandwichBlock"}
# Tensors of a published file that our model derives: the head is tied, the rotary table is computed.
_DERIVED = ("lm_head.weight", "freqs_cis")

# What a published configuration may not say otherwise, because the model is just that.
_FIXED = {
    "bias": False,
    "qk_bias": False,
    "tie_embeddings": True,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "BaseMLP",
    "nonlin_name": "ReLU2",
    "qk_norm": True,
    "logit_softcap": None,
    "clip_qkv": None,
    "padding_multiple": 64,
}

_PARTS = (
    ("embedding.", "transformer.wte."),
    ("prelude.", "transformer.prelude."),
    ("core.", "transformer.core_block."),
    ("coda.", "transformer.coda."),
    ("state_to_width.", "transformer.C."),
    ("final_norm.", "transformer.ln_f."),
    ("prelude_norm.", "transformer.ln_prelude."),
    ("injection.dt", "transformer.adapter.dt_bias"),
    ("injection.B.weight", "transformer.adapter.B"),
    ("injection.weight", "transformer.adapter.adapter.weight"),
    ("injection.", "transformer.adapter."),
    ("value_embeddings.", "value_embeds."),
)
_IN_BLOCKS = (
    (".attention.query.", ".attn.c_q."),
    (".attention.key.", ".attn.c_k."),
    (".attention.value.", ".attn.c_v."),
    (".attention.out.", ".attn.c_proj."),
    (".attention.gate.", ".attn.ve_gate."),
    (".mlp.up.", ".mlp.fc."),
    (".mlp.down.", ".mlp.proj."),
)
_NORMS = {
    "pre-norm": ("attention_norm", "mlp_norm"),
    "residual-norm": ("attention_norm", "attention_sum_norm", "mlp_norm", "mlp_sum_norm"),
}


def published_name(name: str, block: str) -> str:
    """The published name of our parameter `name`; `block` is the model's kind of block."""
    for ours, theirs in _PARTS:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for ours, theirs in _IN_BLOCKS:
        name = name.replace(ours, theirs)
    for number, norm in enumerate(_NORMS.get(block, ()), start=1):
        name = name.replace(f".{norm}.", f".norm_{number}.")
    return name


def load_published(
    source: str | Path, *, revision: str | None = None, own_classes: bool = False
) -> tuple[LanguageModel, RecurrenceConfig]:
    """Read a folder in the published layout, or a model of the Hugging Face hub such as `SandyResearch/parcae-140m`.

    Args:
        source: the folder or the id.
        revision: branch, tag or commit on the hub.
        own_classes: import the injection or block that config.json names as `module:Class`. That runs code: only for
            folders that you trust.

    Returns:
        The model, float32 on the CPU, and the loops it was trained with.

    Raises:
        ValueError: no such folder or id; a file is missing or can't be read; the configuration asks for what our model
            hasn't; tensors are missing, unexpected or misshapen (each is named).
    """
    folder = _folder(source, revision)
    model_config, recurrence = read_config(folder)
    own = [kind for kind in (model_config.injection, model_config.block) if ":" in kind]
    if own and not own_classes:
        raise ValueError(
            f"a checkpoint may name classes to import only where that is asked for, but {folder} names {own}; "
            "if you trust it, pass own_classes=True"
        )
    with torch.device("meta"):
        model = build_model(model_config)
    tensors = _read_weights(folder)
    head, table = tensors.get("lm_head.weight"), tensors.get("transformer.wte.weight")
    if head is not None and table is not None and not torch.equal(head, table):
        raise ValueError(
            f"the head must be tied to the token table, but lm_head.weight and transformer.wte.weight of {folder} "
            "differ; an untied model can't be loaded"
        )
    wanted = {published_name(name, model_config.block): name for name in model.state_dict()}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in _DERIVED}
    _check_tensors(tensors, {theirs: model.state_dict()[ours].shape for theirs, ours in wanted.items()}, folder)
    loaded = build_model(model_config)
    loaded.load_state_dict({wanted[name]: tensor.float() for name, tensor in tensors.items()})
    return loaded, recurrence


def save_published(
    folder: Path,
    model: LanguageModel,
    recurrence: RecurrenceConfig,
    *,
    form: Literal["safetensors", "bin"] = "safetensors",
) -> None:
    """Write `model` into `folder` in the published layout; config.json comes last.

    Weights are saved as they are, in float32. Older weights of the other form go.

    Raises:
        OSError: the disk is full, or the like; older weights are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    block = model.config.block
    tensors = {published_name(name, block): t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    partial = folder / f".{WEIGHTS[form]}.partial"
    try:
        if form == "safetensors":
            _save_safetensors(tensors, partial)
        else:
            torch.save(tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}, partial)
        for name in WEIGHTS.values():
            (folder / name).unlink(missing_ok=True)
        partial.replace(folder / WEIGHTS[form])
    finally:
        partial.unlink(missing_ok=True)
    write_atomically(folder / "config.json", json.dumps(config_to_published(model.config, recurrence), indent=1))


def _save_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    """As `save_file`, but an OSError is one, which the library tells in words alone."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def config_to_published(model: ModelConfig, recurrence: RecurrenceConfig) -> dict[str, Any]:
    """config.json of the published layout."""
    return {
        "_class_name": LOOPED_CLASS if model.is_looped else FIXED_CLASS,
        "block_size": model.context,
        "vocab_size": model.vocabulary,
        "padded_vocab_size": model.padded_vocabulary,
        "n_embd": model.width,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.heads,
        "intermediate_size": 4 * model.width,
        **_FIXED,
        "block_class_name": _BLOCKS.get(model.block, model.block),
        "norm_eps": model.norm_eps,
        "rope_settings": {"use_rope": True, "rope_condense_ratio": 1, "rope_base": model.rotary_base},
        "prelude_norm": model.prelude_norm,
        "injection_type": _INJECTIONS.get(model.injection, model.injection),
        "state_init": model.state_init,
        "recurrent_embedding_dimension": model.width,
        "recurrent_intermediation_embedding_dimension": 4 * model.width,
        "n_layers_in_prelude": model.prelude_layers,
        "n_layers_in_recurrent_block": model.core_layers,
        "n_layers_in_coda": model.coda_layers,
        "mean_recurrence": recurrence.mean,
        "sampling_scheme": "fixed" if recurrence.sampling == "fixed" else "poisson-truncated-full",
        "mean_backprop_depth": recurrence.gradient_loops,
        "recurrent_iteration_method": "per-batch" if recurrence.sampling == "per-batch" else "per-sequence",
    }


def read_config(folder: Path) -> tuple[ModelConfig, RecurrenceConfig]:
    """Read config.json of the published layout.

    Raises:
        ValueError: it is missing, isn't JSON, isn't of this layout, lacks a key, or asks for what our model hasn't.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"a published checkpoint must hold a readable config.json, but {path}: {error}") from error
    kind = content.get("_class_name") if isinstance(content, dict) else None
    if kind not in (LOOPED_CLASS, FIXED_CLASS):
        raise ValueError(f"_class_name must be {LOOPED_CLASS} or {FIXED_CLASS}, but {path} says {kind!r}")
    try:
        model = _model_config(content, looped=kind == LOOPED_CLASS)
        recurrence = _recurrence_config(content)
    except KeyError as error:
        raise ValueError(f"config.json must say {error}, but {path} doesn't") from error
    ours = config_to_published(model, recurrence)
    if not model.is_looped:
        ours = {key: value for key, value in ours.items() if key not in ("prelude_norm", "state_init")}
    if recurrence.sampling == "fixed":
        ours.pop("recurrent_iteration_method")  # it says how to draw, and nothing is drawn
    differing = [
        f"{key} = {content[key]!r} (ours: {ours[key]!r})"
        for key in ours
        if key in content and not _same(content[key], ours[key])
    ]
    if differing:
        raise ValueError(f"our model can't be what {path} asks for: {'; '.join(differing)}")
    return model, recurrence


def _model_config(content: dict[str, Any], *, looped: bool) -> ModelConfig:
    theirs = {published: ours for ours, published in (*_INJECTIONS.items(), *_BLOCKS.items())}
    injection = content["injection_type"]
    block = content.get("block_class_name", _BLOCKS["pre-norm"])
    return ModelConfig(
        width=content["n_embd"],
        heads=content["num_attention_heads"],
        prelude_layers=content["n_layers_in_prelude"],
        core_layers=content["n_layers_in_recurrent_block"],
        coda_layers=content["n_layers_in_coda"],
        context=content["block_size"],
        vocabulary=content["vocab_size"],
        injection=theirs.get(injection, injection) if looped else "none",
        block=theirs.get(block, block),
        prelude_norm=content.get("prelude_norm", True) if looped else True,
        state_init=content["state_init"] if looped else "like-init",
        rotary_base=(content.get("rope_settings") or {}).get("rope_base", 50_000.0),
        norm_eps=content["norm_eps"],
    )


def _recurrence_config(content: dict[str, Any]) -> RecurrenceConfig:
    schemes = {"poisson-truncated-full": content["recurrent_iteration_method"], "fixed": "fixed"}
    scheme = content["sampling_scheme"]
    if not isinstance(scheme, str) or scheme not in schemes:
        raise ValueError(f"sampling_scheme must be one of {', '.join(schemes)}, but got {scheme!r}")
    return RecurrenceConfig(
        mean=content["mean_recurrence"], backprop_depth=content["mean_backprop_depth"], sampling=schemes[scheme]
    )


def _same(said: Any, ours: Any) -> bool:
    if isinstance(said, dict) and isinstance(ours, dict):
        return all(said.get(key, value) == value for key, value in ours.items())
    return said == ours or (said is None and ours is not False)  # null: whatever is the default


def _folder(source: str | Path, revision: str | None) -> Path:
    """A local folder as it is; a hub id fetched."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not is_repository(str(source)):
        raise ValueError(f"a checkpoint must be a folder that exists or a hub id OWNER/NAME, but got '{source}'")
    try:
        return fetch_model(str(source), revision)
    except HubError as error:
        raise ValueError(
            f"'{source}' is no folder here, and the Hugging Face hub gave no model of that name ({error}); check the "
            "name and the network"
        ) from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's weight files; of several kinds safetensors win."""
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
        if files:
            break
    else:
        raise ValueError(f"a checkpoint must hold weights (.safetensors or .bin), but {folder} has none")
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                from safetensors.torch import load_file

                tensors |= load_file(file)
            else:
                tensors |= torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torn files fail in many ways, and so does what isn't plain tensors
            raise ValueError(
                f"weights must be plain tensors in a whole file, but {file} can't be read: {error}"
            ) from error
    others = [f"{name} ({type(value).__name__})" for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"weights must be plain tensors by name, but {folder} also holds {', '.join(others)}")
    return tensors


def _check_tensors(tensors: dict[str, Tensor], wanted: dict[str, torch.Size], folder: Path) -> None:
    """Name every tensor that is missing, unexpected or of another shape."""
    problems = [f"missing: {name} {tuple(wanted[name])}" for name in sorted(wanted.keys() - tensors.keys())]
    problems += [f"unexpected: {name} {tuple(tensors[name].shape)}" for name in sorted(tensors.keys() - wanted.keys())]
    problems += [
        f"misshapen: {name} is {tuple(tensors[name].shape)}, must be {tuple(wanted[name])}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name]
    ]
    if problems:
        raise ValueError(f"the weights in {folder} must be those of its config.json, but\n  " + "\n  ".join(problems))
