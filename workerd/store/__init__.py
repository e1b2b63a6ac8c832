"""The store: jobs, requests, schedules, handlers and nodes in MySQL, MariaDB or SQLite. Knows no process."""
