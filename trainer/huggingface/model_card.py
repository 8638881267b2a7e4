"""The model card of an exported model: what it was trained on, its loss at each T, and what would make that wrong."""

import math
from collections.abc import Mapping
from pathlib import Path

from isoloop.trainer.accounting import count_parameters, forward_flops
from isoloop.trainer.config import DataConfig, ModelConfig, RunSpec
from isoloop.trainer.hub import is_repository
from isoloop.trainer.model.exported import TrainingFacts
from isoloop.trainer.quality.trained_model import TrainedModel
from isoloop.trainer.run.result import RunResult

# Nats per token within which a loss counts as the lowest: about what the losses of two seeds differ by.
SAME_LOSS = 0.01


def model_card(trained: TrainedModel, facts: TrainingFacts, loops: int) -> str:
    """Return the model card (Markdown), for a model that runs T = `loops` unless its user says otherwise."""
    config = trained.model.config
    kind = "looped language model" if config.is_looped else "language model of fixed depth"
    sections = [
        f"# {facts.name}\n\n"
        f"A {kind} with {count_parameters(config).total:,} parameters, trained with isoloop. {_shape(config)}",
        _use(config, loops),
        _training(trained, facts),
        _losses(trained, loops),
        "## What would make this wrong\n\n" + "\n".join(f"- {caveat}" for caveat in _caveats(trained, facts, loops)),
    ]
    return _front_matter(config, facts) + "\n\n".join(section for section in sections if section) + "\n"


def training_facts(trained: TrainedModel, sweep: str | None = None) -> TrainingFacts:
    """Return what the card says of a model's training; of an exported model it is what its folder says.

    `sweep` names the sweep of the run.
    """
    if trained.facts is not None:
        return trained.facts
    spec, result = trained.spec, trained.result
    if spec is None or result is None:
        return TrainingFacts(name=trained.name)
    is_public = is_repository(spec.data.corpus) and not _is_local(spec.data)
    rows = {
        "corpus": f"{_corpus(spec.data)} (fingerprint {spec.data_fingerprint})",
        "tokenizer": _tokenizer(spec.data),
        "tokens": f"{result.tokens:,} ({result.steps:,} steps of {spec.batch} sequences of {spec.model.context} tokens)"
        + (f", {result.epochs:.3g} passes over the text" if result.epochs else ""),
        "FLOPs": f"{result.flops_exact:.4g} (accounting `exact`), {result.flops_parcae_release:.4g} (`parcae-release`)",
        "loops": f"mean {spec.recurrence.mean:g}, {result.forward_loops:.3g} run and {result.backward_loops:.3g} with "
        "gradient per token"
        if spec.model.is_looped
        else "",
        "precision": spec.precision,
        "seed": str(spec.seed),
        "run": spec.run_id,
        "sweep": sweep or "",
        "weights": f"of step {result.best_step}, whose validation loss was the lowest"
        if trained.weights == "best"
        else "of the last step",
    }
    return TrainingFacts(
        name=trained.name,
        rows={name: value for name, value in rows.items() if value},
        caveats=tuple(_run_caveats(spec, result)),
        datasets=(spec.data.corpus,) if is_public else (),
    )


def advised_recurrence(losses: Mapping[int, float]) -> int:
    """Return the smallest measured T whose loss is within `SAME_LOSS` nats per token of the lowest."""
    lowest = min(losses.values())
    return min(loops for loops, loss in losses.items() if loss <= lowest + SAME_LOSS)


def _front_matter(config: ModelConfig, facts: TrainingFacts) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- isoloop"]
    lines += ["- looped-transformer"] if config.is_looped else []
    lines += ["datasets:", *(f"- {dataset}" for dataset in facts.datasets)] if facts.datasets else []
    return "---\n" + "\n".join(lines) + "\n---\n\n"


def _shape(config: ModelConfig) -> str:
    if not config.is_looped:
        return f"Its {config.layers} layers of width {config.width} run once; it reads {config.context} tokens."
    return (
        f"Of its layers of width {config.width}, {config.prelude_layers} in the prelude and {config.coda_layers} in "
        f"the coda run once, and {config.core_layers} in the core T times (injection {config.injection}, "
        f"{config.block} blocks). It reads {config.context} tokens."
    )


def _use(config: ModelConfig, loops: int) -> str:
    loop_lines = [
        f"T is {loops} unless you set another: `from_pretrained(..., recurrence={2 * loops})`, or",
        f"`model.config.recurrence = {2 * loops}`.",
    ]
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # this folder, or its name on the hub',
        "# add_bos_token: a prompt begins a document; trust_remote_code: modeling_isoloop.py is run",
        "tokenizer = AutoTokenizer.from_pretrained(folder, add_bos_token=True, trust_remote_code=True)",
        "model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)",
        'prompts = tokenizer(["The "], return_tensors="pt")',
        f"texts = model.generate(**prompts, max_new_tokens={min(64, config.context // 2)}, do_sample=True)",
        "print(tokenizer.batch_decode(texts, skip_special_tokens=True))",
    ]
    text = "## Use\n\n```python\n" + "\n".join(code) + "\n```"
    return text + ("\n\n" + " ".join(loop_lines) if config.is_looped else "")


