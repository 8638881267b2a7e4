import os

import numpy as np
import pytest

from isoloop.trainer.data import shards
from isoloop.trainer.data.shards import Shard, Tokens, build_part, read_part
from isoloop.trainer.data.sources import Document
from isoloop.trainer.data.tokenizer import ByteTokenizer


class Words:
    """A part of documents 'd0', 'd11', 'd222', ...; every fourth is held out."""

    name, size = "words", 1000

    def __init__(self, count=12):
        self.count = count

    def read(self):
        for i in range(self.count):
            yield Document(f"row {i}", b"d" + str(i).encode() * (i + 1), "train" if i % 4 else "validation", i + 1)


def build(folder, *, count=12, limit=None, progress=lambda read, made: None):
    return build_part(Words(count), 3, ByteTokenizer(), folder, max_train_tokens=limit, progress=progress)


def texts(shard, folder):
    return (folder / shard.file).read_bytes().split(b"\0")[:-1]


def make(folder, sizes, dtype="u1"):
    """Shards of those many tokens, counted through from 0."""
    made, start = [], 0
    for number, size in enumerate(sizes):
        np.arange(start, start + size).astype(dtype).tofile(folder / f"{number}.bin")
        made.append(Shard(file=f"{number}.bin", documents=1, tokens=size, bytes=size, digest=""))
        start += size
    return Tokens(folder, np.dtype(dtype), made)


def test_a_part_goes_to_its_splits(tmp_path):
    made = build(tmp_path)
    every = [document.text for document in Words().read()]
    assert texts(made["train"], tmp_path) == [text for i, text in enumerate(every) if i % 4]
    assert texts(made["validation"], tmp_path) == every[::4]
    for shard in made.values():
        assert shard.tokens == shard.bytes == (tmp_path / shard.file).stat().st_size
        assert shard.documents == len(texts(shard, tmp_path))
    assert read_part(tmp_path, 3) == made
    assert read_part(tmp_path, 4) is None


@pytest.mark.parametrize("batch_bytes", [1, 30, 10**6])
def test_what_a_part_holds_does_not_depend_on_its_batches(tmp_path, monkeypatch, batch_bytes):
    whole = build(tmp_path)
    files = {split: texts(shard, tmp_path) for split, shard in whole.items()}
    monkeypatch.setattr(shards, "_TEXT_BYTES", batch_bytes)
    for limit in (None, 1, 20, 21, 60, 61, 10**6):
        made = build(tmp_path, limit=limit)
        kept = made["train"].documents
        lengths = [len(text) + 1 for text in files["train"]]
        assert sum(lengths[: kept - 1]) < (limit or 10**6)  # reading stopped no later
        assert made["train"].tokens == sum(lengths[:kept])
        assert kept == len(lengths) or made["train"].tokens >= limit  # and no earlier
        rows = 12 if kept == len(lengths) else kept + (kept + 2) // 3  # up to the last training document that is kept
        assert texts(made["validation"], tmp_path) == files["validation"][: (rows + 3) // 4]
        if limit is None:
            assert made == whole


def test_a_split_without_documents_has_no_file(tmp_path):
    made = build(tmp_path, count=1)
    assert made["train"].tokens == 0
    assert not (tmp_path / made["train"].file).exists()
    assert len(Tokens(tmp_path, np.dtype("u1"), [made["train"]])) == 0
    assert Tokens(tmp_path, np.dtype("u1"), [made["train"]]).count_windows(16) == 0


def test_an_unfinished_part_is_absent(tmp_path):
    def killed(read, made):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, progress=killed)
    assert read_part(tmp_path, 3) is None
    assert not list(tmp_path.glob("*.bin"))
    assert build(tmp_path) == read_part(tmp_path, 3)


@pytest.mark.parametrize("sizes", [[100], [1, 99], [33, 0, 34, 33], [1] * 100])
def test_a_split_is_one_sequence_whatever_its_shards(tmp_path, sizes, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 2)
    tokens = make(tmp_path, sizes)
    assert len(tokens) == 100
    for start, stop in ((0, 100), (0, 0), (100, 100), (32, 34), (66, 68), (99, 100), (10, 90)):
        np.testing.assert_array_equal(tokens.read(start, stop), np.arange(start, stop))
    assert tokens.read(0, 1).dtype == np.int64
    assert tokens.count_windows(10) == 9
    np.testing.assert_array_equal(tokens.windows(np.array([8, 3]), 10), [np.arange(80, 91), np.arange(30, 41)])
    assert tokens._map.cache_info().currsize <= 2


def test_wide_tokens(tmp_path):
    tokens = make(tmp_path, [70_000, 10], "<u4")
    np.testing.assert_array_equal(tokens.read(65_530, 70_010), np.arange(65_530, 70_010))


def test_beyond_four_billion_tokens(tmp_path):
    """Files with holes: they take no room, and every position beyond 2^32 is a real one."""
    sizes = [2**32 + 5, 2**31]
    for number, size in enumerate(sizes):
        with (tmp_path / f"{number}.bin").open("wb") as file:
            os.truncate(file.fileno(), size)
    with (tmp_path / "0.bin").open("r+b") as file:
        file.seek(2**32 - 2)
        file.write(bytes(range(1, 8)))
    with (tmp_path / "1.bin").open("r+b") as file:
        file.write(bytes([8, 9]))
        file.seek(2**31 - 1)
        file.write(bytes([77]))
    tokens = Tokens(
        tmp_path,
        np.dtype("u1"),
        [Shard(file=f"{i}.bin", documents=1, tokens=size, bytes=size, digest="") for i, size in enumerate(sizes)],
    )
    assert len(tokens) == 2**32 + 2**31 + 5
    assert tokens.read(2**32 - 3, 2**32 + 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    context = 1024
    windows = tokens.count_windows(context)
    assert windows == (2**32 + 2**31 + 4) // 1024
    middle, last = tokens.windows(np.array([2**22, windows - 1]), context)
    assert middle[:8].tolist() == [3, 4, 5, 6, 7, 8, 9, 0]
    assert tokens.read(len(tokens) - 2, len(tokens)).tolist() == [0, 77]
    assert last.shape == (context + 1,)


@pytest.mark.parametrize("spoil", [lambda file: file.unlink(), lambda file: os.truncate(file, 5)])
def test_a_shard_that_is_not_whole_is_refused(tmp_path, spoil):
    make(tmp_path, [10, 10])
    spoil(tmp_path / "1.bin")
    shards_of = [Shard(file=f"{i}.bin", documents=1, tokens=10, bytes=10, digest="") for i in range(2)]
    with pytest.raises(ValueError, match=r"must be whole, but .*1\.bin has [05] bytes of 10; delete"):
        Tokens(tmp_path, np.dtype("u1"), shards_of)
