"""Names, symbols and units of the quantities in which the models of a run table differ, by their column."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The words for one column: `name` in sentences, `quantity` on the axes of figures, `title` above them.

    `symbol` is printed in figures and on pages, `plain_symbol` in text for terminals. `loss` is the loss after training
    of such models, and `at_mean` the condition that it is measured under, if there is one.
    """

    name: str
    quantity: str
    title: str
    symbol: str
    plain_symbol: str
    unit: str
    at_mean: str = ""

    @property
    def label(self) -> str:
        """Label of a figure's axis, with symbol and unit."""
        return f"{self.quantity} {self.symbol} ({self.unit})"

    @property
    def of_run_label(self) -> str:
        """Label of a figure's axis on which each place is a run."""
        return f"{self.quantity} {self.symbol} of the run ({self.unit})"

    @property
    def best_label(self) -> str:
        """Label of a figure's axis for the best value."""
        return f"best {self.quantity} {self.symbol}* ({self.unit})"

    @property
    def loss(self) -> str:
        """The loss after training, in words."""
        return f"loss at {self.at_mean}" if self.at_mean else "loss"

    def title_of(self, text: str) -> str:
        """Return the title of a figure of losses after training."""
        return f"{text}, {self.at_mean}" if self.at_mean else text


AXES = {
    "mean_recurrence": Axis(
        name="mean recurrence",
        quantity="mean recurrence",
        title="Recurrence",
        symbol="µ",
        plain_symbol="mu",
        unit="loops",
        at_mean="T = µ",
    ),
    "params": Axis(
        name="parameter count",
        quantity="size",
        title="Parameters",
        symbol="N",
        plain_symbol="N",
        unit="parameters",
    ),
    "tokens": Axis(
        name="token count", quantity="training length", title="Tokens", symbol="D", plain_symbol="D", unit="tokens"
    ),
}
"""The quantities along which a curve may run."""
