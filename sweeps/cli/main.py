"""The `isoloop` command. Each command parses, calls and prints, and imports heavy libraries only when it needs them."""

import signal
import sys
import traceback
from typing import Annotated

import typer

from isoloop import __version__
from isoloop.sweeps.cli.answer import answer
from isoloop.sweeps.cli.console import use_terminal_encoding
from isoloop.sweeps.cli.design import design
from isoloop.sweeps.cli.evaluate import evaluate, prepare_suite
from isoloop.sweeps.cli.export_model import export_model
from isoloop.sweeps.cli.figures import compare, figure, stability
from isoloop.sweeps.cli.generate import generate
from isoloop.sweeps.cli.laws import choose, fit, predict
from isoloop.sweeps.cli.options import BROKEN_RULE, EXIT_CODES, FAULT, INTERRUPTED
from isoloop.sweeps.cli.status import status
from isoloop.sweeps.cli.sweep import export, plan, prepare_data, presets, report, run, tune
from isoloop.sweeps.privacy import redacted, switch_telemetry_off


class _OrderedCommands(typer.core.TyperGroup):
    """Commands listed in the order in which a user meets them."""

    def list_commands(self, ctx: object) -> list[str]:
        first = ["presets", "data"]
        return [*first, *(name for name in self.commands if name not in first)]


app = typer.Typer(
    name="isoloop",
    help="""Plan, train, track and fit the scaling laws of looped language models.

    The commands stand in the order of work: choose a preset, see what it costs, run it, read its page, predict.
    `isoloop plan demo` is a first step, and `isoloop COMMAND --help` explains a command.
    """,
    epilog=EXIT_CODES,
    cls=_OrderedCommands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="Prepare training text and evaluation suites.", no_args_is_help=True)
data.command("prepare")(prepare_data)
data.command("prepare-suite")(prepare_suite)
app.add_typer(data, name="data")
for command in (
    presets,
    plan,
    tune,
    run,
    status,
    report,
    fit,
    answer,
    predict,
    choose,
    design,
    compare,
    figure,
    stability,
    evaluate,
    generate,
    export_model,
    export,
):
    app.command(epilog=EXIT_CODES if command in (tune, run) else None)(command)


@app.callback(invoke_without_command=True)
def _isoloop(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        print(f"isoloop {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command, and end with one of the exit codes. SIGTERM is handled like Ctrl-C."""
    use_terminal_encoding()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    switch_telemetry_off()
    try:
        app()
    except ValueError as error:
        print(f"isoloop: {redacted(str(error))}", file=sys.stderr)
        sys.exit(BROKEN_RULE)
    except OSError as error:
        advice = "what is saved is kept, so fix this and rerun the command"
        print(f"isoloop: reading or writing failed: {redacted(str(error))}; {advice}", file=sys.stderr)
        sys.exit(BROKEN_RULE)
    except KeyboardInterrupt:
        print("isoloop: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception:  # noqa: BLE001  Python's own exit code would be 1, which says that runs have failed
        traceback.print_exc()
        sys.exit(FAULT)


if __name__ == "__main__":
    main()
