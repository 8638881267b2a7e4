"""The training of one run: `train(spec, corpus, folder) -> RunResult`.

A run has a folder of its own:

    spec.json  journal.jsonl  checkpoints/  result.json
    model/ (the weights, in the published layout, and the tokenizer)
    best-model/ (with evaluation.keep_best, the same of the best step, if it isn't the last)
    branches/ (states that other runs start from, which the driver of the sweep removes)

`result.json` is written last, atomically; then the checkpoints are removed.
"""

import gc
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from isoloop.trainer.accounting import flops_spent, loop_cost
from isoloop.trainer.config import ExecutionConfig, RunSpec
from isoloop.trainer.data.batches import tokens_per_pass, validation_documents, validation_windows
from isoloop.trainer.data.corpus import Corpus
from isoloop.trainer.data.stored_tokenizer import save_tokenizer
from isoloop.trainer.data.synthetic import answer_mask, synthetic_text
from isoloop.trainer.distributed import BatchShare, GradientSums, Ranks, prefetch_shares
from isoloop.trainer.evaluate import (
    EVALUATION_BATCH,
    bits_per_byte,
    evaluate,
    evaluate_answers,
    evaluate_documents,
    tokens_per_byte,
)
from isoloop.trainer.files import sole_owner, write_atomically
from isoloop.trainer.model.build import build_model, check_mask, compile_blocks
from isoloop.trainer.model.language_model import LanguageModel
from isoloop.trainer.model.pretrained import has_published_layout, save_published
from isoloop.trainer.optim import apply_schedule, make_optimizers
from isoloop.trainer.recurrence import loss_at_mean, recurrences_around
from isoloop.trainer.run.best import BestStep
from isoloop.trainer.run.branch import BRANCHES, Branching, TrunkState, trunk_counts
from isoloop.trainer.run.checkpoint import CheckpointWriter, SavedState, checkpoints, drop_checkpoints, load_checkpoint
from isoloop.trainer.run.environment import environment
from isoloop.trainer.run.journal import Journal
from isoloop.trainer.run.result import RunResult, read_result, write_result
from isoloop.trainer.run.telemetry import SpeedMeter, SystemMeter

# Metrics are journaled at this many evenly spaced steps or up to twice as many, and in shorter runs at every step.
JOURNALED_STEPS = 200
# A run whose training loss exceeds this many times ln(vocabulary) has diverged.
DIVERGENCE_FACTOR = 3.0
_COUNTS = ("forward_loops", "backward_loops", "predicted_tokens", "seconds", "skipped_steps", "skipped_in_a_row")


def train(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    *,
    execution: ExecutionConfig | None = None,
    branching: Branching | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    heartbeat: Callable[[], None] = lambda: None,
) -> RunResult | None:
    """Train one run from its last checkpoint, if it has one, and return its result; a finished run is only read.

    In a torch.distributed process group every process calls this with the same arguments. Each trains on its share of
    every batch, and rank 0 alone writes files. On the CPU the losses are the same to the bit for the same spec, torch
    build, `execution` and number of processes, whether the run was interrupted or not.

    Args:
        spec: configuration of the run.
        corpus: the prepared corpus; its fingerprint must be the spec's.
        folder: the run's own folder.
        execution: device and memory settings; by default one thread of the CPU.
        branching: the state of a longer run to start from, and the steps after which to save states for shorter ones;
            they change no number of the result but `trunk_steps` and `flops_trained`.
        should_stop: called by every process in every step; once one returns True, the run finishes the step, saves a
            checkpoint and returns None.
        heartbeat: called by every process in every step and, during evaluation, at each T of each batch.

    Raises:
        ValueError: the corpus isn't the spec's, is too small or has no more than the spec's unique tokens; a checkpoint
            is torn or of another run; there are more processes than sequences in a batch.
        FolderBusyError: another process trains this run.
    """
    execution, ranks = execution or ExecutionConfig(), Ranks.current()
    corpus = _checked_corpus(spec, corpus, ranks)
    owner = sole_owner(folder) if ranks.is_first else nullcontext()
    with owner, CheckpointWriter(execution.device, execution.checkpoint_seconds) as writer:
        result = ranks.broadcast_object(read_result(folder) if ranks.is_first else None)
        try:
            return result or _run_training(
                spec, corpus, folder, execution, branching or Branching(), ranks, writer, should_stop, heartbeat
            )
        finally:
            _free_device_memory(execution.device)


