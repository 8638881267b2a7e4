"""YAML -> sweep configuration: presets, files, what a file extends, overrides, and errors that say what to do."""

import difflib
import re
from collections.abc import Collection, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.messages import broken_rule
from isoloop.trainer.config import SHAPE_FIELDS, Config, ModelConfig

EXTENDS = "extends"


def presets() -> list[str]:
    """Names of the sweeps that come with isoloop."""
    return sorted(file.name.removesuffix(".yaml") for file in _preset_folder().iterdir() if file.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The YAML of a preset.

    Raises:
        ValueError: there is no preset of that name.
    """
    known = presets()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"presets are {', '.join(known)}"
        raise ValueError(f"a sweep must be a preset or a .yaml file that exists, but got '{name}'; {hint}")
    return (_preset_folder() / f"{name}.yaml").read_text()


def load_sweep(
    name: str, overrides: Sequence[str] = (), *, tracking_uri: str | None = None, storage: str | None = None
) -> SweepConfig:
    """Read a preset by name or a YAML file by path, lay it over what it extends, then apply `overrides`.

    An override reads `section.key=value`.

    `tracking_uri` and `storage` replace `tracking.uri` and `storage` as they stand, whatever signs are in them.

    Raises:
        ValueError: unknown preset, missing file, bad YAML, unknown keys, wrong types, broken rules.
    """
    content = _read(name)
    for override in sorted(overrides, key=lambda override: not override.startswith(("model=", "model.size="))):
        _override(content, override)  # a size first: what else is said of the model changes it
    _take_places(content, {re.split("[.=]", override)[0] for override in overrides})
    if tracking_uri is not None:
        tracking = content.setdefault("tracking", {})
        content["tracking"] = {**tracking, "uri": tracking_uri} if isinstance(tracking, dict) else tracking
    if storage is not None:
        content["storage"] = storage
    return validate_sweep(content, source=name)


def _read(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A preset's or a file's content, laid over that of what it extends, the last named on top."""
    path = Path(name).expanduser()
    is_file = path.suffix in {".yaml", ".yml"} or path.is_file()
    if is_file and not path.is_file():
        raise ValueError(f"a sweep must be a preset or a .yaml file that exists, but there is no file '{name}'")
    try:
        content = parse_yaml(path.read_text() if is_file else preset_text(name))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"a sweep's configuration must be YAML, but '{name}' isn't: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"a sweep's configuration must be a YAML mapping, but '{name}' is a {type(content).__name__}")
    bases = content.pop(EXTENDS, None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"extends must name presets or .yaml files, but '{name}' has {bases!r}")
    here = str(path.resolve()) if is_file else name
    if here in seen:
        raise ValueError(f"a sweep may not extend itself, but {' extends '.join([*seen, here])}; break the circle")
    merged: dict[str, Any] = {}
    for base in bases:
        found = str(path.parent / base) if base.endswith((".yaml", ".yml")) else base
        merged = _laid_over(merged, _read(found, (*seen, here)))
    return _laid_over(merged, content)


def _laid_over(base: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """`content` over `base`: sections key by key, all else as a whole; another size replaces the base's shape."""
    merged = dict(base)
    for key, value in content.items():
        under = merged.get(key)
        if key == "model":
            value = {"size": value} if isinstance(value, str) else value
            under = {"size": under} if isinstance(under, str) else under
            if isinstance(value, dict) and isinstance(under, dict) and "size" in value:
                under = {name: entry for name, entry in under.items() if name not in SHAPE_FIELDS}
        if isinstance(value, dict) and isinstance(under, dict) and key != "axes":
            value = under | value
        merged[key] = value
    _take_places(merged, content)
    return merged


def _take_places(merged: dict[str, Any], said: Collection[str]) -> None:
    """Drop what a key that was said takes the place of."""
    for one, other in (("budgets", "tokens"), ("mean_recurrences", "around")):
        for kept, gone in ((one, other), (other, one)):
            if kept in said and gone not in said:
                merged.pop(gone, None)


def validate_sweep(content: dict[str, Any], *, source: str) -> SweepConfig:
    """Check a configuration; every broken rule is named in one ValueError."""
    try:
        return SweepConfig.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(problem)}" for problem in error.errors())
        raise ValueError(f"the sweep '{source}' breaks {error.error_count()} rule(s):\n{problems}") from error


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e18 is one, too."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Parse YAML without building anything but plain data."""
    return yaml.load(text, Loader=_Loader)


def _preset_folder() -> Any:
    return resources.files("isoloop.sweeps.config") / "presets"


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"an override must read section.key=value, but got '{override}'")
    # An axis, or a dimension to tune, is named by a path itself.
    named = next((prefix for prefix in ("axes.", "tune.space.") if key.startswith(prefix)), None)
    *sections, last = [*named[:-1].split("."), key.removeprefix(named)] if named else key.split(".")
    if sections[:1] == ["model"] and isinstance(content.get("model"), str):
        content["model"] = {"size": content["model"]}
    if key == "model.size" and isinstance(content.get("model"), dict):
        content["model"] = {name: value for name, value in content["model"].items() if name not in SHAPE_FIELDS}
    place = content
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ValueError(f"an override must name a key of a section, but '{section}' in '{override}' is a value")
    try:
        place[last] = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"an override's value must be YAML, but '{text}' in '{override}' isn't") from error


def _describe(problem: Any) -> str:
    """One line for one of pydantic's errors, with what was probably meant."""
    if problem["type"] == "extra_forbidden":
        where = ".".join(str(part) for part in problem["loc"])
        *sections, key = problem["loc"]
        known = _known_keys(sections)
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: must be a known key; {hint}"
    return broken_rule(problem)


def _known_keys(sections: Sequence[Any]) -> list[str]:
    model: Any = SweepConfig
    for section in sections:
        field = model.model_fields.get(str(section))
        kinds = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)]
        if not nested:
            return []
        model = nested[0]
    return sorted([*model.model_fields, "size"] if model is ModelConfig else model.model_fields)
