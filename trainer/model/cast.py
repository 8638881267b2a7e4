"""Casts to the type of autocast's matrix products, each made once for all uses of a tensor.

Autocast itself keeps the copies of weights only, and casts any other tensor again at every use.
"""

from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class SharedCast:
    """A tensor in the type of autocast's matrix products, or, without autocast, as it is; for several uses.

    The gradient of each use is cast to the tensor's own type, and the gradients are summed there, as if each use had a
    cast of its own. The tensor itself isn't kept.
    """

    def __init__(self, x: Tensor) -> None:
        self._gradients: Tensor | None = None  # what the uses' gradients flow into
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if x.dtype == dtype:
            self._copy = x
        elif torch.is_grad_enabled() and x.requires_grad:
            self._copy, self._gradients = _Cast.apply(x, dtype)
        else:
            self._copy = x.to(dtype)

    def use(self) -> Tensor:
        """Return the tensor for one use."""
        return self._copy if self._gradients is None else _Use.apply(self._copy, self._gradients)

    def detach(self) -> Self:
        """Return the tensor without gradient."""
        return self._with(self._copy.detach(), None)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Return some of its rows."""
        return self._with(self._copy[rows], None if self._gradients is None else self._gradients[rows])

    def _with(self, copy: Tensor, gradients: Tensor | None) -> Self:
        other = object.__new__(type(self))
        other._copy, other._gradients = copy, gradients
        return other


class _Cast(torch.autograd.Function):
    """The copy, without gradient, and a tensor of the original's shape and type, without memory, which has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        copy = x.to(dtype)
        ctx.mark_non_differentiable(copy)
        ctx.set_materialize_grads(False)
        return copy, x.new_empty(()).expand(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        return gradient, None


class _Use(torch.autograd.Function):
    """The copy, whose gradient becomes that of the tensor without memory."""

    @staticmethod
    def forward(ctx: Any, copy: Tensor, gradients: Tensor) -> Tensor:
        ctx.dtype = gradients.dtype
        return copy.view_as(copy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient.to(ctx.dtype)
