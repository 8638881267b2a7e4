"""Token shards: one file of token ids per part and split, written once, memory-mapped and shared by all runs.

Each document ends with the separator, so the shards tell where documents begin. That index, `train-documents.npy`, is
made where it is first needed and kept beside them.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property, lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from isoloop.trainer.config import Config
from isoloop.trainer.data.sources import Part, Split
from isoloop.trainer.data.tokenizer import Tokenizer, batch_by_size
from isoloop.trainer.files import open_atomically, write_atomically

SPLITS: tuple[Split, ...] = get_args(Split)
# Enough text at a time to keep every core busy, little enough to hold in memory.
_TEXT_BYTES = 2**22
_OPEN_SHARDS = 64
_SCANNED_TOKENS = 2**25


class Shard(Config):
    """Contribution of one part to one split; without tokens there is no file. `bytes` includes one per separator."""

    file: str
    documents: int
    tokens: int
    bytes: int
    digest: str


class Documents:
    """The documents of a split's first `tokens` tokens; the last one may be cut.

    Args:
        ends: the place behind each document's separator, shape [documents of the split], ascending.
        tokens: number of tokens.
    """

    def __init__(self, ends: NDArray[np.int64], tokens: int) -> None:
        self._ends, self.tokens = ends, tokens

    def __len__(self) -> int:
        return int(np.searchsorted(self._ends, self.tokens)) + 1 if self.tokens else 0

    def spans(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where these documents start, and how many tokens each has with its separator; shape [numbers]."""
        starts = np.where(numbers > 0, self._ends[numbers - 1], 0)
        return starts, np.minimum(self._ends[numbers], self.tokens) - starts


_PART_RECORD = TypeAdapter(dict[Split, Shard])


