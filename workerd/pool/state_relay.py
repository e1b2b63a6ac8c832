"""What running handlers save, on its way to the ingester, and the answers that they wait for."""

from __future__ import annotations

from functools import partial

from workerd import clock
from workerd.job import AttemptRef
from workerd.messages import StateSaved, StateStored
from workerd.pool.attempt import AssignedAttempt
from workerd.pool.worker_messages import Kept, Saved
from workerd.pool.worker_process import WorkerProcess
from workerd.runtime.loop import Loop
from workerd.runtime.outcome_sender import OutcomeSender

_UNSENT_POLL_S = 0.002


class StateRelay:
    """Answers a save when it survives the worker and this pool, or when it is committed, as was asked.

    What was written to the ingester's socket is read also after the pool's death, and the pool keeps what
    was saved last for the attempt's outcome.
    """

    def __init__(self, loop: Loop, outcome_sender: OutcomeSender) -> None:
        self._loop = loop
        self._outcome_sender = outcome_sender
        self._waiting: dict[AttemptRef, tuple[WorkerProcess, int]] = {}
        outcome_sender.on_state_stored = self._on_stored

    def on_saved(self, worker: WorkerProcess, attempt: AssignedAttempt, saved: Saved) -> None:
        """Keep it for the outcome of the attempt, and send it on."""
        claim = attempt.claim
        attempt.state = saved.state
        self._outcome_sender.save(
            StateSaved(
                id=claim.id,
                attempt=claim.attempt,
                claimed_at=claim.claimed_at,
                started_at=clock.after(claim.claimed_at, claim.mono, attempt.start_ns),
                pid=worker.pid,
                state=saved.state,
                number=saved.number,
                wait=saved.wait,
            )
        )
        if saved.wait:
            self._waiting[claim.ref] = worker, saved.number
        else:
            self._loop.at_end_of_turn(partial(self._answer_when_sent, worker, saved.number))

    def _answer_when_sent(self, worker: WorkerProcess, number: int) -> None:
        if self._outcome_sender.unsent:
            self._loop.call_later(_UNSENT_POLL_S, partial(self._answer_when_sent, worker, number))
        else:
            worker.channel.send_now(Kept(number))

    def _on_stored(self, stored: StateStored) -> None:
        worker, number = self._waiting.get(stored.ref, (None, 0))
        if worker is not None and number <= stored.number:
            del self._waiting[stored.ref]
            worker.channel.send_now(Kept(number, stored.ours))

    def forget(self, attempt: AssignedAttempt) -> None:
        """The attempt has ended."""
        if attempt.state is not None:
            self._outcome_sender.forget_state(attempt.claim.ref)
            self._waiting.pop(attempt.claim.ref, None)
