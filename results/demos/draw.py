"""Draw README's first figure from the tables and fits of the two demos beside this file.

python results/demos/draw.py docs/demos.png
"""

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from isoloop.fitting import SweepFit, figures, read_table

HERE = Path(__file__).parent
TITLES = {"demo": "Python source text", "demo-loops": "rows of a cellular automaton (synthetic)"}


def main() -> None:
    """Draw the isoFLOP curves of both sweeps side by side."""
    path = Path(sys.argv[1])
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(6.9, 4.0), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(1, len(TITLES)), TITLES.items(), strict=True):
            fit = SweepFit.read(HERE / name / "fit.json")
            figures.draw_isoflop_curves(axes, read_table(HERE / name / "runs.csv"), fit)
            axes.set_title(title, loc="left")
        figure.savefig(path, dpi=200)


if __name__ == "__main__":
    main()
