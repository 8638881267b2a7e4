"""Export of a trained model to a folder that Transformers loads: `export_model(source, to)`.

config.json  model.safetensors  generation_config.json  modeling_isoloop.py  README.md (the model card)
tokenizer.json  tokenizer_config.json
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from isoloop.trainer.data.stored_tokenizer import CONFIG_FILE, TOKENIZER_FILE, save_tokenizer
from isoloop.trainer.files import write_atomically
from isoloop.trainer.huggingface.model_card import model_card, training_facts
from isoloop.trainer.model.exported import CODE_FILE, WEIGHTS_FILE, Exported, is_exported, save_exported
from isoloop.trainer.model.pretrained import OwnClassError
from isoloop.trainer.quality.generation import check_recurrence, default_recurrence
from isoloop.trainer.quality.trained_model import TrainedModel, Weights, load_trained

_CARD, _GENERATION = "README.md", "generation_config.json"
_FILES = {"config.json", WEIGHTS_FILE, _GENERATION, CODE_FILE, _CARD, TOKENIZER_FILE, CONFIG_FILE}


def export_model(
    source: str | Path,
    to: str | Path,
    *,
    recurrence: int | None = None,
    weights: Weights = "last",
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    sweep: str | None = None,
) -> Path:
    """Write a trained model into the folder `to`, whole or not at all, and return the folder.

    `AutoModelForCausalLM.from_pretrained(to, trust_remote_code=True)` loads it, and `load_trained(to)`, too.

    Args:
        source: as for `load_trained`.
        to: the folder; it may be an older export, also the source itself, which is replaced. What the card says of
            the training is in its config.json, too, and stays.
        recurrence: T that the model runs unless its user says otherwise; by default that of an exported source, or
            else µ_rec, rounded.
        weights: as for `load_trained`, like `revision` and `tokenizer`.
        revision: see there.
        tokenizer: see there.
        sweep: name of the sweep that the run belongs to, for the model card.

    Raises:
        ValueError: see `load_trained`; the model has no tokenizer, or classes of the user's own; `to` holds something
            else; T isn't possible.
        OSError: the disk is full, or the like; `to` is unchanged.
    """
    folder = Path(to).expanduser().resolve()
    _check_target(folder)
    if recurrence is not None:
        check_recurrence(recurrence)
    try:
        trained = load_trained(source, weights=weights, revision=revision, tokenizer=tokenizer)
    except OwnClassError as error:
        raise ValueError(
            "an exported model carries isoloop's own injections and blocks, but this one has others; use it with "
            f"isoloop ({error})"
        ) from error
    loops = default_recurrence(trained) if recurrence is None else recurrence
    check_recurrence(loops, is_looped=trained.model.config.is_looped)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as building:
        new, old = Path(building, "new"), Path(building, "old")
        new.mkdir()
        _write(new, trained, loops, sweep)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    return Path(to).expanduser()


def _check_target(folder: Path) -> None:
    """Raise ValueError unless `folder` is absent, empty or an export without other files, and can be replaced."""
    if Path.cwd().is_relative_to(folder) or folder.is_mount():
        kind = "where a disk is mounted" if folder.is_mount() else "in which the command runs"
        raise ValueError(
            f"a model is exported into a folder that can be replaced as a whole, but {folder} is the one {kind}; name "
            f"a new folder in it, such as {folder / 'model'}"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"a model is exported into a folder, but {folder} is a file; name another place")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(names if not is_exported(folder) else names - _FILES)
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise ValueError(
            f"a model is exported into a new or empty folder, or in place of an older export, but {folder} holds "
            f"{shown}; name another folder"
        )


def _write(folder: Path, trained: TrainedModel, loops: int, sweep: str | None) -> None:
    tokenizer, config, facts = trained.require_tokenizer(), trained.model.config, training_facts(trained, sweep)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.separator)
    exported = Exported(trained.model, trained.recurrence, loops, trained.losses, trained.precision, facts)
    save_exported(folder, exported, **ids)
    save_tokenizer(folder, tokenizer, config.context)
    # Ids without a token are rows that only fill the table: they are never generated.
    unused = [*range(tokenizer.vocabulary, config.padded_vocabulary)]
    generation = ids | ({"suppress_tokens": unused} if unused else {})
    write_atomically(folder / _GENERATION, json.dumps(generation, indent=1))
    shutil.copyfile(Path(__file__).with_name(CODE_FILE), folder / CODE_FILE)
    write_atomically(folder / _CARD, model_card(trained, facts, loops))
