"""The trials of a sweep as an Optuna study in a file, shared by any number of processes and machines.

A trial belongs to the holder of its lock file. The lock is released when its holder dies in whatever way; the next
worker that finds the trial unlocked but still running in the study takes it over, under the same number.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.errors import RunError
from detseg.files.lock import try_lock, wait_for_lock
from detseg.sweeps.parameters import Plain
from detseg.sweeps.sweep_file import SweepFile

if TYPE_CHECKING:
    import optuna
    from filelock import BaseFileLock

logger = logging.getLogger(__name__)

JOURNAL = "trials.journal"
TRIALS = "trials"
VALUES = "values"  # trial attribute with the values of its parameters, in order
# If this many trials all fail from the start, the sweep stops.
MOST_FAILURES = 3


@dataclass
class Claim:
    """A trial that this worker holds. values: by path, for `nested`."""

    trial: optuna.Trial
    folder: Path
    values: dict[tuple[str, ...], Plain]
    lock: BaseFileLock

    @property
    def number(self) -> int:
        return self.trial.number


class Search:
    """The study of a sweep in its folder, created if there is none.

    total: number of trials of the sweep. seed: of the sampler; the samples of a trial depend on its number too, and
    with `bayes` on the trials that have ended before.
    """

    def __init__(self, sweep: SweepFile, folder: Path, total: int, seed: int) -> None:
        optuna = import_optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.sweep, self.folder, self.total, self.seed = sweep, folder, total, seed
        pruner: Any = optuna.pruners.NopPruner()
        if sweep.halving is not None:
            halving = sweep.halving
            pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=halving.first, reduction_factor=halving.eta)
        (folder / TRIALS).mkdir(exist_ok=True)
        with wait_for_lock(folder / ".ask.lock"):
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
                study_name=sweep.name,
                direction="maximize" if sweep.metric.maximize else "minimize",
                pruner=pruner,
                load_if_exists=True,
            )

    def claim(self) -> Claim | None:
        """Return a trial of a worker that died, else a new one; None if `total` is reached.

        Raises:
            RunError: the first trials all failed.
        """
        from optuna.trial import Trial, TrialState

        with wait_for_lock(self.folder / ".ask.lock"):
            for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                lock = self._lock(left.number)
                if lock is not None:
                    logger.info("trial %d continues: its worker died", left.number)
                    self.study.sampler = self._sampler(left.number)
                    return self._claimed(Trial(self.study, left._trial_id), lock)
            trials = self.study.get_trials(deepcopy=False)
            self._refuse_failures(trials)
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if len(trials) >= self.total and not waiting:
                return None
            number = len(trials)
            self.study.sampler = self._sampler(number)
            if self.sweep.method == "grid" and not waiting:
                self.study.enqueue_trial(self.sweep.grid_point(number))
            trial = self.study.ask()
            lock = self._lock(trial.number)
            assert lock is not None, "the lock of a new trial is free"
            return self._claimed(trial, lock)

    def others_run(self) -> bool:
        """Whether trials are running, in this process or another."""
        from optuna.trial import TrialState

        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def report(self, claim: Claim, values: list[float]) -> bool:
        """Record all values of a running trial so far; return whether to stop it early."""
        known = self.study._storage.get_trial(claim.trial._trial_id).intermediate_values
        for step, value in enumerate(values, start=1):
            if step in known:
                continue
            claim.trial.report(value, step)
            if claim.trial.should_prune():
                return True
        return False

    def tell(self, claim: Claim, state: str, value: float | None = None, note: str = "") -> None:
        """Record how a trial ended ("complete", "pruned" or "fail") and release it."""
        from optuna.trial import TrialState

        if note:
            claim.trial.set_user_attr("note", note)
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}
        self.study.tell(claim.trial, value if state == "complete" else None, state=states[state])
        claim.lock.release()

    def trial_folder(self, number: int) -> Path:
        return self.folder / TRIALS / f"{number:04d}"

    def json_file(self, number: int) -> Path:
        """Return the file for `${args_json_file}` in a trial."""
        return self.folder / f"sweep-{self.sweep.name}" / f"config-{number:04d}.json"

    def _lock(self, number: int) -> BaseFileLock | None:
        return try_lock(self.trial_folder(number).with_suffix(".lock"))

    def _claimed(self, trial: optuna.Trial, lock: BaseFileLock) -> Claim:
        drawn = {parameter.path: parameter.suggest(trial) for parameter in self.sweep.parameters}
        values = {".".join(path): value for path, value in drawn.items()}
        trial.set_user_attr(VALUES, values)
        return Claim(trial, self.trial_folder(trial.number), drawn, lock)

    def _sampler(self, number: int) -> Any:
        """Return a sampler seeded by trial; with a common seed every process would draw the same values."""
        optuna = import_optuna()
        seed = (self.seed * 1_000_003 + number) % 2**32
        if self.sweep.method != "bayes":
            return optuna.samplers.RandomSampler(seed=seed)
        first = max(3, min(10, self.total // 3))  # random trials at the start
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=first, multivariate=True, constant_liar=True)

    def _refuse_failures(self, trials: list[Any]) -> None:
        from optuna.trial import TrialState

        ended = [trial for trial in trials if trial.state.is_finished()]
        if len(ended) >= MOST_FAILURES and all(trial.state == TrialState.FAIL for trial in ended):
            last = ended[-1]
            raise RunError(
                f"{self.folder}: the first {len(ended)} trials all failed, the last with: "
                f"{last.user_attrs.get('note', 'no message')}. Fix {self.sweep.path}, and start without --resume"
            )


def import_optuna() -> Any:
    """Return Optuna with its logging reduced. Raises RunError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise RunError('a sweep needs Optuna: pip install "detseg[tuning]" or pip install optuna') from None
    import warnings

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna
