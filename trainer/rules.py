"""Rules of configurations that a value breaks, in plain words: `broken_rules(error)`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


def broken_rules(error: "ValidationError") -> str:
    """Return the rules that a value breaks, in one line."""
    return "; ".join(broken_rule(problem) for problem in distinct_problems(error))


def distinct_problems(error: "ValidationError") -> list[Mapping[str, Any]]:
    """Return pydantic's errors but those that only follow from others: a list is short without its bad entries."""
    problems = error.errors()
    inner = {problem["loc"][:length] for problem in problems for length in range(len(problem["loc"]))}
    return [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in inner]


# Rules that pydantic words in terms of Python.
_PLAIN_RULES = {
    "tuple_type": "must be a list, such as [1, 2]",
    "dict_type": "must have keys with values",
    "mapping_type": "must have keys with values",
    "model_type": "must have keys with values",
    "model_attributes_type": "must have keys with values",
    "string_type": "must be a text (in quotes, if it looks like a number)",
    "string_pattern_mismatch": "must be of letters, digits and ._- and begin with a letter or a digit",
}


def broken_rule(problem: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors in one line: the place, the rule, and the value."""
    place = ".".join(str(part) for part in problem["loc"]) or "the configuration"
    if problem["type"] == "missing":
        return f"{place}: must be given, but is missing"
    message = problem["msg"].removeprefix("Value error, ")
    message = _PLAIN_RULES.get(problem["type"], message)
    if problem["type"] == "too_short":
        least = problem["ctx"]["min_length"]
        message = f"must have at least {least} {'entry' if least == 1 else 'entries'}"
    value = problem["input"]
    got = "" if problem["type"] == "value_error" else f", but got {value!r}"
    return f"{place}: {message[:1].lower()}{message[1:]}{got}"
