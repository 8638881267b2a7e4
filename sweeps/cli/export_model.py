"""The command `isoloop export-model`: a trained model as a folder that Transformers loads."""

from pathlib import Path
from typing import Annotated

import typer

from isoloop.sweeps.cli.generate import Best, Model, Revision, TokenizerName
from isoloop.sweeps.cli.options import DEFAULT_OUT, Out


def export_model(
    model: Model,
    to: Annotated[Path, typer.Option("--to", help="The folder: a new or empty one, or an older export.")],
    recurrence: Annotated[
        int | None,
        typer.Option(min=1, help="T that the model runs by default, at most 4096; else the mean in training."),
    ] = None,
    best: Best = False,
    revision: Revision = None,
    tokenizer: TokenizerName = None,
    out: Out = DEFAULT_OUT,
) -> None:
    """Export a model to a folder that Transformers loads.

    The folder holds weights, tokenizer, code and a model card: what it was trained on, its loss at each T, and which T
    to use.
    """
    from isoloop.sweeps.models import find_model, sweep_of
    from isoloop.trainer.huggingface.export import export_model as export
    from isoloop.trainer.quality.generation import default_recurrence, recurrence_notes
    from isoloop.trainer.quality.trained_model import load_trained

    found = find_model(model, out, best=best)
    if found.note:
        print(found.note)
    folder = export(
        found.source,
        to,
        recurrence=recurrence,
        weights=found.weights,
        revision=revision,
        tokenizer=tokenizer,
        sweep=sweep_of(Path(found.source)),
    )
    exported = load_trained(folder)
    loops = default_recurrence(exported)
    for note in recurrence_notes(exported, loops):
        print(f"note: {note}")
    at = f" at T = {loops}" if exported.model.config.is_looped else ""
    print(
        f"{folder} has the model{at}, its tokenizer and its card, README.md. In Python:\n"
        f'  AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)'
    )