def _training(trained: TrainedModel, facts: TrainingFacts) -> str:
    if facts.rows:
        table = "\n".join(f"| {name} | {value} |" for name, value in facts.rows.items())
        return f"## Training\n\n| | |\n| --- | --- |\n{table}"
    known = "Nothing is known of its training."
    if trained.model.config.is_looped:
        known = (
            f"All that is known of its training is the number of loops: {trained.recurrence.mean:g} on average, of "
            f"which the last {trained.recurrence.gradient_loops} at most carried gradient."
        )
    return f"## Training\n\n{known}"


def _losses(trained: TrainedModel, loops: int) -> str:
    losses, config = trained.losses, trained.model.config
    if not losses:
        return "## Loss\n\nIts validation loss isn't known. Measure it before you choose T." if config.is_looped else ""
    base = forward_flops(config, loops)
    rows = [
        f"| {t} | {loss:.4f} | {math.exp(loss):.2f} | {forward_flops(config, t) / base:.2f} |"
        for t, loss in sorted(losses.items())
    ]
    text = (
        "## Loss at each T\n\nValidation loss in nats per token on held-out text of the same corpus, and the FLOPs of "
        f"a token relative to T = {loops}.\n\n| T | loss | perplexity | FLOPs |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows)
    )
    return text + ("\n\n" + _advice(losses, config) if config.is_looped else "")


def _advice(losses: Mapping[int, float], config: ModelConfig) -> str:
    lowest, advised = min(losses, key=lambda t: (losses[t], t)), advised_recurrence(losses)
    text = f"The loss is lowest at T = {lowest}."
    if advised != lowest:
        share = forward_flops(config, advised) / forward_flops(config, lowest)
        text += (
            f" T = {advised} is the smallest within {SAME_LOSS} of it and needs {100 * share:.0f}% of the FLOPs: use "
            f"T = {advised}."
        )
    else:
        text += f" No smaller T is within {SAME_LOSS} of it: use T = {lowest}."
    if lowest == max(losses):
        text += f" No larger T was measured, and it may be better still: measure T = {2 * lowest}."
    return text


def _caveats(trained: TrainedModel, facts: TrainingFacts, loops: int) -> list[str]:
    """Return sentences about what the numbers of the card depend on."""
    losses, config = trained.losses, trained.model.config
    caveats = ["The losses hold for text like its corpus."] if losses else []
    caveats.append("It continues text, and wasn't trained to follow instructions or to be right.")
    if losses and loops not in losses:
        measured = ", ".join(map(str, sorted(losses)))
        caveats.append(f"The loss at T = {loops}, which it runs by default, was not measured, but at T = {measured}.")
    if losses and config.is_looped:
        caveats.append(f"Beyond T = {max(losses)} nothing was measured. The loss may rise there.")
    caveats += facts.caveats
    if losses and config.is_looped and config.state_init != "zero":
        caveats.append("h_0 is drawn from one fixed seed here; the losses were measured with other draws.")
    return caveats


def _run_caveats(spec: RunSpec, result: RunResult) -> list[str]:
    """Return sentences about what one run shows."""
    caveats = [
        f"It is one run with one seed ({spec.seed}); another seed gives another loss, and small differences between "
        "models mean nothing."
    ]
    if spec.precision == "bfloat16":
        caveats.append("The losses were measured with matrix products in bfloat16; in float32 they differ a little.")
    if result.epochs and result.epochs > 1:
        caveats.append(f"It saw its text {result.epochs:.3g} times, so it may recite it.")
    if result.best_loss is not None and result.loss is not None and result.best_loss < result.loss:
        caveats.append(
            f"The validation loss was lowest at step {result.best_step} of {result.steps} ({result.best_loss:.4f}) "
            f"and rose to {result.loss:.4f}: the run overfitted."
        )
    if result.skipped_steps:
        caveats.append(f"{result.skipped_steps} steps were skipped, since their gradients weren't finite.")
    if spec.data.document_mask:
        caveats.append("Its attention didn't cross documents in training, so a prompt should be one document.")
    return caveats


def _is_local(data: DataConfig) -> bool:
    return Path(data.corpus).expanduser().exists()


def _corpus(data: DataConfig) -> str:
    """Return the corpus's name: of a path on somebody's machine only the last part."""
    corpus = data.corpus
    if not _is_local(data) and is_repository(corpus):
        return corpus + (f" at {data.revision}" if data.revision else "")
    return Path(corpus).name or corpus


def _tokenizer(data: DataConfig) -> str:
    if data.tokenizer in ("bytes", "bpe"):
        return "bytes" if data.tokenizer == "bytes" else f"byte-level BPE of {data.tokenizer_vocabulary:,} ids"
    return data.tokenizer if is_repository(data.tokenizer) else Path(data.tokenizer).name
