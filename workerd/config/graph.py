"""Graphs of jobs: depths and cycles of their needs, in time that grows no faster than the graph; names."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Mapping

Needs = Mapping[str, Collection[str]]
"""The names that each job needs, by its name; names that are no key count as done."""

MAX_SHOWN = 20
"""Names of a longer list that are shown."""


def depths(needs: Needs) -> dict[str, int]:
    """The length of the longest path to each job, in an order in which each comes after what it needs.

    Jobs of a cycle, and those behind one, are left out.
    """
    missing = {name: sum(1 for need in set(of) if need in needs) for name, of in needs.items()}
    followers: dict[str, list[str]] = {name: [] for name in needs}
    for name, of in needs.items():
        for need in set(of):
            if need in needs:
                followers[need].append(name)
    found = {name: 0 for name, count in missing.items() if not count}
    ready = deque(found)
    longest: dict[str, int] = {}
    while ready:
        name = ready.popleft()
        depth = found[name] = longest.get(name, 0)
        for follower in followers[name]:
            longest[follower] = max(longest.get(follower, 0), depth + 1)
            missing[follower] -= 1
            if not missing[follower]:
                found[follower] = longest[follower]
                ready.append(follower)
    return found


def cycle(needs: Needs) -> list[str]:
    """A cycle, which ends with the name it starts with; every job of `needs` must need another one of it."""
    name = next(iter(needs))
    place: dict[str, int] = {}
    way: list[str] = []
    while name not in place:
        place[name] = len(way)
        way.append(name)
        name = next(need for need in needs[name] if need in needs)
    return [*way[place[name] :], name]


def shortened(names: list[str]) -> list[str]:
    """The names as an error shows them: of many the first and the last."""
    left_out = len(names) - MAX_SHOWN
    if left_out <= 1:
        return names
    half = MAX_SHOWN // 2
    return [*names[:half], f"({left_out} more)", *names[-half:]]


# -- names of later runs of `finally`

_CYCLE = re.compile(r"#[0-9]+$")
NAME_OF_LATER_RUN = "expected a name that no later run of finally can have"


def final_clash(names: Iterable[str], final: Iterable[str]) -> tuple[str, str] | None:
    """A name, of `final` or not, that would be taken for a later run of another one, which is in `final`."""
    taken: dict[str, str] = {}
    for name in final:
        if (other := taken.setdefault(of_first_cycle(name), name)) != name:
            return name, other
    for name in names if taken else ():
        if (other := taken.get(of_first_cycle(name), name)) != name:
            return name, other
    return None


def of_first_cycle(name: str) -> str:
    """The name of the job of `final` that it is, or that spawned it, before its request was reopened."""
    return _CYCLE.sub("", name.partition("/")[0])
