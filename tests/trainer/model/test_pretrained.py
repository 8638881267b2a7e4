"""The published layout: there and back, and what is refused. test_parity.py reads the reference weights through it."""

import json
import os
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from isoloop.trainer import hub
from isoloop.trainer.config import ModelConfig, RecurrenceConfig
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.pretrained import config_to_published, load_published, save_published

MODELS = {
    "diagonal": {},
    "concat": {"injection": "concat", "prelude_norm": False},
    "addition": {"injection": "addition", "state_init": "normal"},
    "residual norms": {"injection": "concat", "block": "residual-norm"},
    "fixed depth": {"injection": "none"},
    "grouped": {"key_value_heads": 1},
    "untied": {"tied_head": False},
    "capped": {"logit_soft_cap": 15.0},
    "own": {"injection": "tests.trainer.own:ScaledInjection", "block": "tests.trainer.own:ParallelBlock"},
}


def build(variant="diagonal"):
    model = build_model(ModelConfig(width=16, heads=2, context=8, vocabulary=100, **MODELS[variant]))
    model.initialise(4)
    return model


@pytest.fixture
def saved(tmp_path):
    save_published(tmp_path / "model", build(), RecurrenceConfig(mean=8))
    return tmp_path / "model"


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", MODELS)
def test_saving_and_loading_returns_the_same_model(variant, form, tmp_path):
    model = build(variant)
    recurrence = RecurrenceConfig(mean=5, backprop_depth=2, sampling="per-batch")
    save_published(tmp_path, model, recurrence, form=form)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", f".{form}"}
    again, loops = load_published(tmp_path, own_classes=variant == "own")
    assert (again.config, loops) == (model.config, recurrence)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_published(tmp_path, again, loops, form=form)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_names_and_settings_are_the_published_ones(shared, tmp_path):
    facts = json.loads((shared / "fixtures" / "rdm_concat.json").read_text())
    expected = load_file(shared / "fixtures" / "rdm_concat.safetensors")
    model = build_model(
        ModelConfig(
            width=64, heads=4, prelude_layers=2, core_layers=2, coda_layers=2, context=64, state_init="zero",
            injection="concat", prelude_norm=False,
        )
    )  # fmt: skip
    model.initialise(0)
    save_published(tmp_path, model, RecurrenceConfig(mean=4))
    shapes = {name: tensor.shape for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    prefix = "weights/"
    assert shapes == {n.removeprefix(prefix): t.shape for n, t in expected.items() if n.startswith(prefix)}
    written = config_to_published(model.config, RecurrenceConfig(mean=4))
    ignored = {"init_strategy", "init_orthogonal"}  # how the weights were drawn
    assert {key: written[key] for key in facts["config"].keys() - ignored} == {
        key: value for key, value in facts["config"].items() if key not in ignored
    }


def test_tied_heads_and_rotary_tables_may_stand_in_the_file(saved):
    tensors = load_file(saved / "model.safetensors")
    table = tensors["transformer.wte.weight"]
    save_file(tensors | {"lm_head.weight": table.clone(), "freqs_cis": torch.zeros(3)}, saved / "model.safetensors")
    load_published(saved)
    save_file(tensors | {"lm_head.weight": table + 1}, saved / "model.safetensors")
    with pytest.raises(ValueError, match="set tie_embeddings to false"):
        load_published(saved)
    change_config(saved, tie_embeddings=False)
    assert torch.equal(load_published(saved)[0].head.weight, table + 1)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        load_published(saved)


def test_other_dtypes_are_read_as_float32(saved):
    tensors = load_file(saved / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, saved / "model.safetensors")
    model, _ = load_published(saved)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_every_tensor_that_does_not_fit_is_named(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["transformer.C.weight"] = torch.zeros(16, 17)
    del tensors["transformer.adapter.A_log"], tensors["transformer.ln_f.weight"]
    tensors["transformer.extra"] = torch.zeros(2)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"must be those of its config\.json") as caught:
        load_published(saved)
    for line in (
        "missing: transformer.adapter.A_log (16,)",
        "missing: transformer.ln_f.weight (16,)",
        "unexpected: transformer.extra (2,)",
        "misshapen: transformer.C.weight is (16, 17), must be (16, 16)",
    ):
        assert line in str(caught.value)


def test_nothing_is_unpickled_unsafely(saved, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (saved / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Payload()}, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must be plain tensors"):
        load_published(saved)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"_class_name": "GPTConfig"}, "_class_name must be ParcaeConfig or FixedDepthConfig, or .* 'GPTConfig'"),
        (
            {"nonlin_name": "GELU", "intermediate_size": 1},
            r"intermediate_size = 1 \(ours: 64\); nonlin_name = 'GELU'",
        ),
        ({"rope_settings": {"use_rope": False}}, "rope_settings"),
        ({"injection_type": "gated"}, "must be one of diagonal, concat, addition, none"),
        ({"sampling_scheme": "geometric"}, "sampling_scheme must be one of poisson-truncated-full, .*fixed"),
        ({"sampling_scheme": ["fixed"]}, "sampling_scheme must be one of poisson-truncated-full, .*fixed"),
        ({"injection_type": "this:Zen"}, "must be allowed before they are imported, but .* names .'this:Zen'."),
        (
            {"mean_recurrence": 0},
            r"^a checkpoint's settings .*config\.json mean: input should be greater than or equal",
        ),
        ({"n_embd": 15}, "even multiple of heads"),
        ({"num_key_value_heads": 3}, "key_value_heads must divide heads"),
    ],
)
def test_what_our_model_is_not_is_refused(saved, changes, rule):
    change_config(saved, **changes)
    with pytest.raises(ValueError, match=rule):
        load_published(saved)


