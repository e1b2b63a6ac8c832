"""Sums of counters and histograms, which roles send with their Beats and the supervisor adds up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from workerd.messages import Series
from workerd.metrics.families import ALL, MAX_HANDLERS, OTHER, STORE_ERRORS

_DEFINITIONS = {definition.name: definition for definition in ALL}
_HANDLER_LABEL = {family.name: family.labels.index("handler") for family in ALL if "handler" in family.labels}
"""Where the handler stands among the label values of a family."""


def fitting(series: Iterable[Series]) -> Iterator[Series]:
    """Those of families as this version has them: another one's may have other labels, bounds or names."""
    for family, labels, numbers in series:
        definition = _DEFINITIONS.get(family)
        if definition is None or len(labels) != len(definition.labels):
            continue
        # A histogram's are its sum, and a count for each bound and for what is above.
        if len(numbers) == (2 + len(definition.bounds) if definition.kind == "histogram" else 1):
            yield family, labels, numbers


class SeriesSums:
    """The sums of all series added so far, by family and label values.

    The first MAX_HANDLERS handlers have series of their own, all others are summed as OTHER.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        self._handlers: set[str] = set()

    def add(self, series: Iterable[Series]) -> None:
        """Add what was counted since the last time."""
        sums = self._sums
        for family, labels, numbers in series:
            key = family, self._bounded(family, labels)
            if key in sums:
                sums[key] = [a + b for a, b in zip(sums[key], numbers, strict=True)]
            else:
                sums[key] = list(numbers)

    def _bounded(self, family: str, labels: tuple[str, ...]) -> tuple[str, ...]:
        position = _HANDLER_LABEL.get(family)
        if position is None or labels[position] in self._handlers:
            return labels
        if len(self._handlers) < MAX_HANDLERS:
            self._handlers.add(labels[position])
            return labels
        return *labels[:position], OTHER, *labels[position + 1 :]

    def __iter__(self) -> Iterator[Series]:
        for (family, labels), numbers in self._sums.items():
            yield family, labels, numbers


class StoreErrorCounts:
    """The errors of a role's store, counted since they were last taken."""

    def __init__(self) -> None:
        self._taken: Counter[int] = Counter()

    def take(self, errors: Mapping[int, int]) -> list[Series]:
        """The series that grew; `errors` is `store.stats.errors`, by the server's code."""
        grown = {code: count - self._taken[code] for code, count in errors.items()}
        self._taken.update(grown)
        return [(STORE_ERRORS.name, (str(code),), [count]) for code, count in grown.items() if count]
