import os
from types import SimpleNamespace

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
django.setup()
user = SimpleNamespace(id=7, save=lambda: None)