def test_loading_a_checkpoint_imports_no_class_by_default(saved):
    sys.modules.pop("this", None)
    change_config(saved, injection_type="this:Zen")
    with pytest.raises(ValueError, match="pass own_classes=True"):
        load_published(saved)
    assert "this" not in sys.modules


@pytest.mark.parametrize(("extra", "named"), [({"epoch": 3}, r"epoch \(int\)"), ({"model": {}}, r"model \(dict\)")])
def test_what_is_no_tensor_is_named(saved, extra, named):
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(tensors | extra, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=named):
        load_published(saved)


def test_settings_without_meaning_for_a_fixed_depth_model_are_ignored(tmp_path):
    save_published(tmp_path, build("fixed depth"), RecurrenceConfig(mean=1, sampling="fixed"))
    change_config(tmp_path, state_init="zero", prelude_norm=False)
    assert load_published(tmp_path)[0].config == build("fixed depth").config


def test_rotary_settings_may_be_left_out(saved):
    change_config(saved, rope_settings=None)
    assert load_published(saved)[0].config.rotary_base == 50_000


def test_missing_and_torn_files_are_refused_by_name(saved):
    weights = saved / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
        load_published(saved)
    weights.unlink()
    with pytest.raises(ValueError, match="must hold weights"):
        load_published(saved)
    config = json.loads((saved / "config.json").read_text())
    del config["n_embd"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="must have the key 'n_embd'"):
        load_published(saved)
    (saved / "config.json").unlink()
    with pytest.raises(ValueError, match=r"must hold a readable config\.json"):
        load_published(saved)
    with pytest.raises(ValueError, match="must be a folder that exists or the OWNER/NAME"):
        load_published(saved / "nowhere" / "at" / "all")


def test_a_hub_id_is_fetched(saved, monkeypatch):
    """The hub can't be reached from a test: the call of its client is checked, and its answer is used."""
    request = {}

    def snapshot_download(repo_id, **options):
        request.update(options, repo_id=repo_id)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "wait_for_answer", lambda waiting: None)
    model, _ = load_published("SandyResearch/parcae-140m", revision="abc")
    assert torch.equal(model.embedding.weight, build().embedding.weight)
    assert (request["repo_id"], request["revision"]) == ("SandyResearch/parcae-140m", "abc")

    def no_network(repo_id, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(ValueError, match=r"is no folder, and Hugging Face provides no model .*no network"):
        load_published("SandyResearch/parcae-140m")


def test_a_model_in_the_cache_needs_no_answer_of_the_hub(saved, monkeypatch):
    def no_answer(waiting):
        raise hub.HubError("the hub did not answer")

    def snapshot_download(repo_id, local_files_only=False, **options):
        assert local_files_only
        if repo_id != "SandyResearch/parcae-140m":
            raise FileNotFoundError("not in the cache")
        return str(saved)

    monkeypatch.setattr(hub, "wait_for_answer", no_answer)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_published("SandyResearch/parcae-140m")
    with pytest.raises(ValueError, match="the hub did not answer"):
        load_published("SandyResearch/parcae-370m")


@pytest.mark.parametrize("setting", [{"residual_scale": 1.0}, {"embedding_scale": 4.0}, {"loop_norm": True}])
def test_a_model_that_the_layout_cannot_say_is_not_written(setting, tmp_path):
    model = build_model(build().config.model_copy(update=setting))
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"none of the settings .*{name}={value}"):
        save_published(tmp_path / "model", model, RecurrenceConfig())
    assert not (tmp_path / "model").exists()


def without_class_name(folder, **changes):
    change_config(folder, **changes)
    config = json.loads((folder / "config.json").read_text())
    del config["_class_name"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("variant", ["diagonal", "concat", "fixed depth"])
def test_without_a_class_name_the_injection_tells(variant, tmp_path):
    model = build(variant)
    save_published(tmp_path, model, RecurrenceConfig(mean=1, sampling="fixed"))
    without_class_name(tmp_path)
    assert load_published(tmp_path)[0].config == model.config


def test_without_class_name_and_injection_nothing_tells(saved):
    without_class_name(saved, injection_type=None)
    with pytest.raises(ValueError, match="_class_name must be ParcaeConfig or FixedDepthConfig, or be left out beside"):
        load_published(saved)


def write_sharded(folder, form):
    """Write the weights of a folder as two files and an index, as Transformers and torch users do."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05d}-of-00002.{form}"
        shard = {name: tensors[name] for name in part}
        save_file(shard, folder / file) if form == "safetensors" else torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{form}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_several_files_and_their_index_are_read(saved, form):
    index = write_sharded(saved, form)
    torch.save({"learning_rate": 0.1}, saved / "training_args.bin")  # what the index doesn't name is left alone
    loaded = load_published(saved)[0].state_dict()
    for name, tensor in build().state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    next(saved.glob(f"*-00002-of-00002.{form}")).unlink()
    with pytest.raises(
        ValueError, match=rf"every file of its index, but .* lacks \S+-00002-of-00002\.{form}; fetch it"
    ):
        load_published(saved)
    index.write_text("[]")
    with pytest.raises(ValueError, match="an index must map tensors to files"):
        load_published(saved)


def test_only_bin_beside_other_files_is_read(saved):
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    torch.save({"step": 3}, saved / "optimizer.bin")
    assert torch.equal(load_published(saved)[0].embedding.weight, build().embedding.weight)