def _run_training(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    execution: ExecutionConfig,
    branching: Branching,
    ranks: Ranks,
    writer: CheckpointWriter,
    should_stop: Callable[[], bool],
    heartbeat: Callable[[], None],
) -> RunResult | None:
    """Train the run from its newest checkpoint to its result; return None if it was asked to stop."""
    # Set-up: validation text, model, optimizers, journal
    torch.set_num_threads(execution.cpu_threads)
    torch.set_float32_matmul_precision("high" if execution.tf32 else "highest")
    if ranks.is_first:
        write_atomically(folder / "spec.json", spec.model_dump_json(indent=1))
    context, packing = spec.model.context, spec.data.packing
    tokenizer, is_publishable = corpus.tokenizer, has_published_layout(spec.model)
    validation = validation_windows(corpus, context=context, sequences=spec.evaluation.sequences, packing=packing)
    answered = _checked_answers(spec, validation) if spec.data.answers_only else None
    text, answer_rows = synthetic_text(spec.data), validation
    if text is not None and packing != "best-fit":  # windows cut lines anywhere
        count = spec.evaluation.sequences
        answer_rows = validation_windows(corpus, context=context, sequences=count, packing="best-fit")
    documents = None
    if spec.evaluation.documents is not None:
        documents = validation_documents(corpus, context=context, count=spec.evaluation.documents)
    pass_tokens = tokens_per_pass(corpus.train, packing, context)
    model = build_model(
        spec.model,
        mean_recurrence=spec.recurrence.mean,
        recompute_loops=execution.activation_checkpointing,
    )
    separator = None
    if spec.data.document_mask:
        check_mask(model)
        separator = corpus.train.separator
    model.initialise(spec.seed, spec.initialisation)
    model.to(execution.device)
    optimizers = make_optimizers(model, spec.optimizer, ranks.share_rows)
    journal = Journal(folder / "journal.jsonl" if ranks.is_first else Path(os.devnull))

    def validate(recurrences: Iterable[int]) -> dict[int, float]:
        with _autocast(spec, execution):
            return evaluate(
                model,
                validation,
                recurrences,
                separator=separator,
                predicted=answered,
                ranks=ranks,
                batch=execution.micro_batch or EVALUATION_BATCH,
                heartbeat=heartbeat,
            )

    def save_state(place: str, step: int, counts: dict[str, float], keep: int | None) -> None:
        writer.save(
            folder / place, run_id=spec.run_id, step=step, model=model, optimizers=optimizers, counts=counts, best=best,
            position=position, keep=keep,
        )  # fmt: skip

    # Resume from the newest checkpoint, the run's own or its trunk's, if there is one
    saved = _restore_latest_checkpoint(folder, spec, model, optimizers, journal, ranks, branching.start)
    steps_done, counts, best, position = saved.steps, saved.counts, saved.best, saved.position
    ranks.broadcast_weights(model)
    if execution.compile:
        settings = (spec.recurrence.mean, spec.precision, spec.data.document_mask, execution.activation_checkpointing)
        compile_blocks(model, *settings, execution.device)
    gradient_sums = GradientSums(ranks, model.gradient_groups())
    speed, system = SpeedMeter(spec, loop_cost(spec.model, "exact"), execution, ranks.size), SystemMeter(execution)
    journal.event(
        "resumed" if steps_done else "started",
        step=steps_done, processes=ranks.size, device=execution.device, cpu_threads=execution.cpu_threads,
        peak_flops=speed.peak, **environment(execution.device),
    )  # fmt: skip

    # Training, one step at a time
    journal_interval = max(1, spec.steps // JOURNALED_STEPS)
    evaluations = spec.evaluation.evaluations(sees_text_again=spec.tokens > pass_tokens)
    best_steps = _evenly_spaced(evaluations, spec.steps)
    validation_steps = best_steps | _evenly_spaced(execution.validations, spec.steps)
    max_loss = DIVERGENCE_FACTOR * math.log(spec.model.padded_vocabulary)
    mean = spec.recurrence.mean
    start_time = time.monotonic()
    dropped = position["dropped"] if position else 0
    train_loss, reason, pinned = None, None, torch.device(execution.device).type == "cuda"
    for step, share in prefetch_shares(spec, corpus, ranks, steps_done, pinned=pinned, position=position):
        heartbeat()
        apply_schedule(optimizers, spec.optimizer, spec.schedule, step, spec.steps)

        # Forward and backward. One sum over the ranks also carries the loops run and the wishes to stop, and the host
        # waits for the device once, here, also for the ρ(Ā) that the journal records
        steps_done = step + 1
        is_recorded = ranks.is_first and (steps_done % journal_interval == 0 or steps_done == spec.steps)
        radius = model.radius_on_device() if is_recorded else None
        step_stats = _accumulate_gradients(spec, model, share, execution, separator, gradient_sums)
        gradient_sums.finish()
        total_norm = clip_grad_norm_(model.parameters(), spec.optimizer.gradient_clip)
        stop_requested = should_stop()
        loops_run = share.loops.sum(), share.loops.clamp(max=spec.recurrence.gradient_loops).sum()
        host_stats = torch.tensor([*loops_run, stop_requested], dtype=step_stats.dtype)
        sums = ranks.sum(torch.cat([step_stats, host_stats.to(step_stats.device, non_blocking=True)]))
        own_stats = [total_norm] if radius is None else [total_norm, radius]
        numbers = torch.cat([sums, torch.stack(own_stats).to(sums.dtype)]).tolist()
        *means, forward_loops, backward_loops, stop_votes, gradient_norm = numbers[: len(sums) + 1]
        train_loss = means[0]
        counts["forward_loops"] += forward_loops
        counts["backward_loops"] += backward_loops
        counts["predicted_tokens"] += share.predicted_tokens
        position_before, position, dropped = position, share.position, share.dropped

        # A step without a finite gradient isn't taken; too many in a row, or too large a loss, are a divergence
        is_finite = math.isfinite(train_loss) and math.isfinite(gradient_norm)
        skipped_in_a_row = 0 if is_finite else counts["skipped_in_a_row"] + 1
        counts["skipped_steps"] += not is_finite
        if skipped_in_a_row >= spec.optimizer.skips_to_divergence or max_loss < train_loss < math.inf:
            norms = f"training loss {train_loss:.4g}, gradient norm {gradient_norm:.4g}{_radius_note(model)}"
            reason = f"{norms} in step {steps_done}"
            if skipped_in_a_row > 1:
                reason += f", the last of {skipped_in_a_row:.0f} steps in a row that were skipped"
            if ranks.is_first and step and any(place > step for place in branching.save_at):  # branches share this end
                before = {
                    "forward_loops": counts["forward_loops"] - forward_loops,
                    "backward_loops": counts["backward_loops"] - backward_loops,
                    "predicted_tokens": counts["predicted_tokens"] - share.predicted_tokens,
                    "skipped_steps": counts["skipped_steps"] - (not is_finite),
                }
                position = position_before
                save_state(BRANCHES, step, counts | before, keep=None)
            break
        counts["skipped_in_a_row"] = skipped_in_a_row

        # Optimizer step, behind a ρ(Ā) that isn't among the numbers yet
        spectral_radius = numbers[-1] if radius is not None else model.spectral_radius() if is_recorded else None
        for optimizer in optimizers:
            if is_finite:
                optimizer.step()
            optimizer.zero_grad()
        speed.count(spec.batch, forward_loops, backward_loops)
        counts_now = {**counts, "seconds": counts["seconds"] + time.monotonic() - start_time}
        if ranks.is_first and steps_done in branching.save_at:  # before the journal: who reads of this step finds it
            save_state(BRANCHES, steps_done, counts_now, keep=None)

        # Evaluation and telemetry into the journal
        metrics: dict[str, float] = {}
        if steps_done in validation_steps:
            with speed.paused():
                validation_loss = loss_at_mean(validate(recurrences_around(mean)), mean)
            metrics |= {"validation_loss": validation_loss} if math.isfinite(validation_loss) else {}
            if steps_done in best_steps and validation_loss < (math.inf if best is None else best.loss):
                best = BestStep.of(steps_done, validation_loss, model if ranks.is_first else None)
        if is_recorded:
            metrics |= _step_metrics(spec, optimizers, means, gradient_norm, spectral_radius, steps_done)
            metrics |= {"dropped_tokens": float(dropped)} if packing == "best-fit" else {}
            metrics |= speed.read() | system.read()
        if not is_finite:
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
            metrics["skipped_steps"] = counts["skipped_steps"]
        if metrics:
            journal.metrics(steps_done, metrics)

        # Checkpoint, when one is due or the run is to stop
        stopping = stop_votes > 0 and steps_done < spec.steps
        if ranks.is_first and (writer.is_due() or stopping):
            save_state("checkpoints", steps_done, counts_now, keep=execution.keep_checkpoints)
        if stopping:
            writer.wait()
            journal.event("stopped", step=steps_done)
            journal.close()
            return None

    # Final evaluation
    final_recurrences = {*spec.evaluation.recurrences, *recurrences_around(mean)}
    losses = {} if reason else validate(final_recurrences)
    if not all(map(math.isfinite, losses.values())):
        reason = f"validation loss is not finite after step {steps_done}{_radius_note(model)}: {losses}"

    # Outcome
    counts["seconds"] += time.monotonic() - start_time
    density = tokens_per_byte(validation[:, 1:], corpus.token_bytes)
    result = _build_result(spec, model, counts, losses, density, reason, steps_done, train_loss, pass_tokens)
    if packing == "best-fit":
        result = result.model_copy(update={"dropped_tokens": dropped})
    if answered is not None:
        result = result.model_copy(update={"predicted_tokens": int(counts["predicted_tokens"])})
    if result.loss is not None and text is not None:
        with _autocast(spec, execution):
            scores = evaluate_answers(
                model,
                answer_rows,
                text,
                final_recurrences,
                separator=separator,
                ranks=ranks,
                batch=execution.micro_batch or EVALUATION_BATCH,
                heartbeat=heartbeat,
            )
        if scores.by_k:  # unless rows are too short for an answer
            exact = loss_at_mean(scores.overall, mean)
            result = result.model_copy(update={"answers": scores.by_k, "exact_answers": exact})
    if result.loss is not None and documents is not None:
        with _autocast(spec, execution):
            batch = execution.micro_batch or EVALUATION_BATCH
            document_losses = evaluate_documents(
                model, documents, final_recurrences, ranks=ranks, batch=batch, heartbeat=heartbeat
            )
        density = tokens_per_byte(np.concatenate([document[1:] for document in documents]), corpus.token_bytes)
        result = result.model_copy(update=_document_fields(document_losses, mean, density))
    if ranks.is_first and is_publishable:
        save_published(folder / "model", model, spec.recurrence)
        save_tokenizer(folder / "model", tokenizer, context)
    elif ranks.is_first:
        save_state("checkpoints", steps_done, counts, keep=1)

    # Losses at each T of the best step
    if result.loss is not None and evaluations:
        best_step, best_losses = steps_done, losses
        if best is not None and best.loss < result.loss:
            if ranks.is_first:
                model.load_state_dict(best.weights)
            ranks.broadcast_weights(model)
            at_best = validate(final_recurrences)
            if math.isfinite(loss_at_mean(at_best, mean)):
                best_step, best_losses = best.step, {t: loss for t, loss in at_best.items() if math.isfinite(loss)}
            if ranks.is_first and spec.evaluation.keep_best and is_publishable:
                save_published(folder / "best-model", model, spec.recurrence)
                save_tokenizer(folder / "best-model", tokenizer, context)
        best_fields = {"best_loss": loss_at_mean(best_losses, mean), "best_step": best_step, "best_losses": best_losses}
        result = result.model_copy(update=best_fields)
    writer.wait()
    journal.event(result.status, step=steps_done, reason=reason)
    journal.close()
    if ranks.is_first:
        write_result(folder, result)
        if is_publishable:
            drop_checkpoints(folder / "checkpoints")
    return result


def _evenly_spaced(count: int, steps: int) -> set[int]:
    """Return `count` evenly spaced steps before the last of `steps`, fewer if there are not so many."""
    return {round(steps * i / (count + 1)) for i in range(1, count + 1)} - {0, steps}


def _free_device_memory(device: str) -> None:
    """Free what a finished run still holds: torch's optimizers keep the model in a reference cycle."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _restore_latest_checkpoint(
    folder: Path,
    spec: RunSpec,
    model: LanguageModel,
    optimizers: list[Optimizer],
    journal: Journal,
    ranks: Ranks,
    start: TrunkState | None,
) -> SavedState:
    """Load the newest intact checkpoint of the run, or its trunk's if that is newer, into `model` and `optimizers`.

    Rank 0 chooses it, and the others load the same one. Return the rest of it.

    Raises:
        ValueError: there are checkpoints of the run, but none can be used.
    """
    state, chosen, owner = None, None, spec.run_id
    if ranks.is_first:
        drop_checkpoints(folder / "checkpoints", unfinished_only=True)
        drop_checkpoints(folder / BRANCHES, unfinished_only=True)
        saved = checkpoints(folder / "checkpoints")
        places = [(checkpoint, spec.run_id) for checkpoint in saved]
        if start is not None and (not saved or int(saved[-1].name) < start.step):
            places.append((start.folder, start.run_id))
        for checkpoint, owner in reversed(places):
            try:
                state = load_checkpoint(checkpoint, run_id=owner, model=model, optimizers=optimizers)
                chosen = checkpoint
                break
            except ValueError as error:
                journal.event("checkpoint refused", reason=str(error))
                if saved and checkpoint == saved[0]:
                    raise
    chosen, owner = ranks.broadcast_object((chosen, owner if chosen is not None else spec.run_id))
    if chosen is not None and state is None:
        state = load_checkpoint(chosen, run_id=owner, model=model, optimizers=optimizers)
    state = state or SavedState(0, {})
    counts = dict.fromkeys(_COUNTS, 0.0) | state.counts  # older versions counted no skipped steps
    if owner == spec.run_id:
        return state._replace(counts=counts)
    journal.event("branched", trunk=owner, step=state.steps)
    return state._replace(counts=counts | trunk_counts(spec, state.steps, counts), best=None)


def _checked_corpus(spec: RunSpec, corpus: Corpus, ranks: Ranks) -> Corpus:
    """Return what the run sees of the corpus. Raises ValueError as `train` does."""
    if corpus.facts.fingerprint != spec.data_fingerprint:
        raise ValueError(
            f"the corpus must be the one the run was planned with, {spec.data_fingerprint}, but got "
            f"{corpus.facts.fingerprint}; plan the sweep again"
        )
    corpus = corpus.first(spec.data.unique_tokens)
    corpus.check(spec.model.context, spec.model.vocabulary)
    if spec.data.document_mask:
        corpus.check_documents()
    if ranks.size > spec.batch:
        raise ValueError(
            f"each process must have at least one sequence of a batch, but got {ranks.size} processes for a batch of "
            f"{spec.batch}; use fewer processes"
        )
    return corpus


def _checked_answers(spec: RunSpec, validation: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which targets of validation rows are answers. Raises ValueError if none is."""
    answered = answer_mask(spec.data, validation)
    if not answered.any():
        raise ValueError(
            f"with data.answers_only rows must hold answers, but none of {len(validation)} rows of context + 1 = "
            f"{spec.model.context + 1} tokens does; raise model.context to the length of a line"
        )
    return answered


def _accumulate_gradients(
    spec: RunSpec,
    model: LanguageModel,
    share: BatchShare,
    execution: ExecutionConfig,
    separator: int | None,
    gradient_sums: GradientSums,
) -> Tensor:
    """Add this process's part of the step's gradient, one micro-batch at a time; the last one begins to sum them.

    Returns:
        This process's part of [loss, ‖h_T‖, last residual], means over the predicted tokens (loss) and all tokens of
        the global batch; NaN without a loop.
    """
    device, depth = torch.device(execution.device), spec.recurrence.gradient_loops
    micro_batch = execution.micro_batch or len(share.loops)
    step_stats = torch.zeros(3, device=device)
    for start in range(0, len(share.loops), micro_batch):
        part = slice(start, start + micro_batch)
        windows, loops = share.windows[part].to(device, non_blocking=True), share.loops[part]
        h0 = model.initial_state(share.state_seeds[part], spec.model.context)
        predicted, weight = None, len(loops) / spec.batch
        loss_weight = weight
        if share.predicted is not None:
            on_host = share.predicted[part]
            predicted = on_host.to(device, non_blocking=True)
            loss_weight = int(on_host.sum()) / max(1, share.predicted_tokens)
        with _autocast(spec, execution):
            loss = model.loss(windows[:, :-1], windows[:, 1:], loops, depth, h0, separator, predicted)
        if start + micro_batch >= len(share.loops):
            gradient_sums.watch()
        (loss.nats * loss_weight).backward()
        means = [step_stats.new_full((), math.nan) if value is None else value.detach() for value in loss]
        step_stats += torch.stack([mean * own for mean, own in zip(means, (loss_weight, weight, weight), strict=True)])
    return step_stats


def _autocast(spec: RunSpec, execution: ExecutionConfig) -> torch.autocast:
    """Return a context that runs matrix products in bfloat16 if the spec says so; weights and sums stay float32."""
    device = torch.device(execution.device).type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=spec.precision == "bfloat16")


