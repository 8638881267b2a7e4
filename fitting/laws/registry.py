"""Every law by name, those of a user's own included."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import Any

import numpy as np

from isoloop.fitting.laws.base import Data, Law, Parameter
from isoloop.fitting.laws.dense import ChinchillaLaw, SixParameterLaw
from isoloop.fitting.laws.looped import IsoDepthLaw, JointTestTimeLaw, TestTimeLaw, TrainingLaw, UnifiedLaw

LAWS: tuple[Law, ...] = (
    TrainingLaw(),
    TestTimeLaw(),
    JointTestTimeLaw(),
    UnifiedLaw(),
    ChinchillaLaw(),
    IsoDepthLaw(),
    SixParameterLaw(),
)
"""Every law of ours, for reports and for the contract test."""

_CLASS_VALUES = ("name", "formula", "source", "columns", "parameters", "linear_count")
_ROWS = 8
_STEP = 1e-5
_NEAR = 1e-3
"""Relative difference that central differences may have from a right gradient."""


def law_named(name: str) -> Law:
    """The law of that name, or the class behind `module:Class` (importing that module).

    Raises ValueError with the known names, and where the module or the class is missing or breaks the contract: see
    `check_law`.
    """
    for law in LAWS:
        if law.name == name:
            return law
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        known = ", ".join(law.name for law in LAWS)
        raise ValueError(f"a law must be one of {known}, or module:Class, but got {name!r}; choose one of them")
    if module.startswith("."):
        raise ValueError(f"the module of a law must have its full name, but got {name!r}; leave the first dot out")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the law {name!r} can't be imported: {error}; put its folder on PYTHONPATH") from error
    except (SyntaxError, NameError, TypeError, ValueError) as error:
        raise ValueError(f"the law {name!r} can't be imported: {error}; correct its module") from error
    return _made(name, found)


def check_law(law: Law) -> None:
    """Check the contract of a law on made-up columns. Raises ValueError with the rule and the parameter that breaks it.

    Parameters have names, once each; the start grid is within their bounds; the loss is that of `loss_and_gradient`,
    whose gradient is that of central differences.
    """
    _check_parameters(law)
    if not law.columns:
        raise ValueError("a law must list the columns that it reads, but got none; name them")
    data = dict(zip(law.columns, np.random.default_rng(0).uniform(0.5, 2.0, (len(law.columns), _ROWS)), strict=True))
    with np.errstate(all="ignore"):
        at = _check_start_grid(law)
        _check_gradient(law, at, data)


def _losses(law: Law, at: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The loss, the loss again and its gradient as the law gives them. Raises ValueError where it can't."""
    try:
        again, slopes = law.loss_and_gradient(at, data)
        return np.asarray(law.loss(at, data)), np.asarray(again), np.asarray(slopes)
    except KeyError as error:
        raise ValueError(
            f"a law must list the columns that it reads, but reads {error} and lists {', '.join(law.columns)}; add it"
        ) from error
    except (TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        names = ", ".join(law.parameter_names)
        raise ValueError(
            f"a law must take arrays as `fitting.Law` says, but of one vector ({names}) and {_ROWS} rows: {error}; "
            "correct it"
        ) from error


def _made(name: str, found: Any) -> Law:
    """One instance of the class `found`, checked. Raises ValueError where it is no whole law."""
    if not (isinstance(found, type) and issubclass(found, Law)) or found is Law:
        raise ValueError(f"the law {name!r} must be a class derived from fitting.Law, but is {found!r}; derive it")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ValueError(f"the law {name!r} must have every method of fitting.Law, but {missing} is missing; write it")
    unsaid = [value for value in _CLASS_VALUES if not hasattr(found, value)]
    if unsaid:
        all_of = ", ".join(_CLASS_VALUES)
        raise ValueError(f"the law {name!r} must have {all_of}, but {', '.join(unsaid)} is missing; add it")
    try:
        return _checked(found)
    except TypeError as error:
        raise ValueError(f"the law {name!r} must be made without arguments, but: {error}; give defaults") from error
    except ValueError as error:
        raise ValueError(f"the law {name!r} breaks the contract: {error}") from error


@cache
def _checked(found: type[Law]) -> Law:
    law = found()
    check_law(law)
    return law


def _check_parameters(law: Law) -> None:
    wrong = [one for one in law.parameters if not isinstance(one, Parameter)]
    if wrong or not law.parameters:
        raise ValueError(f"parameters must be fitting.Parameter, at least one, but got {law.parameters!r}; list them")
    names = law.parameter_names
    for place, name in enumerate(names):
        if not name or name in names[:place]:
            raise ValueError(f"a parameter's name must be there, and once, but number {place} is {name!r}; rename it")
    if not (isinstance(law.linear_count, int) and 0 <= law.linear_count <= len(names)):
        raise ValueError(
            f"linear_count must be between 0 and {len(names)}, the number of parameters ({', '.join(names)}), but got "
            f"{law.linear_count!r}; count those that the loss is linear in"
        )


def _check_start_grid(law: Law) -> np.ndarray:
    """A point (p,) to check the gradient at: the middle of the start grid, the linear parameters 1."""
    free = law.parameters[law.linear_count :]
    grid = np.asarray(law.start_grid(), dtype=float)
    if grid.ndim != 2 or grid.shape[1] != len(free) or not len(grid):
        names = ", ".join(one.name for one in free) or "no parameter"
        raise ValueError(
            f"the start grid must have the shape (points, {len(free)}) for {names}, with a point at least, but got "
            f"{grid.shape}; give each of them `starts`"
        )
    for parameter, starts in zip(free, grid.T, strict=True):
        outside = starts[~((starts >= parameter.lower) & (starts <= parameter.upper))]
        if len(outside):
            raise ValueError(
                f"starts must lie within the bounds, but {parameter.name} = {outside[0]:g} is outside "
                f"{parameter.lower:g} to {parameter.upper:g}; move one of them"
            )
    linear = [np.clip(1.0, one.lower, one.upper) for one in law.parameters[: law.linear_count]]
    return np.concatenate([linear, grid[len(grid) // 2]])


def _check_gradient(law: Law, at: np.ndarray, data: Data) -> None:
    loss, again, slopes = _losses(law, at, data)
    if loss.shape != (_ROWS,) or slopes.shape != (_ROWS, len(at)):
        raise ValueError(
            f"for {_ROWS} rows and the parameters {', '.join(law.parameter_names)} the loss must have the shape "
            f"{(_ROWS,)} and its gradient {(_ROWS, len(at))}, but got {loss.shape} and {slopes.shape}; correct them"
        )
    where = ", ".join(f"{name} = {value:g}" for name, value in zip(law.parameter_names, at, strict=True))
    if again.shape != loss.shape or not np.allclose(again, loss, rtol=1e-9, atol=1e-12):
        raise ValueError(
            f"`loss` and `loss_and_gradient` must give one finite loss, but at {where} differ; correct one"
        )
    for place, parameter in enumerate(law.parameters):
        step = _STEP * max(1.0, abs(at[place]))
        low, high = np.array(at), np.array(at)
        low[place], high[place] = max(at[place] - step, parameter.lower), min(at[place] + step, parameter.upper)
        slope = (law.loss(high, data) - law.loss(low, data)) / (high[place] - low[place])
        least = _NEAR * 1e-3 * max(1.0, float(np.abs(slope).max()))
        if not np.allclose(slopes[:, place], slope, rtol=_NEAR, atol=least):
            raise ValueError(
                f"the gradient must be the loss's derivative, but by {parameter.name} at {where} it is "
                f"{slopes[0, place]:.6g} where differences give {slope[0]:.6g}; correct `loss_and_gradient`"
            )
