"""The answer of a sweep before its end: its rows are those of the end, and it is never taken for the end's."""

import json
import math
import shutil
import time

import numpy as np
import pytest

from isoloop.fitting.surface.quick import quick_surface
from isoloop.sweeps.analysis import fit_and_report, report_so_far
from isoloop.sweeps.config.schema import config_text
from isoloop.sweeps.execution.simulated import simulate_run
from isoloop.sweeps.execution.status import write_manifest
from isoloop.sweeps.plan.grid import grid_columns, plan_sweep, simulated_corpus
from isoloop.sweeps.report.so_far import EarlyAnswerReader, early_answers, read_table_so_far
from isoloop.sweeps.runs import simulated_table
from tests.commands import isoloop, quick_pages

ENDED, RUNNING = 12, 2


@pytest.fixture
def half_done(simulated, folders):
    """Make a sweep of 16 runs, of which 12 have ended, two have done 60%, and two have not begun; return its plan."""
    plan = plan_sweep(simulated, simulated_corpus)
    accounting = {"accounting": simulated.accounting}
    write_manifest(plan.cells, folders, columns=lambda cell: accounting | grid_columns(plan, cell))
    folders.so_far.sweep.mkdir()
    folders.so_far.config.write_text(config_text(simulated), encoding="utf-8")
    for cell in plan.cells[-ENDED - RUNNING :]:
        simulate_run(cell.spec, simulated.simulation, cell.run_id, folders.run(cell.run_id))
    for cell in plan.cells[-ENDED - RUNNING : -ENDED]:
        folder = folders.run(cell.run_id)
        (folder / "result.json").unlink()
        lines = (folder / "journal.jsonl").read_text().splitlines()
        kept = [line for line in lines if json.loads(line).get("step", 0) <= 0.6 * cell.spec.steps]
        (folder / "journal.jsonl").write_text("\n".join(kept) + "\n")
    return plan


def test_the_rows_are_those_of_the_end(half_done, simulated, folders):
    so_far = read_table_so_far(folders)
    final = simulated_table(simulated).set_index("run_id")
    assert (len(so_far.table), so_far.runs, so_far.budget) == (ENDED, 16, 8e10)
    for row in so_far.table.to_dict("records"):
        same = final.loc[row["run_id"]]
        for name in ("budget", "mean_recurrence", "loss", "flops", "tokens", "flops_per_token_fixed", "loss_T4"):
            assert row[name] == same[name], name
    extrapolated = so_far.with_curves[so_far.with_curves["extrapolated"].astype(bool)]
    assert len(extrapolated) == RUNNING
    for row in extrapolated.to_dict("records"):
        assert abs(math.log(row["loss"] / final.loc[row["run_id"], "loss"])) < 4 * row["loss_error"] < 0.1


def test_the_answer_is_that_of_the_ended_runs_and_says_so(half_done, folders):
    so_far = read_table_so_far(folders)
    (answer,) = early_answers(so_far)
    assert (answer.ended, answer.runs, answer.curves, answer.flops) == (ENDED, 16, RUNNING, 8e10)
    assert answer.sentence.startswith("so far, at 8e+10 FLOPs: ")
    assert answer.sentence.endswith("from 12 of 16 runs and the curves of 2 more")
    low, high = answer.intervals["loss"]
    alone = quick_surface(so_far.table, draws=0)
    best = alone.best(lambda params, loops: alone.family.tokens_for(8e10, params, loops))
    assert low <= float(best.loss) <= high


def test_a_page_so_far_has_a_folder_of_its_own_which_goes_at_the_end(half_done, simulated, folders):
    with quick_pages():
        page = report_so_far(folders, command="isoloop report small/so-far", draws=20)
        text = page.read_text()
        assert "So far: 12 of 16 runs have ended" in text
        assert "simulated-grid-so-far" in text
        assert page.parent == folders.sweep / "so-far"
        assert not folders.table.exists()
        assert not folders.fit(hold_out=False).exists()
        table = simulated_table(simulated)
        folders.config.write_text(config_text(simulated), encoding="utf-8")
        table.to_csv(folders.table, index=False)
        fit_and_report(simulated, folders, table, command="isoloop run", draws=20)
    assert not page.exists()
    assert folders.fit(hold_out=False).exists()


def test_status_says_it_below_the_state(half_done, folders):
    out = folders.out
    shown = isoloop("status", "small", "--out", out, cwd=out.parent).stdout
    assert "So far, at 8e+10 FLOPs: " in shown.replace("\n", " ")
    assert "isoloop report small/so-far" in shown
    assert "So far" not in isoloop("status", "small", "--out", out, "--no-answer", cwd=out.parent).stdout
    (answer,) = json.loads(isoloop("status", "small", "--out", out, "--json", "--answer", cwd=out.parent).stdout)[
        "so_far"
    ]
    assert answer["ended"] == ENDED
    refused = isoloop("report", "small", "--out", out, cwd=out.parent, check=2).stderr
    assert "isoloop report small/so-far" in refused


def test_a_live_display_reads_only_when_more_runs_have_ended(half_done, folders):
    reader = EarlyAnswerReader(folders)
    assert reader.update(0) == []
    deadline = time.monotonic() + 60
    while not (sentences := reader.update(ENDED)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "from 12 of 16 runs" in sentences[0]
    shutil.rmtree(folders.out / "runs")
    assert reader.update(ENDED + 1) == sentences  # not yet: it has just read


def test_too_few_runs_have_no_answer_and_say_why(half_done, folders):
    for cell in half_done.cells[-5:]:
        shutil.rmtree(folders.run(cell.run_id))
    (answer,) = early_answers(read_table_so_far(folders))
    assert answer.sentence == "so far: 7 finished runs, and an answer needs 8"
    assert not answer.values
    for cell in half_done.cells:
        shutil.rmtree(folders.run(cell.run_id), ignore_errors=True)
    with pytest.raises(ValueError, match="none of the 16 runs of 'small' has"):
        read_table_so_far(folders)
    assert np.isfinite(half_done.flops)
