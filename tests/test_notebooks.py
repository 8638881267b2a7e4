"""Every notebook runs from top to bottom, asks one question, defines nothing, and lies in git without outputs."""

import ast
import base64
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from isoloop.fitting import fit_sizes, simulate_sizes
from isoloop.sweeps.config.loading import load_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.runs import simulated_table

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "analysis_notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
# The published grid is the default, of 6 the stored study; a sweep's name and a run table are what else there is.
TARGETS = {
    "1_isoflop_curves": "table",
    "2_isoloss_contours": "table",
    "3_test_time_scaling": "sweep",
    "4_held_out_predictions": "default",
    "5_accounting": "sweep",
    "6_stability": "default",
    "7_sizes": "sizes",
}
FIGURES = {"4_held_out_predictions": 2, "3_test_time_scaling": 2, "1_isoflop_curves": 2, "7_sizes": 2}


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """An output folder with a small simulated sweep and a run table."""
    out = tmp_path_factory.mktemp("out")
    small = [
        "name=small",
        "budgets=[1e18,2e18,4e18,8e18]",
        "mean_recurrences=[1,2,4,8,12]",
        "evaluation.recurrences=[1,2,4,8,16]",
    ]
    sweep = load_sweep("parcae-140m-simulated", small)
    folders = Folders(out=out, name=sweep.name)
    folders.sweep.mkdir(parents=True)
    folders.config.write_text(config_text(sweep))
    table = simulated_table(sweep)
    table.to_csv(folders.table, index=False)
    table.to_parquet(out / "alone.parquet")
    sizes = ["budgets=[1e18,4e18,16e18]", "mean_recurrences=[1,2,4,8]", "axes.model.size=[140m,370m,770m]"]
    simulated_table(load_sweep("parcae-sizes-simulated", sizes)).to_csv(out / "sizes.csv", index=False)
    return out


@pytest.fixture(scope="module")
def environment(out, tmp_path_factory):
    """What the kernel sees: this checkout, few draws, and a home of its own for what it writes beside its answers."""
    home = str(tmp_path_factory.mktemp("jupyter"))
    own = dict.fromkeys(("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"), home)
    return {**os.environ, **own, "PYTHONPATH": str(ROOT), "ISOLOOP_OUT": str(out), "ISOLOOP_DRAWS": "20"}


@pytest.fixture(scope="module")
def execute(environment):
    """A function that executes cells in one kernel for all notebooks, since its start and imports take seconds."""
    with TemporaryDirectory(prefix="nb") as sockets:  # short: a socket's path may have about 100 characters
        first = NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3")
        manager = first.create_kernel_manager()
        manager.transport, manager.connection_file = "ipc", f"{sockets}/kernel.json"  # no port is opened
        first.start_new_kernel(env=environment, cwd=FOLDER)
        first.start_new_kernel_client()

        def run(notebook):
            client = NotebookClient(notebook, timeout=120, km=manager)
            client.kc = first.kc
            client.execute()

        yield run
        first._cleanup_kernel()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_runs_and_shows_something(path, out, execute):
    """Each notebook finds nothing of the one before: no names, no settings of figures, no target."""
    targets = {"table": out / "alone.parquet", "sizes": out / "sizes.csv", "sweep": "small", "default": None}
    target = targets[TARGETS[path.stem]]
    setting = f"os.environ['ISOLOOP_TARGET'] = {str(target)!r}" if target else "os.environ.pop('ISOLOOP_TARGET', None)"
    afresh = f"import os, matplotlib\nmatplotlib.rcdefaults()\n{setting}"
    execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (afresh, "%reset -f")]))
    notebook = read(path)
    execute(notebook)
    cells = code(notebook)
    outputs = [output for cell in cells for output in cell.outputs]
    said = [output for output in outputs if output.output_type == "stream"]
    assert not [output.text for output in said if output.name == "stderr"]
    assert all(cell.outputs for cell in cells[1:])
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == FIGURES.get(path.stem, 1)
    assert min(len(base64.b64decode(picture)) for picture in pictures) > 20_000


def test_there_is_one_of_each_and_the_readme_names_them():
    assert list(TARGETS) == NAMES
    readme = (FOLDER / "README.md").read_text()
    assert [name for name in NAMES if f"{name}.ipynb" not in readme] == []
    for notebook in map(read, NOTEBOOKS):
        asked = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        assert asked in readme


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_asks_a_question_and_has_text_between_its_cells(path):
    cells = read(path).cells
    first = cells[0].source.splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith("?")
    assert all(cell.source.strip() for cell in cells)
    kinds = [cell.cell_type for cell in cells]
    assert kinds[0] == "markdown"
    assert "code,code" not in ",".join(kinds)
    assert 4 <= kinds.count("code") <= 8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_defines_nothing(path):
    forbidden = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code(read(path)):
        assert not cell.source.startswith(("%", "!"))
        assert [type(node).__name__ for node in ast.walk(ast.parse(cell.source)) if isinstance(node, forbidden)] == []
        assert len(cell.source.splitlines()) <= 20


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_lies_in_git_without_outputs(path):
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    assert [cell.id for cell in notebook.cells] == [f"cell-{place:02d}" for place in range(1, len(notebook.cells) + 1)]
    for cell in notebook.cells:
        assert not cell.metadata
    for cell in code(notebook):
        assert not cell.outputs
        assert cell.execution_count is None
    nbformat.validate(notebook)


def test_sizes_without_rivals_or_fits_of_their_own_are_shown():
    table = simulate_sizes(budgets=(1e18, 4e18, 16e18), mean_recurrences=(1, 2, 4))
    fit = fit_sizes(table, name="few", draws=0, through_budgets=False)
    assert (fit.alone, fit.comparisons) == ((), ())
    for cell in code(read(FOLDER / "7_sizes.ipynb"))[4:6]:
        exec(cell.source, {"fit": fit, "pd": pd})
