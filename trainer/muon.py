"""Muon: steepest descent on orthogonalised momentum (Jordan et al. 2024), in two variants.

All matrices of one shape are stacked into [matrices, rows, columns] and share one update. At small widths most of a
step would otherwise go into starting small operations.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, final, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Five steps X <- a X + (b A + c A^2) X with A = X X^T of Newton-Schulz (Jordan et al. 2024), all alike, ...
NEWTON_SCHULZ = ((3.4445, -4.775, 2.0315),) * 5
# ... and of Polar Express (Amsel et al. 2025, arXiv:2505.16932), as the release of Parcae has them.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
VARIANCE_DECAY = 0.95
_TINY = 1e-10


# Computes a function of stacked matrices, which treats them one by one, for the matrices given.
ShareMatrices = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def compute_alone(function: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """Return function(matrices), all computed by this process."""
    return function(matrices)


class _Stack(NamedTuple):
    """Matrices of one shape, and their optimizer state by name, stacked."""

    matrices: list[Tensor]
    state: dict[str, Tensor]


class Muon(Optimizer, ABC):
    """Base class: momentum and stacks. The learning rate is x sqrt(max(1, rows / columns)).

    The state of a matrix is its row of the stacked state, so that checkpoints have an entry for each matrix.

    Args:
        matrices: two-dimensional parameters.
        rate: learning rate.
        momentum: µ; momentum m <- µ m + (1 - µ) g, and (1 - µ) g + µ m is orthogonalised (Nesterov).
        weight_decay: decoupled decay, x the learning rate.
        dtype: type of the numbers in which matrices are orthogonalised.
        share: `Ranks.share_rows` where several processes orthogonalise a part each; by default this one does all.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        *,
        rate: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.bfloat16,
        share: ShareMatrices = compute_alone,
    ) -> None:
        super().__init__(matrices, {"lr": rate, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        self.share = share
        self._stacks: dict[torch.Size, _Stack] = {}

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all matrices that have a gradient."""
        assert closure is None, "the training loop computes gradients itself"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                stack = self._stack(shape, matrices)
                gradient = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
                momentum = stack.state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
                self._apply(stack, gradient.lerp_(momentum, group["momentum"]), group)
        return None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of each matrix, also that of torch's own class, which older checkpoints hold."""
        super().load_state_dict(state_dict)
        self._stacks.clear()

    def _stack(self, shape: torch.Size, matrices: list[Tensor]) -> _Stack:
        """Return the stack of these matrices, made from their own states if it isn't there."""
        stack = self._stacks.get(shape)
        if stack is None or list(map(id, stack.matrices)) != list(map(id, matrices)):
            stacked: dict[str, Tensor] = {}
            for name, empty in self._empty_state(matrices[0]).items():
                stacked[name] = torch.stack([self.state[matrix].get(name, empty) for matrix in matrices])
                for matrix, row in zip(matrices, stacked[name], strict=True):
                    self.state[matrix][name] = row
            stack = self._stacks[shape] = _Stack(matrices, stacked)
        return stack

    def _orthogonalised(
        self, update: Tensor, coefficients: Iterable[tuple[float, float, float]], divisor: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return what `orthogonalise` does with a stack of any shape, in the stack's own type."""
        is_tall = update.shape[-2] > update.shape[-1]

        def one_by_one(matrices: Tensor) -> Tensor:
            return orthogonalise(matrices, coefficients, self.dtype, divisor)

        x = self.share(one_by_one, update.mT if is_tall else update)
        return (x.mT if is_tall else x).to(update.dtype)

    def _empty_state(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return the state of a matrix before its first update."""
        return {"momentum_buffer": torch.zeros_like(matrix)}

    @abstractmethod
    def _apply(self, stack: _Stack, update: Tensor, group: dict[str, Any]) -> None:
        """Orthogonalise `update` [matrices, rows, columns] and subtract it from the matrices."""


@final
class TorchMuon(Muon):
    """Muon as `torch.optim.Muon` with `adjust_lr_fn="original"` computes it, one matrix after the other, to the bit."""

    def _apply(self, stack: _Stack, update: Tensor, group: dict[str, Any]) -> None:
        x = self._orthogonalised(update, NEWTON_SCHULZ, lambda norm: norm.clamp(min=1e-7))
        torch._foreach_mul_(stack.matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(stack.matrices, x.unbind(), alpha=-group["lr"] * _shape_factor(x))


@final
class ReleasedMuon(Muon):
    """Muon as the release of Parcae has it: Polar Express, NorMuon's variance and cautious weight decay.

    The mean square of each row of the orthogonalised update (of each column, if there are more of them) is averaged
    over the steps with `VARIANCE_DECAY`. Each row is divided by its root, and the matrix scaled back to its Frobenius
    norm (NorMuon, Li et al. 2025, arXiv:2510.05491). Entries decay only where the update shrinks them (Chen et al.
    2025, arXiv:2510.12402); their decay, too, has the learning rate of the matrix's shape. All but the
    orthogonalisation is in the parameters' own precision, where the release rounds rate and update to bfloat16.
    """

    def _empty_state(self, matrix: Tensor) -> dict[str, Tensor]:
        shape = _factor_shape(matrix)
        return {**super()._empty_state(matrix), "mean_square": matrix.new_zeros(shape)}

    def _apply(self, stack: _Stack, update: Tensor, group: dict[str, Any]) -> None:
        x = self._orthogonalised(update, POLAR_EXPRESS, lambda norm: 1.02 * norm + 1e-6)

        # NorMuon: each row, or column, divided by its root mean square over the steps
        square = x.square().mean(dim=-1 if _factor_shape(x)[-1] == 1 else -2, keepdim=True)
        mean_square = stack.state["mean_square"].lerp_(square, 1 - VARIANCE_DECAY)
        factor = mean_square.clamp(min=_TINY).rsqrt()
        norm = square.sum(dim=(-2, -1), keepdim=True).sqrt()
        new_norm = (square * factor.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
        x *= factor * (norm / new_norm.clamp(min=_TINY))

        # Cautious weight decay
        weights = torch.stack(stack.matrices)
        x.addcmul_(weights, (x * weights >= 0).to(x.dtype), value=group["weight_decay"])
        torch._foreach_add_(stack.matrices, x.unbind(), alpha=-group["lr"] * _shape_factor(x))


def orthogonalise(
    matrices: Tensor,
    coefficients: Iterable[tuple[float, float, float]],
    dtype: torch.dtype,
    divisor: Callable[[Tensor], Tensor],
) -> Tensor:
    """Move the singular values of stacked matrices [matrices, rows, columns] towards 1; the result is of type `dtype`.

    Args:
        matrices: the stack; not more rows than columns.
        coefficients: (a, b, c) of each step X <- a X + (b A + c A^2) X, with A = X X^T.
        dtype: type of the numbers to compute with.
        divisor: the number by which a matrix of a given Frobenius norm is divided first; both [matrices, 1, 1].
    """
    x = matrices.to(dtype)
    x = x / divisor(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True))
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _factor_shape(matrix: Tensor) -> tuple[int, int]:
    """Return the shape of NorMuon's factors: one per row, or per column if there are more of them."""
    rows, columns = matrix.shape[-2:]
    return (rows, 1) if rows >= columns else (1, columns)


def _shape_factor(matrix: Tensor) -> float:
    return math.sqrt(max(1.0, matrix.shape[-2] / matrix.shape[-1]))
