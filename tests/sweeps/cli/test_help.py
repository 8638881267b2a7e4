"""What a newcomer reads first: the help of each command and the list of presets, in 80 columns."""

import re

import pytest
from typer.main import get_command

from isoloop.sweeps.cli.main import app
from isoloop.sweeps.config.loading import preset_names
from tests.commands import isoloop

GROUP = get_command(app)
DATA = [["data"], ["data", "prepare"], ["data", "prepare-suite"]]
COMMANDS = [[], *DATA, *([name] for name in GROUP.commands if name != "data")]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_begins_with_a_sentence_and_nothing_is_cut(command, tmp_path):
    said = isoloop(*command, "--help", cwd=tmp_path).stdout
    assert max(map(len, said.splitlines())) <= 80
    first = said.split("\n\n")[1]
    assert re.match(r"  [A-Z][a-z]+,? [^.]*\.( |\n|$)", first), first
    listed = said.partition("\nCommands:\n")[2].split("\n\n")[0].splitlines()
    assert all(re.fullmatch(r"  [a-z-]+ +[A-Z].*[^.]\.", line) for line in listed), listed


def test_commands_are_in_the_order_of_work(tmp_path):
    said = isoloop("--help", cwd=tmp_path).stdout
    order = "presets data plan tune run status report fit answer predict choose design compare figure stability"
    order += " evaluate generate export-model export"
    assert re.findall(r"^  ([a-z-]+) +[A-Z]", said.partition("\nCommands:\n")[2], re.MULTILINE) == order.split()


def test_each_preset_says_what_it_is(tmp_path):
    lines = isoloop("presets", cwd=tmp_path).stdout.splitlines()
    names, summaries = zip(*(line.split(maxsplit=1) for line in lines), strict=True)
    assert list(names) == preset_names()
    assert max(map(len, lines)) <= 80
    assert len({line.index(summary) for line, summary in zip(lines, summaries, strict=True)}) == 1
    for name, summary in zip(names, summaries, strict=True):
        assert re.fullmatch(r"[A-Z].*\.", summary)
        assert isoloop("presets", name, cwd=tmp_path).stdout.startswith(f"# {summary}\n")
