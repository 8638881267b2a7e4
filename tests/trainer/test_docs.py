"""The examples of docs/trainer.md, run as they are printed."""

import re
from pathlib import Path

import pytest
import torch

from isoloop.trainer.accounting import count_parameters
from isoloop.trainer.config import ModelConfig
from isoloop.trainer.loop import train
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.pretrained import load_published

DOCS = Path(__file__).resolve().parents[2] / "docs" / "trainer.md"


def test_an_injection_of_ones_own_trains(spec, corpus, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    (tmp_path / "my_injection.py").write_text(code)
    config = ModelConfig(width=16, heads=2, context=16, injection="my_injection:GatedInjection")
    with pytest.raises(ValueError, match="start isoloop with PYTHONPATH"):
        build_model(config)
    monkeypatch.syspath_prepend(tmp_path)
    model = build_model(config)
    assert count_parameters(config).total == sum(p.numel() for p in model.parameters())
    result = train(spec.model_copy(update={"model": config}), corpus, tmp_path / "run")
    assert result.status == "finished"
    assert 0 < result.spectral_radius < 1
    again, _ = load_published(tmp_path / "run" / "model", own_classes=True)
    assert again.config == config
    assert torch.equal(again.injection.gate.sigmoid().max(), torch.tensor(result.spectral_radius))
