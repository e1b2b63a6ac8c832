"""A Django project whose tasks run on workerd, for the tests: settings, tasks, and a process to call it."""
