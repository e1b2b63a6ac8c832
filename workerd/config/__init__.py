"""etc/ -> frozen values, with all faults at once."""

from workerd.config.loader import load

__all__ = ["load"]
