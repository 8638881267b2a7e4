"""One self-contained HTML page per sweep: the answer, the held-out test, what to doubt, figures, runs, origin."""

import base64
import importlib.metadata
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from fitting import SweepFit, figures
from fitting.power_law import PowerLaw
from fitting.result import HeldOut
from sweeps.config import SweepConfig, config_text
from sweeps.folders import Folders
from sweeps.results import Results
from sweeps.secrets import redacted

CAPTIONS = {
    "isoflop_curves": "isoFLOP curves: validation loss against mean recurrence at each budget, with each minimum.",
    "power_laws": "Best mean recurrence and best tokens against compute, with the fitted power laws.",
    "test_time_curves": "Loss against the loops run at test time, with the fit of each model.",
    "predicted_against_measured": "Predicted against measured loss; the held-out runs were never fitted.",
}
_COLUMNS = {
    "run_id": "run",
    "status": "status",
    "mean_recurrence": "µ",
    "budget": "budget, FLOPs",
    "flops": "spent, FLOPs",
    "tokens": "tokens",
    "steps": "steps",
    "loss": "loss at T = µ, nats/token",
    "bits_per_byte": "bits/byte",
    "spectral_radius": "ρ(Ā)",
    "seconds": "seconds",
}
_VERSIONS = ("torch", "ray", "mlflow", "numpy", "scipy", "pandas")


def write_report(
    folders: Folders,
    *,
    sweep: SweepConfig,
    table: pd.DataFrame,
    results: Results,
    left_out: list[str],
    command: str,
    group: str | None = None,
) -> None:
    """Write the page of a sweep with everything inside it; figures also go to files beside it.

    Args:
        folders: where the page and the figures go.
        sweep: the configuration that was run.
        table: the checked run table.
        results: the fits, or why there are none.
        left_out: cells that didn't run, each with its reason.
        command: how to make the page again.
        group: which of the sweep's groups of runs the page is about, None if all.
    """
    fit, hold_out = results.fit, results.hold_out
    drawn, not_drawn = _draw(folders.figures, table, fit, hold_out)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sweeps", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        name=sweep.name if group is None else f"{sweep.name}: {group}",
        groups=[
            {"label": label, "page": found.report.relative_to(folders.sweep).as_posix(), "answer": answer(found)[0]}
            for label, found in results.groups.items()
        ],
        simulated=sweep.simulation is not None,
        runs=len(table),
        flops=float(table["flops"].sum()),
        accounting=sweep.accounting,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=importlib.metadata.version("isoloop"),
        answer=answer(results),
        held_out=None if hold_out is None or hold_out.held_out is None else _held_out(hold_out.held_out),
        doubts=["Nothing was fitted."] if fit is None else fit.doubts,
        why_no_hold_out=results.why_no_hold_out,
        figures=drawn,
        not_drawn=not_drawn,
        table=_table(table),
        left_out=left_out,
        fit_text="" if fit is None else fit.report(),
        origin=_origin(table, command),
        configuration=redacted(config_text(sweep)),
    )
    folders.report.write_text(page)


def answer(results: Results) -> list[str]:
    """The sweep's result in a few sentences, each number with its interval."""
    fit, hold_out = results.fit, results.hold_out
    if fit is None:
        return [f"Not fitted: {results.why_no_fit}."]
    lines = []
    if fit.isoflop is not None and fit.isoflop.mean_recurrence_law and fit.isoflop.tokens_law:
        mean, tokens = fit.isoflop.mean_recurrence_law, fit.isoflop.tokens_law
        lines.append(
            f"The best mean recurrence grows as C^{_exponent(mean)} and the best token count as C^{_exponent(tokens)} "
            f"({fit.accounting} accounting; from the minima of the isoFLOP curves)."
        )
        flops = 2 * fit.fitted.flops[1]
        lines.append(
            f"For {flops:.3g} FLOPs, twice the largest fitted compute, that means a mean recurrence of "
            f"{_at(mean, flops)} and {_at(tokens, flops)} tokens."
        )
        if fit.parabola_bias is not None:
            bias = fit.parabola_bias
            lines.append(
                "Without the parabola's bias on skewed curves, as far as the training law holds: "
                f"C^{_exponent(bias.axis_exponent.corrected)} and C^{_exponent(bias.tokens_exponent.corrected)}."
            )
    else:
        reason = fit.why_absent("isoflop") if fit.isoflop is None else fit.isoflop.reason
        lines.append(f"The minima of the isoFLOP curves give no exponents: {reason}.")
    if fit.training is not None:
        values = ", ".join(
            f"{p.name} = {p.value:.4g}" + (f" ({p.interval[0]:.4g} to {p.interval[1]:.4g})" if p.interval else "")
            for p in fit.training.parameters
        )
        lines.append(f"Training law L(µ, D) = E + X N(µ)^-x + Y D^-y: {values}.")
    if hold_out is not None and hold_out.held_out is not None:
        held = hold_out.held_out
        errors = "; ".join(f"{error.method} {error.mean_absolute_error:.2f}%" for error in held.errors)
        lines.append(
            f"Runs at the largest {held.column} ({held.value:.3g}), kept out of the fit and {held.times_beyond:.3g} "
            f"times beyond it, were predicted with a mean absolute error of: {errors}."
        )
    if results.why_no_hold_out:
        lines.append(f"Nothing was held out: {results.why_no_hold_out}.")
    lines.append("Intervals are 95%, from refits to redrawn noise; docs/fitting.md has how often they cover.")
    return lines


