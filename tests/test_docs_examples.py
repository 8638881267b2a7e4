"""What the pages of docs/ show: the Python of python-api.md and extending.md is run, every command and option known."""

import importlib.metadata
import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import typer.main
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoloop.sweeps.cli.main import app
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.plan.grid import PlannedCorpus, plan_sweep
from isoloop.trainer.accounting import count_parameters, loop_cost
from isoloop.trainer.config import DataConfig, ModelConfig
from isoloop.trainer.data.corpus import prepare_corpus
from isoloop.trainer.evaluate import evaluate
from isoloop.trainer.loop import train
from isoloop.trainer.model.build import build_model
from tests.commands import quick_pages

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def blocks(page):
    """Its Python, each block at its own line numbers, so that an error tells where it stands in the page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [(text[: found.start(1)].count("\n"), found.group(1)) for found in BLOCK.finditer(text)]


def test_the_python_api_by_example(tmp_path, new_database, commands_share_ray, monkeypatch, capsys):
    """Its blocks as one program, with few refits: the numbers are a matter of the tests of fits."""
    new_database(tmp_path / "isoloop-out" / "mlflow.db")
    lines = [""] * max(start + code.count("\n") for start, code in blocks("python-api.md"))
    for start, code in blocks("python-api.md"):
        lines[start : start + code.count("\n")] = re.sub(r"\bdraws=\d+", "draws=20", code).splitlines()
    (tmp_path / "python-api.md.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with quick_pages(), warnings.catch_warnings():
        warnings.simplefilter("default")
        runpy.run_path("python-api.md.py", run_name="__main__")
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "µ* ~ C^0." in said.out
    for path in ("figures/power_laws.svg", "isoloop-out/sweeps/from-python/report.html"):
        assert (tmp_path / path).stat().st_size > 1000


def commands(page):
    """Every `isoloop ...` that stands on a line of its own, with the number of that line."""
    text = page.read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", "", text)
    for line in joined.splitlines():
        # At a line's start, in quotes behind another command, or behind `--` and settings of the environment.
        found = re.match(r"^ {4,}(?:\S+=\S+ |.* -- |.*')?(?:\S*/)?isoloop (.*)$", line)
        if found and not found.group(1).startswith("-"):
            yield shlex.split(found.group(1).split(" > ")[0].removesuffix("'"), comments=True)


def mentioned(page):
    """Every `isoloop ...` within a sentence: maybe without all that it needs."""
    for found in re.findall(r"`(?:PYTHONPATH=\S+ )?isoloop ([a-z][^`]*)`", page.read_text(encoding="utf-8")):
        yield shlex.split(found)


def resolved(words):
    """The command that these words name, and what is left of them."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"no such command: isoloop {' '.join(words)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_exists(page):
    """Whole lines are parsed as the command would; of what is mentioned in a sentence, the options alone."""
    for words in commands(page):
        command, arguments = resolved(words)
        command.make_context("isoloop", list(arguments))  # raises on an unknown option, a missing argument, a bad value
    for words in mentioned(page):
        command, arguments = resolved(words)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        asked = {word.split("=")[0] for word in arguments if word.startswith("--")}
        assert asked <= known | {"--help"}, words


def test_the_commands_are_found_and_a_wrong_one_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "    isoloop fit demo --hold-out   # why\n    PYTHONPATH=. isoloop choose a.csv \\\n        --check\n"
        "    ray exec c.yaml 'x/bin/isoloop status my-sweep'\n    isoloop presets demo > mine.yaml\n"
        "See `isoloop plan`.\n"
    )
    assert list(commands(page)) == [
        ["fit", "demo", "--hold-out"],
        ["choose", "a.csv", "--check"],
        ["status", "my-sweep"],
        ["presets", "demo"],
    ]
    assert list(mentioned(page)) == [["plan"]]
    page.write_text("    isoloop fit demo --colour red\n")
    with pytest.raises(Exception, match="No such option: --colour"):
        test_every_command_and_option_exists(page)
    page.write_text("Say `isoloop paint demo`.\n")
    with pytest.raises(AssertionError, match="no such command: isoloop paint"):
        test_every_command_and_option_exists(page)