class Tokens:
    """The token ids of one split: shards on disk, addressed as one sequence of `len` tokens.

    A shard is mapped when it is first read, and at most 64 are mapped at a time.

    Raises:
        ValueError: a shard is missing or has a wrong length.
    """

    def __init__(self, folder: Path, dtype: np.dtype, shards: Sequence[Shard]) -> None:
        self._folder, self._shards = folder, [shard for shard in shards if shard.tokens]
        shards = self._shards
        paths = [folder / shard.file for shard in shards]
        self._starts = np.cumsum([0, *(shard.tokens for shard in shards)], dtype=np.int64)
        self._map = lru_cache(_OPEN_SHARDS)(lambda number: np.memmap(paths[number], dtype, mode="r"))
        for path, shard in zip(paths, shards, strict=True):
            size, expected = path.stat().st_size if path.exists() else 0, shard.tokens * dtype.itemsize
            if size != expected:
                raise ValueError(
                    f"the shards of a prepared corpus must be whole, but {path} has {size:,} bytes of {expected:,}; "
                    f"delete {folder} and prepare it again"
                )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def first(self, count: int) -> "Tokens":
        """Return the first `count` of these tokens."""
        prefix = copy(self)
        prefix._starts = np.minimum(self._starts, count)
        return prefix

    @property
    def separator(self) -> int:
        """The id that ends every document, and so every shard."""
        return int(self._map(0)[-1])

    @property
    def documents(self) -> Documents:
        """The documents of these tokens.

        Raises:
            ValueError: the separator is written in a text, too, so that documents can't be told apart.
        """
        return Documents(self._document_ends, len(self))

    @cached_property
    def _document_ends(self) -> NDArray[np.int64]:
        """Read the index of the split's documents, or make it if there is none."""
        split = self._shards[0].file.partition("-")[0]
        path, count = self._folder / f"{split}-documents.npy", sum(shard.documents for shard in self._shards)
        if not path.exists():
            first = np.cumsum([0, *(shard.tokens for shard in self._shards)], dtype=np.int64)
            ends = [first[number] + self._scan(number) for number in range(len(self._shards))]
            # In a folder of its own: several processes may make the same index at once.
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".building-") as building:
                with open_atomically(Path(building, path.name)) as file:
                    np.save(file, np.concatenate(ends))
                os.replace(Path(building, path.name), path)
        ends = np.load(path, mmap_mode="r")
        if ends.shape != (count,):
            raise ValueError(
                f"an index must have the {count:,} documents of its split, but {path} has {ends.size:,}; delete it: it "
                "is made again from the tokens"
            )
        return ends

    def _scan(self, number: int) -> NDArray[np.int64]:
        """Find the place behind each separator of a shard."""
        shard, tokens, separator = self._shards[number], self._map(number), self.separator
        places = range(0, shard.tokens, _SCANNED_TOKENS)
        ends = (
            np.concatenate([at + np.flatnonzero(tokens[at : at + _SCANNED_TOKENS] == separator) for at in places]) + 1
        )
        if len(ends) != shard.documents:
            raise ValueError(
                f"documents must be told apart by the separator that ends each, but {self._folder / shard.file} has "
                f"{len(ends):,} of them in {shard.documents:,} documents: text has NUL bytes, which are the separator "
                "of the tokenizer 'bytes'; remove or convert such files, use another tokenizer, set data.packing to "
                "contiguous and data.document_mask to false, or leave evaluation.documents out"
            )
        return ends

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Read the tokens `start` .. `stop` - 1 from all shards that hold them."""
        assert 0 <= start <= stop <= len(self), "positions lie within the split"
        tokens = np.empty(stop - start, np.int64)
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            first, last = int(self._starts[number]), int(self._starts[number + 1])
            end = min(stop, last)
            tokens[at - start : end - start] = self._map(number)[at - first : end - first]
            at, number = end, number + 1
        return tokens

    def count_windows(self, context: int) -> int:
        """Return the number of windows of `context` + 1 tokens; each starts at the last token of the one before."""
        return max(0, (len(self) - 1) // context)

    def windows(self, numbers: NDArray[np.int64], context: int) -> NDArray[np.int64]:
        """Read the windows with these numbers, shape [len(numbers), context + 1]."""
        windows = np.empty((len(numbers), context + 1), np.int64)
        for row, window in enumerate(numbers.tolist()):
            windows[row] = self.read(window * context, window * context + context + 1)
        return windows


def build_part(
    part: Part,
    number: int,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    max_train_tokens: int | None,
    progress: Callable[[int, int], None],
) -> dict[Split, Shard]:
    """Tokenise one part into `folder`. Its record is written last, so a part is complete or is built again.

    Args:
        part: the part with its documents.
        number: the part's number within its corpus.
        tokenizer: the tokenizer to use.
        folder: folder of the shards.
        max_train_tokens: reading stops at the end of the training document with which the tokens reach this.
        progress: called with the bytes of input read and the training tokens made of this part.

    Raises:
        ValueError: the part can't be read, or the tokenizer can't encode it.
    """
    # Token ids of both splits, a batch of documents at a time
    names: dict[Split, str] = {split: f"{split}-{number:05d}.bin" for split in SPLITS}
    with open_atomically(folder / names["train"]) as train, open_atomically(folder / names["validation"]) as validation:
        files = {"train": train, "validation": validation}
        counts = {split: np.zeros(3, np.int64) for split in SPLITS}  # documents, tokens, bytes
        digests = {split: hashlib.sha256() for split in SPLITS}
        for batch in batch_by_size(part.read(), lambda document: len(document.text), _TEXT_BYTES):
            tokens, lengths = tokenizer.encode(batch)
            is_train = np.array([document.split == "train" for document in batch])
            remaining = None if max_train_tokens is None else max_train_tokens - int(counts["train"][1])
            keep = _documents_to_keep(lengths, is_train, remaining)
            for split in SPLITS:
                selected = keep & (is_train if split == "train" else ~is_train)
                ids = tokens[np.repeat(selected, lengths)]
                files[split].write(ids.data)
                digests[split].update(ids.data)
                counts[split] += (selected.sum(), len(ids), tokenizer.token_bytes[ids].sum())
            progress(batch[-1].position, int(counts["train"][1]))
            if not keep.all():
                break

    # Shards and their record
    shards: dict[Split, Shard] = {}
    for split in SPLITS:
        documents, token_count, text = counts[split].tolist()
        shards[split] = Shard(
            file=names[split], documents=documents, tokens=token_count, bytes=text, digest=digests[split].hexdigest()
        )
        if not token_count:
            (folder / names[split]).unlink()
    write_atomically(_record_path(folder, number), _PART_RECORD.dump_json(shards, indent=1).decode())
    return shards


def read_part(folder: Path, number: int) -> dict[Split, Shard] | None:
    """Return the shards that `build_part` made of that part earlier; None if it wasn't completed."""
    path = _record_path(folder, number)
    return _PART_RECORD.validate_json(path.read_bytes()) if path.exists() else None


def _record_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.json"


def _documents_to_keep(
    lengths: NDArray[np.int64], is_train: NDArray[np.bool_], max_train_tokens: int | None
) -> NDArray[np.bool_]:
    """Keep documents up to the one with which the training tokens reach the limit; shape [documents]."""
    if max_train_tokens is None:
        return np.ones(len(lengths), bool)
    train_lengths = np.where(is_train, lengths, 0)
    return np.cumsum(train_lengths) - train_lengths < max_train_tokens
