"""A module whose import never ends, in C code that looks at nothing."""

sum(range(10**13))
