"""The rest of the project's settings, and the name that Django 6 gives to its tasks."""

import sys
from pathlib import Path

import django

if django.VERSION < (6,):
    import django_tasks

    sys.modules["django.tasks"] = django_tasks

SECRET_KEY = "only for tests"
USE_TZ = True
INSTALLED_APPS = ["shop"] + (["django_tasks"] if django.VERSION < (6,) else [])
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(__file__).with_name("store.db")},
}
