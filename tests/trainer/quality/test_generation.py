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
from tests.trainer.model.test_parcae import CONFIG, VARIANTS, build

GREEDY = GenerationConfig(temperature=0, max_tokens=20)


def trained_model(variant="diagonal", losses=None, **settings):
    model = build(variant, CONFIG.model_copy(update=settings)).eval()  # the context is 12 tokens
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
                window = window[-max(1, context // 2) :]
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


@pytest.mark.parametrize("cache", ["full", "none"])
@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_shortest_contexts(context, cache):
    trained = trained_model(context=context)
    texts = generate(trained, ["", "abcd"], GREEDY.model_copy(update={"cache": cache, "max_tokens": 5}))
    assert [text.tokens for text in texts] == [greedy_by_hand(trained, prompt, 5) for prompt in ("", "abcd")]


def test_texts_that_outgrow_the_context_together_are_read_again_together(monkeypatch):
    trained = trained_model()
    passes = []
    final_states = trained.model.final_states
    monkeypatch.setattr(
        trained.model, "final_states", lambda *args, **more: passes.append(1) or final_states(*args, **more)
    )
    going_on = GREEDY.model_copy(update={"stop_at_separator": False})
    generate(trained, "abcd", going_on)
    alone = len(passes)
    generate(trained, ["abcd", "efgh", "ijkl"], going_on)
    assert len(passes) == 2 * alone


class _Ended(Writer):
    """A writer whose first text ends at once."""

    def _of_all(self, numbers, states):
        logits = super()._of_all(numbers, states)
        if 0 in numbers and self.texts[0].read_tokens <= self.context:
            logits[0] = torch.nn.functional.one_hot(torch.tensor(0), self.vocabulary) * 1e4
        return logits


def test_a_text_that_ends_with_a_full_context_leaves_the_others_alone():
    """Its row is part of each later pass, but it has no position left for another token."""
    trained = trained_model()
    config = GREEDY.model_copy(update={"max_tokens": 8})
    writer = _Ended(trained.model, [[0, *b"elevenchars"], [0, *b"ab"]], config, recurrence=4, separator=0)
    assert {number for number, _ in writer.write()} == {1}
    assert writer.texts[0].finish == "separator"
    assert writer.texts[1].tokens == greedy_by_hand(trained, "ab", 8)


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
    # A tolerance that no state reaches changes nothing.
    never = generate(trained, prompts, config.model_copy(update={"exit_tolerance": 1e-9}))
    assert never == generate(trained, prompts, config.model_copy(update={"exit_tolerance": None}))
    assert never[0].saved_loops == 0


@pytest.mark.parametrize("max_tokens", [1, 5, 40])
def test_saved_loops_count_all_that_is_run(max_tokens, monkeypatch):
    """The prompt, and what is read again where the text outgrows its context of 12 tokens, run all loops."""
    trained = trained_model()
    run, one_loop = [], trained.model._one_loop
    monkeypatch.setattr(
        trained.model, "_one_loop", lambda h, *args: run.append(h[..., 0].numel()) or one_loop(h, *args)
    )
    config = GenerationConfig(max_tokens=max_tokens, recurrence=8, stop_at_separator=False)
    early = generate(trained, "ab", config.model_copy(update={"exit_tolerance": 0.15}))[0]
    loops = sum(run)
    run.clear()
    assert generate(trained, "ab", config)[0].saved_loops == 0
    assert early.saved_loops == pytest.approx(1 - loops / sum(run))
    assert early.mean_loops == pytest.approx(8 * loops / sum(run))
    assert (early.saved_loops > 0) == (max_tokens > 1)


def test_streaming_equals_the_whole():
    """The bytes of a random model are hardly ever UTF-8, and pieces end where a character does."""
    trained = trained_model()
    config = GenerationConfig(max_tokens=60)
    whole = generate(trained, "ab", config)[0]
    streamed = list(stream(trained, "ab", config))
    assert "".join(streamed) == whole.text
    assert len(streamed) > 10
    with pytest.raises(ValueError, match="one text is streamed at a time, but got samples=2"):
        stream(trained, "ab", GenerationConfig(samples=2))


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
    with pytest.raises(ValueError, match="texts are written once, but write was called before; make another Writer"):
        writer.write()


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
    for temperature in (1e-300, 1e-310, 5e-324):  # nearly 0: logits divided by it are beyond all numbers
        np.testing.assert_allclose(frequencies(temperature=temperature), np.eye(5)[1], atol=0)
        tied = choose_tokens(
            torch.tensor([[2.0, 1.0, 2.0]]).expand(2, -1), grid[[0, -1]], GenerationConfig(temperature=temperature)
        )
        assert tied.tolist() == [0, 2]


def test_tokens_beyond_the_tokenizer_are_never_written():
    """The token table has more rows than there are ids, since it is padded."""
    trained = trained_model()
    writer = Writer(trained.model, [[65]], GenerationConfig(max_tokens=50), recurrence=1, vocabulary=3)
    assert {token for _, token in writer.write()} <= {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0, "top_k": 5}, "several samples have no use, but got top-k = 5; leave it out, or raise"),
        ({"temperature": 0, "samples": 2, "top_p": 0.5}, r"got top-p = 0\.5, samples = 2; leave them out, or raise"),
        ({"exit_tolerance": 0.1, "cache": "none"}, "early exit needs a cache, but got an exit tolerance of 0.1"),
        ({"recurrence": 0}, "greater than or equal to 1"),
        ({"recurrence": 4097}, "less than or equal to 4096"),
    ],
)
def test_settings_without_a_use_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**settings)


