import time
from types import SimpleNamespace

stripe = SimpleNamespace(charge=lambda tenant, amount: SimpleNamespace(status=429, retry_after=60))


def refund(tenant: str) -> None:
    time.sleep(60)
