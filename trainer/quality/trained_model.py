"""Trained models with all that is known of them: `load_trained(source) -> TrainedModel`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pydantic import ValidationError

from isoloop.trainer.config import RecurrenceConfig, RunSpec
from isoloop.trainer.data.stored_tokenizer import TOKENIZER_FILE, read_tokenizer
from isoloop.trainer.data.tokenizer import ByteTokenizer, Tokenizer
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.exported import Exported, TrainingFacts, is_exported, load_exported
from isoloop.trainer.model.language_model import LanguageModel
from isoloop.trainer.model.pretrained import check_own_classes, load_published, published_folder
from isoloop.trainer.rules import broken_rules
from isoloop.trainer.run.checkpoint import checkpoints, load_checkpoint
from isoloop.trainer.run.result import RunResult, read_result

Weights = Literal["last", "best"]
WEIGHT_FOLDERS: dict[Weights, str] = {"last": "model", "best": "best-model"}


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model and what is known of it.

    Attributes:
        name: the run's id, the folder's name, or OWNER/NAME on Hugging Face.
        model: in evaluation mode, float32 on the CPU.
        tokenizer: None if no tokenizer lies beside the weights and none was named.
        recurrence: the loops it was trained with.
        losses: validation loss by recurrence T, nats per token; empty if unknown.
        weights: of its run: `last` or, of a step before that, `best`; None if the run is unknown.
        spec: configuration of its run; None if unknown.
        result: result of its run; None if unknown.
        precision: of the matrix products in training; `float32` if unknown.
        exported_recurrence: T that its exporter chose for it; None if it wasn't exported.
        facts: what an exported folder says of its training; None if it wasn't exported.
    """

    name: str
    model: LanguageModel
    tokenizer: Tokenizer | None
    recurrence: RecurrenceConfig
    losses: dict[int, float] = field(default_factory=dict)
    weights: Weights | None = None
    spec: RunSpec | None = None
    result: RunResult | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    exported_recurrence: int | None = None
    facts: TrainingFacts | None = None

    def require_tokenizer(self) -> Tokenizer:
        """Return the tokenizer, which whoever reads or writes text needs.

        Raises:
            ValueError: there is none.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"text needs the tokenizer that the model was trained with, but none lies beside the weights of "
                f"'{self.name}'; name it with tokenizer (--tokenizer): a tokenizer.json, a folder that holds one, or "
                "the OWNER/NAME of one on Hugging Face"
            )
        return self.tokenizer


def load_trained(
    source: str | Path,
    *,
    weights: Weights = "last",
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    own_classes: bool = False,
) -> TrainedModel:
    """Load a trained model.

    Args:
        source: a run's folder; a folder in the published layout, such as the `model/` in it; an exported folder
            (`isoloop.trainer.huggingface`); or the OWNER/NAME of a model on Hugging Face.
        weights: of a run: those of its last step, or those of the step with the lowest validation loss. `best-model/`
            in a run's folder always means the latter.
        revision: branch, tag or commit on Hugging Face.
        tokenizer: `bytes`, a tokenizer.json, a folder that holds one, or the OWNER/NAME of one on Hugging Face; by
            default the one beside the weights or, of a run of an older version, that of its corpus.
        own_classes: import the injection or block that a folder names as `module:Class`. This runs their code, so use
            it only for folders that you trust.

    Raises:
        ValueError: there is no such model, or no such `weights`; its run hasn't finished, has diverged or was
            simulated; the best weights weren't kept; a folder is to have a revision; a file is missing or torn; the
            tokenizer isn't the model's.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights must be last or best, but got '{weights}'; choose one of them")
    folder = Path(source).expanduser()
    if folder.name in WEIGHT_FOLDERS.values() and (folder.parent / "spec.json").is_file():
        weights = "best" if folder.name == WEIGHT_FOLDERS["best"] else weights
        folder = folder.parent
    if (folder / "spec.json").is_file() or (folder / "result.json").is_file():
        if revision is not None:
            raise ValueError(
                f"a revision (--revision) is of a model on Hugging Face, but '{source}' is a run; leave it out"
            )
        trained = _load_run(folder, weights, tokenizer, own_classes)
    else:
        if weights != "last":
            raise ValueError(
                f"only a run's folder has its best weights beside the last ones, but '{source}' has no spec.json; "
                "leave out weights='best' (--best), or name the run's folder"
            )
        folder = _model_folder(source, revision)
        exported: Exported | None = load_exported(folder) if is_exported(folder) else None
        if exported is None:
            model, recurrence = load_published(folder, own_classes=own_classes)
        else:
            model, recurrence = exported.model, exported.recurrence
        trained = TrainedModel(
            name=str(source) if not Path(source).expanduser().is_dir() else folder.resolve().name,
            model=model.eval(),
            tokenizer=_tokenizer(tokenizer, folder),
            recurrence=recurrence,
            losses={} if exported is None else dict(exported.losses),
            precision="float32" if exported is None else exported.precision,
            exported_recurrence=None if exported is None else exported.loops,
            facts=None if exported is None else exported.facts,
        )
    rows = trained.model.config.padded_vocabulary
    if trained.tokenizer is not None and trained.tokenizer.vocabulary > rows:
        raise ValueError(
            f"a model must have a token for each id of its tokenizer, but '{trained.name}' has {rows} and "
            f"'{trained.tokenizer.name}' {trained.tokenizer.vocabulary} ids; name the one that it was trained with"
        )
    return trained


