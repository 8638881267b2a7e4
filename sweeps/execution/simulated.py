"""A stand-in for the trainer that draws a run's losses from a law, so that a sweep at paper scale takes seconds.

It writes the same journal and the same result file as the trainer, and marks them as simulated.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from isoloop.fitting.simulate import Truth, draw_losses
from isoloop.sweeps.config.schema import Simulation
from isoloop.trainer.accounting import count_parameters, expected_loops, flops_spent
from isoloop.trainer.config import RunSpec
from isoloop.trainer.files import sole_owner
from isoloop.trainer.recurrence import loss_at_mean, recurrences_around
from isoloop.trainer.run.branch import BRANCHES, Branching
from isoloop.trainer.run.journal import Journal
from isoloop.trainer.run.result import RunResult, read_result, write_result

_JOURNAL_POINTS = 20
_STOP_CHECK_SECONDS = 0.5


def simulate_run(
    spec: RunSpec,
    simulation: Simulation,
    run_id: str,
    folder: Path,
    *,
    branching: Branching | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunResult | None:
    """Draw the result of `spec` from the law of `simulation`; the same run draws the same numbers every time.

    A branch takes no time for its trunk's steps; the states saved for branches are empty.
    With `simulation.flops_per_second` it takes the time of a real run, and returns None if `should_stop` returns True.

    Raises:
        FolderBusyError: another process simulates this run.
    """
    with sole_owner(folder):
        return read_result(folder) or _draw_result(
            spec, simulation, run_id, folder, branching or Branching(), should_stop
        )


def _draw_result(
    spec: RunSpec,
    simulation: Simulation,
    run_id: str,
    folder: Path,
    branching: Branching,
    should_stop: Callable[[], bool],
) -> RunResult | None:
    # Draw the losses.
    parameters = count_parameters(spec.model)
    truth = Truth(
        **simulation.model_dump(exclude={"flops_per_second"}),
        effective_params_fixed=float(parameters.effective_fixed),
        effective_params_per_loop=float(parameters.effective_per_loop),
    )
    mean = spec.recurrence.mean
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:8], "little"))
    recurrences = sorted({*spec.evaluation.recurrences, *recurrences_around(mean)})
    drawn = draw_losses(truth, mean, spec.tokens, recurrences, rng)
    losses = {recurrence: drawn[recurrence] for recurrence in recurrences}
    # Write the journal, over the time that the run takes.
    journal = Journal(folder / "journal.jsonl")
    first = 0
    if branching.start is not None:
        first = branching.start.step
        journal.event("branched", trunk=branching.start.run_id, step=first)
    journal.event("started", step=first, simulated=True)
    forward, backward = expected_loops(spec.recurrence, "exact")
    flops = flops_spent(spec.model, spec.recurrence, spec.tokens, forward, backward)
    seconds = 0.0 if simulation.flops_per_second is None else flops["flops_exact"] / simulation.flops_per_second
    began, done = time.monotonic(), first
    points = np.linspace(first + 1, spec.steps, _JOURNAL_POINTS).round().astype(int).tolist()
    for step in sorted({*points, *(place for place in branching.save_at if place > first)}):
        while (left := began + seconds * (step - first) / spec.steps - time.monotonic()) > 0:
            time.sleep(min(left, _STOP_CHECK_SECONDS))
            if should_stop():
                journal.event("stopped", step=done)
                journal.close()
                return None
        if step in branching.save_at:
            state = folder / BRANCHES / f"{step:08d}"
            state.mkdir(parents=True, exist_ok=True)
            (state / "state.pt").touch()
        tokens = float(step * spec.tokens_per_step)
        journal.metrics(step, {"train_loss": truth.loss(mean, tokens, mean), "tokens": tokens})
        done = step
    journal.event("finished", step=spec.steps, simulated=True)
    journal.close()
    # Write the result.
    result = RunResult(
        run_id=run_id,
        status="finished",
        simulated=True,
        steps=spec.steps,
        tokens=spec.tokens,
        forward_loops=forward,
        backward_loops=backward,
        **flops,
        loss=loss_at_mean(losses, mean),
        losses=losses,
        bits_per_byte=None,
        spectral_radius=None,
        seconds=0.0,
        trunk_steps=first,
        flops_trained=flops["flops_exact"] * (1 - first / spec.steps),
    )
    (folder / "spec.json").write_text(spec.model_dump_json(indent=1), encoding="utf-8")
    write_result(folder, result)
    return result
