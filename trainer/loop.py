"""`train(spec, ...) -> RunResult`: one run, from its spec to its result file.

A run lives in a folder of its own:

    spec.json  journal.jsonl  checkpoints/  model/ (the weights, in the published layout)  result.json

`result.json` is written last, atomically; the checkpoints go when it is there.
"""

import gc
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from isoloop.trainer.accounting import flops_spent, loop_cost
from isoloop.trainer.config import ExecutionConfig, RunSpec
from isoloop.trainer.data.batches import validation_windows
from isoloop.trainer.data.corpus import Corpus
from isoloop.trainer.distributed import Ranks, Share, shares
from isoloop.trainer.evaluate import BATCH, bits_per_byte, evaluate, tokens_per_byte
from isoloop.trainer.files import sole_owner, write_atomically
from isoloop.trainer.model.build import build_model, compile_blocks
from isoloop.trainer.model.language_model import LanguageModel
from isoloop.trainer.model.pretrained import save_published
from isoloop.trainer.optim import apply_schedule, make_optimizers
from isoloop.trainer.run.checkpoint import checkpoints, drop_checkpoints, load_checkpoint, save_checkpoint
from isoloop.trainer.run.environment import environment
from isoloop.trainer.run.journal import Journal
from isoloop.trainer.run.result import RunResult, read_result, write_result
from isoloop.trainer.run.telemetry import SpeedMeter, SystemMeter

CURVE_POINTS = 200
EXPLODED = 3.0


def train(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    *,
    execution: ExecutionConfig | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    alive: Callable[[], None] = lambda: None,
) -> RunResult | None:
    """Train one run, or go on from its last checkpoint, or return its result if it has one already.

    In a torch.distributed process group, every process calls this with the same arguments; each trains on its part of
    every batch, and the first one alone writes. On CPU the losses are the same to the bit for the same spec, torch
    build, `execution` and number of processes, stopped between or not.

    Args:
        spec: what to train.
        corpus: the prepared corpus; its fingerprint must be the spec's.
        folder: the run's own folder.
        execution: how to execute it here; by default on one thread of the CPU.
        should_stop: asked in every step; when true, the run finishes the step, saves its state and returns None.
        alive: called in every step and, in an evaluation, at each T of each batch, by every process.

    Raises:
        ValueError: the corpus isn't the spec's or is too small; a checkpoint is torn or foreign; more processes than
            sequences in a batch.
        FolderBusyError: another process trains this run.
    """
    execution, ranks = execution or ExecutionConfig(), Ranks.current()
    _check(spec, corpus, ranks)
    with sole_owner(folder) if ranks.is_first else nullcontext():
        finished = ranks.first_says(read_result(folder) if ranks.is_first else None)
        try:
            return finished or _train(spec, corpus, folder, execution, ranks, should_stop, alive)
        finally:
            _give_back(execution.device)


