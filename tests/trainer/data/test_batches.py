import time

import numpy as np
import pytest

from isoloop.trainer.data.batches import batch_windows, shuffle, validation_windows


def whole(n, seed=0, epoch=0):
    return shuffle(np.arange(n, dtype=np.int64), n, seed=seed, epoch=epoch)


@pytest.mark.parametrize("n", [*range(1, 70), 99, 100, 101, 1023, 1024, 1025, 65_537, 1_000_003])
def test_the_order_is_a_permutation(n):
    np.testing.assert_array_equal(np.sort(whole(n)), np.arange(n))


def test_orders_differ_by_seed_and_epoch():
    first = whole(10_000)
    for other in (whole(10_000, seed=1), whole(10_000, epoch=1)):
        assert (first == other).sum() < 10  # two random permutations agree in about 1 place
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.05


def test_neighbours_are_not_correlated():
    order = whole(100_000).astype(float)
    for lag in (1, 2, 316, 317, 318, 50_000):  # the base of the digits is 317
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.02, lag
    steps = np.abs(np.diff(order))
    assert steps.mean() == pytest.approx(100_000 / 3, rel=0.02)  # as of two uniform draws


def test_where_places_go_is_uniform():
    """Chi-square over 32 x 32 bins of (from, to); its mean is 961 and its deviation 44 for a random permutation."""
    order = whole(102_400)
    table = np.histogram2d(np.arange(len(order)), order, bins=32)[0]
    expected = len(order) / 32**2
    assert ((table - expected) ** 2 / expected).sum() == pytest.approx(961, abs=5 * 44)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_small_orders_are_uniform_over_seeds(n):
    """Each place goes everywhere equally often; the counts are binomial."""
    seeds = 1500
    counts = np.zeros((n, n))
    for seed in range(seeds):
        counts[np.arange(n), whole(n, seed=seed)] += 1
    assert (np.abs(counts / seeds - 1 / n) < 5 * np.sqrt(1 / n * (1 - 1 / n) / seeds)).all()


def test_far_along_costs_what_the_start_costs():
    n = 10**12 // 2048 * 2049
    places = np.arange(n - 256, n, dtype=np.int64)
    began = time.perf_counter()
    landed = shuffle(places, n, seed=0, epoch=10**6)
    assert time.perf_counter() - began < 0.5
    assert landed.min() >= 0
    assert landed.max() < n
    assert len(np.unique(landed)) == 256


def test_each_window_once_an_epoch(corpus):
    windows = corpus.train.count_windows(16)
    batch = 7
    seen = [batch_windows(corpus, context=16, batch=batch, seed=0, step=s) for s in range(windows // batch + 1)]
    every = corpus.train.windows(np.arange(windows), 16)
    assert sorted(map(bytes, np.concatenate(seen)[:windows])) == sorted(map(bytes, every))


def test_a_batch_is_a_function_of_seed_and_step(corpus):
    def take(seed, step):
        return batch_windows(corpus, context=16, batch=4, seed=seed, step=step)

    np.testing.assert_array_equal(take(0, 5), take(0, 5))
    assert (take(0, 5) != take(1, 5)).any()
    assert take(0, 10**7).shape == (4, 17)  # many epochs later, at once


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_together_read_the_global_batch(corpus, ranks, monkeypatch):
    windows = corpus.train.count_windows(16)
    batch = 10
    step = windows // batch  # reaches into the second epoch
    assert windows % batch
    together = batch_windows(corpus, context=16, batch=batch, seed=3, step=step)
    read = []
    take = corpus.train.windows
    monkeypatch.setattr(
        corpus.train, "windows", lambda chosen, context: read.append(len(chosen)) or take(chosen, context)
    )
    for rank in range(ranks):
        rows = range(rank, batch, ranks)
        mine = batch_windows(corpus, context=16, batch=batch, seed=3, step=step, rows=rows)
        np.testing.assert_array_equal(mine, together[rank::ranks])
    assert sum(read) == batch


def test_rows_outside_the_batch_are_refused(corpus):
    for rows in ([4], [-1]):
        with pytest.raises(ValueError, match="rows must be places in the batch, 0 to 3"):
            batch_windows(corpus, context=16, batch=4, seed=0, step=0, rows=rows)


def test_validation_is_fixed_and_spread(corpus):
    windows = validation_windows(corpus, context=16, sequences=5)
    np.testing.assert_array_equal(windows, validation_windows(corpus, context=16, sequences=5))
    last = (corpus.validation.count_windows(16) - 1) * 16
    np.testing.assert_array_equal(windows[-1], corpus.validation.read(last, last + 17))
