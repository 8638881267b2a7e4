"""What several commands take: their arguments and options, and the exit codes."""

from pathlib import Path
from typing import Annotated

import typer

Sweep = Annotated[str, typer.Argument(help="A preset's name or a sweep's YAML file.")]
Target = Annotated[str, typer.Argument(help="A sweep that was run (its name or YAML file), or a file.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of all results.")]
Set = Annotated[list[str], typer.Option("--set", help="Change one value: --set batch=16 --set data.corpus=/my/text")]
Address = Annotated[
    str | None, typer.Option("--address", help="A Ray cluster's host:port, or auto; a local Ray if left out.")
]
TrackingUri = Annotated[
    str | None, typer.Option("--tracking-uri", help="Any MLflow tracking URI; sqlite in --out if left out.")
]
StorageUri = Annotated[
    str | None,
    typer.Option("--storage", help="Where runs lie if workers don't see --out: s3://, gs://, or a folder."),
]
Draws = Annotated[int, typer.Option(min=20, help="Refits behind each interval.")]
TrainingLaw = Annotated[
    str, typer.Option("--law", help="The law of the loss after training: a law's name, or module:Class.")
]
DEFAULT_LAW = "training"
DEFAULT_DRAWS = 1000
DEFAULT_OUT = Path("isoloop-out")
BROKEN_RULE, RUNS_FAILED, INTERRUPTED = 2, 1, 130
