"""How the prelude's output enters the loop: h <- Ā h + B̄ e. One final class per variant.

The contract: `drive(e)` is the part that doesn't change from loop to loop, computed once; `inject(h, drive)` is one
loop's injection; `spectral_radius()` is ρ(Ā), exact. The width of h and e is the model's.
"""

import math
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Injection(Protocol):
    """What the loop asks of an injection."""

    def drive(self, e: Tensor) -> Tensor:
        """B̄ e for e [batch, tokens, width]: the same at every loop."""

    def inject(self, h: Tensor, drive: Tensor) -> Tensor:
        """Ā h + drive for h and drive [batch, tokens, width]."""

    def spectral_radius(self) -> float:
        """ρ(Ā): the largest absolute eigenvalue of the state-transition matrix."""


@final
class DiagonalInjection(nn.Module):
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

    @torch.no_grad()
    def spectral_radius(self) -> float:
        """ρ(Ā) = the largest entry of Ā."""
        return self.decay().max().item()
