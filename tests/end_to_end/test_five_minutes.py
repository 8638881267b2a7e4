"""README's five minutes, typed as they stand there, in that order, in a clone where the sweep `demo` has been run."""

import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.pipeline import prepare, train_sweep
from isoloop.trainer.config import RunSpec
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.pretrained import save_published
from isoloop.trainer.run.result import read_result, write_result
from tests.commands import isoloop
from tests.sweeps.conftest import SIMULATION

ROOT = Path(__file__).resolve().parents[2]
LINES = re.search(r"(?m)^## Five minutes\n\n.*\n\n((?: {4}.*\n)+)", (ROOT / "README.md").read_text(encoding="utf-8"))
QUICK = ["--draws", "20"]
SAID = {
    ("fit", "demo", "--hold-out"): ("Held out", "%"),
    ("choose", "demo"): (
        "training: L(mu, D)", "iso-depth:", "Held out: each budget in turn", "chinchilla: not fitted",
    ),
}  # fmt: skip
"""Parts of what some of the lines print."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory, shared_ray, new_database):
    """A folder with what the commands read after `make demo`: the demo's grid, with losses drawn from a law."""
    folder = tmp_path_factory.mktemp("clone")
    for sweep in ("looped-bpe", "fixed-bpe"):
        shutil.copytree(ROOT / "results/python" / sweep, folder / "results/python" / sweep)
    (folder / "simulated.yaml").write_text(yaml.safe_dump({"extends": "demo", "simulation": SIMULATION}))
    new_database(folder / "isoloop-out" / "mlflow.db")
    sweep = load_sweep(str(folder / "simulated.yaml"))
    folders = Folders(out=folder / "isoloop-out", name=sweep.name)
    with shared_ray.for_commands():
        train_sweep(prepare(sweep, folders), folders)
    give_weights(folders)
    return folder


def give_weights(folders):
    """Give the best of the simulated runs a model, with the weights that training begins with: the demo's have one."""
    table = pd.read_csv(folders.table)
    run = folders.run(table["run_id"][table["loss"].idxmin()])
    spec, result = RunSpec.model_validate_json((run / "spec.json").read_bytes()), read_result(run)
    model = build_model(spec.model)
    model.initialise(0)
    save_published(run / "model", model, spec.recurrence)
    write_result(run, result.model_copy(update={"simulated": False}))


def test_the_lines_run_as_they_stand_in_that_order(clone):
    first, *lines = LINES.group(1).splitlines()
    assert first.strip() == ". .venv/bin/activate"
    typed = []
    for line in lines:
        assert re.search(r"# \d+ s: ", line), f"how long does it take? {line}"
        program, *words = shlex.split(line, comments=True)
        assert program == "isoloop"
        target = words[words.index(">") + 1] if ">" in words else None
        words = words[: words.index(">")] if target else words
        # The numbers are a matter of the tests of fits, so few refits will do.
        said = isoloop(*words, *(QUICK if words[0] in ("fit", "choose", "compare") else []), cwd=clone).stdout
        if target:
            (clone / target).write_text(said, encoding="utf-8")
        assert said or words[0] == "figure"
        assert [expected for expected in SAID.get(tuple(words[:3]), ()) if expected not in said] == []
        typed.append(words[0])
    assert typed[:2] == ["status", "fit"]
    assert {"predict", "choose", "figure", "compare", "export", "presets", "plan"} <= set(typed)
    assert {"curves.pdf", "runs.parquet", "mine.yaml"} <= {path.name for path in clone.iterdir()}
