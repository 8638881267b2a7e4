"""The laws by name, those of a user's own included, and the check of the contract."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np

from isoloop.fitting.laws.base import Data, Law, Parameter
from isoloop.fitting.laws.dense import ChinchillaLaw, SixParameterLaw
from isoloop.fitting.laws.iso_depth import IsoDepthLaw, IsoDepthSixParameterLaw, LoopTermLaw, TruncatedIsoDepthLaw
from isoloop.fitting.laws.limited import (
    DenseBoundedLossLaw,
    DenseEffectiveTokensLaw,
    IsoDepthEffectiveTokensLaw,
    IsoDepthSizedEffectiveTokensLaw,
    IsoDepthUniqueEffectiveTokensLaw,
    LoopedBoundedLossLaw,
    LoopedEffectiveTokensLaw,
    LoopedSizedEffectiveTokensLaw,
    SizedEffectiveTokensLaw,
)
from isoloop.fitting.laws.looped import LoopedSixParameterLaw, LoopsLaw, TrainingLaw
from isoloop.fitting.laws.test_time import (
    JointOverthinkingLaw,
    JointTestTimeLaw,
    OverthinkingLaw,
    TestTimeLaw,
    UnifiedLaw,
    UnifiedOverthinkingLaw,
)

LAWS: tuple[Law, ...] = (
    TrainingLaw(),
    TestTimeLaw(),
    JointTestTimeLaw(),
    UnifiedLaw(),
    ChinchillaLaw(),
    IsoDepthLaw(),
    SixParameterLaw(),
    LoopedSixParameterLaw(),
    LoopsLaw(),
    OverthinkingLaw(),
    JointOverthinkingLaw(),
    UnifiedOverthinkingLaw(),
    IsoDepthSixParameterLaw(),
    TruncatedIsoDepthLaw(),
    LoopTermLaw(),
    DenseEffectiveTokensLaw(),
    SizedEffectiveTokensLaw(),
    LoopedEffectiveTokensLaw(),
    LoopedSizedEffectiveTokensLaw(),
    IsoDepthEffectiveTokensLaw(),
    IsoDepthSizedEffectiveTokensLaw(),
    IsoDepthUniqueEffectiveTokensLaw(),
    DenseBoundedLossLaw(),
    LoopedBoundedLossLaw(),
)
"""The laws that come with the package."""

_CLASS_VALUES = ("name", "formula", "source", "columns", "parameters", "linear_count")
_ROWS = 8
_DIFFERENCE_STEP = 1e-5
_GRADIENT_TOLERANCE = 1e-3
"""Relative difference between a correct gradient and central differences that is tolerated."""


def law_named(name: str) -> Law:
    """Return the law of that name, or an instance of the class `module:Class`.

    Raises ValueError for an unknown name, and where the module or the class is missing or breaks the contract (see
    `check_law`).
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
        imported = importlib.import_module(module)
    except (ImportError, SyntaxError, NameError, TypeError, ValueError, AttributeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        advice = "put its folder on PYTHONPATH" if missing else "correct that module, or install what it imports"
        raise ValueError(f"the law {name!r} can't be imported: {error}; {advice}") from error
    if not hasattr(imported, attribute):
        raise ValueError(f"the law {name!r} can't be imported: {module} has no {attribute}; correct the name")
    return _instance(name, getattr(imported, attribute))


def richer_law(law: Law) -> Law | None:
    """Return the first law of the package that extends `law` by a parameter, None if none does."""
    return next((other for other in LAWS if other.extends is not None and other.extends.name == law.name), None)


def laws_beside(law: Law) -> tuple[Law, ...]:
    """Return the laws that are weighed beside `law`: the one that extends it, and its alternatives."""
    richer = richer_law(law)
    return (*([richer] if richer else []), *(law_named(name) for name in law.alternatives))


def check_law(law: Law) -> None:
    """Raise ValueError unless the law keeps its contract, on random columns.

    Parameters must have unique names; the start grid must lie within their bounds; `loss` and `loss_and_gradient` must
    agree, and the gradient with central differences.
    """
    _check_parameters(law)
    if not law.columns:
        raise ValueError("a law must list the columns that it reads, but got none; name them")
    data = dict(zip(law.columns, np.random.default_rng(0).uniform(0.5, 2.0, (len(law.columns), _ROWS)), strict=True))
    with np.errstate(all="ignore"):
        at = _check_start_grid(law)
        _check_gradient(law, at, data)


def _losses(law: Law, at: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the loss by `loss`, and loss and gradient by `loss_and_gradient`. Raise ValueError if the law fails."""
    try:
        with_gradient, slopes = law.loss_and_gradient(at, data)
        return np.asarray(law.loss(at, data)), np.asarray(with_gradient), np.asarray(slopes)
    except KeyError as error:
        raise ValueError(
            f"a law must list the columns that it reads, but reads {error} and lists {', '.join(law.columns)}; add it"
        ) from error
    except (TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        names = ", ".join(law.parameter_names)
        raise ValueError(
            f"a law must take arrays as `isoloop.fitting.Law` says, but fails for one vector ({names}) and {_ROWS} "
            f"rows: {error}; correct it"
        ) from error


def _instance(name: str, law_class: Any) -> Law:
    """Return one checked instance of the class. Raise ValueError unless it is a complete law."""
    if not (isinstance(law_class, type) and issubclass(law_class, Law)) or law_class is Law:
        raise ValueError(
            f"the law {name!r} must be a class that derives from isoloop.fitting.Law, but got {law_class!r}; derive it"
        )
    missing = sorted(law_class.__abstractmethods__)
    if {law_class.nonlinear_gradient, law_class.loss_and_gradient} <= {Law.nonlinear_gradient, Law.loss_and_gradient}:
        missing.append("nonlinear_gradient")
    if missing:
        raise ValueError(f"the law {name!r} must have the methods of a law, but lacks {', '.join(missing)}; add them")
    unset = [value for value in _CLASS_VALUES if not hasattr(law_class, value)]
    if unset:
        needed = ", ".join(_CLASS_VALUES)
        raise ValueError(f"the law {name!r} must set {needed}, but lacks {', '.join(unset)}; add it")
    try:
        return _checked_instance(law_class)
    except TypeError as error:
        raise ValueError(f"the law {name!r} can't be made without arguments: {error}; give them defaults") from error
    except ValueError as error:
        raise ValueError(f"the law {name!r} breaks the contract: {error}") from error


@cache
def _checked_instance(law_class: type[Law]) -> Law:
    law = law_class()
    check_law(law)
    return law


def _check_parameters(law: Law) -> None:
    if not law.parameters or not all(isinstance(parameter, Parameter) for parameter in law.parameters):
        raise ValueError(
            f"a law must list one or more isoloop.fitting.Parameter, but got {law.parameters!r}; list them"
        )
    names = law.parameter_names
    for place, name in enumerate(names):
        if not name or name in names[:place]:
            raise ValueError(
                f"the names of parameters must be unique and not empty, but number {place} is {name!r}; rename it"
            )
    if not (isinstance(law.linear_count, int) and 0 <= law.linear_count <= len(names)):
        raise ValueError(
            f"linear_count must be between 0 and {len(names)}, the number of parameters ({', '.join(names)}), but got "
            f"{law.linear_count!r}; count those that the loss is linear in"
        )


def _check_start_grid(law: Law) -> np.ndarray:
    """Check the start grid and return its middle with linear parameters of 1, (p,), where to check the gradient."""
    free = law.parameters[law.linear_count :]
    grid = np.asarray(law.start_grid(), dtype=float)
    if grid.ndim != 2 or grid.shape[1] != len(free) or not len(grid):
        names = ", ".join(parameter.name for parameter in free) or "no parameter"
        raise ValueError(
            f"the start grid must have the shape (points, {len(free)}) for {names} and one point or more, but got "
            f"{grid.shape}; give each of them `starts`"
        )
    for parameter, starts in zip(free, grid.T, strict=True):
        outside = starts[~((starts >= parameter.lower) & (starts <= parameter.upper))]
        if len(outside):
            raise ValueError(
                f"starts must lie within the bounds, but {parameter.name} = {outside[0]:g} is outside "
                f"{parameter.lower:g} to {parameter.upper:g}; move one of them"
            )
    linear = [np.clip(1.0, parameter.lower, parameter.upper) for parameter in law.parameters[: law.linear_count]]
    return np.concatenate([linear, grid[len(grid) // 2]])


def _check_gradient(law: Law, at: np.ndarray, data: Data) -> None:
    loss, with_gradient, slopes = _losses(law, at, data)
    if loss.shape != (_ROWS,) or slopes.shape != (_ROWS, len(at)):
        raise ValueError(
            f"for {_ROWS} rows and the parameters {', '.join(law.parameter_names)} the loss must have the shape "
            f"{(_ROWS,)} and its gradient {(_ROWS, len(at))}, but got {loss.shape} and {slopes.shape}; correct them"
        )
    where = ", ".join(f"{name} = {value:g}" for name, value in zip(law.parameter_names, at, strict=True))
    if with_gradient.shape != loss.shape or not np.allclose(with_gradient, loss, rtol=1e-9, atol=1e-12):
        raise ValueError(
            f"`loss` and `loss_and_gradient` must give the same finite loss, but differ at {where}; correct one"
        )
    for place, parameter in enumerate(law.parameters):
        step = _DIFFERENCE_STEP * max(1.0, abs(at[place]))
        low, high = np.array(at), np.array(at)
        low[place], high[place] = max(at[place] - step, parameter.lower), min(at[place] + step, parameter.upper)
        slope = (law.loss(high, data) - law.loss(low, data)) / (high[place] - low[place])
        absolute = _GRADIENT_TOLERANCE * 1e-3 * max(1.0, float(np.abs(slope).max()))
        if not np.allclose(slopes[:, place], slope, rtol=_GRADIENT_TOLERANCE, atol=absolute):
            raise ValueError(
                f"the gradient must be the loss's derivative, but by {parameter.name} at {where} it is "
                f"{slopes[0, place]:.6g} where differences give {slope[0]:.6g}; correct it"
            )
