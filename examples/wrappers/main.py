"""Run both handlers."""

from __future__ import annotations

from workerd import Client

with Client() as client:
    proxies = client.wait(client.enqueue("fetch").id, timeout="20s").result
    print("fetch goes through", proxies["http"])
    after = client.wait(client.enqueue("slow", {"seconds": 0.01}).id, timeout="20s")
    print("slow goes through", after.result)
    assert (proxies["https"], after.result) == ("http://proxy.example.org:3128", None)
