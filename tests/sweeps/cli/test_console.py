import io
import re

import pytest
from rich.console import Console

from isoloop.sweeps.cli.console import describe_corpora, describe_corpus, show_progress
from isoloop.sweeps.messages import Progress
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import prepare
from isoloop.trainer.config import DataConfig
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.data.packing import cropped_share


@pytest.fixture
def clock(monkeypatch):
    """The time that the progress goes by, in seconds: a list with one number."""
    now = [1000.0]
    monkeypatch.setattr("isoloop.sweeps.cli.console.time.monotonic", lambda: now[0])
    return now


def on_terminal(*, width=80, **options):
    return show_progress(Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False), **options)


def line_of(bar):
    """Return the line that the terminal shows now."""
    console = Console(file=io.StringIO(), width=bar.console.width, height=9)
    console.print(bar._line())
    return console.file.getvalue().rstrip("\n")


def test_a_stage_says_what_is_done_for_how_long_and_when_it_ends(clock):
    with on_terminal() as bar:
        bar.begin("Training")
        clock[0] += 5
        assert re.fullmatch(r"Training *-* 0:05 *", line_of(bar).replace("━", "-"))
        # What earlier calls have done says nothing about the speed, nor does the time of starting up.
        for seconds, done in ((100, 40), (15, 41)):
            bar.update(f"{done // 10}/16 runs", done, 100)
            assert re.search(rf"Training 4/16 runs .*, {done}% *$", line_of(bar))
            clock[0] += seconds
        clock[0] += 45
        bar.update("7/16 runs", 71, 100)
        assert re.search(r"2:45, 71%, 58 s left *$", line_of(bar))
        clock[0] += 59  # longer than that: nobody knows
        assert re.search(r"3:44, 71% *$", line_of(bar))


def test_a_line_fits_a_terminal_of_80_columns(clock):
    with on_terminal() as bar:
        bar.begin("Preparing the corpus")
        bar.update(f"tokenising {'very-' * 20}long.parquet", 5, 10)
        assert len(line_of(bar)) <= 80
        assert re.search(r"very.*…", line_of(bar))
        assert "\n" not in line_of(bar)


def test_stages_that_took_seconds_leave_a_line(clock):
    with on_terminal() as bar:
        bar.begin("Planning")
        clock[0] += 1
        bar.begin("Training")
        clock[0] += 120
        bar.update("2/2 runs", 2, 2)
        bar.begin("Fitting")
        bar.update("unified law", 1, 2)
        clock[0] += 9
    screen = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r", "\n", bar.console.file.getvalue())
    assert re.findall(r"^\S.*: \d+ \w+$", screen, re.M) == ["Training 2/2 runs: 2 min", "Fitting: 9 s"]


def test_a_log_has_lines_and_no_control_characters(clock):
    log = io.StringIO()
    with show_progress(Console(file=log, width=110), transient=True) as progress:
        progress.begin("Preparing the corpus")
        for share in range(13):
            progress.update("tokenising a.parquet", share, 20)
            clock[0] += 10
        progress.update("waiting for another", 0, 0)
        progress.begin("Starting Ray")  # says nothing for seconds
        clock[0] += 2
        progress.write_if_due()
        progress.begin("Planning")  # short
        progress.event("something happened")
    assert log.getvalue().splitlines() == [
        "Preparing the corpus: tokenising a.parquet, 5%",
        "Preparing the corpus: tokenising a.parquet, 35%, 2 min left",
        "Preparing the corpus: waiting for another",
        "Preparing the corpus: 2 min",
        "Starting Ray",
        "Starting Ray: 2 s",
        "something happened",
    ]


def test_an_error_ends_the_stages_without_a_line(clock):
    log = io.StringIO()

    def work():
        with show_progress(Console(file=log)) as progress:
            progress.begin("Planning")
            clock[0] += 9
            progress.write_if_due()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert log.getvalue() == "Planning\n"


def test_nothing_is_shown_where_nothing_is_done():
    with on_terminal() as bar:
        pass
    assert bar.console.file.getvalue() == ""


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


def test_what_packed_rows_crop_is_told(corpus):
    output = describe_corpus(corpus, context=16, packing="best-fit", is_new=True)
    share = 100 * cropped_share(corpus.train.documents, 17)
    assert share > 90  # files of a few thousand bytes, each cropped to a row
    assert output.endswith(f"\nbest-fit     rows of 16 + 1 tokens crop {share:.3g}% of the training text in a pass")


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
    class Recording(Progress):
        def __init__(self):
            self.stages, self.labels = [], []

        def begin(self, stage):
            self.stages.append(stage)

        def update(self, label, done, total):
            self.labels.append(label)

    progress = Recording()
    prepare(small, Folders(out=tmp_path, name="small"), progress)
    assert progress.stages == ["Preparing the corpus", "Planning"]
    assert progress.labels[-1] == "tokenised"
