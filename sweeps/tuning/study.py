"""The study: proposals by Optuna, kept in a database before they are launched. The only file that imports optuna.

A proposal is asked for and told back; nothing is run here. Each one is drawn from a generator of its own, seeded by the
study's seed and the proposal's number, so that a study that goes on later proposes as one that was never stopped.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isoloop.sweeps.config.tuning import Dimension, Range, TuneConfig
from isoloop.sweeps.messages import translate_errors
from isoloop.sweeps.tuning.search_space import Outcome, Search, Trial, Values, is_whole, rounded
from isoloop.trainer.config import RunSpec

if TYPE_CHECKING:
    import optuna

DUPLICATE, TORN = "duplicate", "torn"  # what is in the database and no trial
# Told as the loss of a diverged run: what counts as exploded, so above every run that learns.
EXPLODED = 3.0
STARTUP_TRIALS = 10
PRUNER_STARTUP_TRIALS = 4


@dataclass(kw_only=True)
class Proposal:
    """A proposal that isn't told back yet.

    Attributes:
        number: the study's own.
        values: settings by path.
        reported: losses told so far, by percent of the steps.
    """

    number: int
    values: Values
    handle: Any
    reported: dict[int, float] = field(default_factory=dict)


class Study:
    """One study in a database; a new one starts with the sweep's own settings.

    Args:
        url: of the database, as SQLAlchemy has it.
        search: what is searched.
        tune: how.

    Raises:
        ValueError: no database answers there.
    """

    def __init__(self, url: str, search: Search, tune: TuneConfig) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.optuna, self.search, self.tune = optuna, search, tune
        self.startup = min(STARTUP_TRIALS, max(3, tune.trials // 3))
        self.distributions = {path: self._distribution(path, dimension) for path, dimension in search.space.items()}
        with translate_errors(
            "a database must answer at tune.storage (--storage-url), but none does",
            "nothing is lost: start it, correct the URL, or leave it out for an sqlite file beside the results",
        ):
            self.storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            self.study = optuna.create_study(
                storage=self.storage, study_name=search.name, pruner=self._pruner(), load_if_exists=True
            )
            if not self._waiting() and not self.trials() and search.start:
                self.study.enqueue_trial(self._encoded(search.start))

    def close(self) -> None:
        """Leave the database."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    def translate_errors(self) -> AbstractContextManager[None]:
        """Return a context in which a database that stops answering is a ValueError that says how to go on."""
        from sqlalchemy.exc import SQLAlchemyError

        return translate_errors(
            "the database at tune.storage must go on answering, but stopped",
            "nothing is lost, the runs have saved their state: fix this and rerun the command",
            (self.optuna.exceptions.StorageInternalError, SQLAlchemyError),
        )

    def ask(self, *, at_random: bool = False) -> Proposal:
        """A new proposal, which is in the database now; `at_random` learns from no trial."""
        number = len(self.study.get_trials(deepcopy=False))
        seed = int.from_bytes(hashlib.sha256(f"{self.tune.seed} {number}".encode()).digest()[:4], "little")
        samplers = self.optuna.samplers
        self.study.sampler = (
            samplers.RandomSampler(seed=seed)
            if at_random
            else samplers.TPESampler(n_startup_trials=self.startup, multivariate=True, constant_liar=True, seed=seed)
        )
        trial = self.study.ask(fixed_distributions=self.distributions)
        return Proposal(number=trial.number, values=self._decoded(trial.params), handle=trial)

    def unfinished(self) -> list[Proposal]:
        """Proposals that an earlier driver left without telling them back."""
        found = []
        for frozen in self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.RUNNING,)):
            trial = self.optuna.trial.Trial(self.study, frozen._trial_id)
            if set(frozen.params) != set(self.distributions):  # its driver was killed while it drew it
                self._tell(trial, TORN, None)
                continue
            values, reported = self._decoded(frozen.params), dict(frozen.intermediate_values)
            found.append(Proposal(number=frozen.number, values=values, handle=trial, reported=reported))
        return found

    def launch(self, proposal: Proposal, run_id: str) -> None:
        """Note which run a proposal comes to."""
        proposal.handle.set_user_attr("run_id", run_id)

    def report(self, proposal: Proposal, percent: int, loss: float) -> bool:
        """Tell a validation loss at `percent` of the steps; returns whether the run should be pruned."""
        if percent in proposal.reported:
            return False
        proposal.reported[percent] = loss
        proposal.handle.report(loss, percent)
        return bool(proposal.handle.should_prune())

    def tell(
        self,
        proposal: Proposal,
        outcome: Outcome,
        *,
        spec: RunSpec | None = None,
        loss: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Tell how a proposal's run ended.

        A diverged run counts as one with a loss beyond all others: Optuna learns nothing from a failed trial, and would
        go there again (docs/sweeps-tune.md has how often).
        """
        states = self.optuna.trial.TrialState
        if reason is not None:
            proposal.handle.set_user_attr("reason", reason[:1000])
        if outcome == "finished":
            self._tell(proposal.handle, outcome, states.COMPLETE, loss)
        elif outcome == "diverged":
            assert spec is not None, "a diverged run has a spec"
            self._tell(proposal.handle, outcome, states.COMPLETE, EXPLODED * math.log(spec.model.padded_vocabulary))
        elif outcome == "pruned":
            self._tell(proposal.handle, outcome, states.PRUNED)
        else:
            self._tell(proposal.handle, outcome)

    def discard(self, proposal: Proposal) -> None:
        """Take back a proposal that comes to the run of another one: it is no trial."""
        self._tell(proposal.handle, DUPLICATE)

    def trials(self) -> list[Trial]:
        """All trials, those under way among them."""
        found = []
        for frozen in self.study.get_trials(deepcopy=False):
            outcome = frozen.user_attrs.get("outcome", "running")
            if outcome in (DUPLICATE, TORN) or not frozen.params:
                continue
            last = max(frozen.intermediate_values, default=None)
            loss = frozen.value if outcome in ("finished", "pruned") else None
            found.append(
                Trial(
                    number=frozen.number,
                    values=self._decoded(frozen.params),
                    run_id=frozen.user_attrs.get("run_id"),
                    outcome=outcome,
                    loss=loss,
                    share=1.0 if outcome == "finished" else None if last is None else last / 100,
                    reason=frozen.user_attrs.get("reason"),
                )
            )
        return found

    def _tell(self, handle: "optuna.Trial", outcome: str, state: Any = None, loss: float | None = None) -> None:
        handle.set_user_attr("outcome", outcome)
        self.study.tell(handle, loss, state=state or self.optuna.trial.TrialState.FAIL)

    def _waiting(self) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.WAITING,)))

    def _pruner(self) -> "optuna.pruners.BasePruner":
        if self.tune.pruner == "none":
            return self.optuna.pruners.NopPruner()
        warm_up = math.ceil(100 * self.tune.prune_from)
        return self.optuna.pruners.MedianPruner(n_startup_trials=PRUNER_STARTUP_TRIALS, n_warmup_steps=warm_up)

    def _distribution(self, path: str, dimension: Dimension) -> "optuna.distributions.BaseDistribution":
        distributions = self.optuna.distributions
        if not isinstance(dimension, Range):
            return distributions.CategoricalDistribution([_plain(choice) for choice in dimension])
        if is_whole(self.search.settings, path):
            low, high, step = round(dimension.low), round(dimension.high), round(dimension.step or 1)
            return distributions.IntDistribution(low, high, log=dimension.log, step=step)
        return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)

    def _encoded(self, values: Values) -> dict[str, Any]:
        space = self.search.space
        return {path: value if isinstance(space[path], Range) else _plain(value) for path, value in values.items()}

    def _decoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as a run has them, in the order of the space."""
        values = {}
        for path, dimension in self.search.space.items():
            if path not in params:
                continue
            if isinstance(dimension, Range):
                values[path] = rounded(self.search.settings, path, dimension, params[path])
            else:
                values[path] = next(choice for choice in dimension if _plain(choice) == params[path])
        return values


def _plain(choice: Any) -> Any:
    """A choice as Optuna keeps it: lists and mappings as JSON."""
    return choice if isinstance(choice, str | int | float | bool | None) else json.dumps(choice)
