"""Sweep configurations from YAML: presets, files, `extends`, overrides, and errors that say what to do."""

import re
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from isoloop.sweeps.config.schema import SweepConfig
from isoloop.sweeps.config.yaml_text import parse_yaml, read_yaml, yaml_problem
from isoloop.sweeps.messages import broken_rule, did_you_mean, distinct_problems
from isoloop.trainer.config import SHAPE_FIELDS, Config, ModelConfig

_SECTION_LIKE_MAPPINGS = ("axes.", "tune.space.")  # their keys are paths of settings, with dots
_ALTERNATIVES = (("budgets", "tokens"), ("mean_recurrences", "around"))


def preset_names() -> list[str]:
    """Return the names of the sweeps that come with isoloop."""
    return sorted(file.name.removesuffix(".yaml") for file in _preset_folder().iterdir() if file.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """Return the YAML of a preset.

    Raises:
        ValueError: there is no preset of that name.
    """
    names = preset_names()
    if name not in names:
        hint = did_you_mean(name, names, f"presets are {', '.join(names)}")
        raise ValueError(f"a sweep must be a preset or a .yaml file that exists, but got '{name}'; {hint}")
    return (_preset_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def preset_summary(name: str) -> str:
    """Return the first line of a preset's comment, which says what the preset is."""
    return preset_text(name).partition("\n")[0].removeprefix("# ")


def load_sweep(
    name: str, overrides: Sequence[str] = (), *, settings: Mapping[str, str | int | None] | None = None
) -> SweepConfig:
    """Read a preset or a YAML file with everything that it extends, and apply overrides to it.

    Args:
        name: name of a preset, or path of a YAML file.
        overrides: texts of the form `section.key=value`, the value in YAML.
        settings: values by path, taken literally; None leaves a setting unchanged.

    Raises:
        ValueError: unknown preset, missing file, bad YAML, unknown keys, wrong types, broken rules.
    """
    # Each setting is given once.
    content, given = _read_with_bases(name), [override.partition("=")[0] for override in overrides]
    given += [path for path, literal in (settings or {}).items() if literal is not None]
    repeated = next((path for path in given if given.count(path) > 1), None)
    if repeated is not None:
        raise ValueError(
            f"a setting must be given once on the command line, but {repeated} is given several times (by --set, or "
            "by --set and an option of its own); keep one"
        )
    # The size goes first, as the other keys of `model` change what it sets; a section goes before its keys.
    for override in sorted(overrides, key=_override_rank):
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ValueError(f"an override must read section.key=value, but got '{override}'")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            raise ValueError(
                f"an override's value must be YAML, but '{text}' in '{override}' isn't: {yaml_problem(error)}"
            ) from error
        _set(content, path, value)
    _drop_replaced_alternatives(content, {re.split("[.=]", override)[0] for override in overrides})
    for path, literal in (settings or {}).items():
        if literal is not None:
            _set(content, path, literal)
    return validate_sweep(content, source=name)


def _override_rank(override: str) -> tuple[bool, int]:
    path = override.partition("=")[0]
    return path not in ("model", "model.size"), path.count(".")


def _read_with_bases(name: str, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the content of a preset or file on top of what it extends, of which the last has precedence.

    `extending` are the files on the way here, to refuse a circle.
    """
    path = Path(name).expanduser()
    is_file = path.suffix in {".yaml", ".yml"} or path.is_file()
    if is_file and not path.is_file():
        raise ValueError(f"a sweep must be a preset or a .yaml file that exists, but there is no file '{name}'")
    text = "" if is_file else preset_text(name)
    try:
        content = read_yaml(path) if is_file else parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"a sweep's configuration must be YAML, but '{name}' isn't: {error}") from error
    if not isinstance(content, dict):
        got = "is empty" if content is None else "is a list" if isinstance(content, list) else "is a single value"
        raise ValueError(f"a sweep's configuration must have keys with values, but '{name}' {got}; start from a preset")
    bases = content.pop("extends", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"extends must name presets or .yaml files, but '{name}' has {bases!r}")
    identity = str(path.resolve()) if is_file else name
    if identity in extending:
        raise ValueError(f"a sweep may not extend itself, but {' extends '.join([*extending, identity])}; drop one")
    merged: dict[str, Any] = {}
    for base in bases:
        base_name = str(path.parent / base) if base.endswith((".yaml", ".yml")) else base
        merged = _merge(merged, _read_with_bases(base_name, (*extending, identity)))
    return _merge(merged, content)


def _merge(base: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `content` on top: sections merge by key, other values and shapes of models are replaced."""
    merged = dict(base)
    for key, value in content.items():
        old = merged.get(key)
        if key == "model":
            value, old = ({"size": entry} if isinstance(entry, str) else entry for entry in (value, old))
            if isinstance(value, dict) and isinstance(old, dict) and "size" in value:
                old = _without_shape(old)
        if isinstance(value, dict) and isinstance(old, dict) and key != "axes":
            value = old | value
        merged[key] = value
    _drop_replaced_alternatives(merged, content)
    return merged


def _without_shape(model: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name not in SHAPE_FIELDS}


def _drop_replaced_alternatives(content: dict[str, Any], given: Collection[str]) -> None:
    """Of two keys that exclude each other, drop the inherited one if the other was given."""
    for pair in _ALTERNATIVES:
        for kept, replaced in (pair, pair[::-1]):
            if kept in given and replaced not in given:
                content.pop(replaced, None)


def validate_sweep(content: dict[str, Any], *, source: str) -> SweepConfig:
    """Return the checked configuration; one ValueError names every broken rule."""
    try:
        return SweepConfig.model_validate(content)
    except ValidationError as error:
        problems = [f"  {_describe(problem)}" for problem in distinct_problems(error)]
        text = "\n".join(problems)
        raise ValueError(f"the sweep '{source}' breaks {len(problems)} rule(s):\n{text}") from error


def _preset_folder() -> Any:
    return resources.files("isoloop.sweeps.config") / "presets"


def _set(content: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path such as `optimizer.learning_rate` or `axes.optimizer.learning_rate`."""
    mapping = next((prefix for prefix in _SECTION_LIKE_MAPPINGS if path.startswith(prefix)), None)
    *sections, key = [*mapping[:-1].split("."), path.removeprefix(mapping)] if mapping else path.split(".")
    if sections == ["model"]:
        model = content.get("model", {})
        content["model"] = model = {"size": model} if isinstance(model, str) else model
        if key == "size" and isinstance(model, dict):
            content["model"] = _without_shape(model)
    section = content
    for name in sections:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ValueError(f"an override must name a key of a section, but '{name}' in '{path}' is a value")
    section[key] = value


def _describe(problem: Any) -> str:
    """Return one line for one of pydantic's errors, with a suggestion for an unknown key."""
    if problem["type"] != "extra_forbidden":
        return broken_rule(problem)
    *sections, key = problem["loc"]
    keys = _keys_of(sections)
    hint = did_you_mean(str(key), keys, f"known keys: {', '.join(keys)}")
    return f"{'.'.join(map(str, problem['loc']))}: must be a known key; {hint}"


def _keys_of(sections: Sequence[Any]) -> list[str]:
    """Return the keys that a section of the configuration may have."""
    model: Any = SweepConfig
    for section in sections:
        field = model.model_fields.get(str(section))
        kinds = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)]
        if not nested:
            return []
        model = nested[0]
    return sorted([*model.model_fields, "size"] if model is ModelConfig else model.model_fields)
