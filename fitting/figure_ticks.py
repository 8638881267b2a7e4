"""Ticks that never overlap: on a log axis, as many labels as there is room for at the size that is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, Locator, NullFormatter, NullLocator

Candidates = Callable[[float, float], list[list[float]]]
"""Lists of ticks between two limits, the one to try first in front."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CHARACTER = 0.62
"""Width of a character as a share of the font's size, a wide one's."""
_LINE, _ROW = 1.35, 1.05
"""Heights of a label as shares of the font's size: with air about it, and without."""
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


def row_ticks(axis: Axis, labels: Mapping[float, str]) -> None:
    """A linear axis with the labels at their places, from the top down those that have room."""
    places = sorted(labels, reverse=True)

    def text(value: float) -> str:
        return labels.get(value, "")

    axis.set_major_locator(_RoomyLocator(axis, lambda low, high: [places], text, at=lambda value: value, line=_ROW))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _log_axis(axis: Any, candidates: Candidates, text: Callable[[float], str], *, all_or_none: bool) -> None:
    # Setting the scale puts its own locators in place, so it comes first.
    axis.axes.set_xscale("log") if axis is axis.axes.xaxis else axis.axes.set_yscale("log")
    axis.set_major_locator(_RoomyLocator(axis, candidates, text, all_or_none=all_or_none))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


class _RoomyLocator(Locator):
    """Of several lists of ticks the first whose labels all have room; or of one list, those that have."""

    def __init__(
        self,
        axis: Any,
        candidates: Candidates,
        text: Callable[[float], str],
        *,
        all_or_none: bool = False,
        at: Callable[[float], float] = math.log,
        line: float = _LINE,
    ) -> None:
        self.of, self.across = axis, axis is axis.axes.xaxis
        self.candidates, self.text, self.all_or_none = candidates, text, all_or_none
        self.at, self.line = at, line

    def __call__(self) -> list[float]:
        """The ticks at the axis's present limits and size."""
        low, high = sorted(self.of.get_view_interval())
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """The ticks between two limits."""
        window = self.of.axes.get_window_extent()
        points = (window.width if self.across else window.height) * 72 / self.of.axes.figure.dpi
        low, high = self.at(vmin), self.at(vmax)
        per_unit, rounding = points / (high - low), 1e-9 * (high - low)
        kept: list[float] = []
        for values in self.candidates(vmin, vmax):
            inside = [value for value in values if low - rounding <= self.at(value) <= high + rounding]
            kept = []
            for value in inside:
                if all(abs(self.at(value) - self.at(other)) * per_unit >= self._room(value, other) for other in kept):
                    kept.append(value)
            if not self.all_or_none or len(kept) == len(inside):
                break
        return sorted(kept)

    def _room(self, one: float, other: float) -> float:
        """Points between the centres of two labels, at least."""
        size = float(self.of.get_major_ticks(1)[0].label1.get_size())
        if not self.across:
            return self.line * size
        return _CHARACTER * size * (len(self.text(one)) + len(self.text(other))) / 2 + 0.4 * size


def _round_numbers(low: float, high: float) -> list[list[float]]:
    """Lists of round numbers between two positive ones, the finest that isn't too many first."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    lists = [[float(f"{step}e{power}") for power in range(first, last + 1) for step in steps] for steps in _STEPS]
    lists += [[10.0**power for power in range(first, last + 1) if power % every == 0] for every in (2, 3, 5, 10)]
    inside = [[value for value in values if low <= value <= high] for values in lists]
    return [values for values in inside if len(values) <= _ENOUGH] or [inside[-1]]
