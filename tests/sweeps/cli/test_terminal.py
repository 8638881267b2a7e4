"""An ASCII terminal and a locale without UTF-8: commands work, symbols are spelled out, names of files are kept."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from isoloop.sweeps.cli.console import use_terminal_encoding
from tests.commands import isoloop

# One process for all commands: imports take seconds.
SCRIPT = """
import sys
from isoloop.sweeps.cli.main import main
table = sys.argv[1]
for command in {commands}:
    sys.argv = ["isoloop", *(table if word == "TABLE" else word for word in command)]
    try:
        main()
    except SystemExit as end:
        print("exit", end.code or 0)
"""
COMMANDS = ["presets", "plan", "tune", "run", "status", "report", "fit", "predict", "choose", "compare", "figure"]
COMMANDS += ["stability", "export", "data prepare"]


def run_commands(folder, commands, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(commands=ascii(commands)), "läufe.csv"],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C", **environment},
        capture_output=True,
        check=True,
    )
    output = done.stdout + done.stderr
    assert output.isascii(), output
    return output.decode("ascii")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("läufe µ")
    (folder / "größe.yaml").write_text("extends: parcae-140m-simulated\nname: x  # µ ≥ 1\n", encoding="utf-8")
    (folder / "kaputt-µ.yaml").write_text("seed: 1\nseed: 2  # µ\n", encoding="utf-8")
    rows = [(n, d, 1.7 + 400 * n**-0.34 + 410 * d**-0.28) for n in (1e7, 2e7, 4e7) for d in (2e8, 4e8, 8e8)]
    pd.DataFrame(rows, columns=["params", "tokens", "loss"]).to_csv(folder / "läufe.csv", index=False)
    return folder


def test_commands_work_on_an_ascii_terminal_without_utf_8(folder):
    commands = [["plan", "größe.yaml", "--out", "ausgänge", "--to", "plän.csv"], ["plan", "kaputt-µ.yaml"]]
    commands += [
        ["presets", "demo"],
        ["choose", "TABLE", "--law", "chinchilla", "--draws", "20"],
        ["status", "größe.yaml"],
    ]
    output = run_commands(folder, commands, PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert output.count("exit 0") == 3
    assert output.count("exit 2") == 2
    assert "N(mu) = 28,318,080 + 14,159,040 mu effective" in output
    assert "must be YAML, but 'kaputt-mu.yaml' isn't: line 2: a key must be given once" in output
    assert len(pd.read_csv(folder / "plän.csv")) == 42


def test_help_is_ascii_and_the_locale_counts(folder):
    """Python alone would print UTF-8 under LC_ALL=C."""
    commands = [[], *([*command.split(), "--help"] for command in COMMANDS), ["plan", "größe.yaml"]]
    environment = dict.fromkeys(("PYTHONUTF8", "PYTHONIOENCODING"), "")
    assert "N(mu) = 28,318,080" in run_commands(folder, commands, **environment)


def test_symbols_are_spelled_out(monkeypatch):
    monkeypatch.setattr("sys.stdout", open(os.devnull, "w", encoding="ascii"))  # noqa: SIM115
    use_terminal_encoding()
    text = "µ* = 3 × 10⁻¹², ρ(Ā) ≤ 1, ‖h‖ → ∞, 你, a\udce9.csv"
    assert text.encode("ascii", sys.stdout.errors) == (
        b"mu* = 3 x 10^-12, rho(A_bar) <= 1, ||h|| -> inf, \\u4f60, a\xe9.csv"
    )
    print(text)
    sys.stdout.close()


def test_a_plan_is_written_in_the_format_that_its_name_promises(tmp_path):
    done = isoloop("plan", "parcae-140m-simulated", "--to", "plan.xlsx", cwd=tmp_path, check=2)
    assert "--to must name a .csv file, but got 'plan.xlsx'" in done.stderr
    assert not list(tmp_path.iterdir())
