"""The `isoloop` command for tests: as a process of its own, or quicker within this one."""

import contextlib
import io
import signal
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace
from unittest import mock

from isoloop import fitting
from isoloop.fitting import fit_table
from isoloop.fitting.figures import FIGURES, style, training
from isoloop.sweeps.cli.main import main
from isoloop.sweeps.report import calculator, page

ISOLOOP = [sys.executable, "-c", "from isoloop.sweeps.cli.main import main; main()"]


def isoloop_process(*arguments, cwd, check=0):
    """Run the command as its user does; it must exit with `check`."""
    done = subprocess.run([*ISOLOOP, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done


def isoloop(*arguments, cwd, check=0):
    """Run the command in this process, which has imported all that it needs; it must exit with `check`."""
    assert threading.current_thread() is threading.main_thread(), "the command listens to signals"
    stdout, stderr = io.StringIO(), io.StringIO()
    on_sigterm, code = signal.getsignal(signal.SIGTERM), 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        mock.patch.object(sys, "argv", ["isoloop", *map(str, arguments)]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")  # a process prints them on stderr
        warnings.showwarning = lambda *warning, **_: stderr.write(warnings.formatwarning(*warning[:4]))
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
    done = SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())
    assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def only_svg():
    """A context in which figures are written as SVG alone, which pages need: half the time of all three formats."""
    return mock.patch.object(style, "SUFFIXES", (".svg",))


@contextlib.contextmanager
def quick_figures():
    """A context in which figures are written as SVG alone, and lines of best splits have few points."""
    with only_svg(), mock.patch.object(training, "_FRONTIER_POINTS", 6):
        yield


@contextlib.contextmanager
def coarse_calculator():
    """A context in which the calculators of pages have few budgets, for tests that don't read their numbers."""
    with (
        mock.patch.object(calculator, "_FIRST_BUDGETS", 2),
        mock.patch.object(calculator, "_SHORTEST_STEP", 1e9),
    ):
        yield


@contextlib.contextmanager
def quick_pages():
    """A context in which pages have the isoFLOP curves alone, as SVG, a coarse calculator, and no profile likelihoods.

    That is a third of the time. It is for tests in which a page must be made, and what it shows is not their subject.
    """
    few = {"isoflop_curves": FIGURES["isoflop_curves"]}
    with (
        quick_figures(),
        coarse_calculator(),
        mock.patch.dict(FIGURES, few, clear=True),
        mock.patch.object(page, "HOLD_OUT_FIGURES", ()),
        without_profiles(),
    ):
        yield


def without_profiles():
    """A context in which commands fit without profile likelihoods: a third of a fit's time."""
    return mock.patch.object(
        fitting, "fit_table", lambda *given, profiles=False, **options: fit_table(*given, **options)
    )
