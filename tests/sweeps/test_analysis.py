"""The analysis of a finished sweep whose runs are of several groups."""

import re

import pandas as pd
import pytest

from isoloop.fitting import SizesFit, read_fit, simulate_sizes
from isoloop.fitting.simulate import simulate_table
from isoloop.sweeps.analysis import fit_and_report
from isoloop.sweeps.config.loading import validate_sweep
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.paths import Folders, folders_of
from tests.commands import quick_pages
from tests.sweeps.conftest import SIMULATED


@pytest.fixture(scope="module")
def table():
    one = simulate_table(budgets=(1e18, 4e18, 16e18), recurrences=(), seed=1).assign(group="variant = a")
    other = simulate_table(budgets=(1e18, 4e18, 16e18), recurrences=(), seed=2).assign(group="variant = [b]")
    few = simulate_table(budgets=(1e18,), mean_recurrences=(1, 2), recurrences=(), seed=3).assign(group="variant = c")
    return pd.concat([one, other, few], ignore_index=True)


@pytest.fixture(scope="module")
def made(table, tmp_path_factory):
    """Analyse a sweep of several groups where files of an earlier fit, of the sweep as a whole, lie."""
    sweep = validate_sweep(SIMULATED, source="test")
    folders = Folders(out=tmp_path_factory.mktemp("out"), name=sweep.name)
    folders.sweep.mkdir(parents=True)
    folders.config.write_text(config_text(sweep))
    folders.figures.mkdir()
    for earlier in (folders.fit(hold_out=False), folders.fit(hold_out=True), folders.figures / "power_laws.svg"):
        earlier.write_text("earlier")
    with quick_pages():
        return sweep, folders, fit_and_report(sweep, folders, table, command="x", draws=20)


def test_each_group_has_fits_and_a_page_of_its_own(made):
    _, folders, results = made
    assert set(results.groups) == {"variant = a", "variant = [b]"}
    a, b = results.groups["variant = a"], results.groups["variant = [b]"]
    assert a.fit.training.parameters != b.fit.training.parameters
    page = folders.report.read_text()
    for slug in ("variant=a", "variant=-b"):
        own = folders_of(f"{folders.name}/groups/{slug}", folders.out)
        assert own.fit(hold_out=False).exists()
        assert f'href="groups/{slug}/report.html"' in page
    assert "1 of them have fewer than 4 finished runs" in results.why_no_fit


def test_fits_from_before_the_groups_are_removed(made):
    _, folders, _ = made
    assert not folders.fit(hold_out=False).exists()
    assert not folders.fit(hold_out=True).exists()
    assert not folders.figures.exists()


def test_a_groups_page_can_be_made_anew(made):
    sweep, folders, _ = made
    own = folders_of(f"{folders.name}/groups/variant=a", folders.out)
    with quick_pages():
        again = fit_and_report(sweep, own, pd.read_csv(own.table), command="x", draws=20)
    assert again.fit is not None
    assert not again.groups
    assert not own.groups.exists()


def test_groups_that_differ_in_size_have_a_joint_fit_and_its_answer_on_the_page_of_all(tmp_path):
    table = simulate_sizes(budgets=(1e18, 4e18, 16e18), mean_recurrences=(1, 2, 4, 8), recurrences=())
    table = table[table["model.size"] != "770m"].reset_index(drop=True)
    table = table.assign(group="model.size = " + table["model.size"])[::-1].reset_index(drop=True)
    sweep = validate_sweep(SIMULATED, source="test")
    folders = Folders(out=tmp_path, name=sweep.name)
    folders.sweep.mkdir(parents=True)
    folders.config.write_text(config_text(sweep))
    table.to_csv(folders.table, index=False)
    with quick_pages():
        results = fit_and_report(sweep, folders, table, command="x", draws=0)
    assert results.fit is None
    assert isinstance(results.joint, SizesFit)
    assert list(results.groups) == ["model.size = 140m", "model.size = 370m"]  # by size, where the first run is of 370m
    stored = read_fit(folders.fit(hold_out=False))
    assert stored == results.joint
    page = folders.report.read_text()
    assert "Should the next FLOP buy more loops, more tokens or more parameters?" in page
    assert "more parameters alone" in page
    assert page.index("Best models through budgets") < page.index(
        "Each size at 1.6e+19 FLOPs, by the laws of its own runs"
    )
    held_out = page.split("Each run at T = µ:")[1].split("</table>")[0]
    cells = re.findall(r"<td[^>]*>\s*([^<]*?)\s*<", held_out)
    assert (cells.count("140m"), cells.count("370m")) == (4, 4)
    assert all(f'href="groups/{folder.name}/report.html"' in page for folder in folders.groups.iterdir())
