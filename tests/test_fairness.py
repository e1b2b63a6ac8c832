"""Turns of groups: shares by weight, nothing saved up, no group kept waiting by another's flood."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from workerd.fairness import FairTurns, Waiting, choose
from workerd.job import AttemptRef


def queue(name: str, count: int, priority: int = 0) -> list[Waiting]:
    return [Waiting(priority, f"{n:06}", AttemptRef(f"{name}{n}".encode(), 1)) for n in range(count)]


WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 100), min_size=2)


@given(WEIGHTS, st.lists(st.integers(1, 7), min_size=1, max_size=20))
def test_shares_follow_the_weights(weights: dict[str, int], claims: list[int]) -> None:
    """Whatever the sizes of the claims: no backlogged group is more than one start off from another."""
    turns = FairTurns(weights)
    served: Counter[str] = Counter()
    for count in claims:
        served.update(group for group, _ in choose(dict.fromkeys(weights, queue("x", 8)), count, {}, turns))
    assert served.total() == sum(claims)
    for one in weights:
        for other in weights:
            assert served[one] / weights[one] - served[other] / weights[other] <= 1 / weights[one] + 1e-9


def test_a_lone_group_gets_everything_and_saves_up_nothing() -> None:
    """A group that comes later is not behind, and the first one owes it nothing."""
    turns = FairTurns()
    assert len(choose({"a": queue("a", 1000)}, 900, {}, turns)) == 900
    mixed = choose({"a": queue("a", 100), "b": queue("b", 100)}, 20, {}, turns)
    assert Counter(group for group, _ in mixed) == {"a": 10, "b": 10}


def test_turns_are_remembered_between_single_claims() -> None:
    """One free worker at a time goes round, although one group's jobs are all older."""
    turns = FairTurns({"a": 3})
    queues = {"a": queue("a", 400), "b": [job._replace(run_at="9") for job in queue("b", 400)]}
    served = Counter(choose(queues, 1, {}, turns)[0][0] for _ in range(400))
    assert served == {"a": 300, "b": 100}


@given(st.integers(1, 20), st.integers(1, 50))
def test_a_newcomer_is_next_but_one_round(groups: int, before: int) -> None:
    """However much of the others was started before, it waits for at most one start of each."""
    turns = FairTurns()
    queues = {f"g{n}": queue(f"g{n}", 200) for n in range(groups)}
    choose(queues, before, {}, turns)
    order = [group for group, _ in choose({**queues, "new": queue("new", 1)}, groups + 1, {}, turns)]
    assert "new" in order


def test_priority_is_above_turns() -> None:
    """Turns are taken among jobs of one priority."""
    turns = FairTurns()
    queues = {"a": queue("a", 5, priority=-1) + queue("z", 5), "b": queue("b", 5)}
    order = [group for group, _ in choose(queues, 7, {}, turns)]
    assert order[:5] == ["a"] * 5
    assert order[5] == "b"


def test_nothing_is_chosen_beyond_the_last_priority() -> None:
    """Jobs that are not known come before it; those behind it keep their group's turn."""
    turns = FairTurns()
    queues = {"a": queue("a", 2, priority=1) + queue("z", 5, priority=2), "b": queue("b", 5, priority=3)}
    assert [group for group, _ in choose(queues, 9, {}, turns, 1)] == ["a", "a"]
    assert turns.next_start("b") == turns.virtual


def test_without_turns_the_oldest_that_has_room_is_next() -> None:
    """A full group is passed over, the order is kept otherwise."""
    queues = {
        "a": queue("a", 5),
        "b": [job._replace(run_at="000002x") for job in queue("b", 2)],
        "c": queue("c", 3),
    }
    chosen = choose(queues, 10, {"a": 3, "c": 0}, None)
    assert [(group, job.run_at) for group, job in chosen] == [
        ("a", "000000"), ("a", "000001"), ("a", "000002"), ("b", "000002x"), ("b", "000002x"),
    ]  # fmt: skip


def test_a_group_is_idle_until_it_has_had_its_turn() -> None:
    """As it was before the trial in which it gets one."""
    turns = FairTurns()
    for _ in range(3):
        turns.charge("a")
    trial = turns.trial()
    trial.charge("b")
    assert trial.was_idle("b")
    assert not trial.was_idle("a")
    turns.adopt(trial)
    assert not turns.trial().was_idle("b")


def test_a_trial_changes_nothing_until_it_is_adopted() -> None:
    """A transaction that is run again begins with the same turns."""
    turns = FairTurns()
    trial = turns.trial()
    choose({"a": queue("a", 9), "b": queue("b", 9)}, 7, {}, trial)
    assert (turns.next_start("a"), turns.virtual) == (0.0, 0.0)
    turns.adopt(trial)
    assert (turns.next_start("a"), turns.next_start("b")) == (4.0, 3.0)


def test_many_idle_groups_are_forgotten() -> None:
    """Memory is bounded."""
    turns = FairTurns()
    for n in range(250_000):
        trial = turns.trial()
        trial.charge(str(n))
        turns.adopt(trial)
    assert len(turns._next_starts) <= 100_001
