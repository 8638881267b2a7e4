"""The law that a table speaks for, by information criteria and rollouts, and the reason in one or two sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_CLEAR = 0.9
"""Ratio of two laws' rollout errors up to which the better one is clearly better."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """The law to use, by the name that `law_named` knows, and why."""

    law: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """Criteria of one fitted law, whose `name` is that in reports.

    `rollout_error` is the mean absolute error of predicting each next budget, in percent, None where that could not be
    measured for every law. Smaller is better in all of them.
    """

    name: str
    aic: float
    bic: float
    rollout_error: float | None


def preferred_law(laws: Mapping[str, Criteria], *, no_rollouts: str = "") -> Preference:
    """Return the law to use among fits to the same rows, by name.

    Where the criteria disagree, rollouts decide if their best law is clearly better than every other (an error of at
    most 9/10), since what a law is for is the next budget. Otherwise BIC does: the laws predict about alike, and it
    asks most of a further parameter. `no_rollouts` says why there are none.
    """
    if len(laws) == 1:
        (law, only), *_ = laws.items()
        return Preference(law=law, reason=f"Use the {only.name} law: it is the only one that could be fitted.")
    by_aic = min(laws, key=lambda law: laws[law].aic)
    by_bic = min(laws, key=lambda law: laws[law].bic)
    errors = {law: each.rollout_error for law, each in laws.items() if each.rollout_error is not None}
    if len(errors) < len(laws):
        missing = f" There are no rollouts: {no_rollouts}." if no_rollouts else ""
        if by_aic == by_bic:
            return Preference(law=by_bic, reason=f"Use the {laws[by_bic].name} law: AIC and BIC agree on it.{missing}")
        return Preference(
            law=by_bic,
            reason=f"Use the {laws[by_bic].name} law, which BIC prefers by {_lead(laws, by_bic, by_aic)}; AIC and BIC "
            f"disagree: AIC prefers the {laws[by_aic].name} law.{missing}",
        )
    by_rollouts = min(errors, key=lambda law: errors[law])
    if by_aic == by_bic == by_rollouts:
        return Preference(
            law=by_bic,
            reason=f"Use the {laws[by_bic].name} law: AIC, BIC and rollouts agree on it. It predicts each next budget "
            f"to {errors[by_bic]:.2g}%.",
        )
    others = {law: error for law, error in errors.items() if law != by_rollouts}
    clear = errors[by_rollouts] <= _CLEAR * min(others.values())
    chosen = by_rollouts if clear else by_bic
    second = min(others, key=lambda law: others[law])
    sizes = f"{errors[by_rollouts]:.3g}% against {errors[second]:.3g}% by the {laws[second].name} law"
    if clear:
        decision = f"it predicts each next budget best ({sizes})"
    else:
        decision = (
            f"BIC prefers it, and rollouts don't decide: the {laws[by_rollouts].name} law has an error of {sizes}"
        )
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
