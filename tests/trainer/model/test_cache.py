"""The cache of keys and values, held against passes over whole texts."""

import pytest
import torch

from isoloop.trainer.model.build import check_cache
from isoloop.trainer.model.cache import KeyValueCache
from tests.trainer.model.test_parcae import LOOPED, VARIANTS, build

TOKENS = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(0))
H0 = torch.randn(12, 32, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1)


@pytest.fixture
def model(request):
    return build(request.param)


each = pytest.mark.parametrize("model", VARIANTS, indirect=True)
each_looped = pytest.mark.parametrize("model", LOOPED, indirect=True)


def recurrences_of(model):
    return [1, 3, 4] if model.config.is_looped else [1]


def read(model, cache, places, recurrences, rows=None):
    """Read the tokens at `places` into the cache, and return their logits at each T."""
    view = cache.view(places.stop - places.start, rows)
    rows = slice(None) if rows is None else rows
    return dict(model.logits(TOKENS[rows, places], recurrences, H0[rows, places], cache=view))


@each
@torch.no_grad()
def test_cached_equals_whole(model):
    """A prompt of 5 tokens, then 3 together, then one by one: every logit at every T is that of one pass over all."""
    recurrences = recurrences_of(model)
    whole = dict(model.logits(TOKENS, recurrences, H0))
    cache = KeyValueCache(model.config, batch=3, capacity=12)
    for start, stop in ((0, 5), (5, 8), *((i, i + 1) for i in range(8, 12))):
        logits = read(model, cache, slice(start, stop), recurrences)
        cache.advance(stop - start)
        for recurrence in recurrences:
            torch.testing.assert_close(
                logits[recurrence], whole[recurrence][:, start:stop], atol=1e-5, rtol=0, msg=f"T {recurrence}, {start}"
            )
    assert cache.nbytes == KeyValueCache.bytes_needed(model.config, recurrences, batch=3, tokens=12)


@each
@torch.no_grad()
def test_sequences_of_different_lengths_equal_each_alone(model):
    """Prompts of 2, 7 and 5 tokens in one padded pass, then tokens one by one; two rows begin anew in between."""
    recurrences, lengths = recurrences_of(model), [2, 7, 5]
    whole = dict(model.logits(TOKENS, recurrences, H0))
    cache = KeyValueCache(model.config, batch=3, capacity=12)
    read(model, cache, slice(0, 7), recurrences)
    cache.advance(lengths)
    for step in range(4):
        places = cache.lengths.clone()
        rows = torch.arange(3)
        view = cache.view(1)
        logits = dict(model.logits(TOKENS[rows, places][:, None], recurrences, H0[rows, places][:, None], cache=view))
        for recurrence in recurrences:
            expected = whole[recurrence][rows, places]
            torch.testing.assert_close(logits[recurrence][:, 0], expected, atol=1e-5, rtol=0)
        cache.advance(1)
        if step == 1:  # rows 0 and 2 are read again from the start, their first 3 tokens
            cache.clear(0)
            cache.clear(2)
            again = read(model, cache, slice(0, 3), recurrences, rows=[0, 2])
            for recurrence in recurrences:
                expected = whole[recurrence][[0, 2], :3]
                torch.testing.assert_close(again[recurrence], expected, atol=1e-5, rtol=0)
            cache.advance([3, 0, 3])


