import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoloop.trainer.config import DataConfig
from isoloop.trainer.data import corpus as data
from isoloop.trainer.data import sources as documents
from isoloop.trainer.data.batches import batch_windows
from isoloop.trainer.data.corpus import Corpus, CorpusRequest, prepare_corpus
from isoloop.trainer.data.shards import build_part
from isoloop.trainer.data.sources import open_source
from tests.parquet import document, write_parquet
from tests.trainer.data.test_sources import FakeHub


def text_of(tokens):
    return bytes(tokens.read(0, len(tokens)).astype("u1"))


def test_all_files_but_one_go_to_one_split(corpus, text_folder):
    train, validation = text_of(corpus.train), text_of(corpus.validation)
    texts = [file.read_bytes() for file in text_folder.iterdir()]
    inside = [(text in train, text in validation) for text in texts]
    assert sum(a == b for a, b in inside) == 1  # the file that is cut, for whole files would hold out too much
    assert (True, True) not in inside
    assert sum(b for _, b in inside) == corpus.facts.validation_documents - 1  # the cut part is a document, too
    assert sum(a for a, _ in inside) == corpus.facts.train_documents - 1
    assert train.count(b"\0") == corpus.facts.train_documents
    assert len(train) == corpus.facts.train_tokens


def test_the_place_does_not_matter_but_the_text_does(text_folder, corpus, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(text_folder, copy)
    moved = prepare_corpus(DataConfig(corpus=str(copy)), tmp_path / "cache")
    assert moved.facts.fingerprint == corpus.facts.fingerprint
    assert text_of(moved.train) == text_of(corpus.train)
    (copy / "file0.txt").write_text("other")
    assert prepare_corpus(DataConfig(corpus=str(copy)), tmp_path / "cache").facts.fingerprint != moved.facts.fingerprint


def test_the_standard_library(tmp_path):
    corpus = prepare_corpus(DataConfig(), tmp_path)
    assert corpus.facts.train_tokens > 3_000_000
    assert 0.03 < corpus.facts.validation_tokens / corpus.facts.train_tokens < 0.15
    assert b"def " in text_of(corpus.validation)
    assert json.loads((corpus.folder / "corpus.json").read_text())["name"] == "stdlib"


def test_a_lone_file_is_cut(tmp_path):
    file = tmp_path / "one.log"
    file.write_text("0123456789" * 100)
    facts = prepare_corpus(DataConfig(corpus=str(file), validation_fraction=0.2), tmp_path / "cache").facts
    assert (facts.train_tokens, facts.validation_tokens) == (801, 201)


def prepare_fingerprint(folder: str, cache: str) -> str:
    return prepare_corpus(DataConfig(corpus=folder), Path(cache)).facts.fingerprint


def test_two_processes_may_build_it_at_once(text_folder, tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        built = list(pool.map(prepare_fingerprint, [str(text_folder)] * 4, [str(tmp_path)] * 4))
    assert len(set(built)) == 1
    assert {folder.name for folder in tmp_path.iterdir()} == {built[0], "requests"}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "must be 'stdlib', a file, folder or glob that exists"),
        ({}, "must hold text"),
        ({"a.txt": ""}, "must hold text"),
        ({"a.bin": "text in a file of another suffix"}, "must hold text"),
    ],
)
def test_no_text_is_refused(tmp_path, content, rule):
    folder = tmp_path / "text"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(ValueError, match=rule):
        prepare_corpus(DataConfig(corpus=str(folder)), tmp_path / "cache")


