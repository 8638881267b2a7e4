"""Figures as parts of an HTML page: inlined SVG whose colours follow the page's light or dark theme."""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from isoloop.fitting.figures.style import DOTS_PER_INCH, RUN_GROUP, RUN_LINE, STYLE

_ENLARGED = 1.35
_SHRUNK = 0.9
"""Largest and smallest width of a figure on the page, as multiples of its own, so that its letters stay legible."""
_THEME = {
    "#ffffff": "--paper",
    "#000000": "--ink",
    "#222222": "--ink",
    "#767676": "--soft",
    "#e6e6e6": "--grid",
}
_LIGHTENED = 0.5
_LUMA = (0.299, 0.587, 0.114)
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_PIXELS_PER_POINT = 4 / 3


@dataclass
class Palette:
    """The colours that figures use for series, each a CSS variable with another value in dark mode."""

    used: set[str] = field(default_factory=set)

    def named(self, style: str) -> str:
        """Return a CSS style with every colour as a variable; paper, ink and grid have the page's own variables."""
        return _COLOUR.sub(self._variable, style)

    def _variable(self, match: re.Match[str]) -> str:
        colour = match.group().lower()
        if colour in _THEME:
            return f"var({_THEME[colour]})"
        self.used.add(colour)
        return f"var(--c-{colour[1:]})"

    def css(self) -> Markup:
        """Return the rules that set the variables, light and dark."""
        light = " ".join(f"--c-{colour[1:]}: {colour};" for colour in sorted(self.used))
        dark = " ".join(f"--c-{colour[1:]}: {lightened(colour)};" for colour in sorted(self.used))
        return Markup(f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}")


def lightened(colour: str) -> str:
    """Return a colour (#rrggbb) mixed with white, a darker one with more, so that the order of lightness stays."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    light = sum(weight * value for weight, value in zip(_LUMA, channels, strict=True)) / 255
    white = _LIGHTENED * (1 - light)
    return "#" + "".join(f"{round(value + white * (255 - value)):02x}" for value in channels)


def figure_svg(figure: Figure) -> str:
    """Return a figure as SVG; the same figure gives the same text."""
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", dpi=DOTS_PER_INCH, metadata={"Date": None})
    return file.getvalue()


def inline_svg(
    text: str,
    *,
    name: str,
    label: str,
    palette: Palette,
    runs: Mapping[str, str],
    last_losses: Mapping[str, str] = {},
) -> Markup:
    """Return an SVG file as an element of a page.

    Args:
        text: the file.
        name: put in front of every id, so that ids stay unique on the page.
        label: what the figure shows, for screen readers.
        palette: collects the colours in use.
        runs: a description of each run, by run id. Points and lines get their run's id as `data-run` and this as title.
        last_losses: the last training loss of a run, by run id, for the figures that show it: `data-last-loss`.
    """
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style sheet would apply to the whole page; report.css has its two rules.
            if _local_name(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in list(root.iter()):
        element.tag = _local_name(element.tag)
        element.attrib = {_local_name(key): value for key, value in element.attrib.items()}
        for mark, run_id in _run_marks(element):
            mark.set("data-run", run_id)
            if run_id in last_losses:
                mark.set("data-last-loss", last_losses[run_id])
            ElementTree.SubElement(mark, "title").text = runs.get(run_id, run_id)
        _rename(element, name)
        if "d" in element.attrib:
            element.set("d", _LONG_NUMBER.sub(lambda number: f"{float(number.group()):.2f}", element.get("d", "")))
        if "style" in element.attrib:
            element.set("style", palette.named(element.get("style", "")))
    width = float(root.attrib.pop("width", "480pt").removesuffix("pt")) * _PIXELS_PER_POINT
    root.attrib.pop("height", None)
    root.attrib.pop("version", None)
    root.attrib |= {
        "class": "plot",
        "role": "group",
        "aria-label": label,
        "style": f"min-width: {_SHRUNK * width:.0f}px; max-width: {_ENLARGED * width:.0f}px",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode", method="html"))


def _run_marks(element: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, str]]:
    """Yield the points of a group, or its line, each with its run, and remove the group's id.

    Points are left alone if the group hasn't as many of them as runs: those off the canvas are missing in the file.
    """
    group = element.attrib.get("id", "")
    for start, tag in ((RUN_GROUP, "use"), (RUN_LINE, "path")):
        if group.startswith(start):
            del element.attrib["id"]
            ids = [unquote(run_id) for run_id in group.removeprefix(start).split(",")]
            marks = [each for each in element.iter() if _local_name(each.tag) == tag]
            if len(marks) == len(ids):
                yield from zip(marks, ids, strict=True)


def _rename(element: ElementTree.Element, name: str) -> None:
    """Put `name` in front of an element's id and of the ids that it refers to."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == "href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, _REFERENCE.sub(rf"url(#{name}-\g<1>)", value))


def _local_name(name: str) -> str:
    """Return a tag or attribute without its namespace, which HTML doesn't need."""
    return name.rpartition("}")[2]
