"""Every law by name, those of a user's own included."""

from __future__ import annotations

import importlib

from fitting.dense_laws import ChinchillaLaw, SixParameterLaw
from fitting.law import Law
from fitting.laws import IsoDepthLaw, JointTestTimeLaw, TestTimeLaw, TrainingLaw, UnifiedLaw

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


def law_named(name: str) -> Law:
    """The law of that name, or the class behind `module:Class` (importing that module).

    Raises ValueError with the known names, and where the module, the class or the contract is missing.
    """
    for law in LAWS:
        if law.name == name:
            return law
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        known = ", ".join(law.name for law in LAWS)
        raise ValueError(f"a law must be one of {known}, or module:Class, but got {name!r}; choose one of them")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the law {name!r} can't be imported: {error}; put its folder on PYTHONPATH") from error
    if not (isinstance(found, type) and issubclass(found, Law)):
        raise ValueError(f"the law {name!r} must be a class derived from fitting.Law, but is {found!r}; derive it")
    return found()