def test_what_a_model_cannot_do_is_refused():
    fixed = trained_model("fixed depth")
    with pytest.raises(ValueError, match=r"has no loop, so recurrence must be 1, but got 3; leave it out"):
        generate(fixed, "a", GenerationConfig(recurrence=3))
    with pytest.raises(ValueError, match=r"no loop to leave early, but got an exit tolerance of 0.1; leave it out"):
        generate(fixed, "a", GenerationConfig(exit_tolerance=0.1))
    with pytest.raises(ValueError, match="none lies beside the weights of 'tiny'"):
        generate(replace(fixed, tokenizer=None), "a")
    with pytest.raises(ValueError, match="there must be a prompt"):
        generate(fixed, [])
    with pytest.raises(ValueError, match="a prompt is empty and isn't the beginning of a document"):
        generate(fixed, ["a", ""], GenerationConfig(begin_document=False))
    own = trained_model("own")
    own.model.core[0].__class__ = type("Blind", (type(own.model.core[0]),), {"forward": lambda self, x, rotary: x})
    with pytest.raises(ValueError, match="no argument `cached`"):
        generate(own, "a")


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
    assert f"the cache 'shared' (--cache shared) takes {slots[0] * per_slot / 1e9:.3g} GB" in message
    assert "new tokens" not in message  # one token fits, and the prompt has two
    assert message.endswith("the cache 'none' (--cache none) keeps nothing, and takes more time")
    generate(trained, "a", GREEDY.model_copy(update={"recurrence": 64, "cache": "shared"}))
    generate(trained, "a", GREEDY.model_copy(update={"recurrence": 64, "cache": "none", "max_tokens": 1}))


def test_what_fits_can_be_followed(monkeypatch):
    trained, per_token = trained_model(), 2 * 4 * 32 * (1 + 2 * 4 + 1)
    monkeypatch.setattr(generation, "free_memory", lambda device: 30 * per_token / 0.9)
    with pytest.raises(ValueError, match="the cache must fit") as error:
        generate(trained, ["abcd"] * 4, GREEDY)
    message = str(error.value)
    assert "2 new tokens fit (--max-tokens)" in message  # 4 x 7 tokens
    assert "2 of the 4 texts fit at a time" in message
    generate(trained, ["abcd"] * 4, GREEDY.model_copy(update={"max_tokens": 2}))
    generate(trained, ["abcd"] * 2, GREEDY)
    with pytest.raises(ValueError, match="the cache must fit") as error:
        generate(trained, ["abcd"] * 40, GREEDY.model_copy(update={"exit_tolerance": 0.1}))
    assert "--cache none" not in str(error.value)
    assert "new tokens" not in str(error.value)


def test_notes_on_t_come_from_the_measured_losses():
    losses = {1: 3.0, 2: 2.6, 4: 2.5, 8: 2.55}
    trained = trained_model(losses=losses)
    assert recurrence_notes(trained, 4) == recurrence_notes(trained, 5) == []
    assert recurrence_notes(trained, 8) == [
        "at T = 8 the validation loss was 2.5500; the lowest loss was measured at T = 4: 2.5000 nats per token"
    ]
    (note,) = recurrence_notes(trained, 100)
    assert note.startswith("T = 100 is outside what was measured, T = 1 to 8; at T = 8 the validation loss was 2.5500")
    narrow = trained_model(losses={4: 2.5, 8: 2.55})
    (note,) = recurrence_notes(narrow, 2)
    assert note.startswith("T = 2 is outside what was measured, T = 4 to 8; at T = 4 the validation loss was 2.5000")
    for loss in (float("nan"), float("inf")):
        (note,) = recurrence_notes(trained_model(losses={**losses, 32: loss}), 32)
        assert note == "at T = 32 the validation loss was not a finite number; it was finite at T = 1, 2, 4, 8"
    assert recurrence_notes(trained_model(losses={4: float("nan")}), 4) == [
        "at T = 4 the validation loss was not a finite number"
    ]
    assert recurrence_notes(trained_model(), 8) == []
    (note,) = recurrence_notes(trained_model(), 9)
    assert "far beyond the loops in training, 4 on average" in note
