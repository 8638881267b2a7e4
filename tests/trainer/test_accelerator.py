"""A run on a pretend accelerator: all tensors of an operation on one device, and few waits of the host for it."""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from isoloop.trainer.config import DataConfig, DepoConfig, ExecutionConfig, ModelConfig, RunSpec
from isoloop.trainer.data.corpus import Corpus, prepare_corpus
from isoloop.trainer.evaluate import evaluate, evaluate_documents
from isoloop.trainer.loop import train
from isoloop.trainer.model import head
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.pretrained import load_published
from isoloop.trainer.quality.generation import GenerationConfig, Writer
from isoloop.trainer.run.checkpoint import checkpoints
from isoloop.trainer.run.result import read_result
from tests.trainer import pretend

RATE = 1e9  # of a matrix product, which the pretend device has no clock to measure


@pytest.fixture(scope="module")
def on_device():
    """A function that calls another in a process in which the pretend device is registered."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=pretend.register) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def check_the_device():
    """Return what each way of waiting is counted as, and the error of an operation on two devices."""
    x = torch.ones(3, device=pretend.NAME)
    counts = {}
    for name, act in {
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(x[0] > 0),
        "float": lambda: float(x[0]),
        "tolist": x.tolist,
        "cpu": x.cpu,
        "numpy": lambda: x.cpu().numpy(),
        "nonzero": x.nonzero,
        "mask": lambda: x[x > 0],
        "equal": lambda: torch.equal(x, x),
        "tensor": lambda: torch.tensor([1.0], device=pretend.NAME),
        "copy": lambda: x.copy_(torch.zeros(3)),
        "copied without waiting": lambda: x.copy_(torch.zeros(3), non_blocking=True),
        "computed": lambda: (x * 2 + x.new_full((), 3.0)).sum(),
    }.items():
        pretend.SYNCS.clear()
        act()
        counts[name] = sum(pretend.SYNCS.values())
    with pytest.raises(RuntimeError, match="one device") as raised:
        x + torch.ones(3)
    return counts, str(raised.value)


def test_the_pretend_device_counts_waits_and_refuses_two_devices(on_device):
    counts, error = on_device(check_the_device)
    assert [name for name, count in counts.items() if count == 0] == ["copied without waiting", "computed"]
    assert set(counts.values()) == {0, 1}
    assert "aten.add" in error


def train_counting(spec_json: str, corpus_folder: str, folder: str, execution_json: str, stop: int | None):
    """Train on the pretend device; return the waits by step, those after the last one last, and the result's losses."""
    spec, counts = RunSpec.model_validate_json(spec_json), []

    def should_stop():
        counts.append(Counter(pretend.SYNCS))
        return len(counts) == stop

    execution = ExecutionConfig.model_validate_json(execution_json)
    result = train(spec, Corpus(Path(corpus_folder)), Path(folder), execution=execution, should_stop=should_stop)
    counts.append(Counter(pretend.SYNCS))
    waits = [after - before for before, after in pairwise(counts)]
    return waits, None if result is None else result.losses


def arguments(spec, corpus, folder, stop=None, **execution):
    config = ExecutionConfig(device=pretend.NAME, peak_flops=RATE, **execution)
    return spec.model_dump_json(), str(corpus.folder), str(folder), config.model_dump_json(), stop


KINDS = {
    "torch": {},
    "released, masked": {"optimizer": {"muon": "released"}, "document_mask": True},
    "fixed depth": {"injection": "none"},
}


@pytest.fixture(params=KINDS)
def kind(request, spec):
    """Runs that between them use every part of a training step."""
    changes, content = KINDS[request.param], spec.model_dump() | {"steps": 6}
    content["optimizer"] |= changes.get("optimizer", {})
    content["data"]["document_mask"] = changes.get("document_mask", False)
    if changes.get("injection") == "none":
        content["model"]["injection"] = "none"
        content["recurrence"] = {"mean": 1, "sampling": "fixed"}
        content["evaluation"]["recurrences"] = [1]
    return RunSpec.model_validate(content)


def test_a_step_waits_once_for_the_device(kind, corpus, on_device, tmp_path):
    """Also with micro-batches; the journal records each step. The numbers are the CPU's but for the order of sums."""
    waits, losses = on_device(train_counting, *arguments(kind, corpus, tmp_path / "device", micro_batch=3))
    assert len(waits) == kind.steps
    assert waits[:-1] == [Counter({"tolist": 1})] * (kind.steps - 1)
    cpu = train(kind, corpus, tmp_path / "cpu", execution=ExecutionConfig(peak_flops=RATE, micro_batch=3))
    # AdamW divides first gradients by themselves, so that rounding grows: step 1 is equal, later ones nearly
    assert losses == pytest.approx(cpu.losses, rel=2e-3)
    model, _ = load_published(tmp_path / "device" / "model")
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_answers_cost_no_wait_in_a_step_and_few_at_the_end(spec, on_device, tmp_path):
    data = DataConfig(corpus="depo", depo=DepoConfig(lines=200, queries=2), packing="best-fit", answers_only=True)
    corpus = prepare_corpus(data, tmp_path / "corpora")
    changes = {"data": data, "data_fingerprint": corpus.facts.fingerprint, "steps": 3}
    only = spec.model_copy(update={**changes, "model": ModelConfig(width=16, heads=2, context=20)})
    waits, losses = on_device(train_counting, *arguments(only, corpus, tmp_path / "device", micro_batch=3))
    assert waits[:-1] == [Counter({"tolist": 1})] * 2
    every = only.model_copy(update={"data": data.model_copy(update={"answers_only": False})})
    plain, _ = on_device(train_counting, *arguments(every, corpus, tmp_path / "all", micro_batch=3))
    assert waits[-1] == plain[-1]  # answers that are right are read once, here and there
    cpu = train(only, corpus, tmp_path / "cpu", execution=ExecutionConfig(peak_flops=RATE, micro_batch=3))
    assert losses == pytest.approx(cpu.losses, rel=2e-3)
    assert read_result(tmp_path / "device").answers.keys() == cpu.answers.keys()