def test_the_tutorials_sweeps_are_valid(tmp_path, monkeypatch):
    """Each of its files extends those before it, and asks for the cells that the text speaks of."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"^```yaml\n# (\S+\.yaml)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
    assert list(files) == ["looped.yaml", "fixed.yaml", "looped-tuned.yaml", "fixed-tuned.yaml", "check.yaml"]
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).write_text(content, encoding="utf-8")
    for name in ("looped", "fixed"):
        tuned = Path(f"isoloop-out/sweeps/{name}/tune/tuned.yaml")
        tuned.parent.mkdir(parents=True)
        tuned.write_text("optimizer: {learning_rate: 0.005, muon_learning_rate: 0.01}\n")
    plans = {name: plan_sweep(load_sweep(name), lambda _: PlannedCorpus("text", 40_000_000_000)) for name in files}
    assert {name: len(plan.cells) for name, plan in plans.items()} == {
        "looped.yaml": 35,
        "fixed.yaml": 15,
        "looped-tuned.yaml": 39,
        "fixed-tuned.yaml": 15,
        "check.yaml": 1,
    }
    assert all(plan.left_out == () for plan in plans.values())
    assert plans["fixed-tuned.yaml"].groups == plans["looped-tuned.yaml"].groups == ["all"]
    assert plans["looped-tuned.yaml"].cells[0].spec.optimizer.learning_rate == 0.005
    assert not any(cell.spec.model.is_looped for cell in plans["fixed-tuned.yaml"].cells)
    parameters = {count_parameters(plan.cells[0].spec.model).total for plan in plans.values()}
    assert max(parameters) < 1.02 * min(parameters)
    fixed, looped = plans["fixed-tuned.yaml"].cells[0].spec, plans["looped-tuned.yaml"].cells[0].spec
    assert (fixed.data, fixed.evaluation.sequences) == (looped.data, looped.evaluation.sequences)


def test_a_block_of_ones_own_trains(spec, corpus, tmp_path, monkeypatch):
    code = [code for _, code in blocks("extending.md")]
    (tmp_path / "my_block.py").write_text(code[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(code[1], "extending.md", "exec"), {})
    config = ModelConfig(width=16, heads=2, context=16, block="my_block:ParallelBlock")
    model = build_model(config)
    model.initialise(0)
    # The FLOPs that `cost` stands for, against torch's own counter.
    loops, tokens = loop_cost(config, "exact"), 2 * config.context
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        evaluate(model, np.zeros((2, config.context + 1), dtype=np.int64), [1])
    forward = loops.flops_per_token(1.0, 0.0) - 2 / 3 * loops.flops_per_token(0.0, 0.0)
    assert counter.get_total_flops() == pytest.approx(forward * tokens)
    result = train(spec.model_copy(update={"model": config}), corpus, tmp_path / "run")
    assert result.status == "finished"
    sys.modules.pop("my_block")


def test_a_corpus_of_ones_own_is_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile([code for _, code in blocks("extending.md")][2], "extending.md", "exec"), {})
    config = DataConfig(corpus="corpus", validation_fraction=0.1)
    facts = prepare_corpus(config, tmp_path / "corpora").facts
    assert facts.train_documents + facts.validation_documents == 600
    assert facts.validation_documents > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_the_citation_is_whole():
    """Citation File Format 1.2.0: what it requires, and the paper."""
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0"
    assert set(content) >= {"message", "title", "authors", "type", "version"}
    assert content["type"] == "software"
    assert content["version"] == importlib.metadata.version("isoloop")
    (paper,) = content["references"]
    assert set(paper) >= {"authors", "title", "type"}
    assert [author["family-names"] for author in paper["authors"]] == ["Prairie", "Novack", "Berg-Kirkpatrick", "Fu"]
    assert paper["url"].endswith("2604.12946")
