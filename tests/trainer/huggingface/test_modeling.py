"""The exported code computes what ours does, with and without a cache, alone and in a batch."""

import inspect
import re
from typing import get_args

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from isoloop.trainer.config import BLOCKS, INJECTIONS, ModelConfig
from isoloop.trainer.evaluate import STATE_SEED
from isoloop.trainer.huggingface import modeling_isoloop
from tests.trainer.huggingface.conftest import CONTEXT, MODELS, our_logits


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def draw(*shape):
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("variant", MODELS)
def test_logits_are_ours(variant, export):
    model, folder = export(variant)
    theirs, tokens = load(folder), draw(2, CONTEXT)
    expected = our_logits(model, tokens, 1 if variant == "fixed depth" else 3)
    assert expected.std() > 0.1
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, expected, atol=1e-5, rtol=0)
        kept = theirs(tokens, logits_to_keep=2).logits
        torch.testing.assert_close(kept, expected[:, -2:], atol=1e-5, rtol=0)
        loss = theirs(tokens, labels=tokens).loss
    targets = tokens[:, 1:].flatten()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), targets))


@pytest.mark.parametrize("variant", MODELS)
def test_cached_equals_uncached(variant, export):
    """Token by token, in pieces, and as `generate` does it."""
    _, folder = export(variant)
    model, tokens = load(folder), draw(2, CONTEXT)
    with torch.no_grad():
        whole = model(tokens).logits
        for pieces in ([1] * CONTEXT, [7, 1, 9, 1, 6]):
            cache, parts = DynamicCache(config=model.config), []
            for piece in tokens.split(pieces, dim=1):
                parts.append(model(piece, cache=cache, use_cache=True).logits)
            torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)
    assert len(cache.layers) == model.config.num_hidden_layers
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    prompt = tokens[:, :8]
    cached = model.generate(prompt, **options)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **options))
    by_hand = prompt
    for _ in range(10):
        with torch.no_grad():
            scores = model(by_hand).logits[:, -1, : 256 if variant == "more words" else None]
        by_hand = torch.cat([by_hand, scores.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(cached, by_hand)


@pytest.mark.parametrize("variant", ["diagonal", "grouped", "fixed depth"])
def test_a_batch_with_padding_equals_each_alone(variant, export):
    _, folder = export(variant)
    model, prompts = load(folder), [draw(5), draw(1), draw(9)]
    padded, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        padded[row, 9 - len(prompt) :], mask[row, 9 - len(prompt) :] = prompt, 1
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    batch = model.generate(padded, attention_mask=mask, **options)
    for row, prompt in enumerate(prompts):
        alone = model.generate(prompt[None], attention_mask=torch.ones_like(prompt)[None], **options)
        assert torch.equal(batch[row, 9:], alone[0, len(prompt) :])
        with torch.no_grad():
            expected = model(prompt[None]).logits[0]
            left = model(padded, attention_mask=mask).logits[row, 9 - len(prompt) :]
            right = model(padded.flip(1), attention_mask=mask.flip(1)).logits[row]  # reversed text, padded right
            reverse = model(prompt.flip(0)[None]).logits[0]
        torch.testing.assert_close(left, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(right[: len(prompt)], reverse, atol=1e-5, rtol=0)


def test_a_padded_batch_in_two_pieces_equals_the_whole(export):
    """Without position_ids, which `generate` would pass: positions are counted in the mask of all tokens."""
    _, folder = export("diagonal")
    model, tokens, mask = load(folder), draw(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask).logits
        first = model(tokens[:, :6], attention_mask=mask[:, :6], use_cache=True)
        rest = model(tokens[:, 6:], attention_mask=mask, cache=first[modeling_isoloop.CACHE_FIELD]).logits
    torch.testing.assert_close(rest, whole[:, 6:], atol=1e-5, rtol=0)


def test_beams_reorder_the_cache(export):
    _, folder = export("diagonal")
    model = load(folder)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(draw(2, 5), **options), model.generate(draw(2, 5), use_cache=False, **options))


def test_another_recurrence_changes_the_logits_as_ours_do(export):
    model, folder = export("diagonal")
    tokens = draw(1, 12)
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).recurrence == 3  # µ_rec
    for recurrence in (1, 5):
        theirs = load(folder, recurrence=recurrence)
        with torch.no_grad():
            logits = theirs(tokens).logits
            torch.testing.assert_close(logits, our_logits(model, tokens, recurrence), atol=1e-5, rtol=0)
            assert (logits - our_logits(model, tokens, 3)).abs().max() > 1e-3
        theirs.config.recurrence = 2
        with torch.no_grad():
            torch.testing.assert_close(theirs(tokens).logits, our_logits(model, tokens, 2), atol=1e-5, rtol=0)
        assert theirs.generate(tokens, max_new_tokens=2).shape[1] <= 14  # its cache has the places of 2 loops


def test_saved_by_transformers_and_loaded_again(export, tmp_path):
    _, folder = export("scaled")
    model, tokens = load(folder, recurrence=2), draw(1, 6)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.config.recurrence == 2
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_half_precision_is_near(export):
    _, folder = export("diagonal")
    tokens = draw(1, 12)
    with torch.no_grad():
        whole = load(folder)(tokens).logits
        half = load(folder, dtype=torch.bfloat16)(tokens).logits
    assert half.dtype == torch.bfloat16
    assert (half - whole).abs().max() < 0.1 * whole.std() * 3


def test_a_soft_cap_is_computed_in_float32(export):
    """tanh near 1 has hardly any steps in bfloat16."""
    _, folder = export("capped")
    model, tokens = load(folder, dtype=torch.bfloat16), draw(1, 12)
    states = []
    model.final_norm.register_forward_hook(lambda module, inputs, output: states.append(output))
    with torch.no_grad():
        capped = model(tokens).logits
        logits = torch.nn.functional.linear(states[-1], model.embedding.weight).float()
    assert capped.dtype == torch.float32
    torch.testing.assert_close(capped, 3 * torch.tanh(logits / 3), atol=0, rtol=0)


def test_padding_sees_itself(export):
    """A row of the mask without any token has no softmax."""
    _, folder = export("diagonal")
    model, tokens, mask = load(folder), draw(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, :4] = 0
    assert model._mask(tokens, mask, 0).any(-1).all()
    assert model._mask(tokens, mask.flip(1), 0).any(-1).all()


def test_tables_follow_the_model_to_another_device(export):
    _, folder = export("diagonal")
    model, tokens = load(folder), draw(1, 6)
    with torch.no_grad():
        expected = model(tokens).logits
        model._tables = tuple(table.to("meta") for table in model._tables)  # as on a GPU that the model has left
        assert torch.equal(model(tokens).logits, expected)


def test_labels_that_are_ignored_do_not_count(export):
    _, folder = export("diagonal")
    model, tokens = load(folder), draw(2, 8)
    labels = tokens.clone()
    labels[0, :5] = -100
    with torch.no_grad():
        loss, logits = model(tokens, labels=labels, return_dict=False)[:2]
    nats = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    counted = torch.ones(2, 7, dtype=torch.bool)
    counted[0, :4] = False
    torch.testing.assert_close(loss, nats[counted.flatten()].mean())


def test_without_a_dictionary_it_returns_a_tuple(export):
    _, folder = export("diagonal")
    model, tokens = load(folder), draw(1, 6)
    with torch.no_grad():
        (logits,) = model(tokens, return_dict=False)
        assert torch.equal(logits, model(tokens).logits)


def test_accumulated_gradients_are_those_of_the_whole_batch(export, tmp_path):
    """Transformers' Trainer sums over micro-batches, and divides unless the model says that it does so itself."""
    pytest.importorskip("accelerate", reason="Transformers' Trainer needs accelerate: pip install accelerate")
    from transformers import Trainer, TrainingArguments

    _, folder = export("diagonal")
    rows = [{"input_ids": row, "labels": row} for row in draw(4, 8)]
    trained = []
    for batch, steps in ((4, 1), (1, 4)):
        model = load(folder)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=1,
            optim="sgd", learning_rate=0.1, max_grad_norm=0.0, report_to=[], use_cpu=True, save_strategy="no",
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        trained.append(model.state_dict())
    start = load(folder).state_dict()
    for name, whole in trained[0].items():
        torch.testing.assert_close(trained[1][name] - start[name], whole - start[name], atol=1e-6, rtol=1e-3)
    assert max((trained[0][name] - start[name]).abs().max() for name in start) > 1e-3


def test_inputs_that_it_cannot_use_are_refused(export):
    _, folder = export("diagonal")
    model = load(folder)
    with pytest.raises(ValueError, match=f"reads at most {CONTEXT} tokens, but got {CONTEXT + 1}"):
        model(draw(1, CONTEXT + 1))
    with pytest.raises(ValueError, match="value embeddings are looked up by token"):
        model(inputs_embeds=torch.zeros(1, 2, 16))
    with pytest.raises(ValueError, match="leave cache_implementation out"):
        model.generate(draw(1, 3), max_new_tokens=2, cache_implementation="static")
    for wrong in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"recurrence must be a whole number of loops, 1 or more, but got {wrong}"):
            load(folder, recurrence=wrong)(draw(1, 3))


