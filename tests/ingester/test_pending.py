"""Outcomes that are not durable yet: in order, each job once a batch, acknowledged as prefixes."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.support.outcomes import outcome
from workerd.ingester.pending import PendingOutcomes, weight
from workerd.outcome import Outcome


class SenderStub:
    def __init__(self) -> None:
        self.sent = 0
        self.below: list[int] = []

    def durable(self, below: int) -> None:
        self.below.append(below)


JOBS = [outcome(payload=b"x" * size) for size in (0, 10, 1000)]


@given(
    frames=st.lists(st.tuples(st.integers(0, 2), st.lists(st.sampled_from(JOBS), max_size=6)), max_size=12),
    steps=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4000), st.integers(0, 5)), max_size=20),
)
def test_batches_are_the_oldest_and_acknowledgements_are_prefixes(
    frames: list[tuple[int, list[Outcome]]], steps: list[tuple[int, int, int]]
) -> None:
    """However much of a batch is written, the rest stays first, and acknowledgements match exactly."""
    pending_outcomes = PendingOutcomes()
    senders = [SenderStub() for _ in range(3)]
    order: list[tuple[SenderStub, int, Outcome]] = []
    for number, outcomes in frames:
        sender = senders[number]
        pending_outcomes.add(sender, sender.sent, outcomes)
        order += [(sender, sender.sent + n, o) for n, o in enumerate(outcomes)]
        sender.sent += len(outcomes)
    for rows, most, written in [*steps, (10_000, 1 << 40, 10_000), *[(1, 1, 1)] * len(order)]:
        batch = pending_outcomes.peek(rows, most)
        assert batch == [o for _, _, o in order[: len(batch)]]
        assert len({o.id for o in batch}) == len(batch) <= rows
        assert len(batch) == 1 or sum(map(weight, batch)) <= most or not batch
        assert bool(batch) == bool(order)
        done = min(written, len(batch))
        pending_outcomes.acknowledge(done)
        for sender in senders:
            durable = [number for s, number, _ in order[:done] if s is sender]
            if durable:
                assert sender.below[-1] == max(durable) + 1
        del order[:done]
        assert pending_outcomes.rows == len(order)
        assert pending_outcomes.weight == sum(weight(o) for _, _, o in order)
    assert all((s.below or [0])[-1] == s.sent for s in senders)


@given(payload=st.binary(max_size=300), error=st.text(max_size=300), stack=st.text(max_size=300))
def test_the_weight_is_never_less_than_the_sent_bytes(payload: bytes, error: str, stack: str) -> None:
    """Bytes go in hex, text with every quote doubled."""
    made = msgspec.structs.replace(outcome(payload=payload), error=error, stack=stack)
    quoted = sum(len(text.encode("utf-8", "surrogatepass")) + text.count("'") for text in (error, stack))
    assert weight(made) >= 2 * len(payload) + quoted
