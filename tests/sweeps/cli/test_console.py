import io

import pytest
from rich.console import Console

from isoloop.sweeps.cli.console import describe_corpora, describe_corpus, progress_bar
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.pipeline import prepare
from isoloop.trainer.config import DataConfig
from isoloop.trainer.data.corpus import prepare_corpus


def drawn(reports):
    """Return the output to a terminal while `reports` are made."""
    screen = io.StringIO()
    with progress_bar(Console(file=screen, force_terminal=True, width=120), in_bytes=True, transient=True) as progress:
        for report in reports:
            progress.update(*report)
    return screen.getvalue()


def test_the_bar_shows_how_far_it_is():
    screen = drawn([("reading", 5, 10), ("tokenising a.parquet", 30, 120), ("tokenising b.parquet", 60, 120)])
    assert "tokenising b.parquet" in screen
    assert "60/120 bytes" in screen
    assert "reading" not in screen.splitlines()[-1]


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    log = io.StringIO()
    with progress_bar(Console(file=log, width=120), transient=True) as progress:
        progress.update("tokenising a.parquet", 30, 120)
        assert log.getvalue() == ""
        monkeypatch.setattr("isoloop.sweeps.cli.console.LOG_SECONDS", 0.0)
        progress.update("tokenising a.parquet", 60, 120)
        monkeypatch.undo()
        progress.update("tokenising a.parquet", 61, 120)
        progress.update("waiting for another", 0, 0)
    assert log.getvalue() == "tokenising a.parquet, 50%\nwaiting for another\n"
    with progress_bar(Console(file=log, width=120)) as progress:
        progress.update("runs 1/4", 1, 4)
        progress.update("runs 4/4", 4, 4)
    assert log.getvalue().endswith("waiting for another\nruns 4/4, 100%\n")


def test_nothing_is_shown_where_nothing_is_done():
    assert drawn([]) == ""


def test_a_wait_has_no_total():
    screen = drawn([("waiting", 0, 0)])
    assert "waiting" in screen
    assert "100" not in screen


def test_what_a_corpus_holds(corpus):
    output = describe_corpus(corpus, context=16, is_new=True)
    facts = corpus.facts
    assert output.startswith(f"{facts.name}: prepared\n")
    assert facts.fingerprint in output
    assert str(corpus.folder) in output
    assert "bytes, 256 ids" in output
    assert f"{facts.train_tokens:,} tokens in {facts.train_documents} documents, {facts.train_bytes:,} bytes" in output
    assert f"(1 tokens per byte); {corpus.validation.count_windows(16):,} windows of 16 tokens" in output
    share = 100 * facts.validation_bytes / (facts.validation_bytes + facts.train_bytes)
    assert output.endswith(f"\nheld out     {share:.3g}% of the text")
    assert share == pytest.approx(5, abs=0.5)
    assert "already prepared" in describe_corpus(corpus, context=16, is_new=False)


def test_notes_about_a_corpus_follow_it(tmp_path):
    for name, size in (("a.txt", 3000), (".b.txt", 10), ("c.txt", 0)):
        (tmp_path / name).write_text("line of text\n" * size)
    corpus = prepare_corpus(DataConfig(corpus=str(tmp_path), validation_fraction=0.1), tmp_path / "corpora")
    hidden, empty = corpus.notes
    assert hidden.startswith("1 hidden file ")
    assert empty == "1 empty file was read as text without a character"
    output = describe_corpus(corpus, context=16, is_new=True)
    share = f"{100 * corpus.facts.validation_share:.3g}% of the text"
    assert output.endswith(f"\nheld out     {share}\nnote         {hidden}\nnote         {empty}")
    name = f"corpus      {tmp_path.name}, {corpus.facts.train_tokens:.4g} training tokens, {share} held out"
    assert describe_corpora([corpus]) == [name, f"note        {hidden}", f"note        {empty}"]


def test_preparing_a_sweep_tells_how_far_it_is(small, tmp_path):
    from isoloop.sweeps.paths import Folders

    class Recording(Progress):
        def __init__(self):
            self.labels = []

        def update(self, label, done, total):
            self.labels.append(label)

    progress = Recording()
    prepare(small, Folders(out=tmp_path, name="small"), progress)
    assert progress.labels[-1] == "tokenised"
