"""The command `isoloop compare`: two sweeps side by side. Parse, call, print."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloop.sweeps.cli.console import new_console, progress_bar
from isoloop.sweeps.cli.options import DEFAULT_DRAWS, DEFAULT_OUT, Out
from isoloop.sweeps.paths import Folders, folders_of

if TYPE_CHECKING:
    import pandas as pd

    from isoloop.fitting import ComparedSweep, SweepFit


def compare(
    a: Annotated[str, typer.Argument(help="A sweep (name or YAML), <name>/groups/<group>, a run table, or a fit.")],
    b: Annotated[str, typer.Argument(help="The other one; changes are from A to B.")],
    flops: Annotated[
        float | None, typer.Option(help="Compare the best models at this compute, in FLOPs, instead of two.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder of compare.json, .txt and the figure; if left out, one in --out.")
    ] = None,
    out: Out = DEFAULT_OUT,
    draws: Annotated[
        int | None, typer.Option(min=20, help=f"Refits behind each interval of a side fitted here; {DEFAULT_DRAWS}.")
    ] = None,
) -> None:
    """Compare two sweeps: laws side by side, differences with intervals, which is better at equal FLOPs."""
    from isoloop.fitting import compare_sweeps
    from isoloop.fitting.figures.compare import save_comparison

    fitted: list[str] = []
    refits = draws or DEFAULT_DRAWS
    pair = _compared(a, out, refits, fitted), _compared(b, out, refits, fitted)
    if draws is not None and not fitted:
        raise ValueError(
            f"--draws is for a side that is fitted here, but {a} and {b} have stored fits; leave it out, or "
            "fit them anew with: isoloop fit NAME --draws N"
        )
    found = compare_sweeps(*pair, flops=flops)
    folder = to or out / "compared" / "-to-".join(_slug(one.name) for one in pair)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(found.to_json(), encoding="utf-8")
    (folder / "compare.txt").write_text(found.report(), encoding="utf-8")
    save_comparison(pair, found, folder)
    print(found.report())
    print(f"stored in {folder}: compare.txt, compare.json, and the figure as compare.png, .svg and .pdf")


def _compared(target: str, out: Path, draws: int, fitted: list[str]) -> "ComparedSweep":
    """A sweep's stored fit with its table; a table is fitted here, which `fitted` learns; a fit stands for itself."""
    from isoloop.fitting import ComparedSweep, SweepFit, is_point_table, read_table

    path = Path(target)
    if path.suffix == ".json":
        fit = SweepFit.read(path)
        return ComparedSweep(name=fit.name, fit=fit)
    if path.suffix in {".csv", ".parquet"}:
        if is_point_table(path):
            raise ValueError(
                f"a comparison takes run tables, but {path} holds dense models: use 'isoloop choose {path}'"
            )
        table = read_table(path)
        fitted.append(target)
        found, why = _fitted(table, path.stem, draws)
        return ComparedSweep(name=path.stem, fit=found, table=table, why_no_fit=why)
    folders = folders_of(target, out)
    groups = sorted(group.name for group in folders.groups.glob("*") if group.is_dir())
    if groups:
        named = ", ".join(f"{folders.name}/groups/{group}" for group in groups)
        raise ValueError(f"a comparison takes one group of runs, but '{target}' has several; name one of: {named}")
    table = read_table(folders.table)
    stored = folders.fit(hold_out=False)
    if stored.exists():
        found, why = SweepFit.read(stored), ""
    else:
        fitted.append(target)
        found, why = _fitted(table, folders.name, draws)
    return ComparedSweep(
        name=folders.name, fit=found, table=table, why_no_fit=why, validation=_validation(table, folders)
    )


def _fitted(table: "pd.DataFrame", name: str, draws: int) -> "tuple[SweepFit | None, str]":
    from isoloop.fitting import fit_sweep

    try:
        with progress_bar(new_console(), prefix="fitting ", transient=True) as progress:
            return fit_sweep(table, name=name, draws=draws, progress=progress.update), ""
    except ValueError as error:
        return None, str(error)


def _validation(table: "pd.DataFrame", folders: Folders) -> str | None:
    """What the runs' losses were measured on, from their specs; None where these are not all there."""
    if bool(table["simulated"].iloc[0]):
        return None
    found = set()
    for run_id in table.loc[table["status"] == "finished", "run_id"]:
        spec = folders.run(run_id) / "spec.json"
        if not spec.is_file():
            return None
        content = json.loads(spec.read_text(encoding="utf-8"))
        sequences, context = content["evaluation"]["sequences"], content["model"]["context"]
        found.add(f"{sequences} sequences of {context} tokens of the corpus {content['data_fingerprint']}")
    return " and ".join(sorted(found)) or None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9+.=_-]+", "-", name).strip("-.")[:80] or "sweep"
