"""Runs an exact number of trials on worker processes, through deaths, faults and Ctrl-C."""

import re
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nsa_lab.errors import NsaLabError
from nsa_lab.search.recovery import HEARTBEAT_S, next_trial, retry
from nsa_lab.search.trial import Job, Report
from nsa_lab.search.view import View
from nsa_lab.search.workers import Worker, dismiss, log_tail, start_worker, stop, wait_for_news

SAME_FAULTS = 3
REFRESH_S = 0.5


@dataclass
class Supervisor:
    """Hands `tickets` trials to `workers` processes. One ticket is one trial that ends, in whatever state."""

    study: optuna.Study
    job: Job
    owner: dict[str, Any]
    tickets: int
    workers: int
    view: View
    crew: list[Worker] = field(default_factory=list)
    faults: deque[str] = field(default_factory=lambda: deque(maxlen=SAME_FAULTS))
    last_beat: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Run until the tickets are used up.

        Raises NsaLabError on a fault that more trials would only repeat. On that and on KeyboardInterrupt the
        trials in flight are queued again and the workers ended.
        """
        try:
            self._start_crew()
            while self.tickets or any(w.trial for w in self.crew):
                self._hand_out()
                self.view.show(self.crew, self.tickets)
                wait_for_news(self.crew, REFRESH_S)
                for worker in list(self.crew):
                    self._listen(worker)
                self._beat()
            for worker in self.crew:
                dismiss(worker)
        except BaseException:
            self._abandon()
            raise

    def _start_crew(self) -> None:
        count = min(self.workers, self.tickets)
        self.crew = [start_worker(self.job, index, count) for index in range(count)]

    def _hand_out(self) -> None:
        for worker in self.crew:
            if worker.idle and self.tickets:
                self.tickets -= 1
                worker.give(next_trial(self.study, self.owner))

    def _listen(self, worker: Worker) -> None:
        dead = worker.dead  # before the messages are read, so that its last words are among them
        for report in worker.messages():
            self._take(worker, report)
        if dead or worker.dead:
            self._replace(worker)

    def _take(self, worker: Worker, report: Report) -> None:
        if report.kind == "fatal":
            raise NsaLabError(report.message)
        if report.kind == "ready":
            worker.ready = True
        elif report.kind == "progress":
            worker.progress = report
        elif report.kind == "done":
            self._finish(worker)
            if report.exhausted:
                self.view.say("every design of the space has been tried")
                self.tickets = 0

    def _finish(self, worker: Worker) -> None:
        trial = self._frozen(worker)
        worker.trial = None
        self.view.finished(trial)
        reason = str(trial.user_attrs.get("reason", ""))
        if trial.state == TrialState.FAIL:
            self.faults.append(re.sub(r"[\d.]+", "#", reason))
        elif "metrics" in trial.user_attrs:
            self.faults.clear()
        if len(self.faults) == SAME_FAULTS and len(set(self.faults)) == 1:
            raise NsaLabError(
                f"{SAME_FAULTS} trials in a row failed with the same fault: {reason}; mend it, "
                f"see {self.job.directory}/logs"
            )

    def _replace(self, worker: Worker) -> None:
        """A worker died: its trial is queued again, and another worker takes its place."""
        if not worker.ready:
            tail = log_tail(Path(self.job.directory), worker.index)
            raise NsaLabError(f"worker {worker.index} {worker.how_it_died()} before its first trial: {tail}")
        if worker.trial is not None:
            self._bury(worker)
        self.crew.remove(worker)
        if self.tickets > sum(w.idle for w in self.crew):
            self.crew.append(start_worker(self.job, worker.index, self.workers))

    def _bury(self, worker: Worker) -> None:
        trial = self._frozen(worker)
        if trial.state.is_finished():
            return self._finish(worker)
        worker.trial = None
        reason = f"its worker was {worker.how_it_died()}"
        if retry(self.study, trial, reason, self.owner):
            self.tickets += 1
            self.view.say(f"trial {trial.number}: {reason}; queued again")
        else:
            self.view.finished(self.study.get_trials(deepcopy=False)[trial.number])
        return None

    def _abandon(self) -> None:
        """End the workers and queue the trials in flight again; they do not count as retries."""
        for worker in self.crew:
            stop(worker)
        for worker in self.crew:
            if worker.trial is None:
                continue
            trial = self._frozen(worker)
            if not trial.state.is_finished():
                retry(self.study, trial, "interrupted", self.owner, counts=False)

    def _beat(self) -> None:
        """Tell other hosts that the trials in flight are alive."""
        if time.monotonic() - self.last_beat < HEARTBEAT_S:
            return
        self.last_beat = time.monotonic()
        for worker in self.crew:
            if worker.trial is not None and not self._frozen(worker).state.is_finished():
                worker.trial.set_user_attr("heartbeat", time.time())

    def _frozen(self, worker: Worker) -> FrozenTrial:
        assert worker.trial is not None
        return self.study.get_trials(deepcopy=False)[worker.trial.number]
