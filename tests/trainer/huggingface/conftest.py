"""Exported models, loaded by Transformers itself."""

import math

import pytest
import torch

from isoloop.trainer.config import ModelConfig, RecurrenceConfig
from isoloop.trainer.data.stored_tokenizer import save_tokenizer
from isoloop.trainer.data.tokenizer import ByteTokenizer
from isoloop.trainer.evaluate import STATE_SEED
from isoloop.trainer.huggingface.export import export_model
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.pretrained import has_published_layout, save_published

MODELS = {
    "diagonal": {},
    "concat": {"injection": "concat", "prelude_norm": False},
    "addition": {"injection": "addition", "state_init": "normal"},
    "residual norms": {"injection": "concat", "block": "residual-norm", "state_init": "zero"},
    "fixed depth": {"injection": "none"},
    "grouped": {"key_value_heads": 2, "heads": 4, "core_layers": 2},
    "untied": {"tied_head": False, "state_init": "embed"},
    "capped": {"logit_soft_cap": 3.0, "state_init": "unit"},
    "scaled": {"embedding_scale": 4.0, "loop_norm": True, "residual_scale": 1.5, "core_layers": 2},
    "more words": {"vocabulary": 300},
}
CONTEXT = 24


def random_model(**settings):
    """A model all of whose weights matter: those that start at 0 or 1 are drawn, too."""
    config = ModelConfig(**{"width": 16, "context": CONTEXT} | settings)
    model = build_model(config, mean_recurrence=3)
    model.initialise(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.empty(parameter.shape).normal_(generator=generator)
    return model.eval()


def our_logits(model, tokens, recurrence):
    """Logits [batch, tokens, vocabulary] of our own forward pass, with the state of generated text."""
    h0 = model.initial_state([STATE_SEED], model.config.context)[:, : tokens.shape[1]].expand(len(tokens), -1, -1)
    with torch.no_grad():
        return dict(model.logits(tokens, [recurrence], h0))[recurrence]


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory, monkeypatch):
    """Copies of remote code go into a folder of the tests."""
    import transformers.dynamic_module_utils as remote

    monkeypatch.setattr(remote, "HF_MODULES_CACHE", str(tmp_path_factory.getbasetemp() / "modules"))


@pytest.fixture
def export(tmp_path):
    """Returns our model of a variant, and the folder it was exported to with T = 3, or 1 for fixed depth."""

    def write(variant):
        from isoloop.trainer.model.exported import Exported, save_exported

        model = random_model(**MODELS[variant])
        looped = model.config.is_looped
        recurrence = RecurrenceConfig(mean=3 if looped else 1, sampling="per-sequence" if looped else "fixed")
        source, folder = tmp_path / "model", tmp_path / f"exported-{variant.replace(' ', '-')}"
        source.mkdir()
        if has_published_layout(model.config):
            save_published(source, model, recurrence)
        else:
            save_exported(source, Exported(model, recurrence, 3, {3: math.log(256)}))
        save_tokenizer(source, ByteTokenizer(), CONTEXT)
        return model, export_model(source, folder)

    return write
