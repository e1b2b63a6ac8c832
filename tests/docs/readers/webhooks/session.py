import hashlib
import hmac
import time
from types import SimpleNamespace

secret, body, now = b"a secret", b"{}", int(time.time())
signature = hmac.new(secret, f"{now}.".encode() + body, hashlib.sha256).hexdigest()
request = SimpleNamespace(headers={"Workerd-Signature": f"t={now},v1={signature}"}, body=body)


def refuse() -> None:
    raise AssertionError("a true delivery is refused")
