"""Which numbers of a limit's slots are free: those that are not taken, or a range of them.

A claim reads all numbers that are taken. While a limit is far from reached these may be thousands, read again
for every few hundred jobs. So a node remembers a range that was free, and its next claims only ask whether
the numbers that they are about to give out still are. As no two attempts have the same number, and a claim
gives out none beyond the limit, the limit holds without counting. Where slots beyond it are taken, as after
it was lowered, or the next one is kept for another handler, all are read.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from workerd.store import columns
from workerd.store.dialect import Dialect
from workerd.store.session import Row

LIMIT, GROUP = "limit", "group"
"""The two scopes: a limit as a whole, and each of its groups. The empty group is that of jobs without one."""
MIN_CLAIMS = 2
"""A range that is remembered has room for so many claims."""
RANGES_BELOW = 8192
"""Ranges are looked for below this number: it bounds the search, and over how many rows slots are spread."""
NO_RANGE = range(0)
"""Where no free range is known."""
_WORD = (1 << 64) - 1
"""All bits of a word: SQLite's are signed."""


class SlotNumbers:
    """The numbers of a limit's slots, as far as a claim knows them.

    taken, of_groups
        Those that are taken, as bits: of the limit, and of each group.
    free_range
        Numbers of the limit that are free, if no others were looked at.
    """

    def __init__(self, taken: int, of_groups: Mapping[str, int], free_range: range | None = None) -> None:
        self._taken = taken
        self._of_groups = of_groups
        self._free_range = free_range

    @property
    def are_all_known(self) -> bool:
        """Whether all numbers were looked at."""
        return self._free_range is None

    def count_free(self, concurrency: int) -> int:
        """How many are known to be free of a limit, below 0 if more are taken than it allows."""
        return concurrency - self._taken.bit_count() if self._free_range is None else len(self._free_range)

    def taken_by(self, group: str) -> int:
        """How many slots a group has."""
        return self._of_groups.get(group, 0).bit_count()

    def free_of_limit(self) -> Iterator[int]:
        """The free numbers of the limit, from the lowest on."""
        return _zeros(self._taken) if self._free_range is None else iter(self._free_range)

    def free_of_group(self, group: str) -> Iterator[int]:
        """The free numbers of a group, from the lowest on."""
        return _zeros(self._of_groups.get(group, 0))

    def find_range(self, given: Sequence[int], wanted: int, concurrency: int) -> range:
        """A free range for further claims of so many, once these numbers are given out.

        Empty where slots beyond the limit are taken: those claims would have to read all numbers anyway.
        """
        if self._taken >> concurrency:
            return NO_RANGE
        size = min(concurrency, RANGES_BELOW)
        bits = f"{self._taken | sum(1 << n for n in given):b}"[: -size - 1 : -1].ljust(size, "0")
        free = "0" * (MIN_CLAIMS * wanted)
        # From anywhere on, so that two nodes do not want the same range.
        first = bits.find(free, random.randrange(size))
        if first < 0:
            first = bits.find(free)
        if first < 0:
            return NO_RANGE
        end = bits.find("1", first)
        return range(first, end if end >= 0 else len(bits))


def _zeros(taken: int) -> Iterator[int]:
    """The numbers whose bits are not set, from the lowest on."""
    bits = f"{taken:b}"[::-1]
    n = bits.find("0")
    while n >= 0:
        yield n
        n = bits.find("0", n + 1)
    yield from itertools.count(len(bits))


def query(words: Dialect, name: str, *, by_group: bool) -> tuple[str, tuple[str]]:
    """Asks for the slots of a limit that are taken; for those of its groups only if they count."""
    if by_group:
        return "SELECT n, scope, group_key FROM workerd_slots WHERE limit_name = %s", (name,)
    # In words of 64 bits: thousands may be taken.
    return (
        f"SELECT n >> 6, {words.union_of_bits}(1 << (n & 63)) FROM workerd_slots"
        f" WHERE limit_name = %s AND scope = '{LIMIT}' GROUP BY n >> 6",
        (name,),
    )


def read(rows: Sequence[Row]) -> SlotNumbers:
    """What `query` found."""
    of_limit = 0
    of_groups: defaultdict[str, int] = defaultdict(int)
    if rows and len(rows[0]) == 2:
        for number, bits in rows:
            of_limit |= (int(bits) & _WORD) << 64 * int(number)
        return SlotNumbers(of_limit, {})
    for n, scope, group in rows:
        if scope == LIMIT.encode():
            of_limit |= 1 << int(n)
        else:
            of_groups[columns.lenient(group) or ""] |= 1 << int(n)
    return SlotNumbers(of_limit, of_groups)


def query_range(name: str, numbers: range, concurrency: int) -> tuple[str, tuple[str, str]]:
    """Asks for a slot of a limit that is taken: of these numbers, or beyond the limit."""
    of_limit = f"SELECT n FROM workerd_slots WHERE limit_name = %s AND scope = '{LIMIT}' AND group_key = ''"
    # Not one condition with OR: SQLite would read all slots of the limit.
    return (
        f"{of_limit} AND n BETWEEN {numbers[0]} AND {numbers[-1]}"
        f" UNION ALL {of_limit} AND n >= {concurrency} LIMIT 1",
        (name, name),
    )
