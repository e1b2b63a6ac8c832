"""`[limits.NAME]`: how many jobs run and start on all nodes together."""

from __future__ import annotations

from typing import Annotated

from workerd.config import validators as v
from workerd.config.config_value import ConfigValue
from workerd.rate_limit import Rate


class LimitConfig(ConfigValue, frozen=True):
    """One `[limits.NAME]`: how many jobs of the handlers that name it run, and start, on all nodes together.

    Where live nodes have different ones, the lower of each value holds.
    """

    concurrency: Annotated[int | None, v.count_or_none(1, 10_000)] = None
    """Jobs that run at the same time, on all nodes together. "": any number."""
    group_concurrency: Annotated[int | None, v.count_or_none(1, 10_000)] = None
    """Of these, jobs of one group. Jobs without a group share one. "": any number."""
    rate: Annotated[Rate | None, v.rate_or_none] = None
    """Jobs that start, as a number per time: "100/1m". No window of any length has more starts than the rate
    allows in it, plus `burst`. "": any number."""
    burst: Annotated[int | None, v.count_or_none(1, 1_000_000)] = None
    """Jobs that may start together after a pause. "": as many as the number of the rate."""
    group_rate: Annotated[Rate | None, v.rate_or_none] = None
    """As `rate`, for the jobs of each group. `burst` applies to it too; beside a `rate`, only if it is less
    than the number of this one."""

    @property
    def by_group(self) -> bool:
        """Whether it counts each group on its own."""
        return self.group_concurrency is not None or self.group_rate is not None

    @property
    def rated(self) -> bool:
        return self.rate is not None or self.group_rate is not None

    @property
    def starts(self) -> Rate | None:
        """The rate with its burst."""
        return self.rate if self.rate is None or self.burst is None else self.rate.with_burst(self.burst)

    @property
    def group_starts(self) -> Rate | None:
        """The rate of each group with its burst."""
        if self.group_rate is None or self.burst is None:
            return self.group_rate
        burst = self.burst if self.rate is None else min(self.burst, self.group_rate.burst)
        return self.group_rate.with_burst(burst)

    @property
    def shown_burst(self) -> int | None:
        """The burst where it was given, or is not the rate's number."""
        rate = self.starts or self.group_starts
        return self.burst if rate is None or rate.burst == rate.count else rate.burst

    def lower(self, other: LimitConfig) -> LimitConfig:
        """The lower of each value; its rates have their bursts, as either side may give none."""
        if self == other:
            return self
        return LimitConfig(
            concurrency=_lower(self.concurrency, other.concurrency),
            group_concurrency=_lower(self.group_concurrency, other.group_concurrency),
            rate=_slower(self.starts, other.starts),
            group_rate=_slower(self.group_starts, other.group_starts),
        )


def _lower(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def _slower(one: Rate | None, other: Rate | None) -> Rate | None:
    return other if one is None else one if other is None else one.lower(other)
