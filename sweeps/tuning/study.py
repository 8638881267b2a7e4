"""The study of a tuning: proposals by Optuna, stored in a database before their runs start.

Each proposal is drawn from a generator of its own, seeded by the study's seed and the proposal's number, so that a
study that was interrupted proposes the same afterwards as one that wasn't.
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
from isoloop.sweeps.tuning.rate_design import propose_rates
from isoloop.sweeps.tuning.search_space import (
    SearchSpace,
    Trial,
    TrialOutcome,
    TrialValues,
    is_whole,
    round_to_setting,
)
from isoloop.trainer.config import RunSpec

if TYPE_CHECKING:
    import optuna

DUPLICATE, INCOMPLETE = "duplicate", "torn"  # outcomes, in the database, of proposals that are no trials
DIVERGED_FACTOR = 3.0  # a diverged run counts as one with this times ln(vocabulary), above every run that learns
STARTUP_TRIALS = 10
PRUNER_STARTUP_TRIALS = 4


@dataclass(kw_only=True)
class Proposal:
    """A proposal whose run hasn't ended.

    Attributes:
        number: number in the study.
        values: settings by path.
        handle: Optuna's trial.
        reported: losses reported so far, by percent of the steps.
        journal_offset: position up to which the run's journal was read.
        pruned_at: percentage of the steps at which the run was pruned.
    """

    number: int
    values: TrialValues
    handle: Any
    reported: dict[int, float] = field(default_factory=dict)
    journal_offset: int = 0
    pruned_at: int | None = None


class Study:
    """One study in a database; a new study starts with the sweep's own settings.

    Args:
        url: URL of the database, as SQLAlchemy reads it.
        space: the search space.
        tune: settings of the tuning.

    Raises:
        ValueError: no database answers at the URL.
    """

    def __init__(self, url: str, space: SearchSpace, tune: TuneConfig) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.optuna, self.space, self.tune = optuna, space, tune
        self.startup = min(STARTUP_TRIALS, max(3, tune.trials // 3))
        self.distributions = {path: self._distribution(path, entry) for path, entry in space.dimensions.items()}
        with translate_errors(
            "the database of the trials (tune.storage)",
            "a database must answer at tune.storage (--storage-url), but none does",
            "nothing is lost: start it, correct the URL, or leave it out for an sqlite file beside the results",
        ):
            self.storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            self.study = optuna.create_study(
                storage=self.storage, study_name=space.study_name, pruner=self._pruner(), load_if_exists=True
            )
            if not self._frozen("WAITING") and not self.trials() and space.start:
                self.study.enqueue_trial(self._encode(space.start))

    def close(self) -> None:
        """Close the database."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    def translate_errors(self) -> AbstractContextManager[None]:
        """Return a context in which a database that stops answering raises a ValueError that says how to go on."""
        from sqlalchemy.exc import SQLAlchemyError

        return translate_errors(
            "the database of the trials (tune.storage)",
            "the database at tune.storage must go on answering, but stopped",
            "nothing is lost, the runs have saved their state: fix this and rerun the command",
            (self.optuna.exceptions.StorageInternalError, SQLAlchemyError),
        )

    def ask(self, *, at_random: bool = False) -> Proposal:
        """Return a new proposal, stored in the database; with `at_random` it is independent of all trials.

        In a tuning of several cells, which finds a law of the rates, the proposal is that of its design.
        """
        number = len(self._frozen())
        seed = int.from_bytes(hashlib.sha256(f"{self.tune.seed} {number}".encode()).digest()[:4], "little")
        samplers = self.optuna.samplers
        self.study.sampler = (
            samplers.RandomSampler(seed=seed)
            if at_random or self.space.grid_cells
            else samplers.TPESampler(n_startup_trials=self.startup, multivariate=True, constant_liar=True, seed=seed)
        )
        if self.space.grid_cells and not self._frozen("WAITING"):
            self.study.enqueue_trial(self._encode(propose_rates(self.space, self.trials(), seed, at_random=at_random)))
        trial = self.study.ask(fixed_distributions=self.distributions)
        return Proposal(number=trial.number, values=self._decode(trial.params), handle=trial)

    def unfinished(self) -> list[Proposal]:
        """Return the proposals that an earlier driver left running; those that it hadn't fully drawn are closed."""
        proposals = []
        study_id = self.storage.get_study_id_from_name(self.space.study_name)
        for frozen in self._frozen("RUNNING"):
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number)
            trial = self.optuna.trial.Trial(self.study, trial_id)
            if set(frozen.params) != set(self.distributions):
                self._close(trial, INCOMPLETE)
                continue
            values, reported = self._decode(frozen.params), dict(frozen.intermediate_values)
            proposals.append(Proposal(number=frozen.number, values=values, handle=trial, reported=reported))
        return proposals

    def record_run(self, proposal: Proposal, run_id: str) -> None:
        """Store the run id of a proposal."""
        proposal.handle.set_user_attr("run_id", run_id)

    def report(self, proposal: Proposal, percent: int, loss: float) -> bool:
        """Report a validation loss at `percent` of the steps, and return whether the run should be pruned."""
        if percent in proposal.reported:
            return False
        proposal.reported[percent] = loss
        proposal.handle.report(loss, percent)
        return bool(proposal.handle.should_prune())

    def conclude(
        self,
        proposal: Proposal,
        outcome: TrialOutcome,
        *,
        spec: RunSpec | None = None,
        loss: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Store how a proposal's run ended.

        A diverged run counts as one with a very high loss: Optuna learns nothing from a failed trial, and would propose
        similar settings again (docs/sweeps-tune.md says how often).
        """
        states = self.optuna.trial.TrialState
        if reason is not None:
            proposal.handle.set_user_attr("reason", reason[:1000])
        if outcome == "finished":
            self._close(proposal.handle, outcome, states.COMPLETE, loss)
        elif outcome == "diverged":
            assert spec is not None, "a diverged run has a spec"
            loss = DIVERGED_FACTOR * math.log(spec.model.padded_vocabulary)
            self._close(proposal.handle, outcome, states.COMPLETE, loss)
        else:
            self._close(proposal.handle, outcome, states.PRUNED if outcome == "pruned" else None)

    def discard(self, proposal: Proposal) -> None:
        """Close a proposal that repeats another one, so that it isn't a trial."""
        self._close(proposal.handle, DUPLICATE)

    def trials(self) -> list[Trial]:
        """Return all trials, including those that are running."""
        trials = []
        for frozen in self._frozen():
            outcome = frozen.user_attrs.get("outcome", "running")
            if outcome in (DUPLICATE, INCOMPLETE) or not frozen.params:
                continue
            last = max(frozen.intermediate_values, default=None)
            trials.append(
                Trial(
                    number=frozen.number,
                    values=self._decode(frozen.params),
                    run_id=frozen.user_attrs.get("run_id"),
                    outcome=outcome,
                    loss=frozen.value if outcome in ("finished", "pruned") else None,
                    share=1.0 if outcome == "finished" else None if last is None else last / 100,
                    reason=frozen.user_attrs.get("reason"),
                )
            )
        return trials

    def _close(self, handle: "optuna.Trial", outcome: str, state: Any = None, loss: float | None = None) -> None:
        handle.set_user_attr("outcome", outcome)
        self.study.tell(handle, loss, state=state or self.optuna.trial.TrialState.FAIL)

    def _frozen(self, state: str | None = None) -> "list[optuna.trial.FrozenTrial]":
        states = None if state is None else (self.optuna.trial.TrialState[state],)
        return self.study.get_trials(deepcopy=False, states=states)

    def _pruner(self) -> "optuna.pruners.BasePruner":
        if self.tune.pruner == "none" or self.space.grid_cells:  # losses of different cells can't be compared
            return self.optuna.pruners.NopPruner()
        warm_up = math.ceil(100 * self.tune.prune_from)
        return self.optuna.pruners.MedianPruner(n_startup_trials=PRUNER_STARTUP_TRIALS, n_warmup_steps=warm_up)

    def _distribution(self, path: str, dimension: Dimension) -> "optuna.distributions.BaseDistribution":
        distributions = self.optuna.distributions
        if not isinstance(dimension, Range):
            return distributions.CategoricalDistribution([_as_stored(choice) for choice in dimension])
        if is_whole(self.space.settings, path):
            low, high, step = round(dimension.low), round(dimension.high), round(dimension.step or 1)
            return distributions.IntDistribution(low, high, log=dimension.log, step=step)
        return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)

    def _encode(self, values: TrialValues) -> dict[str, Any]:
        """Return settings as Optuna stores them."""
        ranges = {path for path, dimension in self.space.dimensions.items() if isinstance(dimension, Range)}
        return {path: value if path in ranges else _as_stored(value) for path, value in values.items()}

    def _decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings as a run has them, in the order of the space."""
        values = {}
        for path, dimension in self.space.dimensions.items():
            if path not in params:
                continue
            if isinstance(dimension, Range):
                values[path] = round_to_setting(self.space.settings, path, dimension, params[path])
            else:
                values[path] = next(choice for choice in dimension if _as_stored(choice) == params[path])
        return values


def _as_stored(choice: Any) -> Any:
    """Return a choice as Optuna stores it: lists and mappings as JSON."""
    return choice if isinstance(choice, str | int | float | bool | None) else json.dumps(choice)
