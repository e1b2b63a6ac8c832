"""The project's settings; the environment names its database."""

from __future__ import annotations

import json
import os

import django
import pymysql

# mysqlclient needs a compiler and the server's headers; this is the usual stand-in.
pymysql.version_info = (2, 2, 7, "final", 0)  # type: ignore[assignment]
pymysql.install_as_MySQLdb()

SECRET_KEY = "only for tests"
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
ALLOWED_HOSTS = ["*"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["tests.contrib.django_shop"]
if django.VERSION < (6,):
    INSTALLED_APPS.append("django_tasks")
DATABASES = {"default": json.loads(os.environ["SHOP_DATABASE"])}
if password := DATABASES["default"].get("PASSWORD"):
    DATABASES["default"]["PASSWORD"] = password.encode()  # PyMySQL would encode text as Latin-1
HANDLERS = {"default": "django", "urgent": "django-urgent"}
TASKS = {
    "default": {
        "BACKEND": "workerd.contrib.django.WorkerdBackend",
        "QUEUES": ["default", "urgent"],
        "OPTIONS": {"database": "default", "handlers": HANDLERS},
    },
    "wrong": {
        "BACKEND": "workerd.contrib.django.WorkerdBackend",
        "QUEUES": ["mail"],
        "OPTIONS": {"database": "absent"},
    },
}
