"""What the trainer and the fits say of the names of tasks, in rooms that may not import one another."""

import pytest

from isoloop.fitting.tables import quality
from isoloop.trainer.quality.suites import SUITES, Task
from isoloop.trainer.quality.suites.task import NO_TASKS


def test_a_task_has_no_name_that_a_run_table_gives_to_something_else():
    assert set(NO_TASKS) == set(quality._NO_TASKS)
    for name in NO_TASKS:
        with pytest.raises(ValueError, match=f"would have the column {name}_loss"):
            Task(name=name, kind="schema", file="a.jsonl", baselines={"own": 50})


def test_columns_of_every_published_task_are_read_as_quality():
    names = [task.name for task in SUITES["core-extended"].tasks]
    keys = [f"{name}_{part}" for name in names for part in ("accuracy", "loss", "chance")]
    assert set(quality.quality_names(keys)) == set(keys)
