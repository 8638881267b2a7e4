"""Token shards: one file of token ids per part and split, written once, read memory-mapped and shared by all runs."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from isoloop.trainer.data.sources import Document, Part, Split
from isoloop.trainer.data.tokenizer import Tokenizer
from isoloop.trainer.files import open_atomically, write_atomically

SPLITS: tuple[Split, ...] = get_args(Split)
_BATCH_BYTES = 2**22
_OPEN_SHARDS = 64


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What one part gave to one split. `bytes` are of text, one per separator among them; no tokens, no file."""

    file: str
    documents: int
    tokens: int
    bytes: int
    digest: str


class Tokens:
    """The token ids of one split: shards on disk, addressed as one sequence of `len` tokens.

    Shards are mapped when they are first read, and no more than 64 at a time, whatever their number.

    Raises:
        ValueError: a shard is missing or isn't as long as it should be.
    """

    def __init__(self, folder: Path, dtype: np.dtype, shards: Sequence[Shard]) -> None:
        self._folder, self._dtype = folder, dtype
        self._shards = [shard for shard in shards if shard.tokens]
        self._starts = np.cumsum([0, *(shard.tokens for shard in self._shards)], dtype=np.int64)
        self._open: OrderedDict[int, NDArray] = OrderedDict()
        for shard in self._shards:
            path = folder / shard.file
            got, rule = path.stat().st_size if path.exists() else 0, shard.tokens * dtype.itemsize
            if got != rule:
                raise ValueError(
                    f"the shards of a prepared corpus must be whole, but {path} has {got:,} bytes of {rule:,}; delete "
                    f"{folder} and prepare it again"
                )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens `start` .. `stop` - 1, from as many shards as they lie in."""
        assert 0 <= start <= stop <= len(self), "positions lie within the split"
        read = np.empty(stop - start, np.int64)
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            first, last = int(self._starts[number]), int(self._starts[number + 1])
            end = min(stop, last)
            read[at - start : end - start] = self._shard(number)[at - first : end - first]
            at, number = end, number + 1
        return read

    def count_windows(self, context: int) -> int:
        """Windows of `context` + 1 tokens, each beginning where the one before predicts its last token."""
        return max(0, (len(self) - 1) // context)

    def windows(self, chosen: NDArray[np.int64], context: int) -> NDArray[np.int64]:
        """The windows of those numbers, shape [len(chosen), context + 1]."""
        windows = np.empty((len(chosen), context + 1), np.int64)
        for row, window in enumerate(chosen.tolist()):
            windows[row] = self.read(window * context, window * context + context + 1)
        return windows

    def _shard(self, number: int) -> NDArray:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)
            self._open[number] = np.memmap(self._folder / self._shards[number].file, self._dtype, mode="r")
        return self._open[number]


def build_part(
    part: Part,
    number: int,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    max_train_tokens: int | None,
    progress: Callable[[int, int], None],
) -> dict[Split, Shard]:
    """Tokenise one part into `folder`. Its record is written last, so a part is there whole or must be built again.

    Args:
        part: the documents.
        number: the part's place among its corpus's.
        tokenizer: what makes tokens of them.
        folder: where the shards go.
        max_train_tokens: reading stops at the end of the training document that reaches it.
        progress: told (bytes of input read, training tokens made) of this part.

    Raises:
        ValueError: the part can't be read, or not by this tokenizer.
    """
    names: dict[Split, str] = {split: f"{split}-{number:05d}.bin" for split in SPLITS}
    with open_atomically(folder / names["train"]) as train, open_atomically(folder / names["validation"]) as validation:
        files = {"train": train, "validation": validation}
        counts = {split: np.zeros(3, np.int64) for split in SPLITS}  # documents, tokens, bytes
        digests = {split: hashlib.sha256() for split in SPLITS}
        for batch in _batches(part.read()):
            tokens, lengths = tokenizer.encode(batch)
            is_train = np.array([document.split == "train" for document in batch])
            left = None if max_train_tokens is None else max_train_tokens - int(counts["train"][1])
            keep = _documents_to_keep(lengths, is_train, left)
            for split in SPLITS:
                wanted = keep & (is_train if split == "train" else ~is_train)
                ids = tokens[np.repeat(wanted, lengths)]
                files[split].write(ids.data)
                digests[split].update(ids.data)
                counts[split] += (wanted.sum(), len(ids), tokenizer.token_bytes[ids].sum())
            progress(batch[-1].position, int(counts["train"][1]))
            if not keep.all():
                break
    shards: dict[Split, Shard] = {}
    for split in SPLITS:
        documents, tokens_made, text = counts[split].tolist()
        shards[split] = Shard(
            file=names[split], documents=documents, tokens=tokens_made, bytes=text, digest=digests[split].hexdigest()
        )
        if not tokens_made:
            (folder / names[split]).unlink()
    record = {split: asdict(shard) for split, shard in shards.items()}
    write_atomically(_record(folder, number), json.dumps(record, indent=1))
    return shards


def read_part(folder: Path, number: int) -> dict[Split, Shard] | None:
    """What `build_part` made earlier of the part of that number; None if it did not come to its end."""
    path = _record(folder, number)
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    return {split: Shard(**record[split]) for split in SPLITS}


def _record(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.json"


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents by the few megabytes: enough to keep every core busy, little enough to hold."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _documents_to_keep(lengths: NDArray[np.int64], is_train: NDArray[np.bool_], left: int | None) -> NDArray[np.bool_]:
    """Those up to the training document that brings the training tokens to `left`, shape [documents]."""
    if left is None:
        return np.ones(len(lengths), bool)
    before = np.cumsum(np.where(is_train, lengths, 0)) - np.where(is_train, lengths, 0)
    return before < left
