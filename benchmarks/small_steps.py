"""Benchmark of a training step at the demo's width, where most time goes into starting small operations.

Three choices against the plain way: Muon's matrices stacked by shape against one after the other, pairs of rotary
channels as complex numbers against products of real ones, and the MLP's activation as one function against torch's own
gradient of its parts. The weights must stay the same to the bit.
"""

import time
from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from benchmarks.measure import Row, side_by_side
from isoloop.trainer.config import ModelConfig, OptimizerConfig, RecurrenceConfig
from isoloop.trainer.model.build import build_model
from isoloop.trainer.model.layers import MLP, Rotary
from isoloop.trainer.optim import make_optimizers, split_parameters
from isoloop.trainer.recurrence import sample_recurrences

DEMO = ModelConfig(width=24, heads=1, context=32, state_init="zero")
OPTIMIZER = OptimizerConfig(learning_rate=0.01, muon_learning_rate=0.04)
SEQUENCES = 64
PAIRS = 60
MEAN = 4


class PlainRotary(Rotary):
    """The rotary embedding in products of real numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """Rotate x [batch, tokens, heads, head_width]."""
        cos, sin = self.rotation[: x.shape[1]].unbind(-1)
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class PlainMLP(MLP):
    """The MLP in torch's functions."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., width] to [..., width]."""
        return self.down(0.5 * F.relu(self.up(x)).square())


class Trial:
    """The demo's model and its optimizers; parts in `plain` are taken in the plain way."""

    def __init__(self, mean: int, plain: Collection[str] = ()) -> None:
        self.recurrence = RecurrenceConfig(mean=mean)
        self.model = build_model(DEMO)
        if "rotary" in plain:
            self.model.rotary = PlainRotary(DEMO.head_width, DEMO.context, DEMO.rotary_base)
        if "activation" in plain:
            for block in (*self.model.prelude, *self.model.core, *self.model.coda):
                block.mlp = PlainMLP(DEMO.width)
        self.model.initialise(0)
        self.optimizers = make_optimizers(self.model, OPTIMIZER)
        if "Muon" in plain:
            self.optimizers[0] = torch.optim.Muon(
                split_parameters(self.model)[0],
                lr=OPTIMIZER.matrix_learning_rate,
                momentum=OPTIMIZER.muon_momentum,
                weight_decay=OPTIMIZER.muon_weight_decay,
                adjust_lr_fn="original",
            )

    def step(self, number: int) -> None:
        """Run one step on random tokens, as the training loop does."""
        loops = sample_recurrences(self.recurrence, batch=SEQUENCES, seed=1, step=number, steps=PAIRS)
        generator = torch.Generator().manual_seed(number)
        windows = torch.randint(0, DEMO.vocabulary, (SEQUENCES, DEMO.context + 1), generator=generator)
        h0 = self.model.initial_state(range(SEQUENCES), DEMO.context)
        descending = torch.from_numpy(loops).sort(descending=True).values
        loss = self.model.loss(windows[:, :-1], windows[:, 1:], descending, self.recurrence.gradient_loops, h0)
        loss.nats.backward()
        clip_grad_norm_(self.model.parameters(), OPTIMIZER.gradient_clip).item()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def run() -> list[Row]:
    """Measure whole steps on one thread of the CPU; no rows where the device is a GPU."""
    if torch.cuda.is_available():
        return []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for name, plain, wanted in (
        ("Muon's matrices one by one / stacked", ["Muon"], "1.15x"),
        ("rotary pairs real / complex", ["rotary"], "1.10x"),
        ("activation's gradient by parts / as one function", ["activation"], ""),
        ("all three", ["Muon", "rotary", "activation"], "1.24x"),
    ):
        slow, fast = Trial(MEAN, plain), Trial(MEAN)
        ratio = side_by_side(slow.step, fast.step, pairs=PAIRS, clock=time.thread_time)
        theirs = slow.model.state_dict()
        same = all(torch.equal(weight, theirs[key]) for key, weight in fast.model.state_dict().items())
        bits = f"weights after {PAIRS + 1} steps {'equal to the bit' if same else 'differ'}"
        rows.append(Row(name=f"{name}; demo's step, µ = {MEAN}, CPU time", result=f"{ratio}; {bits}", wanted=wanted))
    torch.set_num_threads(threads)
    return rows
