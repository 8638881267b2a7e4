"""The stored fit of a command's target: made, written where it can be, and read back while its table is the same."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoloop.sweeps.cli.console import show_progress
from isoloop.sweeps.cli.options import TargetFiles

if TYPE_CHECKING:
    from isoloop.fitting import AnyFit, RunTable
    from isoloop.sweeps.runs import TableOptions


@dataclass(frozen=True, kw_only=True)
class StoredFit:
    """A fit and its file, None if no folder could be written; `problem` is why it is not beside its table."""

    fit: "AnyFit"
    path: Path | None
    problem: str = ""


def fit_target(files: TargetFiles, out: Path, options: "TableOptions", **settings: Any) -> StoredFit:
    """Fit the table of a target and store the fit; one that can't be stored is returned all the same.

    Args:
        files: the files of the target.
        out: the output folder.
        options: how to read the table.
        settings: further arguments of `fit_table`.
    """
    with show_progress(transient=True) as progress:
        progress.begin("Reading the table")
        from isoloop.fitting import fit_table
        from isoloop.fitting.result import FittedFile
        from isoloop.sweeps.runs import load_table

        path = files.check_table("a fit")
        # Before the table is read: one that changes meanwhile is another one.
        file = None if files.in_mlflow else FittedFile.of(path)
        table = load_table(files.target, out, options)
        progress.begin("Fitting")
        fitted = fit_table(
            table.frame,
            name=files.name,
            profiles=True,
            rollouts=not settings.get("hold_out_largest_budget", False),
            progress=progress.update,
            reading=table.notes,
            budget_tolerance=options.tolerance,
            **settings,
        )
    return _store(replace(fitted, file=file), files, table)


def _store(fit: "AnyFit", files: TargetFiles, table: "RunTable") -> StoredFit:
    """Store a fit beside its table, or in the output folder where that can't be written.

    The fit of an MLflow experiment has a copy of its table beside it.
    """
    from isoloop.fitting.result import FittedFile
    from isoloop.sweeps.analysis import store_fit
    from isoloop.sweeps.tracking.export import write_table

    assert files.table is not None
    try:
        if files.in_mlflow:
            write_table(table.frame, files.table)
            fit = replace(fit, file=FittedFile.of(files.table))
        store_fit(fit, files.fit_beside)
    except OSError as error:
        problem = f"{files.fit_beside} can't be written ({error.strerror})"
    else:
        if files.spare_fit is not None:
            for stale in (files.spare_fit, files.spare_fit.with_suffix(".txt")):
                stale.unlink(missing_ok=True)
        return StoredFit(fit=fit, path=files.fit_beside)
    if files.spare_fit is None:
        return StoredFit(fit=fit, path=None, problem=problem)
    try:
        store_fit(fit, files.spare_fit)
    except OSError as error:
        return StoredFit(fit=fit, path=None, problem=f"{problem}, nor can {files.spare_fit} ({error.strerror})")
    return StoredFit(fit=fit, path=files.spare_fit, problem=problem)


def stored_fit(files: TargetFiles, out: Path, options: "TableOptions", *, hold_out: bool = False) -> "AnyFit | None":
    """Return the stored fit of a target, None if there is none.

    Raises:
        ValueError: the fit is of another table, or of one that has changed since or was read in another way.
    """
    from isoloop.fitting import read_fit
    from isoloop.sweeps.runs import load_table

    # A fit by its file, or that of a sweep
    if files.table is None or files.folders is not None:
        if options.given or options.tracking_uri:
            given = options.given or "--tracking-uri"
            raise ValueError(
                f"options such as {given} say how a table is read, but {files.target} is a "
                f"{'stored fit' if files.table is None else 'sweep'}; leave them out"
            )
        return read_fit(files.fit)
    # That of a table, which must be the same as when it was fitted
    files.check_table("a fit")
    if not files.fit.is_file():
        return None
    again = " ".join(["isoloop fit", files.target, *filter(None, [options.given, "--hold-out" if hold_out else ""])])
    stored = read_fit(files.fit)
    if not files.in_mlflow and _has_changed(files.table, files.fit, stored):
        raise ValueError(
            f"a stored fit must be of its table as it is, but {files.table} changed after {files.fit} was made; fit "
            f"it again with: {again}"
        )
    # It must have been read in the same way
    if files.in_mlflow or options.given:
        table = load_table(files.target, out, options)
        is_same = not files.in_mlflow or _is_copy(files.table, stored, table)
        if stored.reading[: len(table.notes)] != table.notes or not is_same:
            way = " ".join(stored.reading) or "nothing had to be guessed"
            raise ValueError(
                f"a stored fit must be of the same table, but {files.fit} is of other runs, or of a table that was "
                f"read in another way ({way}); fit it again with: {again}"
            )
    return stored


def fit_or_stored(files: TargetFiles, out: Path, options: "TableOptions") -> "tuple[AnyFit, str]":
    """Return the stored fit of a target, or one that is made and stored now, and text that says so or how it was read.

    Raises ValueError as `stored_fit` and `fit_target` do.
    """
    from isoloop.sweeps.cli.options import reading_text

    fit, made = stored_fit(files, out, options), ""
    if fit is None:
        fit, made = fit_now(files, out, options)
    return fit, made + (f"{reading_text(fit.reading)}\n" if fit.reading else "")


def fit_now(files: TargetFiles, out: Path, options: "TableOptions") -> "tuple[AnyFit, str]":
    """Return the fit of a target that has none, made and stored with the defaults of `isoloop fit`, and text about it.

    Raises ValueError as `fit_target` does.
    """
    stored = fit_target(files, out, options)
    place = f"as {stored.path}" if stored.path else f"and not stored, because {stored.problem}"
    text = f"No fit of {files.target} was stored: it was fitted now, with the defaults of 'isoloop fit', {place}\n\n"
    return stored.fit, text


def _has_changed(table: Path, path: Path, stored: "AnyFit") -> bool:
    """Return True if a table is not what was fitted: by its content, or its time where the fit has no digest."""
    from isoloop.fitting.result import FittedFile

    if stored.file is None:
        return path.stat().st_mtime < table.stat().st_mtime
    return stored.file.sha256 != FittedFile.of(table).sha256


def _is_copy(path: Path, stored: "AnyFit", table: "RunTable") -> bool:
    """Return True if the file beside a fit is a copy of the table, and the fit is of it."""
    from isoloop.fitting.result import FittedFile

    digest = hashlib.sha256(table.frame.to_csv(index=False).encode()).hexdigest()
    return path.is_file() and stored.file is not None and stored.file.sha256 == digest == FittedFile.of(path).sha256
