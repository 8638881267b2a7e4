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

from isoloop.fitting.figures import style
from isoloop.sweeps.cli.main import main

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
