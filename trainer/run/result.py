"""Result of a run, written last and atomically."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from isoloop.trainer.config import Config, NonNegativeFloat
from isoloop.trainer.files import write_atomically


class RunResult(Config):
    """Outcome of one run.

    Attributes:
        status: `finished`, or `diverged`, which is a result and not a failure.
        reason: of a divergence: the step, the loss and ρ(Ā).
        simulated: True if the losses were drawn from a law and no model was trained.
        tokens: D, tokens trained.
        unique_tokens: training tokens that the run could see in one pass; None if simulated, where every token is new.
        predicted_tokens: of the tokens trained, those that were predicted; None if all were (no `data.answers_only`).
        dropped_tokens: tokens of text that best-fit packing cropped in the run's rows; None for another packing.
        forward_loops: mean loops run per training token.
        backward_loops: mean loops that carried gradient.
        flops_exact: training FLOPs by `exact` accounting.
        flops_parcae_release: training FLOPs by `parcae-release` accounting.
        loss: validation loss at T = µ_rec, nats per token; None if diverged.
        losses: validation loss by recurrence T, nats per token, of the last step like `loss`. With `data.answers_only`
            all losses are in nats per answer token.
        best_loss: lowest validation loss at T = µ_rec of the evaluations during training and at its end; None if there
            were none during training, or if diverged.
        best_step: the step with that loss, `steps` if it is the last.
        best_losses: validation loss by recurrence T at that step.
        document_losses: loss by recurrence T over documents that the model reads each by itself, nats per token, of the
            last step; empty unless `evaluation.documents` asks for it.
        perplexity: exp of that loss at T = µ_rec, by the published protocol.
        document_bits_per_byte: the same loss in bits per byte of text.
        answers: of a synthetic text, the share of answers that are right, by the steps k that they ask for and by
            recurrence T, of the last step: each token is the most probable one after the text before it.
        exact_answers: that share of all answers at T = µ_rec.
        training_loss: loss of the last training batch, nats per token; None if simulated, or if it wasn't finite.
        spectral_radius: ρ(Ā) at the end; None if simulated, without a loop, or if divergence left no number.
        seconds: wall time spent training.
        skipped_steps: steps without an update, because the loss or the norm of the gradient wasn't finite.
        trunk_steps: first steps that another run has trained, its trunk. They count in all numbers but `flops_trained`.
        flops_trained: FLOPs by `exact` accounting without those of the trunk; None in results of older versions.
    """

    run_id: str
    status: Literal["finished", "diverged"]
    reason: str | None = None
    simulated: bool
    steps: int
    tokens: int
    unique_tokens: int | None = None
    predicted_tokens: int | None = Field(default=None, exclude_if=lambda value: value is None)
    dropped_tokens: int | None = Field(default=None, exclude_if=lambda value: value is None)
    forward_loops: NonNegativeFloat
    backward_loops: NonNegativeFloat
    flops_exact: NonNegativeFloat
    flops_parcae_release: NonNegativeFloat
    loss: float | None
    losses: dict[int, float]
    best_loss: float | None = None
    best_step: int | None = None
    best_losses: dict[int, float] = Field(default_factory=dict)
    bits_per_byte: float | None
    document_losses: dict[int, float] = Field(default_factory=dict, exclude_if=lambda value: not value)
    perplexity: float | None = Field(default=None, exclude_if=lambda value: value is None)
    document_bits_per_byte: float | None = Field(default=None, exclude_if=lambda value: value is None)
    answers: dict[int, dict[int, float]] = Field(default_factory=dict, exclude_if=lambda value: not value)
    exact_answers: float | None = Field(default=None, exclude_if=lambda value: value is None)
    training_loss: float | None = None
    spectral_radius: float | None
    seconds: NonNegativeFloat
    skipped_steps: int = 0
    trunk_steps: int = 0
    flops_trained: NonNegativeFloat | None = None

    @property
    def epochs(self) -> float | None:
        """Passes over the training text, tokens / unique_tokens; None if that is unknown."""
        return self.tokens / self.unique_tokens if self.unique_tokens else None

    @property
    def compared_loss(self) -> float | None:
        """The loss that runs are compared by.

        It is the last one, or the lowest where the run saw text again and its loss rose after that.
        """
        overfitted = self.best_loss is not None and self.loss is not None and self.best_loss < self.loss
        return self.best_loss if overfitted and (self.epochs or 0) > 1 else self.loss


def write_result(folder: Path, result: RunResult) -> None:
    """Write `result.json` into the run's folder."""
    write_atomically(folder / "result.json", result.model_dump_json(indent=1))


def read_result(folder: Path) -> RunResult | None:
    """Read the run's result; None if it has none yet.

    Raises:
        ValueError: the file isn't one of ours.
    """
    path = folder / "result.json"
    try:
        return RunResult.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(
            f"{path} must be a run's result, but it has {error.error_count()} errors; delete it and rerun what trained "
            "the run (`isoloop run`), or fetch the folder again"
        ) from error
