"""A grid around an expected optimum: the best mean recurrence of each budget, as a stored fit predicts it."""

from pathlib import Path
from typing import TYPE_CHECKING

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.paths import Folders

if TYPE_CHECKING:
    from isoloop.fitting import SweepFit


def with_centres(sweep: SweepConfig, folders: Folders) -> SweepConfig:
    """The sweep with the µ*(C) that its `around` asks for filled in; as it is where there is nothing to fill in.

    Args:
        sweep: the sweep.
        folders: whose output folder holds the fits of other sweeps.

    Raises:
        ValueError: there is no such fit, it counts FLOPs otherwise, or it has no such law.
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
            f"a grid must count FLOPs as the fit that it is centred on, but the sweep has {sweep.accounting} and "
            f"{path} has {fit.accounting}; set accounting to {fit.accounting}"
        )
    found = {budget: _best(fit, budget, around.law, path) for budget in sweep.budgets if budget not in known}
    update = {"centres": tuple((known | found).items()), "centres_of": around.law_and_fit}
    return sweep.model_copy(update={"around": around.model_copy(update=update)})


def _best(fit: "SweepFit", budget: float, law: str, path: Path) -> float:
    """µ* at a budget, in loops, by the law that was asked for."""
    from isoloop.fitting import predict

    if law == "training":
        return predict(fit, flops=budget).mean_recurrence
    found = fit.isoflop.mean_recurrence_law if fit.isoflop else None
    if found is None:
        reason = fit.why_missing("isoflop") if fit.isoflop is None else fit.isoflop.reason
        raise ValueError(
            f"a grid around isoFLOP minima needs their power law, but {path} has none ({reason}); set around.law to "
            "training"
        )
    return found.at(budget)