def _model_folder(source: str | Path, revision: str | None) -> Path:
    """Return the folder of a published model; raise ValueError for what is a folder and no model."""
    folder = published_folder(source, revision)
    if (folder / "config.json").is_file():
        return folder
    runs = sorted(folder.glob("runs/*/result.json"))
    example = f"; name one of its runs, such as {runs[0].parent}" if runs else ""
    raise ValueError(
        "a model must be a run's folder, which holds spec.json, or a folder with config.json and weights, but "
        f"{folder} holds {_content(folder)}{example or '; check the path'}"
    )


def _content(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"


def _load_run(folder: Path, weights: Weights, tokenizer: str | Path | None, own_classes: bool) -> TrainedModel:
    """Load the model of a finished run from its folder."""
    result = read_result(folder)
    if result is None:
        raise ValueError(
            f"a run must have finished before its model is used, but {folder} has no result.json yet; wait, or "
            "continue the sweep with `isoloop run`"
        )
    if result.simulated:
        raise ValueError(
            f"a model must have been trained, but the run in {folder} was simulated: its losses were drawn from a law, "
            "and there are no weights; run its sweep without --simulate"
        )
    if result.status == "diverged":
        raise ValueError(
            f"a run must have finished before its model is used, but that in {folder} diverged: {result.reason}; use "
            "another run"
        )
    spec = _read_spec(folder)

    # The best step may be the last one
    is_last = weights == "last" or result.best_step == result.steps
    place = folder / (WEIGHT_FOLDERS["last"] if is_last else WEIGHT_FOLDERS["best"])
    saved = checkpoints(folder / "checkpoints")
    if (place / "config.json").is_file():
        model, _ = load_published(place, own_classes=own_classes)
    elif saved and not (folder / WEIGHT_FOLDERS["last"]).is_dir():  # the published layout hasn't all of its settings
        check_own_classes(spec.model, folder, own_classes)
        model = build_model(spec.model, mean_recurrence=spec.recurrence.mean)
        best = load_checkpoint(saved[-1], run_id=spec.run_id, model=model).best
        if not is_last:
            if best is None:
                raise _no_best_weights(folder)
            model.load_state_dict(best.weights)
    elif not is_last:
        raise _no_best_weights(folder)
    else:
        raise ValueError(
            f"a finished run must hold its weights, but {folder} has no model/ and no checkpoints/; fetch them from "
            "where the run was trained, or delete the folder and rerun the sweep"
        )
    return TrainedModel(
        name=spec.run_id,
        model=model.eval(),
        tokenizer=_tokenizer(tokenizer, place) or _run_tokenizer(folder, spec),
        recurrence=spec.recurrence,
        losses=result.losses if is_last else result.best_losses,
        weights="last" if is_last else "best",
        spec=spec,
        result=result,
        precision=spec.precision,
    )


def _read_spec(folder: Path) -> RunSpec:
    path = folder / "spec.json"
    try:
        return RunSpec.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"a run's folder must hold spec.json, but {folder} has none; use another run") from error
    except ValidationError as error:
        raise ValueError(
            f"{path} must be a run's configuration, but {broken_rules(error)}; fetch the folder again, or use another "
            "run"
        ) from error


def _no_best_weights(folder: Path) -> ValueError:
    return ValueError(
        f"the best weights of a run are those that evaluation.keep_best keeps, but {folder} has none; use the last "
        "ones, or run its sweep with evaluation.keep_best=true"
    )


def _tokenizer(named: str | Path | None, folder: Path) -> Tokenizer | None:
    """Read the tokenizer that the user named, or the one beside the weights, if there is one."""
    if named is not None:
        return ByteTokenizer() if str(named) == "bytes" else read_tokenizer(named)
    return read_tokenizer(folder) if (folder / TOKENIZER_FILE).is_file() else None


def _run_tokenizer(folder: Path, spec: RunSpec) -> Tokenizer | None:
    """Find the tokenizer of a run whose weights have none beside them: older versions wrote none."""
    if spec.data.tokenizer == "bytes":
        return ByteTokenizer()
    corpus = folder.resolve().parent.parent / "corpora" / spec.data_fingerprint / TOKENIZER_FILE
    return read_tokenizer(corpus, spec.data.separator) if corpus.is_file() else None