@pytest.mark.parametrize("model", ["diagonal", "concat"], indirect=True)
@torch.no_grad()
def test_under_autocast_the_cache_stays_in_float32(model):
    """Keys and values of half precision are kept exactly, whether the sequences are of one length or not."""
    cache = KeyValueCache(model.config, batch=3, capacity=12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = dict(model.logits(TOKENS, [3], H0))[3]
        assert whole.dtype == torch.bfloat16
        read(model, cache, slice(0, 5), [3])
        cache.advance([2, 5, 4])
        for _ in range(3):
            places, rows = cache.lengths.clone(), torch.arange(3)
            tokens, h0 = TOKENS[rows, places][:, None], H0[rows, places][:, None]
            logits = dict(model.logits(tokens, [3], h0, cache=cache.view(1)))[3]
            assert logits.dtype == torch.bfloat16
            torch.testing.assert_close(logits[:, 0], whole[rows, places], atol=0.1, rtol=0)
            cache.advance(1)
        (layer,) = cache.view(1).slots([0], 0)
        keys, values = layer.append(*torch.zeros(2, 3, 2, 1, 16, dtype=torch.bfloat16))
        assert keys.dtype == values.dtype == torch.bfloat16
    assert cache.slot(0, 0).dtype == torch.float32
    assert cache.nbytes == KeyValueCache.bytes_needed(model.config, [3], batch=3, tokens=12)


@each
@torch.no_grad()
def test_continuations_share_a_prefix(model):
    """What is computed for a prefix serves several continuations of each sequence, and is there again afterwards."""
    recurrences = recurrences_of(model)
    cache = KeyValueCache(model.config, batch=3, capacity=6 + 3 * 6)
    read(model, cache, slice(0, 6), recurrences)
    cache.advance(6)
    continuations = torch.randint(0, 256, (3, 3, 6), generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        view = cache.branches(3, 6)
        logits = dict(model.logits(continuations.flatten(1), recurrences, H0[:, 6:12].repeat(1, 3, 1), cache=view))
        for branch in range(3):
            texts = torch.cat((TOKENS[:, :6], continuations[:, branch]), dim=1)
            for recurrence, whole in model.logits(texts, recurrences, H0[:, :12]):
                of_branch = logits[recurrence][:, 6 * branch : 6 * branch + 6]
                torch.testing.assert_close(of_branch, whole[:, 6:], atol=1e-5, rtol=0)


def shared_loops_by_hand(model, recurrence):
    """The logits where the loops of a core layer share a slot: token by token, past keys are those of the last loop.

    A second model reads the whole text with T loops, and the keys and values of its last loop are put in place of
    those of each loop for the tokens before.
    """
    full = KeyValueCache(model.config, batch=1, capacity=12)
    logits = []
    for place in range(12):
        for layer in model.config.core:
            for loop in range(1, recurrence + 1):
                full.slot(layer, loop)[:, :, :, :place] = full.slot(layer, recurrence)[:, :, :, :place]
        at = slice(place, place + 1)
        logits.append(dict(model.logits(TOKENS[:1, at], [recurrence], H0[:1, at], cache=full.view(1)))[recurrence])
        full.advance(1)
    return torch.cat(logits, dim=1)


@each_looped
@torch.no_grad()
def test_shared_loops(model):
    """A prompt read at once is exact, and later tokens see the last loop's keys and values of the tokens before."""
    shared = KeyValueCache(model.config, batch=1, capacity=12, shared_loops=True)
    prompt = dict(model.logits(TOKENS[:1], [3], H0[:1], cache=shared.view(12)))[3]
    torch.testing.assert_close(prompt, dict(model.logits(TOKENS[:1], [3], H0[:1]))[3], atol=1e-5, rtol=0)
    assert shared.nbytes == KeyValueCache.bytes_needed(model.config, [3], batch=1, tokens=12, shared_loops=True)
    one_by_one = []
    for place in range(12):
        at = slice(place, place + 1)
        one_by_one.append(dict(model.logits(TOKENS[:1, at], [3], H0[:1, at], cache=shared.view(1)))[3])
        shared.advance(1)
    torch.testing.assert_close(torch.cat(one_by_one, dim=1), shared_loops_by_hand(model, 3), atol=1e-5, rtol=0)


def exits_by_hand(model, recurrence, tolerance):
    """Logits and loops of one sequence, token by token, that leaves the loop as soon as its state hardly changes."""
    cache = KeyValueCache(model.config, batch=1, capacity=12)
    logits, loops = [], []
    for place in range(12):
        at = slice(place, place + 1)
        states = []

        def keep(module, inputs, output, states=states):
            states.append(output)

        with model.core[-1].register_forward_hook(keep):
            by_loop = dict(model.logits(TOKENS[:1, at], range(1, recurrence + 1), H0[:1, at], cache=cache.view(1)))
        before, chosen = H0[:1, at], recurrence
        for loop, state in enumerate(states, start=1):
            if (state - before).norm() < tolerance * state.norm():
                chosen = loop
                break
            before = state
        for layer in model.config.core:  # loops that were left out have the latest keys and values
            for loop in range(chosen + 1, recurrence + 1):
                cache.slot(layer, loop)[:, :, :, at] = cache.slot(layer, chosen)[:, :, :, at]
        for layer in range(model.config.core.stop, model.config.layers):  # the coda has one slot for all exits
            for t in range(1, recurrence + 1):
                cache.slot(layer, t)[:, :, :, at] = cache.slot(layer, chosen)[:, :, :, at]
        logits.append(by_loop[chosen])
        loops.append(chosen)
        cache.advance(1)
    return torch.cat(logits, dim=1), loops


@pytest.mark.parametrize("shared_loops", [False, True])
@pytest.mark.parametrize(("model", "tolerance"), [("diagonal", 0.15), ("concat", 1.3)], indirect=["model"])
@torch.no_grad()
def test_early_exit_equals_each_sequence_alone(model, tolerance, shared_loops):
    """Sequences leave the loop one by one, and the batch gives what each gives alone; the first one also by hand."""
    recurrence = 6

    def run(rows):
        cache = KeyValueCache(model.config, batch=len(rows), capacity=12, shared_loops=shared_loops)
        logits, loops = [], []
        for place in range(12):
            at = slice(place, place + 1)
            states, ran = model.states_at_convergence(
                TOKENS[rows, at], recurrence, H0[rows, at], cache.view(1), tolerance
            )
            logits.append(model.logits_of(states))
            loops.append(ran)
            cache.advance(1)
        return torch.cat(logits, dim=1), torch.stack(loops, dim=1)

    logits, loops = run([0, 1, 2])
    assert len(loops.unique()) > 1, "all sequences left at the same loop, so this shows nothing"
    for row in range(3):
        alone, ran = run([row])
        torch.testing.assert_close(alone[0], logits[row], atol=1e-5, rtol=0)
        assert ran[0].tolist() == loops[row].tolist()
    if not shared_loops:
        by_hand, ran = exits_by_hand(model, recurrence, tolerance)
        torch.testing.assert_close(by_hand[0], logits[0], atol=1e-5, rtol=0)
        assert ran == loops[0].tolist()


def test_a_block_without_a_cache_is_refused():
    model = build("own")
    check_cache(model)
    without = lambda self, x, rotary, value_embedding, mask=None: x
    kind = type("Blind", (type(model.core[0]),), {"forward": without})
    model.core[0].__class__ = kind
    with pytest.raises(ValueError, match="no argument `cached`"):
        check_cache(model)