def _train(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    execution: ExecutionConfig,
    ranks: Ranks,
    should_stop: Callable[[], bool],
    alive: Callable[[], None],
) -> RunResult | None:
    torch.set_num_threads(execution.cpu_threads)
    if ranks.is_first:
        write_atomically(folder / "spec.json", spec.model_dump_json(indent=1))
    validation = validation_windows(corpus, context=spec.model.context, sequences=spec.evaluation.sequences)
    model = build_model(spec.model, recompute_loops=execution.activation_checkpointing)
    model.initialise(spec.seed)
    model.to(execution.device)
    optimizers = make_optimizers(model, spec.optimizer)
    journal = Journal(folder / "journal.jsonl" if ranks.is_first else Path(os.devnull))
    done, counts = _go_on(folder, spec, model, optimizers, journal, ranks)
    ranks.share_weights(model)
    if execution.compile:
        compile_blocks(model)
    meter, system = SpeedMeter(spec, loop_cost(spec.model, "exact"), execution, ranks.size), SystemMeter(execution)
    journal.event(
        "resumed" if done else "started",
        step=done, processes=ranks.size, device=execution.device, cpu_threads=execution.cpu_threads,
        peak_flops=meter.peak, **environment(execution.device),
    )  # fmt: skip

    every, validated = max(1, spec.steps // CURVE_POINTS), _validation_steps(spec.steps, execution.validations)
    exploded = EXPLODED * math.log(spec.model.padded_vocabulary)
    mean, began = spec.recurrence.mean, time.monotonic()
    last_saved = began
    nats, reason, pinned = None, None, torch.device(execution.device).type == "cuda"
    for step, share in shares(spec, corpus, ranks, done, pinned=pinned):
        alive()
        apply_schedule(optimizers, spec.optimizer, spec.schedule, step, spec.steps)
        told = _backward(spec, model, share, execution)
        ranks.sum_gradients(model)
        gradient = clip_grad_norm_(model.parameters(), spec.optimizer.gradient_clip)
        asked = should_stop() if ranks.is_first else False
        ran = share.loops.sum(), share.loops.clamp(max=spec.recurrence.gradient_loops).sum()
        *means, forward, backward, stop = ranks.sum(torch.cat([told, told.new_tensor([*ran, asked])])).tolist()
        nats, gradient_norm = means[0], gradient.item()
        counts["forward_loops"] += forward
        counts["backward_loops"] += backward
        if not (math.isfinite(nats) and math.isfinite(gradient_norm)) or nats > exploded:
            done += 1
            reason = f"training loss {nats:.4g}, gradient norm {gradient_norm:.4g}{_radius(model)} in step {done}"
            break
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done += 1
        meter.count(spec.batch, forward, backward)
        point: dict[str, float] = {}
        if done in validated:
            with meter.paused():
                loss = _validate(spec, model, validation, {mean}, execution, ranks, alive)[mean]
            point |= {"validation_loss": loss} if math.isfinite(loss) else {}
        if ranks.is_first and (done % every == 0 or done == spec.steps):
            point |= _telemetry(spec, model, optimizers, means, gradient_norm, done) | meter.read() | system.read()
        if point:
            journal.metrics(done, point)
        now = time.monotonic()
        stopping = stop > 0 and done < spec.steps
        if ranks.is_first and (stopping or now - last_saved >= execution.checkpoint_seconds):
            save_checkpoint(
                folder / "checkpoints", run_id=spec.run_id, step=done, model=model, optimizers=optimizers,
                counts={**counts, "seconds": counts["seconds"] + now - began}, keep=execution.keep_checkpoints,
            )  # fmt: skip
            last_saved = now
        if stopping:
            journal.event("stopped", step=done)
            journal.close()
            return None

    losses = {}
    if reason is None:
        losses = _validate(spec, model, validation, {*spec.evaluation.recurrences, mean}, execution, ranks, alive)
        if not all(map(math.isfinite, losses.values())):
            reason = f"validation loss is not finite after step {done}{_radius(model)}: {losses}"
    counts["seconds"] += time.monotonic() - began
    density = tokens_per_byte(validation, corpus.token_bytes)
    result = _result(spec, model, counts, losses, density, reason, done, nats)
    journal.event(result.status, step=done, reason=reason)
    journal.close()
    if ranks.is_first:
        save_published(folder / "model", model, spec.recurrence)
        write_result(folder, result)
        drop_checkpoints(folder / "checkpoints")
    return result


def _give_back(device: str) -> None:
    """Free what a run held now: torch's optimizers leave a cycle that keeps the model until Python looks for one."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _check(spec: RunSpec, corpus: Corpus, ranks: Ranks) -> None:
    if corpus.facts.fingerprint != spec.data_fingerprint:
        raise ValueError(
            f"the corpus must be the one the run was planned with, {spec.data_fingerprint}, but got "
            f"{corpus.facts.fingerprint}; plan the sweep again"
        )
    corpus.check(spec.model.context, spec.model.vocabulary)
    if ranks.size > spec.batch:
        raise ValueError(
            f"each process must have a sequence of a batch, but {ranks.size} processes share {spec.batch}; use fewer"
        )


def _go_on(
    folder: Path, spec: RunSpec, model: LanguageModel, optimizers: list[Optimizer], journal: Journal, ranks: Ranks
) -> tuple[int, dict[str, float]]:
    """Restore the newest checkpoint that is whole: (steps done, counts); step 0 if there is none at all.

    The first rank finds it, the others read the same one.

    Raises:
        ValueError: there are checkpoints, but none can be used.
    """
    restored, chosen = None, None
    if ranks.is_first:
        drop_checkpoints(folder / "checkpoints", unfinished_only=True)
        saved = checkpoints(folder / "checkpoints")
        for checkpoint in reversed(saved):
            try:
                restored = load_checkpoint(checkpoint, run_id=spec.run_id, model=model, optimizers=optimizers)
            except ValueError as error:
                journal.event("checkpoint refused", reason=str(error))
                if checkpoint == saved[0]:
                    raise
            else:
                chosen = checkpoint
                break
    chosen = ranks.first_says(chosen)
    if chosen is not None and restored is None:
        restored = load_checkpoint(chosen, run_id=spec.run_id, model=model, optimizers=optimizers)
    return restored or (0, {"forward_loops": 0.0, "backward_loops": 0.0, "seconds": 0.0})


def _backward(spec: RunSpec, model: LanguageModel, share: Share, execution: ExecutionConfig) -> Tensor:
    """Add this process's part of the step's gradient, one micro-batch at a time.

    Returns:
        This process's part of [loss, ‖h_T‖, last residual], means over the global batch; NaN without a loop.
    """
    device, depth = torch.device(execution.device), spec.recurrence.gradient_loops
    most = execution.micro_batch or len(share.loops)
    told = torch.zeros(3, device=device)
    for start in range(0, len(share.loops), most):
        windows = share.windows[start : start + most].to(device, non_blocking=True)
        loops = share.loops[start : start + most]
        h0 = model.initial_state(share.state_seeds[start : start + most], spec.model.context)
        with _precision(spec, execution):
            loss = model.loss(windows[:, :-1], windows[:, 1:], loops, depth, h0)
        part = len(loops) / spec.batch
        (loss.nats * part).backward()
        means = [told.new_tensor(math.nan) if value is None else value.detach() for value in loss]
        told += torch.stack(means) * part
    return told


def _validation_steps(steps: int, validations: int) -> set[int]:
    """Steps after which to evaluate: at most `validations`, evenly spaced between the start and the end."""
    return {round(steps * i / (validations + 1)) for i in range(1, validations + 1)} - {0, steps}


def _validate(
    spec: RunSpec,
    model: LanguageModel,
    windows: NDArray,
    recurrences: set[int],
    execution: ExecutionConfig,
    ranks: Ranks,
    alive: Callable[[], None],
) -> dict[int, float]:
    """Validation loss by T, on all processes together."""
    with _precision(spec, execution):
        batch = execution.micro_batch or BATCH
        return evaluate(model, windows, recurrences, ranks=ranks, batch=batch, alive=alive)


def _precision(spec: RunSpec, execution: ExecutionConfig) -> torch.autocast:
    """Matrix products in bfloat16 where the spec says so; weights and sums stay float32."""
    device = torch.device(execution.device).type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=spec.precision == "bfloat16")


def _radius(model: LanguageModel) -> str:
    radius = model.spectral_radius()
    return "" if radius is None else f", ρ(Ā) {radius:.4g}"


def _telemetry(
    spec: RunSpec, model: LanguageModel, optimizers: list[Optimizer], means: list[float], norm: float, step: int
) -> dict[str, float]:
    """What the journal records of a step; what the model hasn't got is missing."""
    muon, adamw = optimizers
    told = {
        "train_loss": means[0],
        "gradient_norm": norm,
        "learning_rate": adamw.param_groups[0]["lr"],
        "matrix_learning_rate": muon.param_groups[0]["lr"],
        "tokens": float(step * spec.tokens_per_step),
    }
    radius = model.spectral_radius()
    if radius is None:
        return told
    return told | {"spectral_radius": radius, "state_norm": means[1], "last_loop_residual": means[2]}


def _result(
    spec: RunSpec,
    model: LanguageModel,
    counts: dict[str, float],
    losses: dict[int, float],
    density: float,
    reason: str | None,
    steps: int,
    nats: float | None,
) -> RunResult:
    """Put the outcome together.

    FLOPs are the loops that ran (`exact`) or the nominal ones (`parcae-release`); `density` is tokens per byte.
    """
    sequences = steps * spec.batch
    tokens = steps * spec.tokens_per_step
    forward, backward = counts["forward_loops"] / sequences, counts["backward_loops"] / sequences
    diverged = reason is not None
    loss = None if diverged else losses[spec.recurrence.mean]
    radius = model.spectral_radius()
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
        training_loss=nats if nats is not None and math.isfinite(nats) else None,
        spectral_radius=radius if radius is not None and math.isfinite(radius) else None,
        seconds=counts["seconds"],
    )
