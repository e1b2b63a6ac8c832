"""Make the tables, place an order as a browser does, and wait for its task."""

from __future__ import annotations

import os
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
django.setup()

from django.contrib.auth.models import User  # noqa: E402 -- after django.setup
from django.core.management import call_command  # noqa: E402
from django.test import Client  # noqa: E402

call_command("migrate", run_syncdb=True, verbosity=0)
call_command("check")
http = Client()
order = http.post("/orders", {"mail": "ada@example.org"}).json()["order"]
end = time.monotonic() + 60
while (answer := http.get(f"/orders/{order}").json())["task"] not in ("SUCCESSFUL", "FAILED"):
    assert time.monotonic() < end, answer
    time.sleep(0.1)
print(answer)
assert answer == {"confirmed": True, "task": "SUCCESSFUL", "value": "sent to ada@example.org"}

http.force_login(User.objects.create_superuser("admin"))
page = http.get("/admin/shop/order/").content.decode()
print("the admin links to", page[page.index("http://127.0.0.1:8020") :].split('"')[0])
