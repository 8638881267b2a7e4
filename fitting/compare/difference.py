"""One number of two sweeps side by side: both values and what changes from one to the other, with 95% intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoloop.fitting.estimation.bootstrap import interval, reach

Change = Literal["difference", "ratio"]
Counts = Literal["nothing", "losses", "tokens", "losses and tokens"]
"""What a number is counted in that two sweeps may not share: exponents count neither losses nor tokens."""

_PAIRINGS = 10
"""How many draws of the other fit each draw is paired with: more only take noise out of the interval's ends."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number of one sweep: `draws` (d,) of it, widened as its `interval` (95%) is; neither where there are none.

    `flops` is the compute it is at, None where it is of the whole sweep. `note` says what to know of it, `why_no_draws`
    why there are none.
    """

    section: str
    name: str
    unit: str
    change: Change
    counts: Counts
    value: float
    interval: tuple[float, float] | None
    draws: np.ndarray | None
    flops: float | None = None
    note: str = ""
    why_no_draws: str = "no refits"

    @property
    def key(self) -> tuple[str, str, str, float | None]:
        """What tells it from other numbers of its sweep, and is the same in another sweep."""
        return self.section, self.name, self.change, self.flops


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A number of two sweeps: `change` is second - first, or second / first where `kind` is "ratio".

    `flops` is the compute that it is at, None where it is of the whole sweep. `interval` is the 95% of the change, and
    `why_not` says why it, or the change itself, is None. The notes say what to know of either value.
    """

    section: str
    name: str
    unit: str
    flops: float | None
    kind: Change
    first: float
    first_interval: tuple[float, float] | None
    second: float
    second_interval: tuple[float, float] | None
    change: float | None
    interval: tuple[float, float] | None
    why_not: str | None
    first_note: str = ""
    second_note: str = ""

    @property
    def differs(self) -> bool | None:
        """Whether the interval excludes that there is no change; None without an interval."""
        if self.interval is None:
            return None
        none = 1.0 if self.kind == "ratio" else 0.0
        return not self.interval[0] <= none <= self.interval[1]


def difference(first: Quantity, second: Quantity, why_not: str | None = None) -> Difference:
    """The change from `first` to `second`; none at all where `why_not` says that the two can't be compared."""
    assert first.key == second.key, (first.key, second.key)
    change, bounds = None, None
    if why_not is None and first.change == "ratio" and first.value == 0:
        why_not = "A's is 0, and nothing can be divided by it"
    if why_not is None:
        change = second.value / first.value if first.change == "ratio" else second.value - first.value
        if first.draws is None or second.draws is None:
            lacking = {side: one.why_no_draws for side, one in (("A", first), ("B", second)) if one.draws is None}
            reasons = dict.fromkeys(lacking.values())
            why_not = "; ".join(
                f"{reason} of {' and '.join(side for side, why in lacking.items() if why == reason)}"
                for reason in reasons
            )
        else:
            a, b = paired(first.draws, second.draws)
            bounds = interval(b / a if first.change == "ratio" else b - a)
    return Difference(
        section=first.section,
        name=first.name,
        unit=first.unit,
        flops=first.flops,
        kind=first.change,
        first=first.value,
        first_interval=first.interval,
        second=second.value,
        second_interval=second.interval,
        change=change,
        interval=bounds,
        why_not=why_not,
        first_note=first.note,
        second_note=second.note,
    )


def paired(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws (n,) of both, each taken at random.

    Two fits with one seed draw the same noise in the same order, so that their draws at one place rise and fall
    together. Taken at random they are independent, as the runs behind the two fits are.
    """
    rng = np.random.default_rng(0)
    count = _PAIRINGS * max(len(first), len(second))
    return rng.choice(first, count), rng.choice(second, count)


def widened(value: float, draws: np.ndarray, widening: float, *, in_logs: bool) -> np.ndarray:
    """Draws moved away from the estimate by the factor `widening`, as the interval of the fit is."""
    if widening == 1.0:
        return draws
    if in_logs:
        return np.asarray(value * (draws / value) ** widening)
    return np.asarray(value + widening * (draws - value))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured number with its standard error, known by `freedom` degrees of freedom; None where nothing tells it."""

    value: float
    error: float | None
    freedom: int = 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """95%, by Student's t."""
        if self.error is None:
            return None
        half = reach(self.freedom) * self.error
        return self.value - half, self.value + half


def minus(second: Measured, first: Measured) -> Measured:
    """second - first, with the degrees of freedom of Welch and Satterthwaite; no error where one of them has none."""
    value = second.value - first.value
    if first.error is None or second.error is None:
        return Measured(value=value, error=None)
    parts = ((first.error**2, first.freedom), (second.error**2, second.freedom))
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts)
    freedom = int(variance**2 / spread) if spread > 0 else min(freedom for _, freedom in parts)
    return Measured(value=value, error=float(np.sqrt(variance)), freedom=max(freedom, 1))
