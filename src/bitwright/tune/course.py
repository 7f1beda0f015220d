"""The steps of a tuning from the first to the last, over any number of interruptions."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from bitwright.engine.journal import Journal
from bitwright.tune import data
from bitwright.tune.settings import Tuning
from bitwright.tune.train import Trainer

Progress = Callable[[str, int, int], None]
Told = Callable[[int, float], None]  # step, its loss
SAVE_EVERY = 240.0  # seconds between states in the journal
PROBE = 2  # steps timed to turn minutes into steps, after one to warm up


class Course:
    """The steps of a tuning, with a journal of its state: two states in turn, so that one is always whole.

    Each of several processes keeps a state of its own; a step counts if all of them have it.
    """

    def __init__(
        self, job: Tuning, trainer: Trainer, journal: Journal, ids: Tensor, progress: Progress, told: Told
    ) -> None:
        self.job, self.trainer, self.journal, self.progress, self.told = job, trainer, journal, progress, told
        self.ranks = trainer.ranks
        self.ids, self.held = ids[: -data.HELD], ids[-data.HELD :]
        self.steps, self.before, self.after, self.rate = 0, 0.0, 0.0, 0.0

    def run(self) -> None:
        """All steps, from the last state of the journal on."""
        learning = self.job.learning
        self._plan()
        done = self._restore()
        self.progress("tuning", done, self.steps)
        began = saved = time.monotonic()
        for number in range(done, self.steps):
            batch = data.batch(self.ids, number, learning.batch)
            loss = self.trainer.step(batch, learning.factor(number, self.steps), number)
            self.progress("tuning", number + 1, self.steps)
            self.told(number, loss)
            if self.ranks.agreed(time.monotonic() - saved > SAVE_EVERY):
                self._save(number + 1)
                saved = time.monotonic()
        seconds = max(time.monotonic() - began, 1e-9)
        self.rate = (self.steps - done) * learning.batch * self.job.length / seconds
        self.progress("measuring", 0, 1)
        self.trainer.encode()
        self.after = self.trainer.divergence(self.held)

    def _plan(self) -> None:
        """Steps and the divergence before the first one: noted once, kept by every later process."""
        if self.ranks.agreed(self.journal.get("plan") is None):
            self.progress("measuring", 0, 1)
            before = self.trainer.divergence(self.held)
            steps = self.ranks.agreed(self.job.steps or self._affordable())
            if self.ranks.leads:
                self.journal.put("plan", {}, {"steps": steps, "before": before})
            self.ranks.wait()
        notes = self.journal.notes("plan")
        self.steps, self.before = int(notes["steps"]), float(notes["before"])

    def _affordable(self) -> int:
        """Steps that fit into the minutes, from a few that move nothing."""
        assert self.job.minutes is not None
        batch = data.batch(self.ids, 0, self.job.learning.batch)
        self.trainer.step(batch, 0.0, 0)
        began = time.monotonic()
        for number in range(PROBE):
            self.trainer.step(batch, 0.0, number)
        seconds = (time.monotonic() - began) / PROBE
        self.trainer.forget()
        return max(1, int(60 * self.job.minutes / seconds))

    def _part(self, turn: int) -> str:
        """Name of a state of this process."""
        return f"state-{turn}" if self.ranks.count == 1 else f"state-{turn}-of-process-{self.ranks.rank}"

    def _states(self) -> list[int]:
        """Steps done in the state of each turn; 0 where a process has none, or another one."""
        own = [self.journal.notes(part)["step"] if self.journal.get(part) is not None else 0
               for part in map(self._part, (0, 1))]  # fmt: skip
        every = self.ranks.joined([own])
        return [min(steps) if len(set(steps)) == 1 else 0 for steps in zip(*every, strict=True)]

    def _restore(self) -> int:
        """Steps that are done."""
        states = self._states()
        done = max(states)
        if done:
            self.trainer.restore(self.journal.get(self._part(states.index(done))) or {})
        return done

    def _save(self, step: int) -> None:
        states = self._states()
        self.journal.put(self._part(states.index(min(states))), self.trainer.state(), {"step": step})
