import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from trainer.config import DataConfig
from trainer.data import prepare_corpus


def text_of(tokens):
    return bytes(tokens.read(0, len(tokens)).astype("u1"))


def test_whole_files_go_to_one_split(corpus, text_folder):
    train, validation = text_of(corpus.train), text_of(corpus.validation)
    texts = [file.read_bytes() for file in text_folder.iterdir()]
    inside = [(text in train, text in validation) for text in texts]
    assert all(a != b for a, b in inside)
    assert sum(b for _, b in inside) == corpus.facts.validation_documents >= 1
    assert sum(a for a, _ in inside) == corpus.facts.train_documents
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