def test_too_little_text_is_refused(tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("a few words, and no more than that")
    corpus = prepare_corpus(DataConfig(corpus=str(file)), tmp_path / "cache")
    with pytest.raises(ValueError, match="validation split must hold at least context"):
        corpus.check(context=16, vocabulary=256)
    with pytest.raises(ValueError, match=r"model.vocabulary must hold every token"):
        corpus.check(context=1, vocabulary=255)


def test_text_is_packed_in_the_order_of_hashed_names(text_folder, corpus):
    """The documented rule, said again: whoever holds the same files gets the same bytes."""
    files = sorted(text_folder.iterdir(), key=lambda file: hashlib.sha256(file.name.encode()).digest())
    total = sum(file.stat().st_size for file in files)
    held_out = 1
    while sum(file.stat().st_size for file in files[:held_out]) < 0.05 * total:
        held_out += 1
    *whole, last = [file.read_bytes() for file in files[:held_out]]
    *before, end = text_of(corpus.validation)[:-1].split(b"\0")
    start, *after = text_of(corpus.train)[:-1].split(b"\0")
    assert (before, start + end) == (whole, last)
    assert start.endswith(b"\n")
    assert after == [file.read_bytes() for file in files[held_out:]]
    assert sum(map(len, [*before, end])) / total == pytest.approx(0.05, rel=0.1)


def test_a_lone_file_is_not_cut_within_a_character(tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("世界" * 50)
    for fraction in (0.01, 0.1, 0.11, 0.12, 0.99):
        corpus = prepare_corpus(DataConfig(corpus=str(file), validation_fraction=fraction), tmp_path / "cache")
        parts = [text_of(tokens)[:-1].decode() for tokens in (corpus.train, corpus.validation)]
        assert "".join(parts) == "世界" * 50
        assert all(parts)


BPE = {"tokenizer": "bpe", "tokenizer_vocabulary": 400, "validation_fraction": 0.1}


def parquet_config(folder, **more):
    return DataConfig(corpus=str(folder), validation_fraction=0.1, **more)


def contents(folder):
    """Every file of a prepared corpus."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_parquet_becomes_shards(parquet_folder, tmp_path):
    corpus = prepare_corpus(parquet_config(parquet_folder), tmp_path)
    facts = corpus.facts
    train, validation = text_of(corpus.train).split(b"\0")[:-1], text_of(corpus.validation).split(b"\0")[:-1]
    assert sorted(text.decode() for text in train + validation) == sorted(document(i) for i in range(300))
    assert (len(train), len(validation)) == (facts.train_documents, facts.validation_documents)
    assert (facts.train_tokens, facts.validation_tokens) == (len(corpus.train), len(corpus.validation))
    assert (facts.train_bytes, facts.validation_bytes) == (facts.train_tokens, facts.validation_tokens)
    assert (facts.tokenizer, facts.vocabulary) == ("bytes", 256)
    assert len(list(corpus.folder.glob("train-*.bin"))) == 3  # one for each parquet file


def test_bpe_corpus(parquet_folder, tmp_path):
    corpus = prepare_corpus(DataConfig(corpus=str(parquet_folder), **BPE), tmp_path)
    as_bytes = prepare_corpus(parquet_config(parquet_folder), tmp_path)
    facts = corpus.facts
    assert (facts.tokenizer, facts.vocabulary, corpus.token_bytes.shape) == ("bpe", 400, (400,))
    assert facts.train_bytes == as_bytes.facts.train_tokens  # a separator counts as one byte, there as here
    assert facts.train_documents == as_bytes.facts.train_documents
    assert facts.train_tokens < 0.6 * facts.train_bytes
    assert corpus.token_bytes[corpus.train.read(0, len(corpus.train))].sum() == facts.train_bytes
    assert facts.fingerprint != as_bytes.facts.fingerprint
    # What was trained can be loaded, and makes the same tokens.
    loaded = prepare_corpus(
        DataConfig(
            corpus=str(parquet_folder), validation_fraction=0.1, tokenizer=str(corpus.folder / "tokenizer.json")
        ),
        tmp_path / "other",
    )
    assert loaded.facts.fingerprint == facts.fingerprint
    with pytest.raises(ValueError, match=r"bpe, has 400, but got 256; set model.vocabulary=400"):
        corpus.check(context=16, vocabulary=256)
    corpus.check(context=16, vocabulary=400)


def test_the_fingerprint_is_of_the_tokens_alone(parquet_folder, tmp_path, monkeypatch):
    def fingerprint(folder, cache="cache", **more):
        return prepare_corpus(parquet_config(folder, **more), tmp_path / cache).facts.fingerprint

    first = fingerprint(parquet_folder)
    copy = tmp_path / "elsewhere"
    shutil.copytree(parquet_folder, copy)
    os.utime(copy / "a.parquet", (1, 1))
    assert fingerprint(copy) == first
    FakeHub(copy, monkeypatch)
    assert fingerprint("owner/name", cache="hub") == first
    assert fingerprint(copy, files="[ab]*") != first
    assert fingerprint(copy, max_tokens=25_000) != first
    write_parquet(copy / "a.parquet", [document(number) for number in range(99)] + ["another"])
    assert fingerprint(copy) != first
    write_parquet(copy / "a.parquet", [document(number) for number in range(100)], column="body")
    (copy / "b.parquet").unlink()
    (copy / "more/c.parquet").unlink()
    assert fingerprint(copy, column="body") == fingerprint(parquet_folder, files="a.parquet")


def test_the_same_tokens_are_stored_once(parquet_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(parquet_folder, copy)
    built = [prepare_corpus(parquet_config(folder), tmp_path / "cache") for folder in (parquet_folder, copy)]
    assert built[0].folder == built[1].folder
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {built[0].folder.name, "requests"}
    assert not list((tmp_path / "cache").glob("requests/*/building"))


def test_a_prepared_corpus_is_opened_without_reading_text(parquet_folder, tmp_path, monkeypatch):
    config = DataConfig(corpus=str(parquet_folder), **BPE)
    assert CorpusRequest(config, tmp_path).find() is None
    first = prepare_corpus(config, tmp_path)

    def read(*arguments, **options):
        raise AssertionError("read again")

    for where, name in ((documents._ParquetPart, "read"), (data, "build_part"), (data, "make_tokenizer")):
        monkeypatch.setattr(where, name, read)
    assert prepare_corpus(config, tmp_path).facts == first.facts
    assert CorpusRequest(config, tmp_path).find().facts == first.facts
    shutil.rmtree(first.folder)
    with pytest.raises(AssertionError, match="read again"):  # what was deleted is built again
        prepare_corpus(config, tmp_path)


@pytest.mark.parametrize("limit", [25_000, 60_000, 10**9])  # in these the hashes of the rows hold out about a tenth
def test_reading_stops_at_max_tokens(parquet_folder, tmp_path, limit):
    whole = prepare_corpus(parquet_config(parquet_folder), tmp_path)
    corpus = prepare_corpus(parquet_config(parquet_folder, max_tokens=limit), tmp_path)
    train, everything = text_of(corpus.train), text_of(whole.train)
    assert everything.startswith(train)
    assert len(train) == len(everything) or len(train) >= limit
    assert train[:-1].rfind(b"\0") + 1 < limit  # not a document more than it takes
    assert text_of(whole.validation).startswith(text_of(corpus.validation))


def test_files_that_are_not_needed_are_not_fetched(parquet_folder, tmp_path, monkeypatch):
    fake = FakeHub(parquet_folder, monkeypatch)
    prepare_corpus(DataConfig(corpus="owner/name", validation_fraction=0.1, max_tokens=20_000), tmp_path)
    assert set(fake.fetched) == {"a.parquet"}


def test_a_download_that_fails_is_made_up_for(parquet_folder, tmp_path, monkeypatch):
    fake = FakeHub(parquet_folder, monkeypatch)
    config = DataConfig(corpus="owner/name", validation_fraction=0.1)
    fake.broken = "b.parquet"
    with pytest.raises(ValueError, match=r"'b.parquet' of 'owner/name' is not \(a reset line\); rerun the command"):
        prepare_corpus(config, tmp_path)
    fake.broken = None
    fake.fetched.clear()
    prepare_corpus(config, tmp_path)
    assert fake.fetched == ["b.parquet", "more/c.parquet"]


def count_builds(log, *, slow=0.0, die_at=None):
    """Have `build_part` note each part in `log`, take its time, and end the process in the middle of one."""

    def counting(part, number, *arguments, progress, **options):
        with Path(log).open("a") as file:
            file.write(f"{part.name}\n")
        time.sleep(slow)

        def report(read, made):
            progress(read, made)
            if part.name == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        return build_part(part, number, *arguments, progress=report, **options)

    data.build_part = counting


def prepare_and_count(arguments):
    folder, cache, log = arguments
    count_builds(log, slow=0.3)
    return prepare_corpus(DataConfig(corpus=folder, **BPE), Path(cache)).facts.fingerprint


def test_two_processes_that_start_at_once_tokenise_once(parquet_folder, tmp_path):
    arguments = (str(parquet_folder), str(tmp_path / "cache"), str(tmp_path / "log"))
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        fingerprints = list(pool.map(prepare_and_count, [arguments] * 3))
    assert len(set(fingerprints)) == 1
    assert (tmp_path / "log").read_text().split() == ["a.parquet", "b.parquet", "more/c.parquet"]


def test_a_wait_for_another_process_is_reported(parquet_folder, tmp_path):
    reports = []

    def report(what, done, total):
        reports.append(what)
        if "waiting" in what:
            other.communicate("go on\n")

    request = CorpusRequest(parquet_config(parquet_folder), tmp_path, report)
    code = (
        "import sys, time; from pathlib import Path; from isoloop.trainer.files import sole_owner\n"
        "with sole_owner(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.readline()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(request.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "mine\n"
    corpus = request.build()
    assert other.returncode == 0
    assert reports[0] == "another process prepares this corpus; waiting"
    assert corpus.facts.train_documents > 200


def test_a_build_that_was_killed_goes_on(parquet_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "build_part", build_part)  # put back at the end, whatever was put there
    code = (
        "import sys; from pathlib import Path; from tests.trainer.data import test_corpus as t\n"
        "t.count_builds(sys.argv[3], die_at='b.parquet')\n"
        "t.prepare_corpus(t.DataConfig(corpus=sys.argv[1], **t.BPE), Path(sys.argv[2]))"
    )
    cache, log = tmp_path / "cache", tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", code, str(parquet_folder), str(cache), str(log)],
        cwd=Path(__file__).resolve().parents[3],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert log.read_text().split() == ["a.parquet", "b.parquet"]
    log.unlink()
    (building,) = cache.glob("requests/*/building")
    trained = (building / "tokenizer.json").stat().st_mtime_ns
    assert prepare_and_count((str(parquet_folder), str(cache), str(log)))
    assert log.read_text().split() == ["b.parquet", "more/c.parquet"]  # what was done is not done again
    went_on = prepare_corpus(DataConfig(corpus=str(parquet_folder), **BPE), cache)
    assert (went_on.folder / "tokenizer.json").stat().st_mtime_ns == trained
    whole = prepare_corpus(DataConfig(corpus=str(parquet_folder), **BPE), tmp_path / "undisturbed")
    assert contents(went_on.folder) == contents(whole.folder)


def test_a_build_that_ends_at_its_last_step_is_not_lost(parquet_folder, tmp_path, monkeypatch):
    """Killed before or behind the move into its place: nothing is tokenised again."""
    config, built = parquet_config(parquet_folder), []

    def build(*args, **kwargs):
        built.append(args[1])
        return build_part(*args, **kwargs)

    monkeypatch.setattr(data, "build_part", build)
    move = data._move
    for moves in (False, True):

        def stop(building, folder, moves=moves):
            if moves:
                move(building, folder)
            raise KeyboardInterrupt

        monkeypatch.setattr(data, "_move", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(config, tmp_path)
    monkeypatch.setattr(data, "_move", move)
    corpus = prepare_corpus(config, tmp_path)
    assert len(corpus.train) == corpus.facts.train_tokens
    assert built == [0, 1, 2]


def test_another_builds_corpus_is_never_removed(parquet_folder, tmp_path):
    """Two requests come to the same tokens: the second finds the first's folder and leaves it."""
    first = prepare_corpus(parquet_config(parquet_folder), tmp_path)
    before = {path.name: path.stat().st_ino for path in first.folder.iterdir()}
    shutil.copytree(parquet_folder, tmp_path / "copy")
    second = prepare_corpus(parquet_config(tmp_path / "copy"), tmp_path)
    assert second.folder == first.folder
    assert {path.name: path.stat().st_ino for path in first.folder.iterdir()} == before
    (first.folder / "corpus.json").unlink()  # somebody's hand
    shutil.rmtree(tmp_path / "requests")
    with pytest.raises(ValueError, match=r"lacks its corpus\.json; delete that folder"):
        prepare_corpus(parquet_config(parquet_folder), tmp_path)
    assert (first.folder / "train-00000.bin").exists()


def test_max_tokens_can_not_cut_a_lone_file(tmp_path):
    (tmp_path / "one.txt").write_text("words " * 1000)
    with pytest.raises(ValueError, match=r"one text file has none for data\.max_tokens=100"):
        prepare_corpus(DataConfig(corpus=str(tmp_path / "one.txt"), max_tokens=100), tmp_path / "cache")


def test_progress_is_in_bytes_of_input(parquet_folder, tmp_path):
    reports = []
    prepare_corpus(DataConfig(corpus=str(parquet_folder), **BPE), tmp_path, lambda *what: reports.append(what))
    size = sum(file.stat().st_size for file in parquet_folder.rglob("*.parquet"))
    steps = [(done, total) for what, done, total in reports if what.startswith("tokenis")]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[0] == (0, size)
    assert steps[-1] == (size, size)
    assert {what.split()[0] for what, _, _ in reports} == {"training", "tokenising", "tokenised"}
    reports.clear()
    config = parquet_config(parquet_folder, max_tokens=20_000)
    prepare_corpus(config, tmp_path, lambda *what: reports.append(what))
    totals = [total for what, done, total in reports if what == "tokenising a.parquet" and done]
    assert max(totals) < size  # what will be read, not what lies there


def test_a_split_without_a_document_is_refused(tmp_path):
    folder = write_parquet(tmp_path / "x.parquet", ["1"])  # a byte, which can't be cut
    for fraction in (0.001, 0.999):
        rule = f"must have a document each, .* 1 go to training and 0 to validation; .* than {fraction}"
        with pytest.raises(ValueError, match=rule):
            prepare_corpus(DataConfig(corpus=str(folder), validation_fraction=fraction), tmp_path / "cache")


def test_a_split_left_empty_by_max_tokens_says_so(tmp_path):
    folder = write_parquet(tmp_path / "x.parquet", ["1"] * 20).parent
    with pytest.raises(ValueError, match=r"1 go to training and 0 to validation; .* or a max_tokens above 1"):
        prepare_corpus(parquet_config(folder, max_tokens=1), tmp_path / "cache")


def lines_of(number, size):
    return "".join(f"{number:04d} {i:08d}\n" for i in range(size // 14 + 1))


@pytest.mark.parametrize("fraction", [0.05, 0.5])
@pytest.mark.parametrize(
    ("sizes", "max_tokens"),
    [((9000,), None), ((40, 9000, 40), None), ((3000,) * 4, None), ((100,) * 30, 1000), ((9000, 100, 9000), 8000)],
)
def test_rows_that_miss_the_share_are_split_by_size(tmp_path, sizes, max_tokens, fraction):
    texts = [lines_of(number, size) for number, size in enumerate(sizes)]
    write_parquet(tmp_path / "x.parquet", texts)
    config = DataConfig(corpus=str(tmp_path / "x.parquet"), validation_fraction=fraction, max_tokens=max_tokens)
    corpus = prepare_corpus(config, tmp_path / "cache")
    share = corpus.facts.validation_share
    assert fraction / 2 <= share <= min(2 * fraction, (1 + fraction) / 2)
    assert bool(corpus.notes) == (abs(share - fraction) > 0.1 * fraction)
    parts = [text_of(tokens).decode().split("\0")[:-1] for tokens in (corpus.train, corpus.validation)]
    lines = [[line for text in split for line in text.splitlines()] for split in parts]
    assert set(lines[0]).isdisjoint(lines[1])  # no line is in both
    assert set(lines[0] + lines[1]) <= {line for text in texts for line in text.splitlines()}
    if max_tokens is None:
        assert len(lines[0] + lines[1]) == sum(text.count("\n") for text in texts)
    assert prepare_corpus(config, tmp_path / "cache").facts == corpus.facts
    assert prepare_corpus(config, tmp_path / "elsewhere").facts == corpus.facts  # the same on every machine
    assert len(list((tmp_path / "cache").glob("*/corpus.json"))) == 1
    assert not list((tmp_path / "cache").glob("requests/*/building*"))


def test_a_tokenizer_is_trained_on_rows_that_were_split_by_size(tmp_path):
    """The one long row is held out by its hash, which leaves too little text for the vocabulary."""
    texts = [document(0), " ".join(map(document, range(1, 60))), document(60)]
    files = (write_parquet(tmp_path / f"{number}.parquet", texts) for number in range(30))

    def splits(file):
        (part,) = open_source(DataConfig(corpus=str(file), validation_fraction=0.3)).list_parts()
        return [document.split for document in part.read()]

    file = next(file for file in files if splits(file)[1] == "validation")
    config = DataConfig(corpus=str(file), **{**BPE, "validation_fraction": 0.3})
    corpus = prepare_corpus(config, tmp_path / "cache")
    assert corpus.facts.validation_share == pytest.approx(0.3, rel=0.1)
    assert corpus.facts.vocabulary == BPE["tokenizer_vocabulary"]


@pytest.mark.parametrize("kind", ["text", "parquet"])
def test_text_that_is_not_utf8_is_for_bytes_alone(tmp_path, kind):
    text = "wörter und wörter\n".encode("latin-1") * 99
    if kind == "text":
        (tmp_path / "x.txt").write_bytes(text)
        name = r"x\.txt"
    else:
        column = pa.Array.from_buffers(
            pa.large_string(), 1, [None, pa.py_buffer(np.array([0, len(text)], "<i8").tobytes()), pa.py_buffer(text)]
        )
        pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
        name = r"x\.parquet, row 0"
    with pytest.raises(ValueError, match=rf"text must be UTF-8 .*, but \S*{name} is not, at byte 1; convert it"):
        prepare_corpus(DataConfig(corpus=str(tmp_path), **BPE), tmp_path / "cache")
    corpus = prepare_corpus(DataConfig(corpus=str(tmp_path), validation_fraction=0.1), tmp_path / "cache")
    assert corpus.facts.train_bytes + corpus.facts.validation_bytes == len(text) + 2


def test_a_corpus_of_an_older_version_that_misses_the_share_is_prepared_again(tmp_path):
    write_parquet(tmp_path / "x.parquet", [lines_of(number, size) for number, size in enumerate((40, 9000, 40))])
    config = DataConfig(corpus=str(tmp_path / "x.parquet"))
    corpus = prepare_corpus(config, tmp_path / "cache")
    (prepared,) = (tmp_path / "cache").glob("requests/*/prepared.json")
    facts = corpus.facts.model_copy(update={"fingerprint": "old", "validation_bytes": 0})
    shutil.copytree(corpus.folder, tmp_path / "cache" / "old")
    (tmp_path / "cache" / "old" / "corpus.json").write_text(facts.model_dump_json())
    prepared.write_text(json.dumps({"fingerprint": "old", "corpus": "x.parquet"}))
    assert prepare_corpus(config, tmp_path / "cache").facts == corpus.facts


def test_a_torn_corpus_is_refused_by_name(text_folder, tmp_path):
    config = DataConfig(corpus=str(text_folder))
    folder = prepare_corpus(config, tmp_path).folder
    os.truncate(folder / "train-00000.bin", 100)
    with pytest.raises(ValueError, match=r"train-00000\.bin has 100 bytes of .* delete .* and prepare it again"):
        prepare_corpus(config, tmp_path)
    shutil.rmtree(folder)
    assert len(prepare_corpus(config, tmp_path).train) > 100


def test_a_corpus_is_what_its_folder_says(parquet_folder, tmp_path):
    corpus = prepare_corpus(parquet_config(parquet_folder), tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(corpus.folder, moved)
    again = Corpus(moved)
    assert again.facts == corpus.facts
    batch = {"context": 64, "batch": 8, "seed": 0, "step": 3}
    np.testing.assert_array_equal(batch_windows(again, **batch), batch_windows(corpus, **batch))


def test_a_corpus_whose_files_are_held_out_whole(parquet_folder, tmp_path):
    """Neither the fraction nor a limit of the training text has a say in it."""
    config = DataConfig(corpus=str(parquet_folder), validation_files="more/*")
    corpus = prepare_corpus(config, tmp_path)
    assert (corpus.facts.train_documents, corpus.facts.validation_documents) == (200, 100)
    assert corpus.notes == ()
    first = document(200).encode()
    assert bytes(corpus.validation.read(0, len(first)).tolist()) == first
    limited = prepare_corpus(config.model_copy(update={"max_tokens": 3000}), tmp_path)
    assert limited.facts.train_documents < 20
    assert limited.facts.shards["validation"] == corpus.facts.shards["validation"][:2]  # of c and a, where a has none
    assert prepare_corpus(config, tmp_path).folder == corpus.folder
