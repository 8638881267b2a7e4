"""The models against the numbers of the published release (random weights, float32, CPU), through its own layout."""

import json
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoloop.trainer.model.pretrained import load_published, published_name

Reference = namedtuple("Reference", "model tensors facts")


@pytest.fixture(scope="module", params=["parcae_diagonal", "rdm_concat", "addition"])
def reference(request, shared, tmp_path_factory):
    tensors = load_file(shared / "fixtures" / f"{request.param}.safetensors")
    facts = json.loads((shared / "fixtures" / f"{request.param}.json").read_text())
    folder = tmp_path_factory.mktemp(request.param)
    prefix = "weights/"
    save_file(
        {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"_class_name": "ParcaeConfig", **facts["config"]}))
    model, _ = load_published(folder)
    return Reference(model, tensors, facts)


def zero_state(model, ids):
    return torch.zeros(*ids.shape, model.config.width)


def test_parameters_and_spectral_radius(reference):
    assert sum(p.numel() for p in reference.model.parameters()) == reference.facts["params"]
    if reference.facts["spectral"] is not None:
        assert reference.model.spectral_radius() == pytest.approx(reference.facts["spectral"], abs=1e-7)


def test_logits_at_every_recurrence(reference):
    model, tensors, _ = reference
    ids = tensors["input_ids"]
    with torch.no_grad():
        seen = {}
        for recurrence, logits in model.logits(ids, [1, 2, 4, 8], zero_state(model, ids)):
            torch.testing.assert_close(logits, tensors[f"eval/logits_T{recurrence}"], atol=1e-5, rtol=0)
            seen[recurrence] = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tensors["labels"].flatten())
    assert {str(t): loss.item() for t, loss in seen.items()} == pytest.approx(reference.facts["eval_loss"], abs=1e-6)


def test_training_loss_and_every_gradient(reference):
    model, tensors, facts = reference
    ids = tensors["input_ids"]
    loops = tensors["train/steps_no_grad"] + tensors["train/steps_with_grad"]
    model.zero_grad()
    nats = model.loss(
        ids, tensors["labels"], loops, facts["config"]["mean_backprop_depth"], zero_state(model, ids)
    ).nats
    assert nats.item() == pytest.approx(facts["train_loss"], rel=1e-6)
    nats.backward()
    expected = {n.removeprefix("grads/"): t for n, t in tensors.items() if n.startswith("grads/")}
    found = {published_name(name, "pre-norm"): p.grad for name, p in model.named_parameters()}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < 1e-5, name
