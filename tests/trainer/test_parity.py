"""The model against the numbers of the published release (random weights, float32, CPU)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from trainer.config import ModelConfig
from trainer.parcae import Parcae

NAME = "parcae_diagonal"
# Published name -> ours. Every tensor of a block is renamed part by part.
PARTS = [
    ("transformer.wte.", "embedding."),
    ("transformer.prelude.", "prelude."),
    ("transformer.core_block.", "core."),
    ("transformer.coda.", "coda."),
    ("transformer.C.", "state_to_width."),
    ("transformer.ln_f.", "final_norm."),
    ("transformer.ln_prelude.", "prelude_norm."),
    ("transformer.adapter.A_log", "injection.A_log"),
    ("transformer.adapter.dt_bias", "injection.dt"),
    ("transformer.adapter.B", "injection.B.weight"),
    ("value_embeds.", "value_embeddings."),
    ("attn.c_q", "attention.query"),
    ("attn.c_k", "attention.key"),
    ("attn.c_v", "attention.value"),
    ("attn.c_proj", "attention.out"),
    ("attn.ve_gate", "attention.gate"),
    ("norm_1", "attention_norm"),
    ("norm_2", "mlp_norm"),
    ("mlp.fc", "mlp.up"),
    ("mlp.proj", "mlp.down"),
]


def ours(name: str) -> str:
    for published, here in PARTS:
        name = name.replace(published, here)
    return name


@pytest.fixture(scope="module")
def reference(shared):
    tensors = load_file(shared / "fixtures" / f"{NAME}.safetensors")
    facts = json.loads((shared / "fixtures" / f"{NAME}.json").read_text())
    return tensors, facts


@pytest.fixture
def model(reference):
    tensors, facts = reference
    config = facts["config"]
    model = Parcae(
        ModelConfig(
            width=config["n_embd"],
            heads=config["num_attention_heads"],
            prelude_layers=config["n_layers_in_prelude"],
            core_layers=config["n_layers_in_recurrent_block"],
            coda_layers=config["n_layers_in_coda"],
            context=config["block_size"],
            vocabulary=config["vocab_size"],
            state_init="zero",
        )
    )
    weights = {ours(name.removeprefix("weights/")): t for name, t in tensors.items() if name.startswith("weights/")}
    model.load_state_dict(weights)
    return model


def zero_state(model, ids):
    return torch.zeros(*ids.shape, model.config.width)


def test_parameters_and_spectral_radius(model, reference):
    _, facts = reference
    assert sum(p.numel() for p in model.parameters()) == facts["params"]
    assert model.injection.spectral_radius() == pytest.approx(facts["spectral"], abs=1e-7)


def test_logits_at_every_recurrence(model, reference):
    tensors, _ = reference
    ids = tensors["input_ids"]
    with torch.no_grad():
        for recurrence, logits in model.logits(ids, [1, 2, 4, 8], zero_state(model, ids)):
            torch.testing.assert_close(logits, tensors[f"eval/logits_T{recurrence}"], atol=1e-5, rtol=0)


def test_training_loss_and_every_gradient(model, reference):
    tensors, facts = reference
    ids = tensors["input_ids"]
    loops = tensors["train/steps_no_grad"] + tensors["train/steps_with_grad"]
    depth = facts["config"]["mean_backprop_depth"]
    loss = model.loss(ids, tensors["labels"], loops, depth, zero_state(model, ids))
    assert loss.item() == pytest.approx(facts["train_loss"], abs=1e-6)
    loss.backward()
    gradients = {ours(n.removeprefix("grads/")): t for n, t in tensors.items() if n.startswith("grads/")}
    parameters = dict(model.named_parameters())
    assert set(gradients) == set(parameters)
    for name, expected in gradients.items():
        error = (parameters[name].grad - expected).norm() / expected.norm()
        assert error < 1e-5, name
