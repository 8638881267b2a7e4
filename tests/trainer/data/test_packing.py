import json

import numpy as np
import pytest

from isoloop.trainer.config import DataConfig
from isoloop.trainer.data import batches, packing, shards
from isoloop.trainer.data.batches import batch_reader, shuffle, tokens_per_pass, validation_windows
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.data.packing import RowPacker, cropped_share, pack_in_order, read_rows
from isoloop.trainer.data.shards import Documents
from isoloop.trainer.distributed import Ranks, load_share
from tests.parquet import write_parquet


@pytest.fixture(scope="module")
def texts():
    """500 texts of 0 to 60 letters; no two are alike, and so their beginnings tell them apart."""
    generator = np.random.default_rng(0)
    letters = [f"{i:03d}" + "abcdefghij"[i % 10] * min(57, int(generator.exponential(14))) for i in range(500)]
    return [letters[i] for i in generator.permutation(500)]


@pytest.fixture(scope="module")
def short_texts(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    write_parquet(folder / "a.parquet", texts[:300])
    write_parquet(folder / "b.parquet", texts[300:])
    return prepare_corpus(DataConfig(corpus=str(folder), validation_fraction=0.2), folder / "corpora")


@pytest.fixture
def packed(spec, short_texts):
    """A run with rows of 16 + 1 tokens in batches of 4."""
    return spec.model_copy(
        update={"data": DataConfig(packing="best-fit"), "data_fingerprint": short_texts.facts.fingerprint}
    )


def documents_of(lengths):
    return Documents(np.cumsum(lengths), int(np.sum(lengths)))


def slow_rows(lengths, capacity, buffer, orders):
    """Pack by looking through the whole buffer for each place: (document, tokens) of each row, and tokens dropped."""
    row, left, dropped = [], capacity, 0
    for order in orders:
        coming, waiting = list(order), []
        while coming or waiting:
            while coming and len(waiting) < buffer:
                waiting.append(coming.pop(0))
            cropped = {number: min(lengths[number], capacity) for number in waiting}
            fitting = [number for number in waiting if cropped[number] <= left]
            # Of several of one length, the one that came first fits best, and the last one is cropped.
            number = max(fitting, key=cropped.get) if fitting else min(reversed(waiting), key=cropped.get)
            kept = min(cropped[number], left)
            waiting.remove(number)
            dropped += lengths[number] - kept
            row.append((number, kept))
            left -= kept
            if not left:
                yield row, dropped
                row, left = [], capacity


@pytest.mark.parametrize("buffer", [1, 2, 7, 1000])
@pytest.mark.parametrize("longest", [3, 25, 90])
def test_rows_are_those_of_an_obvious_packer(monkeypatch, buffer, longest):
    monkeypatch.setattr(packing, "BUFFER", buffer)
    monkeypatch.setattr(packing, "_READ_AHEAD", 13)
    lengths = np.random.default_rng(longest).integers(1, longest + 1, 50)
    starts = np.cumsum(lengths) - lengths

    def order(places, number):
        return shuffle(places, 50, seed=5, epoch=number)

    orders = [order(np.arange(50), number).tolist() for number in range(4)]
    packer = RowPacker(documents_of(lengths), 20, order)
    for row, dropped in slow_rows(lengths.tolist(), 20, buffer, orders):
        assert packer.next_row() == [(starts[number], kept) for number, kept in row]
        assert packer.dropped == dropped


def test_each_pass_places_each_document_once_and_nothing_is_padded(short_texts):
    documents = short_texts.train.documents
    every, lengths = documents.spans(np.arange(len(documents)))
    packer, capacity = RowPacker(documents, 17), 17
    rows = [packer.next_row() for _ in range(400)]
    pieces = [piece for row in rows for piece in row]
    assert packer.passes >= 1
    for number in range(packer.passes):
        part = pieces[number * len(documents) : (number + 1) * len(documents)]
        assert sorted(start for start, _ in part) == every.tolist()
    assert all(sum(length for _, length in row) == capacity for row in rows)
    full = dict(zip(every.tolist(), lengths.tolist(), strict=True))
    assert packer.dropped == sum(full[start] - length for start, length in pieces)


def test_rows_hold_the_beginnings_of_texts(short_texts, texts):
    documents = short_texts.train.documents
    rows = list(pack_in_order(documents, 17))
    windows = read_rows(short_texts.train, rows, 17)
    assert (windows[:, 0] == short_texts.train.separator).all()
    beginnings = [piece for window in windows for piece in bytes(window.tolist()).split(b"\0")[1:]]
    trained = {text.encode() for text in texts}
    for beginning in beginnings:
        assert not beginning or any(text.startswith(beginning) for text in trained), beginning
    short = {text for text in trained if len(text) < 17}
    assert sum(beginning in short for beginning in beginnings) > 0.4 * len(short)  # a fifth is held out


def test_a_buffer_that_is_larger_crops_less():
    lengths = np.random.default_rng(1).integers(1, 300, 5000)
    shares = []
    for buffer in (1, 10, 100, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "BUFFER", buffer)
            shares.append(cropped_share(documents_of(lengths), 301))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.25
    assert shares[-1] < 0.15


def test_a_sample_of_the_documents_tells_what_a_pass_crops(monkeypatch):
    lengths = np.random.default_rng(2).integers(1, 300, 8000)
    monkeypatch.setattr(packing, "BUFFER", 20)  # few beside the sample, as the real ones are
    whole = cropped_share(documents_of(lengths), 201)
    monkeypatch.setattr(packing, "SAMPLED_DOCUMENTS", 2000)
    assert cropped_share(documents_of(lengths), 201) == pytest.approx(whole, rel=0.05)
    assert cropped_share(documents_of(lengths[:10]), 201) > 0  # fewer tokens than ten rows


def test_batches_go_on_from_a_position_or_from_the_start(packed, short_texts):
    """A position is plain data: it goes through a file, here of JSON."""
    steps = range(240)  # several passes
    whole = batch_reader(packed, short_texts)
    read, positions, dropped = [], [], []
    for step in steps:
        read.append(whole.read(step, range(4)))
        positions.append(json.dumps(whole.position))
        dropped.append(whole.dropped)
    assert json.loads(positions[-1])["packer"]["passes"] >= 2
    for step in (1, 37, 120, 239):
        for position in (json.loads(positions[step - 1]), None):
            reader = batch_reader(packed, short_texts, position)
            np.testing.assert_array_equal(reader.read(step, range(4)), read[step])
            assert reader.dropped == dropped[step]
            assert reader.position == json.loads(positions[step])
    other = batch_reader(packed.model_copy(update={"seed": 1}), short_texts)
    assert (other.read(0, range(4)) != read[0]).any()


@pytest.mark.parametrize("block", [7, 1024])
def test_rows_are_those_of_the_packer_in_blocks_that_are_shuffled(packed, short_texts, monkeypatch, block):
    """A block ends with the pass; within one, long documents don't come first."""
    monkeypatch.setattr(batches, "SHUFFLED_ROWS", block)
    reader, documents = batch_reader(packed, short_texts), short_texts.train.documents
    read = np.concatenate([reader.read(step, range(4)) for step in range(150)])

    def order(places, number):
        return shuffle(places, len(documents), seed=packed.seed, epoch=number)

    packer, start, moved, first_pass = RowPacker(documents, 17, order), 0, 0, 0
    while start < 500:
        rows, passes = [], packer.passes + packer.pass_is_over
        while not rows or (len(rows) < block and packer.passes == passes and not packer.pass_is_over):
            rows.append(packer.next_row())
        first_pass = first_pass or (packer.rows if packer.passes or packer.pass_is_over else 0)
        expected = read_rows(short_texts.train, rows, 17)
        found = read[start : start + len(rows)]
        assert sorted(map(bytes, found)) == sorted(map(bytes, expected[: len(found)])) or start + len(rows) > 600
        moved += (found != expected[: len(found)]).any(1).sum()
        start += len(rows)
    assert moved > 0.7 * 500
    pieces = (read[:first_pass] == short_texts.train.separator).sum(1)  # of each row of the first pass
    if block == 1024:
        assert abs(np.corrcoef(np.arange(first_pass), pieces)[0, 1]) < 0.2
        packer = RowPacker(documents, 17, order)
        unshuffled = [len(packer.next_row()) for _ in range(first_pass)]
        assert np.corrcoef(np.arange(first_pass), unshuffled)[0, 1] > 0.5


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_together_read_the_same_rows(packed, short_texts, size):
    whole = load_share(packed, batch_reader(packed, short_texts), Ranks(), 9)
    shares = [
        load_share(packed, batch_reader(packed, short_texts), Ranks(rank=rank, size=size), 9) for rank in range(size)
    ]
    rows = sorted(row.tolist() for share in shares for row in share.windows)
    assert rows == sorted(row.tolist() for row in whole.windows)
    assert all(share.position == whole.position for share in shares)


@pytest.mark.parametrize("unique", [60, 1000, None])
def test_a_pass_trains_on_as_many_tokens_as_are_counted(packed, short_texts, unique):
    """Also where the text is a few rows long: its documents fill the row in which one pass ends and the next begins."""
    tokens = short_texts.first(unique).train
    predicted = tokens_per_pass(tokens, "best-fit", 16)
    packer, documents, pieces = RowPacker(tokens.documents, 17), len(tokens.documents), []
    while len(pieces) < documents:
        pieces += packer.next_row()
    kept = sum(length for _, length in pieces[:documents])
    assert predicted == round(kept * 16 / 17)
    assert tokens_per_pass(tokens, "contiguous", 16) == len(tokens) > predicted


def test_the_last_document_of_a_prefix_is_cut(short_texts):
    whole, ends = short_texts.train.documents, []
    starts, lengths = whole.spans(np.arange(len(whole)))
    for unique in (1, int(lengths[0]), int(lengths[0]) + 1, 500):
        tokens = short_texts.first(unique).train
        count = len(tokens.documents)
        starts_now, lengths_now = tokens.documents.spans(np.arange(count))
        np.testing.assert_array_equal(starts_now, starts[:count])
        assert lengths_now.sum() == unique
        ends.append(count)
    assert ends[:3] == [1, 1, 2]


def test_validation_rows_are_packed_in_order_and_spread(short_texts):
    rows = validation_windows(short_texts, context=16, sequences=5, packing="best-fit")
    every = validation_windows(short_texts, context=16, sequences=10**6, packing="best-fit")
    assert rows.shape == (5, 17)
    np.testing.assert_array_equal(rows[[0, -1]], every[[0, -1]])
    with pytest.raises(ValueError, match="must fill a row of context"):
        validation_windows(short_texts, context=10**4, sequences=5, packing="best-fit")


def test_documents_are_found_in_shards_of_any_size(short_texts, monkeypatch):
    index = short_texts.folder / "train-documents.npy"
    found = np.load(index) if index.exists() else None
    index.unlink(missing_ok=True)
    monkeypatch.setattr(shards, "_SCANNED_TOKENS", 100)
    ends = shards.Tokens(
        short_texts.folder, np.dtype(short_texts.facts.dtype), short_texts.facts.shards["train"]
    )._document_ends
    whole = short_texts.train.read(0, len(short_texts.train))
    np.testing.assert_array_equal(ends, np.flatnonzero(whole == 0) + 1)
    assert len(ends) == short_texts.facts.train_documents
    assert found is None or (found == ends).all()


def test_text_that_has_the_separator_is_refused(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_bytes(b"some text\n" * 30 + (b"a\0b" if number else b""))
    corpus = prepare_corpus(DataConfig(corpus=str(tmp_path)), tmp_path / "corpora")
    with pytest.raises(ValueError, match=r"told apart by the separator .* text has NUL bytes"):
        assert corpus.train.documents
    held_out = prepare_corpus(DataConfig(corpus=str(tmp_path / "0.txt")), tmp_path / "corpora").validation
    corpus.validation = held_out
    corpus.check_documents(held_out_only=True)
    with pytest.raises(ValueError, match=r"or leave evaluation\.documents out"):
        corpus.check_documents()


def test_an_index_of_another_split_is_refused(texts, tmp_path):
    write_parquet(tmp_path / "a.parquet", texts[:50])
    corpus = prepare_corpus(DataConfig(corpus=str(tmp_path), validation_fraction=0.2), tmp_path / "corpora")
    np.save(corpus.folder / "train-documents.npy", np.arange(3))
    with pytest.raises(ValueError, match=r"must have the \d+ documents of its split, but .* has 3; delete it"):
        assert corpus.train.documents


def test_a_run_is_another_if_its_text_is_packed_but_its_corpus_is_the_same(spec):
    packed = spec.model_copy(update={"data": DataConfig(packing="best-fit")})
    masked = spec.model_copy(update={"data": DataConfig(document_mask=True)})
    assert len({spec.run_id, packed.run_id, masked.run_id}) == 3
    assert DataConfig(packing="best-fit", document_mask=True, unique_tokens=9).whole == DataConfig()
    assert "packing" not in DataConfig().model_dump()
