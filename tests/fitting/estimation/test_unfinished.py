"""Losses that running runs will end with: the truth lies within the error that the finished runs show."""

from dataclasses import replace

import numpy as np
import pytest

from isoloop.fitting.estimation.unfinished import TrainingCurve, extrapolated_losses


def curve(
    run_id: str, planned: float, loops: float, share: float, rng: np.random.Generator
) -> tuple[TrainingCurve, float]:
    """Return a run's curve up to a share of its training, and its final loss: a power law that the decay lowers."""
    tokens = np.geomspace(0.01, 1.0, 100) * planned
    level = (2 + 3 * loops**-0.3) * (1 + 30 * tokens**-0.3) * np.exp(0.002 * rng.standard_normal(100))
    final = (2 + 3 * loops**-0.3) * (1 + 30 * planned**-0.3) * (0.93 - 0.01 * np.log(loops))
    final *= float(np.exp(0.002 * rng.standard_normal()))
    smooth = np.exp(np.convolve(np.log(level), np.ones(5) / 5, mode="valid"))
    seen = tokens[2:-2] <= share * planned
    return (
        TrainingCurve(
            run_id=run_id,
            tokens=tokens[2:-2][seen],
            losses=smooth[seen],
            planned_tokens=planned,
            mean_recurrence=loops,
        ),
        final,
    )


def ended(rng: np.random.Generator, count: int) -> list[TrainingCurve]:
    grid = [(budget, loops) for budget in (1e6, 2e6, 4e6) for loops in (1.0, 2.0, 4.0, 8.0)][:count]
    curves = [curve(f"run-{place}", budget, loops, 1.0, rng) for place, (budget, loops) in enumerate(grid)]
    return [
        TrainingCurve(
            run_id=one.run_id, tokens=one.tokens, losses=one.losses, planned_tokens=one.planned_tokens,
            mean_recurrence=one.mean_recurrence, final=final,
        )
        for one, final in curves
    ]  # fmt: skip


def test_the_truth_lies_within_two_errors_as_often_as_it_should() -> None:
    rng, inside, errors = np.random.default_rng(0), 0, []
    for _ in range(100):
        running, final = curve("running", 8e6, 4.0, 0.6, rng)
        (predicted,) = extrapolated_losses([running], ended(rng, 12))
        inside += abs(np.log(predicted.loss / final)) <= 1.96 * predicted.error
        errors.append(predicted.error)
    assert inside >= 88
    # The decay alone lowers the loss by 7%: it must be in the factor, and not in the error.
    assert np.median(errors) < 0.02


def test_the_error_falls_as_the_run_goes_on() -> None:
    rng = np.random.default_rng(1)
    finished = ended(rng, 12)
    early, late = (curve("running", 8e6, 4.0, share, rng)[0] for share in (0.15, 0.9))
    assert extrapolated_losses([early], finished)[0].error > extrapolated_losses([late], finished)[0].error


@pytest.mark.parametrize(("finished", "share"), [(3, 0.5), (12, 0.05)])
def test_too_little_gives_no_extrapolation(finished: int, share: float) -> None:
    rng = np.random.default_rng(2)
    assert extrapolated_losses([curve("running", 4e6, 2.0, share, rng)[0]], ended(rng, finished)) == []


def test_runs_whose_curves_begin_later_say_nothing_of_an_earlier_share() -> None:
    rng = np.random.default_rng(3)
    finished = ended(rng, 12)
    late = [
        replace(one, run_id=f"branch-{one.run_id}", tokens=one.tokens[one.tokens > 0.8 * one.planned_tokens],
                losses=one.losses[one.tokens > 0.8 * one.planned_tokens])
        for one in finished
    ]  # fmt: skip
    running = curve("running", 4e6, 2.0, 0.3, rng)[0]
    assert extrapolated_losses([running], late) == []
    assert extrapolated_losses([running], [*finished, *late]) == extrapolated_losses([running], finished)
