"""Generation, held against reading the whole text again for each token."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from isoloop.trainer.config import RecurrenceConfig
from isoloop.trainer.data.tokenizer import ByteTokenizer
from isoloop.trainer.evaluate import STATE_SEED
from isoloop.trainer.quality import generation
from isoloop.trainer.quality.generation import (
    GenerationConfig,
    Writer,
    choose_tokens,
    generate,
    make_writer,
    pieces,
    recurrence_notes,
    stream,
)
from isoloop.trainer.quality.trained_model import TrainedModel
from tests.trainer.model.test_parcae import VARIANTS, build

GREEDY = GenerationConfig(temperature=0, max_tokens=20)


def trained_model(variant="diagonal", losses=None):
    model = build(variant).eval()  # the context is 12 tokens
    mean = 4 if model.config.is_looped else 1
    return TrainedModel(
        name="tiny",
        model=model,
        tokenizer=ByteTokenizer(),
        recurrence=RecurrenceConfig(mean=mean),
        losses=losses or {},
    )


def greedy_by_hand(trained, prompt, count):
    """Each next token from a pass over the text, or over what is left of it once it has outgrown the context."""
    model, context = trained.model, trained.model.config.context
    recurrence = 4 if model.config.is_looped else 1
    window, written = [0, *prompt.encode()][-context:], []
    with torch.no_grad():
        h0 = model.initial_state([STATE_SEED], context)
        while len(written) < count:
            ((_, logits),) = model.logits(torch.tensor([window]), [recurrence], h0[:, : len(window)])
            written.append(logits[0, -1, :256].argmax().item())
            if written[-1] == 0:
                return written[:-1]
            window.append(written[-1])
            if len(window) > context:
                window = window[-(context // 2) :]
    return written


@pytest.mark.parametrize("cache", ["full", "none"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_equal_those_by_hand(variant, cache):
    """A batch of prompts of 1, 5 and 12 tokens, one longer than the context, all of which outgrow it."""
    trained, prompts = trained_model(variant), ["", "abcd", "elevenchars", "longer than the context"]
    texts = generate(trained, prompts, GREEDY.model_copy(update={"cache": cache}))
    for prompt, text in zip(prompts, texts, strict=True):
        assert text.tokens == greedy_by_hand(trained, prompt, 20)
    assert [text.cut_tokens for text in texts] == [0, 0, 0, 12]


@pytest.mark.parametrize("cache", ["full", "shared", "none"])
def test_a_batch_equals_each_alone_and_seeds_repeat(cache):
    trained, prompts = trained_model(), ["", "abcd", "elevenchars"]
    config = GenerationConfig(max_tokens=20, samples=2, seed=3, cache=cache, top_k=50, top_p=0.9)
    together = generate(trained, prompts, config)
    assert [text for prompt in prompts for text in generate(trained, prompt, config)] == together
    assert generate(trained, prompts, config) == together
    assert together[0].text != together[1].text
    assert generate(trained, prompts, config.model_copy(update={"seed": 4})) != together


def test_early_exit_in_a_batch_equals_each_alone():
    trained, prompts = trained_model(), ["", "abcd", "elevenchars"]
    config = GenerationConfig(max_tokens=20, exit_tolerance=0.15, recurrence=8)
    together = generate(trained, prompts, config)
    assert [generate(trained, prompt, config)[0] for prompt in prompts] == together
    assert all(1 < text.mean_loops < 8 for text in together)
    assert all(text.saved_loops == 1 - text.mean_loops / 8 for text in together)
    # A tolerance that no state reaches changes nothing.
    never = generate(trained, prompts, config.model_copy(update={"exit_tolerance": 1e-9}))
    assert never == generate(trained, prompts, config.model_copy(update={"exit_tolerance": None}))
    assert never[0].saved_loops == 0


def test_streaming_equals_the_whole():
    """The bytes of a random model are hardly ever UTF-8, and pieces end where a character does."""
    trained = trained_model()
    config = GenerationConfig(max_tokens=60)
    whole = generate(trained, "ab", config)[0]
    streamed = list(stream(trained, "ab", config))
    assert "".join(streamed) == whole.text
    assert len(streamed) > 10
    with pytest.raises(ValueError, match="one text is streamed at a time, but got samples=2"):
        next(stream(trained, "ab", GenerationConfig(samples=2)))


class _Fixed(Writer):
    """A writer of fixed tokens."""

    def __init__(self, *args, tokens, **options):
        super().__init__(*args, **options)
        self.tokens = iter(tokens)

    def _of_all(self, numbers, states):
        logits = torch.zeros(1, self.vocabulary)
        logits[0, next(self.tokens)] = 100.0
        return logits


def test_characters_are_streamed_whole_and_a_separator_ends_a_text():
    trained, text = trained_model(), "aé€😀"
    writer = _Fixed(trained.model, [[0]], GREEDY, recurrence=2, separator=0, tokens=[*text.encode(), 0, 65])
    assert list(pieces(trained, writer)) == list(text)
    assert writer.texts[0].finish == "separator"
    assert writer.texts[0].tokens == list(text.encode())
    going_on = GREEDY.model_copy(update={"stop_at_separator": False, "max_tokens": 3})
    writer = _Fixed(trained.model, [[0]], going_on, recurrence=2, separator=0, tokens=[65, 0, 66])
    assert list(pieces(trained, writer)) == ["A", "B"]
    assert writer.texts[0].finish == "length"


def test_what_is_written_before_a_stop_is_kept():
    trained = trained_model()
    writer = make_writer(trained, ["ab"], GenerationConfig(max_tokens=20))
    written = [next(stepped) for stepped in [writer.write()] for _ in range(5)]
    assert [token for _, token in written] == writer.texts[0].tokens
    assert generation.completion_of(trained, "ab", writer.texts[0], 4).finish == "stopped"


def test_draws_have_the_probabilities_of_the_distribution():
    """Frequencies over an even grid of random numbers equal the probabilities that are left."""
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0, 1.5]])
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000

    def frequencies(**settings):
        chosen = choose_tokens(logits.expand(10_000, -1), grid, GenerationConfig(**settings))
        return np.bincount(chosen, minlength=5) / 10_000

    p = torch.softmax(logits[0].double(), 0).numpy()
    np.testing.assert_allclose(frequencies(), p, atol=2e-4)
    half = np.exp(2 * logits[0].double().numpy())
    np.testing.assert_allclose(frequencies(temperature=0.5), half / half.sum(), atol=2e-4)
    two = np.where(p >= np.sort(p)[-2], p, 0)
    np.testing.assert_allclose(frequencies(top_k=2), two / two.sum(), atol=2e-4)
    np.testing.assert_allclose(frequencies(top_k=99), p, atol=2e-4)
    three = np.where(p >= np.sort(p)[-3], p, 0)  # .46, .28 and .17: two of them have less than .75
    assert two.sum() < 0.75 < three.sum()
    np.testing.assert_allclose(frequencies(top_p=0.75), three / three.sum(), atol=2e-4)
    np.testing.assert_allclose(frequencies(top_p=0.1), np.eye(5)[1], atol=0)
    assert choose_tokens(logits, grid[:1], GREEDY).tolist() == [1]


def test_tokens_beyond_the_tokenizer_are_never_written():
    """The token table has more rows than there are ids, since it is padded."""
    trained = trained_model()
    writer = Writer(trained.model, [[65]], GenerationConfig(max_tokens=50), recurrence=1, vocabulary=3)
    assert {token for _, token in writer.write()} <= {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0, "top_k": 5}, "top_k, top_p and several samples have no use"),
        ({"temperature": 0, "samples": 2}, "samples=2; leave them out, or raise the temperature"),
        ({"exit_tolerance": 0.1, "cache": "none"}, "exit_tolerance needs a cache"),
        ({"recurrence": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_without_a_use_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**settings)


def test_what_a_model_cannot_do_is_refused():
    fixed = trained_model("fixed depth")
    with pytest.raises(ValueError, match=r"runs each block once.*recurrence=3"):
        generate(fixed, "a", GenerationConfig(recurrence=3))
    with pytest.raises(ValueError, match=r"exit_tolerance=0.1; leave them out"):
        generate(fixed, "a", GenerationConfig(exit_tolerance=0.1))
    with pytest.raises(ValueError, match="none lies beside the weights of 'tiny'"):
        generate(replace(fixed, tokenizer=None), "a")
    with pytest.raises(ValueError, match="there must be a prompt"):
        generate(fixed, [])
    with pytest.raises(ValueError, match="a prompt is empty and begin_document is false"):
        generate(fixed, ["a", ""], GenerationConfig(begin_document=False))


def test_a_cache_that_does_not_fit_is_refused_with_what_fits(monkeypatch):
    trained = trained_model()
    slots = (1 + 2 + 1, 1 + 2 * 4 + 1, 1 + 2 * 64 + 1)  # shared loops, T = 4, T = 64
    per_slot = 2 * 4 * 32 * 12
    monkeypatch.setattr(generation, "free_memory", lambda device: 20 * per_slot / 0.9)
    generate(trained, "a", GREEDY.model_copy(update={"recurrence": 4}))
    with pytest.raises(ValueError, match="the cache must fit") as error:
        generate(trained, "a", GREEDY.model_copy(update={"recurrence": 64}))
    message = str(error.value)
    assert f"1 x 12 tokens at T = 64 take {slots[2] * per_slot / 1e9:.3g} GB" in message
    assert "T = 9 fits" in message  # 1 + 2 x 9 + 1 slots
    assert f"cache: shared takes {slots[0] * per_slot / 1e9:.3g} GB" in message
    generate(trained, "a", GREEDY.model_copy(update={"recurrence": 64, "cache": "shared"}))


def test_notes_on_t_come_from_the_measured_losses():
    losses = {1: 3.0, 2: 2.6, 4: 2.5, 8: 2.55}
    trained = trained_model(losses=losses)
    assert recurrence_notes(trained, 4) == recurrence_notes(trained, 5) == []
    assert recurrence_notes(trained, 8) == [
        "at T = 8 the validation loss was 2.5500; the lowest loss was measured at T = 4: 2.5000 nats per token"
    ]
    (note,) = recurrence_notes(trained, 100)
    assert note.startswith("T = 100 is outside what was measured, T = 1 to 8; at T = 8 the validation loss was 2.5500")
    assert recurrence_notes(trained_model(), 8) == []
    (note,) = recurrence_notes(trained_model(), 9)
    assert "far beyond the loops in training, 4 on average" in note
