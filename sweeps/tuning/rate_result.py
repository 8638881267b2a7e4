"""The result of a tuning in several cells: the law of the best learning rates, which a sweep takes as `tuned`."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from isoloop.fitting.rate_law import RateLaw
from isoloop.sweeps.config.schema import TUNED
from isoloop.sweeps.paths import Folders
from isoloop.sweeps.plan.rates import TunedRates
from isoloop.sweeps.tuning.result import TuningResult
from isoloop.sweeps.tuning.search_space import describe_values


@dataclass(frozen=True, kw_only=True)
class RateTuningResult(TuningResult):
    """A tuning in several cells that has ended; `law` is that of the best rates, None for the reason `why_no_law`."""

    law: RateLaw | None
    why_no_law: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings with which a sweep takes the rates; none if there is no law."""
        if self.law is None:
            return {}
        return {"optimizer": {"learning_rate": TUNED}, "tuned": self.space.sweep.name}

    def write_law(self, folders: Folders) -> None:
        """Write the law into the tuning's folder, if there is one."""
        if self.law is not None:
            TunedRates.of_trials(self.law, self.space.sweep, self.space.base.spec).write(folders.rates)

    def summary(self) -> list[str]:
        """Return the result in words, line by line."""
        outcomes = Counter(trial.outcome for trial in self.trials)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        lines = [f"{len(self.trials)} trials in {len(self.space.grid_cells)} cells: {counts}"]
        if self.law is None:
            return [*lines, f"no law of the best rates: {self.why_no_law}"]
        lines += self.law.report()
        for index, values in enumerate(self.space.grid_cells):
            best = self.law.at(self.space.features[index])
            rates = []
            for path, rate in best.rates.items():
                span = "" if path not in best.intervals else " ({:.3g} to {:.3g})".format(*best.intervals[path])
                rates.append(f"{path} {rate:.3g}{span}")
                if not self.space.holds(path, rate):
                    rates.append("outside its range: widen it in tune.space")
            lines.append(f"      {describe_values(values)}: {', '.join(rates)}")
        return lines

    def advice(self, folders: Folders) -> list[str]:
        """Return how a sweep takes up the rates."""
        if self.law is None:
            return []
        name = self.space.sweep.name
        return [
            f"A sweep takes these rates with optimizer.learning_rate: tuned, and another sweep than {name} with tuned: "
            f"{name} besides, or by extending {folders.sweep / 'tuned.yaml'}"
        ]
