"""`train(spec, ...) -> RunResult`: one run, from its spec to its result file.

A run lives in a folder of its own:

    spec.json  journal.jsonl  checkpoints/  weights.pt  result.json

`result.json` is written last, atomically; the checkpoints go when it is there.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.accounting import flops_spent
from trainer.batches import batch_windows, validation_windows
from trainer.checkpoint import (
    checkpoints,
    drop_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from trainer.config import RunSpec
from trainer.data import Corpus
from trainer.evaluate import bits_per_byte, evaluate, tokens_per_byte
from trainer.journal import Journal
from trainer.lock import sole_owner
from trainer.optim import apply_schedule, make_optimizers
from trainer.parcae import Parcae
from trainer.recurrence import sample_recurrences
from trainer.result import RunResult, read_result, write_result

CURVE_POINTS = 200
EXPLODED = 3.0
_STATE_STREAM = 0x9E3779B97F4A7C15


def train(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    *,
    device: str = "cpu",
    cpu_threads: int = 1,
    checkpoint_seconds: float = 30.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunResult | None:
    """Train one run, or go on from its last checkpoint, or return its result if it has one already.

    On CPU the losses are the same to the bit for the same spec, torch build and `cpu_threads`, stopped between or not.

    Args:
        spec: what to train.
        corpus: the prepared corpus; its fingerprint must be the spec's.
        folder: the run's own folder.
        device: a torch device.
        cpu_threads: threads of one operation on the CPU.
        checkpoint_seconds: time between checkpoints.
        should_stop: asked after every step; when true, the run saves its state and returns None.

    Raises:
        ValueError: the corpus isn't the spec's or is too small; a checkpoint is torn or foreign.
        FolderBusyError: another process trains this run.
    """
    if corpus.facts.fingerprint != spec.data_fingerprint:
        raise ValueError(
            f"the corpus must be the one the run was planned with, {spec.data_fingerprint}, but got "
            f"{corpus.facts.fingerprint}; plan the sweep again"
        )
    corpus.check(spec.model.context, spec.model.vocabulary)
    with sole_owner(folder):
        finished = read_result(folder)
        if finished is not None:
            return finished
        torch.set_num_threads(cpu_threads)
        (folder / "spec.json").write_text(spec.model_dump_json(indent=1))
        validation = validation_windows(corpus, context=spec.model.context, sequences=spec.evaluation.sequences)
        model = Parcae(spec.model)
        model.initialise(spec.seed)
        model.to(device)
        optimizers = make_optimizers(model, spec.optimizer)
        journal = Journal(folder / "journal.jsonl")
        step, counts = _go_on(folder, spec, model, optimizers, journal)
        journal.event("resumed" if step else "started", step=step, device=device, torch=torch.__version__)

        every = max(1, spec.steps // CURVE_POINTS)
        exploded = EXPLODED * math.log(spec.model.padded_vocabulary)
        began = last_saved = time.monotonic()
        reason = None
        while step < spec.steps:
            apply_schedule(optimizers, spec.optimizer, spec.schedule, step, spec.steps)
            loops = torch.from_numpy(sample_recurrences(spec.recurrence, batch=spec.batch, seed=spec.seed, step=step))
            loss = _loss_of_step(spec, model, corpus, loops, step, device)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.optimizer.gradient_clip).item()
            nats = loss.item()
            counts["forward_loops"] += loops.sum().item()
            counts["backward_loops"] += loops.clamp(max=spec.recurrence.gradient_loops).sum().item()
            if not (math.isfinite(nats) and math.isfinite(norm)) or nats > exploded:
                reason = f"training loss {nats:.4g}, gradient norm {norm:.4g} at step {step}"
                step += 1
                break
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            if step % every == 0 or step == spec.steps:
                journal.metrics(step, _telemetry(spec, model, optimizers, nats, norm, step))
            now = time.monotonic()
            stopping = should_stop() and step < spec.steps
            if stopping or now - last_saved >= checkpoint_seconds:
                spent = {**counts, "seconds": counts["seconds"] + now - began}
                save_checkpoint(
                    folder / "checkpoints", run_id=spec.run_id, step=step, model=model,
                    optimizers=optimizers, counts=spent,
                )  # fmt: skip
                last_saved = now
            if stopping:
                journal.event("stopped", step=step)
                journal.close()
                return None

        losses = {}
        if reason is None:
            recurrences = {*spec.evaluation.recurrences, spec.recurrence.mean}
            losses = evaluate(model, validation, recurrences)
            if not all(map(math.isfinite, losses.values())):
                reason = f"validation loss is not finite after step {step}: {losses}"
        density = tokens_per_byte(validation, corpus.token_bytes)
        result = _result(spec, model, counts, losses, density, reason, step, time.monotonic() - began)
        journal.event(result.status, step=step, reason=reason)
        journal.close()
        save_weights(folder / "weights.pt", model)
        write_result(folder, result)
        drop_checkpoints(folder / "checkpoints")
        return result


def _go_on(
    folder: Path, spec: RunSpec, model: Parcae, optimizers: list[Optimizer], journal: Journal
) -> tuple[int, dict[str, float]]:
    """Restore the newest checkpoint that is whole: (steps done, counts); step 0 if there is none at all.

    Raises:
        ValueError: there are checkpoints, but none can be used.
    """
    drop_checkpoints(folder / "checkpoints", unfinished_only=True)
    saved = checkpoints(folder / "checkpoints")
    for checkpoint in reversed(saved):
        try:
            return load_checkpoint(checkpoint, run_id=spec.run_id, model=model, optimizers=optimizers)
        except ValueError as error:
            journal.event("checkpoint refused", reason=str(error))
            if checkpoint == saved[0]:
                raise
    return 0, {"forward_loops": 0.0, "backward_loops": 0.0, "seconds": 0.0}


def _loss_of_step(spec: RunSpec, model: Parcae, corpus: Corpus, loops: Tensor, step: int, device: str) -> Tensor:
    """Training loss of one step; batch, loops and initial states are functions of (seed, step)."""
    windows = torch.from_numpy(
        batch_windows(corpus, context=spec.model.context, batch=spec.batch, seed=spec.seed, step=step)
    ).to(device)
    generator = torch.Generator().manual_seed((spec.seed * _STATE_STREAM + step) % 2**63)
    h0 = model.initial_state(spec.batch, generator).to(device)
    half = spec.precision == "bfloat16"
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=half):
        return model.loss(windows[:, :-1], windows[:, 1:], loops, spec.recurrence.gradient_loops, h0)


def _telemetry(
    spec: RunSpec, model: Parcae, optimizers: list[Optimizer], nats: float, norm: float, step: int
) -> dict[str, float]:
    """What the journal records of a step."""
    return {
        "train_loss": nats,
        "gradient_norm": norm,
        "spectral_radius": model.injection.spectral_radius(),
        "learning_rate": optimizers[-1].param_groups[0]["lr"],
        "tokens": float(step * spec.tokens_per_step),
    }


def _result(
    spec: RunSpec,
    model: Parcae,
    counts: dict[str, float],
    losses: dict[int, float],
    density: float,
    reason: str | None,
    steps: int,
    seconds: float,
) -> RunResult:
    """Put the outcome together; FLOPs are the loops that ran (`exact`) or the nominal ones (`parcae-release`).

    `density` is tokens per byte.
    """
    sequences = steps * spec.batch
    tokens = steps * spec.tokens_per_step
    forward, backward = counts["forward_loops"] / sequences, counts["backward_loops"] / sequences
    diverged = reason is not None
    loss = None if diverged else losses[spec.recurrence.mean]
    radius = model.injection.spectral_radius()
    return RunResult(
        run_id=spec.run_id,
        status="diverged" if diverged else "finished",
        reason=reason,
        simulated=False,
        steps=steps,
        tokens=tokens,
        forward_loops=forward,
        backward_loops=backward,
        **flops_spent(spec.model, spec.recurrence, tokens, forward, backward),
        loss=loss,
        losses={} if diverged else losses,
        bits_per_byte=None if loss is None else bits_per_byte(loss, density),
        spectral_radius=radius if math.isfinite(radius) else None,
        seconds=counts["seconds"] + seconds,
    )