def _document_fields(losses: dict[int, float], mean: float, density: float) -> dict[str, Any]:
    """Return the result's fields from the losses of documents each by itself, as the published perplexity is.

    `density` is in tokens per byte.
    """
    finite = {recurrence: loss for recurrence, loss in losses.items() if math.isfinite(loss)}
    at_mean = loss_at_mean(losses, mean)
    if not math.isfinite(at_mean):
        return {"document_losses": finite}
    return {
        "document_losses": finite,
        "perplexity": math.exp(at_mean),
        "document_bits_per_byte": bits_per_byte(at_mean, density),
    }


def _radius_note(model: LanguageModel) -> str:
    radius = model.spectral_radius()
    return "" if radius is None else f", ρ(Ā) {radius:.4g}"


def _step_metrics(
    spec: RunSpec, optimizers: list[Optimizer], means: list[float], norm: float, radius: float | None, step: int
) -> dict[str, float]:
    """Return the training metrics that the journal records of a step; those of a loop only for a looped model."""
    muon, adamw = optimizers
    metrics = {
        "train_loss": means[0],
        "gradient_norm": norm,
        "learning_rate": adamw.param_groups[0]["lr"],
        "matrix_learning_rate": muon.param_groups[0]["lr"],
        "tokens": float(step * spec.tokens_per_step),
    }
    if radius is not None:
        metrics |= {"spectral_radius": radius, "state_norm": means[1], "last_loop_residual": means[2]}
    return metrics


