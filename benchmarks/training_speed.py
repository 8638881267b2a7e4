"""Benchmarks of training steps: compiled or not, loops recomputed or kept; on a GPU, tokens per second.

`python -m benchmarks.training_speed` alone measures the published sizes on a GPU: 140m and 370m, µ = 1 and 8, bfloat16.
"""

import argparse
import itertools
import time

import torch
from torch.optim import Optimizer

from benchmarks.measure import Row, device, machine, peak_bytes, side_by_side
from isoloop.trainer.accounting import loop_cost
from isoloop.trainer.config import SIZES, ModelConfig, OptimizerConfig, RecurrenceConfig
from isoloop.trainer.model.build import build_model, compile_blocks
from isoloop.trainer.model.language_model import LanguageModel
from isoloop.trainer.optim import make_optimizers
from isoloop.trainer.recurrence import sample_recurrences
from isoloop.trainer.run.telemetry import matrix_rate

SMALL = ModelConfig(width=256, heads=2, prelude_layers=2, core_layers=2, coda_layers=2, context=128)
SEQUENCES = 16
STEPS = 30


class Trial:
    """A model with its optimizers, to run single training steps."""

    def __init__(
        self, config: ModelConfig, mean: int, *, compiled: bool = False, recompute_loops: bool = False
    ) -> None:
        self.config, self.recurrence, self.device = config, RecurrenceConfig(mean=mean), device()
        self.model: LanguageModel = build_model(config, recompute_loops=recompute_loops)
        self.model.initialise(0)
        self.model.to(self.device)
        self.optimizers: list[Optimizer] = make_optimizers(self.model, OptimizerConfig(learning_rate=1e-5))
        if compiled:
            compile_blocks(self.model)

    def step(self, number: int, sequences: int = SEQUENCES) -> tuple[float, float]:
        """Run one step on random tokens; return mean loops, forward and with gradient."""
        loops = sample_recurrences(self.recurrence, batch=sequences, seed=1, step=number, steps=STEPS)
        generator = torch.Generator().manual_seed(number)
        shape = sequences, self.config.context + 1
        windows = torch.randint(0, self.config.vocabulary, shape, generator=generator).to(self.device)
        depth = self.recurrence.gradient_loops
        h0 = self.model.initial_state(range(sequences), self.config.context)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.model.loss(windows[:, :-1], windows[:, 1:], torch.from_numpy(loops), depth, h0)
        loss.nats.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return float(loops.mean()), float(loops.clip(max=depth).mean())


def run() -> list[Row]:
    """Measure ratios at a small size, on any machine."""
    config = SIZES["140m"].model_copy(update={"context": 1024}) if device() == "cuda" else SMALL
    plain, compiled = Trial(config, 8), Trial(config, 8, compiled=True)
    for number in range(8):  # batches of many sizes, so that all graphs are compiled before the measurement
        compiled.step(number, sequences=SEQUENCES if number % 2 else 3)
    ratio = side_by_side(plain.step, compiled.step, pairs=9)
    recomputing = Trial(config, 8, recompute_loops=True)
    slower = side_by_side(recomputing.step, plain.step, pairs=7)
    kept, again = (peak_bytes(lambda trial=trial: trial.step(0)) for trial in (plain, recomputing))
    shape = f"width {config.width}, context {config.context}, µ = 8, {SEQUENCES} sequences"
    return [
        Row(name=f"plain / compiled training step; {shape}", result=str(ratio)),
        Row(name="recomputed / kept loops, time", result=str(slower)),
        Row(
            name="kept / recomputed loops, peak memory of a step",
            result=f"{kept / again:.1f}x ({kept / 2**20:.0f} MiB against {again / 2**20:.0f} MiB)",
        ),
    ]


def speed(size: str, mean: int, *, compiled: bool, sequences: int) -> dict[str, object]:
    """Measure tokens per second and utilisation of `size` on this GPU, in bfloat16, over `STEPS` steps."""
    config = SIZES[size]
    trial = Trial(config, mean, compiled=compiled)
    for number in range(STEPS):
        trial.step(number, sequences)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    loops = [trial.step(number, sequences) for number in range(STEPS)]
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    forward, backward = (sum(pair[i] for pair in loops) / STEPS for i in range(2))
    tokens = STEPS * sequences * config.context
    flops = tokens * loop_cost(config, "exact").flops_per_token(forward, backward)
    return {
        "size": size,
        "µ": mean,
        "compiled": compiled,
        "sequences": sequences,
        "tokens/s": f"{tokens / seconds:,.0f}",
        "TFLOP/s": f"{flops / seconds / 1e12:.0f}",
        "utilisation": f"{flops / seconds / matrix_rate('cuda', torch.bfloat16):.1%}",
        "GiB": f"{torch.cuda.max_memory_allocated() / 2**30:.0f}",
    }


def main() -> None:
    """Print the GPU table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["140m", "370m"], choices=sorted(SIZES))
    parser.add_argument("--sequences", type=int, default=32, help="sequences of one step")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this table needs a GPU, but torch finds none; run `python -m benchmarks` for a CPU")
    rate = matrix_rate("cuda", torch.bfloat16)
    print(f"{machine()}; measured bf16 matrix rate {rate / 1e12:.0f} TFLOP/s")
    for i, (size, mean, compiled) in enumerate(itertools.product(options.sizes, (1, 8), (False, True))):
        row = speed(size, mean, compiled=compiled, sequences=options.sequences)
        if i == 0:
            print("| " + " | ".join(row) + " |\n" + "| --- " * len(row) + "|")
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)


if __name__ == "__main__":
    main()
