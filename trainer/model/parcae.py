"""The looped language model of Parcae (Prairie et al. 2026, arXiv:2604.12946): prelude, loop, coda.

e       = norm(P(tokens))
h_0     ~ N(0, sigma^2)
h_{t+1} = R(Ā h_t + B̄ e)          t = 0 .. T-1
logits  = head(norm(C(W_C h_T)))
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isoloop.trainer.config import ModelConfig
from isoloop.trainer.model.cache import CacheView
from isoloop.trainer.model.cast import SharedCast
from isoloop.trainer.model.injection import ConcatInjection, make_injection
from isoloop.trainer.model.language_model import LanguageModel, StepLoss, mask_of
from isoloop.trainer.model.layers import RMSNorm, init_matrix, truncated_normal


class _FinalState(NamedTuple):
    """Final state h_T of each sequence, and per token the norms of h_T and of h_T - h_{T-1}."""

    h: Tensor
    norm: Tensor
    change: Tensor


@final
class Parcae(LanguageModel):
    """A looped transformer. With `recompute_loops` each loop is run again in the backward pass, from its kept input."""

    def __init__(self, config: ModelConfig, *, recompute_loops: bool = False) -> None:
        assert config.is_looped, "the fixed-depth model is a Transformer"
        super().__init__(config)
        d = config.width
        self.recompute_loops = recompute_loops
        self.prelude_norm = RMSNorm(d, config.norm_eps) if config.prelude_norm else nn.Identity()
        self.injection = make_injection(config)
        self.state_to_width = nn.Linear(d, d, bias=False)  # W_C

    def _initialise_own(self, std: float, generator: torch.Generator) -> None:
        self.injection.initialise(std, generator)
        nn.init.eye_(self.state_to_width.weight)

    def _redraw_as_released(self, std: float, generator: torch.Generator) -> None:
        super()._redraw_as_released(std, generator)
        init_matrix(self.state_to_width.weight, std, generator)  # an orthogonal matrix x sqrt(2 / 5)
        if isinstance(self.injection, ConcatInjection):
            truncated_normal(self.injection.weight, std, generator)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        loops: Tensor,
        gradient_loops: int,
        h0: Tensor,
        separator: int | None = None,
        predicted: Tensor | None = None,
    ) -> StepLoss:
        """Compute the loss of one training step.

        Sequence i runs loops[i] >= 1 loops, the last min(loops[i], gradient_loops) of them with gradient, and then
        leaves the batch, so that only loops that count are computed.
        """
        h = h0
        if (loops.diff() > 0).any():
            order = torch.argsort(loops, descending=True, stable=True)
            rows = order.to(tokens.device)
            loops, tokens, targets, h = loops[order], tokens[rows], targets[rows], h[rows]
            predicted = None if predicted is None else predicted[rows]
        with_gradient = loops.clamp(max=gradient_loops)
        mask = mask_of(tokens, separator)
        drive, values = self._before_loop(tokens, mask)
        with torch.no_grad():
            constants = {layer: value.detach() for layer, value in values.items()}
            h = self._loop(h, drive.detach(), constants, loops - with_gradient, mask).h
        final = self._loop(h, drive, values, with_gradient, mask)
        nats = self.cross_entropy(self._after_loop(final.h, values, mask), targets, predicted)
        return StepLoss(nats, final.norm.mean(), (final.change / final.norm).mean())

    def final_states(
        self,
        tokens: Tensor,
        recurrences: Sequence[int],
        h0: Tensor,
        separator: int | None = None,
        cache: CacheView | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (T, normed final states [batch, tokens, width]) for each T of `recurrences`, ascending, in one pass."""
        mask = mask_of(tokens, separator, cache)
        drive, values = self._before_loop(tokens, mask, cache)
        h = h0
        for recurrence in range(1, max(recurrences) + 1):
            h = self._one_loop(h, drive, values, mask, cache, recurrence)
            if recurrence in recurrences:
                yield recurrence, self._after_loop(h, values, mask, cache, recurrence)

    def states_at_convergence(
        self, tokens: Tensor, recurrence: int, h0: Tensor, cache: CacheView, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """Run each sequence until its last token's state changes by less than `tolerance`, at most `recurrence` loops.

        The change is |h_{t+1} - h_t| / |h_{t+1}| (as in the code of Geiping et al. 2025). A sequence then leaves the
        batch, and the loops that it doesn't run get the keys and values of its last one.

        Returns:
            Normed final states [batch, tokens, width], and the loops that each sequence ran, [batch], on the CPU.
        """
        mask = mask_of(tokens, None, cache)
        drive, values = self._before_loop(tokens, mask, cache)
        final, loops = h0.clone(), torch.full((len(tokens),), recurrence)
        rows, running, h = torch.arange(len(tokens)), cache, h0
        for loop in range(1, recurrence + 1):
            here = rows.to(h.device)
            own = {layer: value[here] for layer, value in values.items()}
            new = self._one_loop(h, drive[here], own, running.mask(), running, loop)
            norm, change = (torch.linalg.vector_norm(x[:, -1], dim=-1, dtype=torch.float32) for x in (new, new - h))
            has_ended = (
                (change < tolerance * norm).cpu() if loop < recurrence else torch.ones(len(rows), dtype=torch.bool)
            )
            if has_ended.any():
                ended = has_ended.to(h.device)
                final[here[ended]], loops[rows[has_ended]] = new[ended], loop
                for layer in self.config.core:
                    running.select(has_ended).copy_loop(layer, loop, range(loop + 1, recurrence + 1))
                if has_ended.all():
                    break
                rows, running, h = rows[~has_ended], running.select(~has_ended), new[~ended]
            else:
                h = new
        return self._after_loop(final, values, mask, cache, recurrence), loops

    def spectral_radius(self) -> float:
        """Return ρ(Ā)."""
        return self.injection.spectral_radius()

    def radius_on_device(self) -> Tensor | None:
        """Return ρ(Ā) as a scalar tensor, without a wait for the device; None without a loop or such a way."""
        return self.injection.radius_on_device()

    def _before_loop(
        self, tokens: Tensor, mask: Tensor | None = None, cache: CacheView | None = None
    ) -> tuple[Tensor, dict[int, SharedCast]]:
        """Run the prelude and its norm; return B̄ e, which enters every loop, and each layer's value embeddings."""
        first = self.config.core.start
        values = self._value_embeddings(tokens, range(first))
        x = self._run(self.prelude, 0, self._embedded(tokens), values, mask, cache)
        values |= self._value_embeddings(tokens, range(first, self.config.layers))
        return self.injection.drive(self.prelude_norm(x)), values

    def _one_loop(
        self,
        h: Tensor,
        drive: Tensor,
        values: dict[int, SharedCast],
        mask: Tensor | None = None,
        cache: CacheView | None = None,
        loop: int = 0,
    ) -> Tensor:
        """Run one loop, R(Ā h + B̄ e), of the first len(h) sequences; `loop`, from 1, is its number in a cache."""
        values = {layer: value[: len(h)] for layer, value in values.items()}
        mask = None if mask is None else mask[: len(h)]
        h = self.injection.inject(h, drive[: len(h)])
        return self._run(self.core, self.config.core.start, h, values, mask, cache, loop)

    def _loop(
        self, h: Tensor, drive: Tensor, values: dict[int, SharedCast], loops: Tensor, mask: Tensor | None
    ) -> _FinalState:
        """Run loops[i] loops of sequence i; `loops` is descending, so the first sequences are still running."""
        values = {layer: value for layer, value in values.items() if layer in self.config.core}
        done: list[_FinalState] = []
        before = h
        for t in range(int(loops[0]) + 1):
            running = int((loops > t).sum())
            if running < len(h):
                done.append(_final_state(h[running:], before[running:]))
                h = h[:running]
            if not running:
                break
            before = h
            if self.recompute_loops and torch.is_grad_enabled():
                h = checkpoint(self._one_loop, h, drive, values, mask, use_reentrant=False, preserve_rng_state=False)
            else:
                h = self._one_loop(h, drive, values, mask)
        return _FinalState(*map(torch.cat, zip(*done[::-1], strict=True)))

    def _after_loop(
        self,
        h: Tensor,
        values: dict[int, SharedCast],
        mask: Tensor | None = None,
        cache: CacheView | None = None,
        recurrence: int = 0,
    ) -> Tensor:
        """Run W_C, coda and final norm; return [batch, tokens, width]. `recurrence` is the coda's place in a cache."""
        h = self.final_norm(h) if self.config.loop_norm else h
        x = self.state_to_width(h).to(h.dtype)
        return self.final_norm(self._run(self.coda, self.config.core.stop, x, values, mask, cache, recurrence))


def _final_state(h: Tensor, before: Tensor) -> _FinalState:
    with torch.no_grad():
        norm = torch.linalg.vector_norm(h.detach(), dim=-1, dtype=torch.float32)
        change = torch.linalg.vector_norm(h.detach() - before.detach(), dim=-1, dtype=torch.float32)
    return _FinalState(h, norm, change)