def _at(law: PowerLaw, flops: float) -> str:
    span = law.interval_at(flops)
    return f"{law.at(flops):.3g}" + (f" ({span[0]:.3g} to {span[1]:.3g})" if span else "")


def _exponent(law: PowerLaw) -> str:
    said = f"{law.exponent:.3f}"
    return f"{said} ({law.interval[0]:.3f} to {law.interval[1]:.3f})" if law.interval else said


def _draw(
    folder: Path, table: pd.DataFrame, fit: SweepFit | None, hold_out: SweepFit | None
) -> tuple[list[dict[str, str]], list[str]]:
    """Draw the fit's figures; predicted against measured comes from the hold-out fit where there is one."""
    if fit is None:
        return [], []
    drawn = figures.draw_all(table, fit, folder)
    if hold_out is not None:
        figures.draw_all(table, hold_out, folder / "hold-out")
    shown = []
    for name, caption in CAPTIONS.items():
        from_hold_out = folder / "hold-out" / f"{name}.svg"
        measured = name == "predicted_against_measured" and hold_out is not None and from_hold_out.exists()
        file = from_hold_out if measured else folder / f"{name}.svg"
        if file.exists():
            data = base64.b64encode(file.read_bytes()).decode()
            shown.append({"source": f"data:image/svg+xml;base64,{data}", "caption": caption})
    return shown, [f"Not drawn, {name.replace('_', ' ')}: {reason}" for name, reason in drawn.skipped]


def _held_out(held: HeldOut) -> dict[str, Any]:
    at_mean = [row for row in held.rows if row.recurrence == row.mean_recurrence]
    rows = [
        (
            row.run_id,
            row.method,
            f"{row.mean_recurrence:g}",
            f"{row.recurrence:g}",
            f"{row.tokens:.3g}",
            f"{row.predicted:.4f}",
            "-" if row.interval is None else f"{row.interval[0]:.4f} to {row.interval[1]:.4f}",
            f"{row.measured:.4f}",
            f"{row.error:+.2f}%",
        )
        for row in sorted(at_mean, key=lambda row: (row.method, row.mean_recurrence))
    ]
    errors = [
        f"Mean absolute error, {e.method}: {e.mean_absolute_error:.2f}% over {e.rows} losses." for e in held.errors
    ]
    return {"where": f"the largest {held.column}, {held.value:.3g}", "rows": rows, "errors": errors}


def _table(table: pd.DataFrame) -> dict[str, list]:
    axes = [name for name in table.columns if "." in name or name in ("seed", "group")]
    varied = [name for name in axes if name not in _COLUMNS and table[name].nunique(dropna=False) > 1]
    names = [name for name in _COLUMNS if name in table.columns and table[name].notna().any()]
    names[2:2] = varied
    has_budgets = "budget" in table.columns and table["budget"].notna().any()
    order = table.sort_values(["budget" if has_budgets else "tokens", "mean_recurrence"])
    rows = [[_shown(value) for value in row] for row in order[names].itertuples(index=False)]
    return {"columns": [_COLUMNS.get(name, name) for name in names], "rows": rows}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.5g}"
    return str(value)


def _origin(table: pd.DataFrame, command: str) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS)
    return (
        f"command    {redacted(command)}\n"
        f"versions   isoloop {importlib.metadata.version('isoloop')}, Python {platform.python_version()}, {versions}\n"
        f"machine    {platform.machine()} {sys.platform}\n"
        f"runs       {' '.join(table['run_id'])}"
    )