def _build_result(
    spec: RunSpec,
    model: LanguageModel,
    counts: dict[str, float],
    losses: dict[int, float],
    density: float,
    reason: str | None,
    steps: int,
    train_loss: float | None,
    unique_tokens: int,
) -> RunResult:
    """Build the run's result; `density` is in tokens per byte, and a `reason` means that the run diverged."""
    sequences, tokens = steps * spec.batch, steps * spec.tokens_per_step
    forward, backward = counts["forward_loops"] / sequences, counts["backward_loops"] / sequences
    loss = None if reason else loss_at_mean(losses, spec.recurrence.mean)
    radius = model.spectral_radius()
    flops = flops_spent(spec.model, spec.recurrence, tokens, forward, backward)
    return RunResult(
        run_id=spec.run_id,
        status="diverged" if reason else "finished",
        reason=reason,
        simulated=False,
        steps=steps,
        tokens=tokens,
        unique_tokens=unique_tokens,
        forward_loops=forward,
        backward_loops=backward,
        **flops,
        loss=loss,
        losses={} if reason else losses,
        bits_per_byte=None if loss is None else bits_per_byte(loss, density),
        training_loss=train_loss if train_loss is not None and math.isfinite(train_loss) else None,
        spectral_radius=radius if radius is not None and math.isfinite(radius) else None,
        seconds=counts["seconds"],
        skipped_steps=int(counts["skipped_steps"]),
        trunk_steps=int(counts.get("trunk_steps", 0)),
        flops_trained=flops["flops_exact"] - counts.get("trunk_flops", 0.0),
    )
