"""Figures for a page: SVG as matplotlib writes it, made part of the HTML, with its colours in the page's hands."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from isoloop.fitting.figures.style import STYLE

RUNS = "runs:"
"""How the id of a group of points begins that stand for runs (fitting/figures/style.py)."""
ENLARGED = 1.35
SHRUNK = 0.9
"""How wide a figure is shown at most and at least, in its own width, so that its letters stay legible."""
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
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_PIXELS_PER_POINT = 4 / 3


@dataclass
class Palette:
    """The colours of series that figures use, each a CSS variable that has another value in dark mode."""

    used: set[str] = field(default_factory=set)

    def named(self, style: str) -> str:
        """`style` with every colour as a CSS variable; those of paper, ink and grid are the page's own."""
        return _COLOUR.sub(self._variable, style)

    def _variable(self, match: re.Match[str]) -> str:
        colour = match.group().lower()
        if colour in _THEME:
            return f"var({_THEME[colour]})"
        self.used.add(colour)
        return f"var(--c-{colour[1:]})"

    def css(self) -> Markup:
        """The variables, light and dark."""
        light = " ".join(f"--c-{colour[1:]}: {colour};" for colour in sorted(self.used))
        dark = " ".join(f"--c-{colour[1:]}: {lightened(colour)};" for colour in sorted(self.used))
        return Markup(f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}")


def lightened(colour: str) -> str:
    """A colour (#rrggbb) mixed with white, the darker the more: legible on dark, in the same order of lightness."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    light = sum(weight * value for weight, value in zip(_LUMA, channels, strict=True)) / 255
    white = _LIGHTENED * (1 - light)
    return "#" + "".join(f"{round(value + white * (255 - value)):02x}" for value in channels)


def svg_of(figure: Figure) -> str:
    """A figure as SVG; the same figure gives the same text."""
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def inline_svg(text: str, *, name: str, label: str, palette: Palette, runs: Mapping[str, str]) -> Markup:
    """An SVG file as an element of a page.

    Ids get `name` in front, since a page has several figures; each point of a group that says of which runs it is
    carries its run's id as `data-run`.

    Args:
        text: the file.
        name: of the figure, unique on the page.
        label: what it shows, for those who don't see it.
        palette: learns the colours that are used.
        runs: what to say of each run, by run id.
    """
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style sheet would hold for the whole page; report.css has its two rules.
            if _plain(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in list(root.iter()):
        element.tag = _plain(element.tag)
        element.attrib = {_plain(key): value for key, value in element.attrib.items()}
        _mark_points(element, runs)
        _rename(element, name)
        if "style" in element.attrib:
            element.set("style", palette.named(element.get("style", "")))
    width = float(root.attrib.pop("width", "480pt").removesuffix("pt")) * _PIXELS_PER_POINT
    root.attrib.pop("height", None)
    root.attrib.pop("version", None)
    root.attrib |= {
        "class": "plot",
        "role": "group",
        "aria-label": label,
        "style": f"min-width: {SHRUNK * width:.0f}px; max-width: {ENLARGED * width:.0f}px",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode", method="html"))


def _mark_points(element: ElementTree.Element, runs: Mapping[str, str]) -> None:
    """Say of which run each point of a group is; the group's points must be as many as its runs."""
    group = element.attrib.get("id", "")
    if not group.startswith(RUNS):
        return
    del element.attrib["id"]
    ids = [unquote(run_id) for run_id in group.removeprefix(RUNS).split(",")]
    points = [point for point in element.iter() if _plain(point.tag) == "use"]
    # A point that is off the canvas isn't in the file, and then nobody can say which the others are.
    if len(points) != len(ids):
        return
    for point, run_id in zip(points, ids, strict=True):
        point.set("data-run", run_id)
        ElementTree.SubElement(point, "title").text = runs.get(run_id, run_id)


def _rename(element: ElementTree.Element, name: str) -> None:
    """Put `name` in front of the element's id and of the ids that it refers to."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == "href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, _REFERENCE.sub(rf"url(#{name}-\g<1>)", value))


def _plain(name: str) -> str:
    """A tag or attribute without its namespace: HTML needs none."""
    return name.rpartition("}")[2]
