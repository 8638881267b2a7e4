"""Ticks that never overlap: on a log axis, as many labels as there is room for at the size that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, Locator, NullFormatter, NullLocator

Candidates = Callable[[float, float], list[list[float]]]
"""Lists of ticks between two limits, the one to try first in front."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CHARACTER = 0.62
"""Width of a character as a share of the font's size, a wide one's."""
_LINE = 1.35
_STEPS = (
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 2.0, 5.0),
    (1.0, 3.0),
    (1.0,),
)
_ENOUGH = 9


def power_of_ten(value: float) -> str:
    """A positive number as text: 10¹⁸, 6.4×10¹⁹."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    factor = f"{value / 10.0**exponent:.3g}"
    power = "10" + str(exponent).translate(_SUPERSCRIPTS)
    return power if factor == "1" else f"{factor}×{power}"


def grid_ticks(axis: Axis, values: Sequence[float] | np.ndarray) -> None:
    """A log axis with ticks at `values` (positive), those with room for their label: powers of two before others."""
    distinct = sorted({float(value) for value in values})
    first = sorted(distinct, key=lambda value: (not np.log2(value).is_integer(), value))
    _log_axis(axis, lambda low, high: [first], lambda value: f"{value:g}", all_or_none=False)


def decade_ticks(axis: Axis, *, text: Callable[[float], str] = power_of_ten) -> None:
    """A log axis with ticks at round numbers, as fine as there is room for."""
    _log_axis(axis, _round_numbers, text, all_or_none=True)


def _log_axis(axis: Any, candidates: Candidates, text: Callable[[float], str], *, all_or_none: bool) -> None:
    across = axis is axis.axes.xaxis
    # Setting the scale puts its own locators in place, so it comes first.
    axis.axes.set_xscale("log") if across else axis.axes.set_yscale("log")
    axis.set_major_locator(_RoomyLocator(axis, across, candidates, text, all_or_none))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


class _RoomyLocator(Locator):
    """Of several lists of ticks the first whose labels all have room; or of one list, those that have."""

    def __init__(
        self, axis: Any, across: bool, candidates: Candidates, text: Callable[[float], str], all_or_none: bool
    ) -> None:
        self.of, self.across, self.candidates = axis, across, candidates
        self.text, self.all_or_none = text, all_or_none

    def __call__(self) -> list[float]:
        """The ticks at the axis's present limits and size."""
        low, high = sorted(self.of.get_view_interval())
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """The ticks between two limits."""
        window = self.of.axes.get_window_extent()
        points = (window.width if self.across else window.height) * 72 / self.of.axes.figure.dpi
        per_unit = points / np.log(vmax / vmin)
        kept: list[float] = []
        for values in self.candidates(vmin, vmax):
            inside = [value for value in values if vmin * (1 - 1e-9) <= value <= vmax * (1 + 1e-9)]
            kept = []
            for value in inside:
                if all(abs(np.log(value / other)) * per_unit >= self._room(value, other) for other in kept):
                    kept.append(value)
            if not self.all_or_none or len(kept) == len(inside):
                break
        return sorted(kept)

    def _room(self, one: float, other: float) -> float:
        """Points between the centres of two labels, at least."""
        size = float(self.of.get_major_ticks(1)[0].label1.get_size())
        if not self.across:
            return _LINE * size
        return _CHARACTER * size * (len(self.text(one)) + len(self.text(other))) / 2 + 0.4 * size


def _round_numbers(low: float, high: float) -> list[list[float]]:
    """Lists of round numbers between two positive ones, the finest that isn't too many first."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    lists = [[float(f"{step}e{power}") for power in range(first, last + 1) for step in steps] for steps in _STEPS]
    lists += [[10.0**power for power in range(first, last + 1) if power % every == 0] for every in (2, 3, 5, 10)]
    inside = [[value for value in values if low <= value <= high] for values in lists]
    return [values for values in inside if len(values) <= _ENOUGH] or [inside[-1]]
