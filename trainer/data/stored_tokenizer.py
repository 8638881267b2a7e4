"""Tokenizers in a folder of their own, as Transformers reads them: beside the weights of a model.

tokenizer.json          the content of a BPE's; for bytes one of 256 ids without merges
tokenizer_config.json   the separator, as eos_token and bos_token; and that a separator written in a text is text
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoloop.trainer import hub
from isoloop.trainer.config import BYTE_VOCABULARY, DataConfig
from isoloop.trainer.data.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer, byte_alphabet, special_tokens
from isoloop.trainer.files import write_atomically

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
DEFAULT_SEPARATOR: str = DataConfig.model_fields["separator"].default


def save_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """Write the tokenizer of a model with `context` tokens into `folder`, which exists."""
    if isinstance(tokenizer, BpeTokenizer):
        content, separator = json.loads(tokenizer.content), tokenizer.separator_text
        # Training text was encoded without what these would change.
        content |= {"post_processor": None, "truncation": None, "padding": None}
    else:
        assert isinstance(tokenizer, ByteTokenizer)
        content, separator = _byte_level_content(), DEFAULT_SEPARATOR
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": separator,
        "eos_token": separator,
        "pad_token": separator,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": context,
    }
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=1))
    write_atomically(folder / TOKENIZER_FILE, json.dumps(content, ensure_ascii=False))


def read_tokenizer(source: str | Path, separator: str | None = None) -> Tokenizer:
    """Read a tokenizer.json, alone or in a folder, or that of an OWNER/NAME on Hugging Face.

    Args:
        source: the file, folder or name.
        separator: the special token that ends a document. By default the eos_token or bos_token of the
            tokenizer_config.json beside it; without that the usual one, `<|endoftext|>`; else its only special token.

    Raises:
        ValueError: there is none; it isn't byte-level BPE; its separator can't be known.
    """
    path = _path(source)
    try:
        content = path.read_text(encoding="utf-8")
        is_bytes = _is_byte_level_content(json.loads(content))
    except (OSError, ValueError) as error:
        raise ValueError(f"a tokenizer must be a tokenizer.json that can be read, but {path} isn't: {error}") from error
    if is_bytes:
        return ByteTokenizer()
    return BpeTokenizer(str(source), content, separator or _separator(path, special_tokens(str(source), content)))


def _path(source: str | Path) -> Path:
    """Return the local path of the tokenizer.json that `source` names."""
    path = Path(source).expanduser()
    path = path / TOKENIZER_FILE if path.is_dir() else path
    reason = ""
    if not path.is_file() and hub.is_repository(str(source)) and path.suffix != ".json":
        try:
            path = hub.fetch_file(str(source), TOKENIZER_FILE, kind="model")
        except hub.HubError as error:
            reason = f", and Hugging Face has no such tokenizer ({error})"
        else:
            _fetch_config(str(source))
    if not path.is_file():
        raise ValueError(
            "a tokenizer must be a tokenizer.json, a folder that holds one, or the OWNER/NAME of one on Hugging Face, "
            f"but got '{source}': there is no such file{reason}; check the path"
        )
    return path


def _fetch_config(repository: str) -> None:
    """Download the tokenizer_config.json beside a tokenizer.json, if there is one: both lie in one folder then."""
    try:
        hub.fetch_file(repository, CONFIG_FILE, kind="model")
    except hub.HubError:
        return  # many repositories have none


def _separator(path: Path, special: Sequence[str]) -> str:
    """Find the special token that ends a document."""
    config: dict[str, Any] = {}
    if (beside := path.with_name(CONFIG_FILE)).is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{beside} must be JSON, but it isn't: {error}") from error
    for key in ("eos_token", "bos_token"):
        token = config.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if token in special:
            return str(token)
    if DEFAULT_SEPARATOR in special:
        return DEFAULT_SEPARATOR
    if len(special) == 1:
        return special[0]
    raise ValueError(
        f"the special token that ends a document must be known, but {path} has {', '.join(special) or 'none'}; name it "
        f'in {beside}: {{"eos_token": "..."}}'
    )


def _byte_level_content() -> dict[str, Any]:
    """Return the tokenizer.json in which an id is a byte.

    Byte 0 is the separator, so it has the separator's name. In a text it is unknown by the name of its own, which gives
    the same id.
    """
    vocabulary = {character: byte for character, byte in byte_alphabet().items() if byte} | {DEFAULT_SEPARATOR: 0}
    added = {"id": 0, "content": DEFAULT_SEPARATOR, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "unk_token": DEFAULT_SEPARATOR, "fuse_unk": False, "byte_fallback": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model | {"vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])), "merges": []},
    }


def _is_byte_level_content(content: Any) -> bool:
    """Return whether a tokenizer.json is that of bytes."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("merges") or len(model.get("vocab", ())) != BYTE_VOCABULARY:
        return False
    return bool(model["vocab"] == _byte_level_content()["model"]["vocab"])
