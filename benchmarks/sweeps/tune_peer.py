"""The same runs as trials of Ray Tune, each with its GPUs as one bundle; Tune reuses actors where it can."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoloop.sweeps.execution.worker import run_attempt


def run_with_tune(tasks: Sequence[str], gpus: Sequence[float], storage: Path) -> None:
    """Run each task, as JSON, in a trial that is given its number of GPUs; Tune starts them in their order."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    from ray import tune

    class Trial(tune.Trainable):
        """One run for one trial."""

        def setup(self, config: dict[str, Any], tasks: Sequence[str]) -> None:
            self.tasks, self.number = tasks, config["number"]

        def step(self) -> dict[str, Any]:
            run_attempt(self.tasks[self.number])
            return {"done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing is to be kept, but Tune asks at the end."""

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.number = new_config["number"]
            return True

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": 1, "GPU": gpus[config["number"]]}])

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, tasks=list(tasks)), resources),
        param_space={"number": tune.grid_search(list(range(len(tasks))))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(name="peer", storage_path=str(storage / "tune"), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors, results.errors[0]
