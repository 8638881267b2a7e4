"""YAML as text: plain values read as in YAML 1.2, a key that is repeated refused, and written so that it reads back."""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from isoloop.sweeps.messages import first_line


class _Loader(yaml.SafeLoader):
    """A loader that reads plain values as YAML 1.2 does, and refuses a key that a mapping has twice.

    YAML 1.1 reads 1e18 as text, 010 as eight, 12:30 as 750, `no` as false and 2024-01-02 as a date. Underscores between
    digits are allowed, as in 1_000.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # PyYAML's stubs say otherwise

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Return the node of a mapping, once its own keys, without those that `<<` merges, are known to be distinct."""
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                is_merge = key_node.tag == "tag:yaml.org,2002:merge"
                key = key_node.value if is_merge else self.construct_object(key_node)
                line = key_node.start_mark.line + 1
                if key in lines:
                    raise yaml.YAMLError(
                        f"line {line}: a key must be given once, but '{key_node.value}' is also in line {lines[key]}; "
                        "drop one of them"
                    )
                lines[key] = line
        return node


class _Dumper(yaml.SafeDumper):
    """A writer that puts a text in quotes that the loader or YAML 1.1 would misread, such as the commit 12e5678."""


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?\d[\d_]*|0x[\da-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _construct_integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """Return the integer that a scalar writes in decimal digits, or in hexadecimal ones after 0x."""
    digits = loader.construct_scalar(node).replace("_", "")
    return int(digits, 16 if digits.startswith("0x") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_integer)


def parse_yaml(text: str) -> Any:
    """Parse YAML into plain data.

    Raises:
        YAMLError: the text isn't YAML, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def dump_yaml(content: Any) -> str:
    """Return plain data as YAML that `parse_yaml` reads back the same."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file in UTF-8 into plain data.

    Raises:
        ValueError: the file isn't text in UTF-8, or not YAML; the message begins with the place.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError("it is not in UTF-8; save it in that encoding") from error
    except yaml.YAMLError as error:
        raise ValueError(yaml_problem(error)) from error


def yaml_problem(error: Exception) -> str:
    """Return in one line what is wrong with a text that isn't YAML, and the line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return first_line(error)
    advice = "; indent with spaces, not with tabs" if "\\t" in (error.problem or "") else ""
    return f"line {error.problem_mark.line + 1}: {error.problem}{advice}"
