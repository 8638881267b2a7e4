"""The house rules that a machine can hold: who may import whom, and what stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"trainer", "fitting", "sweeps"}
MAY_IMPORT = {"trainer": {"trainer"}, "fitting": {"fitting"}, "sweeps": ROOMS}
# A library that only these files may import.
ONLY_IN = {
    "ray": {"sweeps/cluster.py", "sweeps/worker.py"},
    "mlflow": {"sweeps/tracking.py"},
    "optuna": {"sweeps/tune.py"},
}
LAZY = {"tokenizers", "pyarrow", "huggingface_hub"}
NEVER_IN = {"fitting": {"torch", "ray", "mlflow", "optuna"}, "trainer": {"ray", "mlflow", "optuna", "pandas", "scipy"}}
# The order in which a room's files may import each other: a file imports only files above it.
ORDER = {
    "trainer": [
        "atomic",
        "environment",
        "lock",
        "config",
        "plugin",
        "accounting",
        "memory",
        "sizes",
        "recurrence",
        "layers",
        "injection",
        "head",
        "language_model",
        "parcae",
        "transformer",
        "architecture",
        "compilation",
        "hub",
        "published",
        "optim",
        "documents",
        "tokenizer",
        "shards",
        "data",
        "batches",
        "checkpoint",
        "parallel",
        "feed",
        "evaluate",
        "telemetry",
        "journal",
        "result",
        "loop",
    ],
    "fitting": [
        "cost",
        "law",
        "suspects",
        "table",
        "points",
        "laws",
        "dense_laws",
        "catalogue",
        "simulate",
        "objective",
        "descent",
        "estimate",
        "lbfgs",
        "refit",
        "uncertainty",
        "profile",
        "law_fit",
        "parabola",
        "power_law",
        "optima",
        "isoflop",
        "parabola_bias",
        "isoflop_report",
        "holdout",
        "minima_method",
        "choice",
        "result",
        "predict",
        "doubts",
        "sweep_fit",
        "difference",
        "equal_flops",
        "compared_numbers",
        "compared_sweep",
        "comparison_doubts",
        "comparison_report",
        "sweep_comparison",
        "figure_style",
        "figure_ticks",
        "figure_legend",
        "figures_isoflop",
        "figures_training",
        "figures_test_time",
        "figures",
        "figures_optima",
        "figures_compare",
    ],
    "sweeps": [
        "secrets",
        "errors",
        "privacy",
        "columns",
        "options",
        "schedule",
        "resources",
        "space",
        "config",
        "loading",
        "folders",
        "axes",
        "cost",
        "grid",
        "around",
        "search",
        "bill",
        "status",
        "corpus",
        "simulated",
        "driver",
        "record",
        "runs",
        "recount",
        "tracking",
        "relay",
        "mapping",
        "export",
        "failures",
        "remote",
        "lease",
        "storage",
        "mirror",
        "shipping",
        "worker",
        "cluster",
        "engine",
        "execute",
        "rate_check",
        "tune",
        "tuner",
        "tuned",
        "results",
        "answer",
        "origin",
        "page_data",
        "page_figures",
        "page_tables",
        "stability",
        "dynamics",
        "stability_figure",
        "report",
        "analysis",
        "pipeline",
        "tune_pipeline",
        "console",
        "tune_command",
        "law_commands",
        "compare_command",
        "figure_command",
        "cli",
    ],
}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path):
    """(module, line) of every import in a file, lazy ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            yield base, node.lineno
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_import_directions(path):
    relative = path.relative_to(ROOT).as_posix()
    room = relative.split("/")[0]
    order = ORDER[room]
    for module, line in imports(path):
        top, *rest = module.split(".")
        where = f"{relative}:{line} imports {module}"
        if top in ROOMS:
            assert top in MAY_IMPORT[room], where
        assert relative in ONLY_IN.get(top, {relative}), where
        assert top not in NEVER_IN.get(room, set()), where
        if top == room and path.stem in order and rest and rest[0] in order:
            assert order.index(rest[0]) < order.index(path.stem), f"{where}, which stands below it"


def test_every_file_has_its_place_in_the_order():
    for room, order in ORDER.items():
        assert {path.stem for path in (ROOT / room).glob("*.py")} == {*order, "__init__"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sweeps.cli", {"torch", "ray", "mlflow", "pandas", "scipy", "numpy", "matplotlib", "pydantic"} | LAZY),
        ("import sweeps.execute, sweeps.pipeline, sweeps.grid", {"torch", "ray", "mlflow", "pandas", "scipy"} | LAZY),
        ("import fitting", {"torch", "ray", "mlflow", "matplotlib"}),
        (
            "import trainer.config, trainer.accounting, trainer.memory, trainer.environment, trainer.batches",
            {"torch"} | LAZY,
        ),
    ],
)
def test_heavy_libraries_are_imported_late(statement, absent):
    code = f"{statement}; import sys; print(sorted(set({sorted(absent)}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_files_stay_small_and_named_after_a_noun():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 400, path
        assert path.stem not in {"utils", "common", "helpers", "misc"}, path