def test_stopped_and_resumed_on_the_device_is_uninterrupted_to_the_bit(spec, corpus, on_device, tmp_path):
    """With a checkpoint in every step, written by the thread."""
    spec = spec.model_copy(update={"steps": 8})
    _, whole = on_device(train_counting, *arguments(spec, corpus, tmp_path / "whole"))
    every = {"checkpoint_seconds": 1e-6, "keep_checkpoints": 3}
    _, stopped = on_device(train_counting, *arguments(spec, corpus, tmp_path / "parts", stop=5, **every))
    assert stopped is None
    names = [path.name for path in checkpoints(tmp_path / "parts" / "checkpoints")]
    assert names == ["00000003", "00000004", "00000005"]
    _, resumed = on_device(train_counting, *arguments(spec, corpus, tmp_path / "parts", **every))
    assert resumed == whole
    assert not checkpoints(tmp_path / "parts" / "checkpoints")


def precision_after(*arguments):
    train_counting(*arguments)
    return torch.get_float32_matmul_precision()


def test_tf32_is_set_for_the_run_that_asks_for_it(spec, corpus, on_device, tmp_path):
    found = [
        on_device(precision_after, *arguments(spec, corpus, tmp_path / name, stop=1, tf32=tf32))
        for name, tf32 in (("with", True), ("without", False))
    ]
    assert found == ["high", "highest"]
    with pytest.raises(ValueError, match="tf32 applies to GPUs only, but got tf32=true and device=cpu; leave it out"):
        ExecutionConfig(tf32=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, which this machine has not")
@pytest.mark.parametrize("head_width", [64, 128])
def test_attention_takes_the_flash_kernel_on_a_gpu(head_width):
    """Forward and backward of a whole model under autocast, where no other kernel is allowed."""
    config = ModelConfig(width=2 * head_width, heads=2, context=256)
    model = build_model(config)
    model.initialise(0)
    model.to("cuda")
    tokens = torch.randint(0, 256, (2, 257), device="cuda")
    h0 = model.initial_state([1, 2], 256)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:], torch.tensor([3, 2]), 2, h0).nats
        loss.backward()
    assert loss.isfinite()


def rows_at_once(device):
    """Return how many rows of logits the head would hold at a time on a device, of a vocabulary of 2^15."""
    found = []
    with mock.patch.object(head._ChunkedCrossEntropy, "apply", lambda *arguments: found.append(arguments[3])):
        weight = torch.zeros(2**15, 1, device=device)
        head.mean_cross_entropy(torch.zeros(3, 1, device=device), weight, torch.zeros(3, dtype=torch.long))
    return found


def test_the_head_takes_larger_chunks_on_an_accelerator(on_device):
    assert rows_at_once("cpu") == [2**24 // 2**15]
    assert on_device(rows_at_once, pretend.NAME) == [2**27 // 2**15]


def evaluate_counting(model_json: str, device: str):
    """Return losses of rows and of documents at each T, and how often the host waited for each."""
    config = ModelConfig.model_validate_json(model_json)
    model = build_model(config)
    model.initialise(3)
    model.to(device)
    windows = np.random.default_rng(0).integers(0, config.vocabulary, (8, 17))
    documents = [row[:length] for row, length in zip(windows, (17, 5, 9, 2, 17, 3, 4, 8), strict=True)]
    losses, waits = [], []
    for function, texts in ((evaluate, windows), (evaluate_documents, documents)):
        pretend.SYNCS.clear()
        losses.append(function(model, texts, (1, 2, 5), batch=3))
        waits.append(Counter(pretend.SYNCS))
    return losses, waits


def test_an_evaluation_waits_once_for_the_device(spec, on_device):
    """Over three batches and three T, of rows and of documents."""
    losses, waits = on_device(evaluate_counting, spec.model.model_dump_json(), pretend.NAME)
    assert waits == [Counter({"tolist": 1})] * 2
    expected, _ = evaluate_counting(spec.model.model_dump_json(), "cpu")
    assert losses == [pytest.approx(theirs, rel=1e-6) for theirs in expected]


def generate_on_device(settings_json: str):
    """Generate from two prompts on the pretend device and on the CPU; return both texts."""
    settings = GenerationConfig.model_validate_json(settings_json)
    texts = []
    for device in (pretend.NAME, "cpu"):
        model = build_model(ModelConfig(width=32, heads=2, context=12)).eval()
        model.initialise(0)
        model.to(device)
        writer = Writer(model, [[65], [66, 67, 68, 69]], settings, recurrence=3)
        writer._h0 = torch.zeros(12, 32, device=device)  # another generator
        for _ in writer.write():
            pass
        texts.append([text.ids for text in writer.texts])
    return texts


@pytest.mark.parametrize(
    "settings",
    [{}, {"cache": "shared"}, {"cache": "none"}, {"exit_tolerance": 0.3}],
    ids=["full", "shared", "none", "early exit"],
)
def test_generation_keeps_its_tensors_on_the_device(on_device, settings):
    """Prompts of two lengths, which outgrow the context: no operation mixes devices, and the texts are the CPU's."""
    config = GenerationConfig(temperature=0, max_tokens=20, **settings)
    there, here = on_device(generate_on_device, config.model_dump_json())
    assert there == here
