"""A module whose import never ends, in uninterruptible C code."""

sum(range(10**13))
