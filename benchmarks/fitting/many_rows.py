"""Time that `isoloop fit` and `choose` take for tables of 100,000 rows: python -m benchmarks.fitting.many_rows."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from isoloop.fitting import ChinchillaLaw, UnifiedLaw, published_cost_model

ROWS = 100_000
_NOISE = 1e-3
_CHINCHILLA = np.array([1.8, 482.0, 2085.0, 0.35, 0.37])
_UNIFIED = np.array([2.28, 32.3, 34.65, 0.84, 0.26, 0.19, 4.0])


def large_tables() -> dict[str, pd.DataFrame]:
    """Return tables of 100,000 rows: dense, looped, looped with losses at several T, logs of runs, and no numbers."""
    rng = np.random.default_rng(0)

    def noisy(loss: np.ndarray) -> np.ndarray:
        return np.asarray(loss * np.exp(rng.normal(0, _NOISE, ROWS)))

    budget = rng.choice([1e19, 3e19, 1e20, 3e20, 1e21], ROWS)
    params = np.sqrt(budget / 120) * np.exp(rng.uniform(-1.4, 1.4, ROWS))
    model = {"params": params, "tokens": budget / 6 / params}
    dense = pd.DataFrame({**model, "flops": budget, "loss": noisy(ChinchillaLaw().loss(_CHINCHILLA, model))})
    budget, mu = rng.choice([1e18, 4e18, 16e18, 64e18], ROWS), rng.choice([1.0, 2, 4, 6, 8, 12], ROWS)
    cost = published_cost_model()
    model = cost.model_columns(mu, cost.tokens_for(budget, mu))

    def loss_at(recurrence: np.ndarray) -> np.ndarray:
        return noisy(UnifiedLaw().loss(_UNIFIED, {**model, "recurrence": recurrence}))

    looped = pd.DataFrame({"mu": mu, "D": model["tokens"], "C": budget, "loss": loss_at(mu)})
    shape = {"params_once": cost.effective_params_fixed, "params_recurrent": cost.effective_params_per_loop}
    several = looped.assign(**shape, **{f"loss_T{T}": loss_at(np.full(ROWS, float(T))) for T in (1, 4, 8, 16)})
    history = looped.head(100).loc[lambda runs: runs.index.repeat(ROWS // 100)].reset_index(names="run")
    history["step"] = np.tile(np.arange(ROWS // 100), 100)
    history["loss"] += 5 / (1 + history["step"])
    return {
        "dense": dense,
        "looped": looped,
        "looped, several T": several,
        "logs of 100 runs": history,
        "repeated run ids": history.drop(columns="step"),
        "no number": looped.assign(loss="text"),
    }


def main() -> None:
    """Print the wall time of each command for each table, and its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        for name, table in large_tables().items():
            path = Path(folder) / f"{name.replace(', ', '-').replace(' ', '-')}.csv"
            table.to_csv(path, index=False)
            for command in ("fit", "choose"):
                start = time.perf_counter()
                arguments = [sys.executable, "-m", "isoloop.sweeps.cli.main", command, path.name]
                done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
                seconds = time.perf_counter() - start
                outcome = "answered" if not done.returncode else done.stderr.strip().splitlines()[0][:100]
                print(f"{seconds:6.1f} s  {command:7} {name:18} {outcome}", flush=True)


if __name__ == "__main__":
    main()
