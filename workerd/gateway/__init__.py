"""The gateway: HTTP for programs and people, without touching the database."""
