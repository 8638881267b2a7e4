"""Run tables as people have them: dense models, and looped ones with FLOPs of their owner's own count."""

import numpy as np
import pandas as pd

from isoloop.fitting import ChinchillaLaw, simulate_table

BUDGETS = (6e18, 1.2e19, 2.4e19, 4.8e19)
CHINCHILLA = np.array([1.69, 406.4, 410.7, 0.34, 0.28])
"""E, A, B, alpha, beta as Hoffmann et al. 2022 found them."""
FACTOR = 1.07
"""FLOPs that the owner counts, by those of our accounting."""


def dense_table(*, budgets=BUDGETS, seed=0, above=0.0, noise=1e-3):
    """Dense models: params, tokens, flops and loss on an isoFLOP grid, `above` nats over Chinchilla's law."""
    best = np.sqrt(np.array(budgets) / 6 / 20)
    params = (best[:, None] * np.geomspace(0.25, 4, 7)).ravel()
    flops = np.repeat(budgets, 7)
    data = {"params": params, "tokens": flops / 6 / params}
    loss = ChinchillaLaw().loss(CHINCHILLA, data) + above
    scatter = np.exp(np.random.default_rng(seed).normal(0, noise, len(loss)))
    return pd.DataFrame({**data, "flops": flops, "loss": loss * scatter})


def own_flops_table(*, budgets=BUDGETS, seed=0, factor=FACTOR):
    """Looped models: run_id, mean_recurrence, tokens, flops and loss, without cost model and effective parameters."""
    table = simulate_table(budgets=budgets, mean_recurrences=(1, 2, 4, 8, 16), recurrences=(), seed=seed)
    own = table[["run_id", "mean_recurrence", "tokens", "flops", "loss"]]
    return own.assign(flops=own["flops"] * factor)
