"""etc/ -> frozen values, with all faults at once."""
