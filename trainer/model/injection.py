"""Injections of the prelude's output e into the loop: h <- Ā h + B̄ e.

`Injection` is the contract. An injection of the user's own is a subclass in a file of its own, whose `cost(width)`
returns an `InjectionCost` (docs/trainer.md shows one).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoloop.trainer.config import ModelConfig, import_class
from isoloop.trainer.model.layers import init_matrix


class Injection(nn.Module, ABC):
    """Contract of an injection, which is made from the width of h and e."""

    @abstractmethod
    def drive(self, e: Tensor) -> Tensor:
        """Return B̄ e for e [batch, tokens, width], the same at every loop."""

    @abstractmethod
    def inject(self, h: Tensor, drive: Tensor) -> Tensor:
        """Return Ā h + drive for h and drive [batch, tokens, width]."""

    @abstractmethod
    def spectral_radius(self) -> float:
        """Return ρ(Ā), the largest absolute eigenvalue of the state-transition matrix; NaN if Ā isn't finite."""

    def radius_on_device(self) -> Tensor | None:
        """Return ρ(Ā) as a scalar tensor, without a wait for the device; None if only `spectral_radius` gives it."""
        return None

    @abstractmethod
    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw the random parameters from `generator`; `std` is the standard deviation of the other matrices."""


@final
class DiagonalInjection(Injection):
    """Parcae's injection: Ā = exp(-softplus(dt) exp(A_log)) per channel, B̄ = softplus(dt) B. ρ(Ā) < 1 always.

    At initialisation A_log = 0, Ā = sqrt(1/5) and B is the identity (Parcae, arXiv:2604.12946).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        step = -math.log(math.sqrt(1 / 5))  # softplus(dt) = -log(Ā) while A_log = 0
        self.A_log = nn.Parameter(torch.zeros(width))
        self.dt = nn.Parameter(torch.full((width,), math.log(math.expm1(step))))
        self.B = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.B.weight)

    def decay(self) -> Tensor:
        """Return Ā, shape [width], in float32."""
        return torch.exp(-F.softplus(self.dt) * torch.exp(self.A_log))

    def drive(self, e: Tensor) -> Tensor:
        """Return softplus(dt) * (B e) for e [batch, tokens, width]."""
        return (F.softplus(self.dt) * self.B(e)).to(e.dtype)

    def inject(self, h: Tensor, drive: Tensor) -> Tensor:
        """Return Ā h + drive for h and drive [batch, tokens, width]."""
        return (self.decay() * h + drive).to(drive.dtype)

    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw nothing."""

    def spectral_radius(self) -> float:
        """Return the largest entry of Ā."""
        return self.radius_on_device().item()

    @torch.no_grad()
    def radius_on_device(self) -> Tensor:
        """Return the largest entry of Ā."""
        return self.decay().max()


@final
class ConcatInjection(Injection):
    """RDM's injection (Geiping et al. 2025): a linear map on [h; e], with left half Ā and right half B̄; ρ(Ā) is free.

    The right half is applied once, the left half in every loop.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 2 * width))
        nn.init.orthogonal_(self.weight)

    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw both halves as one matrix with entries of RMS `std`."""
        init_matrix(self.weight, std, generator)

    def drive(self, e: Tensor) -> Tensor:
        """Return B̄ e for e [batch, tokens, width]."""
        return F.linear(e, self.weight[:, self.weight.shape[0] :]).to(e.dtype)

    def inject(self, h: Tensor, drive: Tensor) -> Tensor:
        """Return Ā h + drive for h and drive [batch, tokens, width]."""
        return F.linear(h, self.weight[:, : self.weight.shape[0]]).to(drive.dtype) + drive

    @torch.no_grad()
    def spectral_radius(self) -> float:
        """Return the largest absolute eigenvalue of the left half, in double precision."""
        transition = self.weight[:, : self.weight.shape[0]].double().cpu()
        if not transition.isfinite().all():
            return math.nan
        return torch.linalg.eigvals(transition).abs().max().item()


@final
class AdditionInjection(Injection):
    """The sum h + e (Yang et al. 2024): Ā and B̄ are the identity, ρ(Ā) = 1, and there are no parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw nothing."""

    def drive(self, e: Tensor) -> Tensor:
        """Return e unchanged."""
        return e

    def inject(self, h: Tensor, drive: Tensor) -> Tensor:
        """Return h + drive for h and drive [batch, tokens, width]."""
        return h + drive

    def spectral_radius(self) -> float:
        """Return 1."""
        return 1.0


def make_injection(config: ModelConfig) -> Injection:
    """Make the injection that `config` names.

    Raises:
        ValueError: a class of the user's own can't be imported, or isn't an `Injection`.
    """
    ours = {"diagonal": DiagonalInjection, "concat": ConcatInjection, "addition": AdditionInjection}
    kind: Callable[[int], Injection] = ours.get(config.injection) or import_class(config.injection, Injection)
    return kind(config.width)
