"""Grids centred on an optimum: the best mean recurrence of each budget, as a stored fit predicts it."""

from pathlib import Path
from typing import TYPE_CHECKING

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.paths import Folders

if TYPE_CHECKING:
    from isoloop.fitting import SweepFit


def with_centres(sweep: SweepConfig, folders: Folders) -> SweepConfig:
    """Return the sweep with µ*(C) filled in for each budget that lacks it; unchanged if it isn't centred on a fit.

    Args:
        sweep: the sweep.
        folders: its folders, beside which the fits of other sweeps are.

    Raises:
        ValueError: there is no such fit, its accounting differs from the sweep's, or it has no such law.
    """
    around = sweep.around
    if around is None or sweep.budgets is None:
        return sweep
    known = dict(around.centres or ()) if around.centres_of in (None, around.law_and_fit) else {}
    if known.keys() >= set(sweep.budgets):
        return sweep
    from isoloop.fitting import SweepFit

    path = Path(around.fit)
    if path.suffix != ".json":
        path = Folders(out=folders.out, name=around.fit).fit(hold_out=False)
    if not path.is_file():
        raise ValueError(
            f"around.fit must be a sweep with a fit under --out, or a fit's .json file, but there is no {path}; run "
            f"'isoloop fit {around.fit}' first"
        )
    fit = SweepFit.read(path)
    if fit.accounting != sweep.accounting:
        raise ValueError(
            f"a sweep must have the accounting of the fit that it is centred on, but it has {sweep.accounting} and "
            f"{path} has {fit.accounting}; set accounting to {fit.accounting}"
        )
    new = {
        budget: _optimal_recurrence(fit, budget, around.law, path) for budget in sweep.budgets if budget not in known
    }
    update = {"centres": tuple((known | new).items()), "centres_of": around.law_and_fit}
    return sweep.model_copy(update={"around": around.model_copy(update=update)})


def _optimal_recurrence(fit: "SweepFit", budget: float, law: str, path: Path) -> float:
    """Return µ* at a budget, in loops, under a law."""
    from isoloop.fitting import predict

    if law == "training":
        return predict(fit, flops=budget).mean_recurrence
    power_law = fit.isoflop.mean_recurrence_law if fit.isoflop else None
    if power_law is None:
        reason = fit.why_missing("isoflop") if fit.isoflop is None else fit.isoflop.reason
        raise ValueError(
            f"around.law: isoflop requires a power law of the minima, but {path} has none ({reason}); set around.law "
            "to training"
        )
    return power_law.at(budget)