def test_a_fixed_depth_model_has_no_other_recurrence(export):
    _, folder = export("fixed depth")
    with pytest.raises(ValueError, match="a fixed-depth model has no loop"):
        load(folder, recurrence=2)(draw(1, 3))


def test_the_state_is_drawn_as_ours_is():
    assert modeling_isoloop.STATE_SEED == STATE_SEED


def test_every_setting_of_a_model_is_exported():
    """What is added to our model must be added to the exported code, and to the variants that are compared here."""
    parameters = inspect.signature(modeling_isoloop.IsoloopConfig.__init__).parameters
    assert ModelConfig.model_fields.keys() - parameters.keys() == {"z_loss"}  # a penalty in training
    assert set(INJECTIONS) == {*modeling_isoloop.INJECTIONS, "none"}
    compared = [ModelConfig(**settings) for settings in MODELS.values()]
    assert {config.injection for config in compared} == set(INJECTIONS)
    assert {config.block for config in compared} == set(BLOCKS)
    states = ModelConfig.model_fields["state_init"].annotation
    assert {config.state_init for config in compared} == set(get_args(states))


def test_the_exported_code_needs_nothing_of_ours():
    imported = re.findall(r"^(?:from|import) (\S+)", inspect.getsource(modeling_isoloop), re.M)
    assert {name.partition(".")[0] for name in imported} == {"math", "typing", "torch", "transformers"}
