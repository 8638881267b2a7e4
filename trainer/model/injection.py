"""How the prelude's output enters the loop: h <- Ā h + B̄ e. One final class per variant (SPEC "Injection variants").

`Injection` is the contract. An injection of the user's own derives from it, in a file of its own, and states its
`cost(width)` as an `InjectionCost` (docs/trainer.md shows one).
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
    """What the loop asks of an injection; made from the width of h and e."""

    @abstractmethod
    def drive(self, e: Tensor) -> Tensor:
        """B̄ e for e [batch, tokens, width]: the same at every loop."""

    @abstractmethod
    def inject(self, h: Tensor, drive: Tensor) -> Tensor:
        """Ā h + drive for h and drive [batch, tokens, width]."""

    @abstractmethod
    def spectral_radius(self) -> float:
        """ρ(Ā): the largest absolute eigenvalue of the state-transition matrix; NaN where Ā isn't finite."""

    @abstractmethod
    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw what is random, from `generator`; `std` is the other matrices' standard deviation."""


@final
class DiagonalInjection(Injection):
    """Parcae's injection: Ā = exp(-softplus(dt) exp(A_log)) per channel, B̄ = softplus(dt) B. ρ(Ā) < 1 always.

    At the start A_log = 0, Ā = sqrt(1/5) and B is the identity (SPEC "The model").
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        step = -math.log(math.sqrt(1 / 5))  # softplus(dt) = -log(Ā) while A_log = 0
        self.A_log = nn.Parameter(torch.zeros(width))
        self.dt = nn.Parameter(torch.full((width,), math.log(math.expm1(step))))
        self.B = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.B.weight)

    def decay(self) -> Tensor:
        """Ā, shape [width], in float32."""
        return torch.exp(-F.softplus(self.dt) * torch.exp(self.A_log))

    def drive(self, e: Tensor) -> Tensor:
        """softplus(dt) * (B e) for e [batch, tokens, width]."""
        return (F.softplus(self.dt) * self.B(e)).to(e.dtype)

    def inject(self, h: Tensor, drive: Tensor) -> Tensor:
        """Ā h + drive for h and drive [batch, tokens, width]."""
        return (self.decay() * h + drive).to(drive.dtype)

    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Nothing is random here."""

    @torch.no_grad()
    def spectral_radius(self) -> float:
        """ρ(Ā) = the largest entry of Ā."""
        return self.decay().max().item()


@final
class ConcatInjection(Injection):
    """RDM's injection (Geiping et al. 2025): a linear map on [h; e]. Ā is its left half, B̄ its right; ρ(Ā) is free.

    The right half is applied once, the left one in every loop. Ā and B̄ start as the other matrices do.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 2 * width))
        nn.init.orthogonal_(self.weight)

    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw both halves as one matrix with entries of RMS `std`."""
        init_matrix(self.weight, std, generator)

    def drive(self, e: Tensor) -> Tensor:
        """B̄ e for e [batch, tokens, width]."""
        return F.linear(e, self.weight[:, self.weight.shape[0] :]).to(e.dtype)

    def inject(self, h: Tensor, drive: Tensor) -> Tensor:
        """Ā h + drive for h and drive [batch, tokens, width]."""
        return F.linear(h, self.weight[:, : self.weight.shape[0]]).to(drive.dtype) + drive

    @torch.no_grad()
    def spectral_radius(self) -> float:
        """The largest absolute eigenvalue of the left half, in double precision."""
        transition = self.weight[:, : self.weight.shape[0]].double().cpu()
        if not transition.isfinite().all():
            return math.nan
        return torch.linalg.eigvals(transition).abs().max().item()


@final
class AdditionInjection(Injection):
    """h + e (Yang et al. 2024): Ā and B̄ are the identity, ρ(Ā) = 1, and there is nothing to learn."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Nothing is random here."""

    def drive(self, e: Tensor) -> Tensor:
        """The embedding e itself."""
        return e

    def inject(self, h: Tensor, drive: Tensor) -> Tensor:
        """The sum h + drive for h and drive [batch, tokens, width]."""
        return h + drive

    def spectral_radius(self) -> float:
        """1."""
        return 1.0


def make_injection(config: ModelConfig) -> Injection:
    """The injection that `config` names.

    Raises:
        ValueError: a class of the user's own can't be imported, or isn't an `Injection`.
    """
    known: dict[str, type[Injection]] = {
        "diagonal": DiagonalInjection,
        "concat": ConcatInjection,
        "addition": AdditionInjection,
    }
    kind: Callable[[int], Injection] = known.get(config.injection) or import_class(config.injection, Injection)
    return kind(config.width)
