"""The law that a table speaks for, by information criteria and rollouts, and the reason in one or two sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isoloop.fitting.selection.distance import RolloutScore


@dataclass(frozen=True, kw_only=True)
class Preference:
    """The law to use, by the name that `law_named` knows, and why."""

    law: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """Criteria of one fitted law, whose `name` is that in reports.

    `rollouts` is the error of predicting all larger budgets, None where that could not be measured for every law.
    Smaller is better in all of them.
    """

    name: str
    aic: float
    bic: float
    rollouts: RolloutScore | None


def preferred_law(laws: Mapping[str, Criteria], *, no_rollouts: str = "") -> Preference:
    """Return the law to use among fits to the same rows, by name.

    Where the criteria disagree, rollouts decide if their best law is better than every other at the 95% level, since
    what a law is for is larger budgets. Otherwise BIC does: rollouts fit fewer runs than there are, which favours laws
    of few parameters (benchmarks/fitting/RESULTS.md). `no_rollouts` says why there are none.
    """
    if len(laws) == 1:
        (law, only), *_ = laws.items()
        return Preference(law=law, reason=f"Use the {only.name} law: it is the only one that could be fitted.")
    by_aic = min(laws, key=lambda law: laws[law].aic)
    by_bic = min(laws, key=lambda law: laws[law].bic)
    scores = {law: each.rollouts for law, each in laws.items() if each.rollouts is not None}
    if len(scores) < len(laws):
        missing = f" There are no rollouts: {no_rollouts}." if no_rollouts else ""
        if by_aic == by_bic:
            return Preference(law=by_bic, reason=f"Use the {laws[by_bic].name} law: AIC and BIC agree on it.{missing}")
        return Preference(
            law=by_bic,
            reason=f"Use the {laws[by_bic].name} law, which BIC prefers by {_lead(laws, by_bic, by_aic)}; AIC and BIC "
            f"disagree: AIC prefers the {laws[by_aic].name} law.{missing}",
        )
    by_rollouts = min(scores, key=lambda law: scores[law].error)
    if by_aic == by_bic == by_rollouts:
        return Preference(
            law=by_bic,
            reason=f"Use the {laws[by_bic].name} law: AIC, BIC and rollouts agree on it. It predicts larger budgets to "
            f"{scores[by_bic].error:.2g}%, averaged over distances.",
        )
    second = min((law for law in scores if law != by_rollouts), key=lambda law: scores[law].behind)
    lead = scores[second]
    sizes = f"{scores[by_rollouts].error:.3g}% against {lead.error:.3g}% by the {laws[second].name} law"
    sizes += "" if lead.behind_error is None else f", {lead.behind:.2g} ± {lead.behind_error:.2g} apart"
    chosen = by_bic
    if all(score.clearly_behind for law, score in scores.items() if law != by_rollouts):
        chosen = by_rollouts
        decision = f"it predicts larger budgets best ({sizes})"
    elif by_bic == by_rollouts:
        decision = f"BIC prefers it, and it predicts larger budgets best, though not clearly ({sizes})"
    else:
        best = laws[by_rollouts].name
        decision = f"BIC prefers it, and rollouts don't decide: the {best} law has an error of {sizes}"
    votes = {"AIC": by_aic, "BIC": by_bic}
    against = {name: law for name, law in votes.items() if law != chosen}
    return Preference(law=chosen, reason=f"Use the {laws[chosen].name} law: {decision}. {_votes(laws, votes, against)}")


def _lead(laws: Mapping[str, Criteria], first: str, second: str) -> str:
    return f"{laws[second].bic - laws[first].bic:.1f}"


def _votes(laws: Mapping[str, Criteria], votes: Mapping[str, str], against: Mapping[str, str]) -> str:
    """Return what AIC and BIC prefer, where `against` are those that prefer another law than the chosen one."""
    if not against:
        return "AIC and BIC prefer it, too."
    if len(set(votes.values())) == 1:
        return f"AIC and BIC prefer the {laws[votes['AIC']].name} law."
    return (
        f"AIC and BIC disagree: AIC prefers the {laws[votes['AIC']].name} law, BIC the {laws[votes['BIC']].name} law."
    )
