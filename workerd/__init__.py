"""Background jobs for teams who already have MySQL or MariaDB."""

__version__ = "0.1.0"
