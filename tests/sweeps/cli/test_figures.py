"""`isoloop figure`: which fit it finds, what it writes where, and what it says of bad questions."""

from pathlib import Path

import pytest

from isoloop.fitting import fit_sweep, simulate_table
from isoloop.sweeps.cli.figures import figure
from isoloop.sweeps.cli.options import files_of


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A sweep of 12 simulated runs with both fits, and its table with a fit beside it under names of their own."""
    folder = tmp_path_factory.mktemp("figures")
    sweep = folder / "sweeps" / "small"
    sweep.mkdir(parents=True)
    table = simulate_table(budgets=(1e18, 2e18, 4e18), mean_recurrences=(1, 2, 4, 8), recurrences=(1, 2, 4, 8))
    table.to_csv(sweep / "runs.csv", index=False)
    for name in ("mine.csv", "new.csv"):
        table.to_csv(folder / name, index=False)
    text = fit_sweep(table, name="small", draws=0).to_json()
    for path in (sweep / "fit.json", folder / "mine.fit.json", folder / "alone" / "fit.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    hold_out = fit_sweep(table, name="small", draws=0, hold_out_largest_budget=True)
    (sweep / "hold-out.json").write_text(hold_out.to_json())
    return folder


def test_without_a_place_the_figures_are_listed(out, capsys):
    figure("small", out=out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "isoflop_curves"
    assert next(line for line in lines if "held_out" in line).endswith("(give --hold-out)")
    figure("small", out=out, hold_out=True)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "can't be drawn" in line)
    assert line.split()[0] == "rollouts"
    assert line.endswith("(leave out --hold-out)")


@pytest.mark.parametrize("target", ["small", "mine.csv", "mine.fit.json", "sweeps/small/fit.json"])
def test_one_figure_goes_into_one_file(out, target, tmp_path, capsys):
    given = target if target == "small" else str(out / target)
    path = tmp_path / "new" / "figure.svg"
    figure(given, ["isoflop_curves"], out=out, to=path, width=3.3)
    assert 'width="237.6pt"' in path.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == str(path)


def test_named_figures_go_into_a_folder(out, tmp_path):
    figure("small", ["isoflop_curves", "held_out_errors"], out=out, to=tmp_path, hold_out=True)
    suffixes = (".pdf", ".png", ".svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}{suffix}" for name in ("held_out_errors", "isoflop_curves") for suffix in suffixes
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"target": "small", "names": ["isoflop"], "to": Path("a.svg")}, "a figure must be one of isoflop_curves"),
        ({"target": "small", "names": ["isoflop_curves"]}, "a figure must have a place, but there is no --to"),
        ({"target": "small", "to": Path("a.svg")}, "a file must hold one figure, but got no figure's name for a.svg"),
        ({"target": "small", "names": ["power_laws"] * 2, "to": Path("a.svg")}, "but got 2 figures for a.svg"),
        ({"target": "small", "names": ["power_laws"], "to": Path("a.jpg")}, "must end in .png, .svg, .pdf"),
        (
            {"target": "small", "names": ["held_out_errors"], "to": Path("a.svg")},
            r"held out of this .*\(give --hold-out",
        ),
        ({"target": "small", "names": ["power_laws"], "to": Path("a.svg"), "width": 1.0}, "width must be 2.5 to 20"),
        ({"target": "none"}, "has no sweep 'none'"),
        ({"target": "none.json"}, "a stored fit must exist"),
        ({"target": "none.csv"}, "a table must be a file, but there is none at none.csv"),
        ({"target": "new.csv"}, "there is none at new.fit.json; make it with: isoloop fit new.csv"),
        ({"target": "mine.csv", "hold_out": True}, "make it with: isoloop fit mine.csv --hold-out"),
        ({"target": "small", "names": ["power_laws"], "to": Path("a.xlsx")}, "must end in .png, .svg, .pdf, but got"),
        ({"target": "a.xlsx"}, "there is no file a.xlsx"),
        ({"target": "alone/fit.json"}, "table must lie beside it, but there is no runs.csv, runs.parquet or other"),
        ({"target": "mine.fit.json", "hold_out": True}, "is one fit already"),
    ],
)
def test_bad_questions_get_one_message(out, arguments, expected, monkeypatch):
    monkeypatch.chdir(out)
    with pytest.raises(ValueError, match=expected):
        figure(**{"out": out, **arguments})
    assert not list(out.glob("a.*"))


def test_a_sweep_whose_driver_has_not_ended_says_where_its_table_comes_from(tmp_path):
    (tmp_path / "sweeps" / "begun").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"'begun' has none yet.*command, and see `isoloop status begun`"):
        files_of("begun", tmp_path).check_table("fit")
