from fastapi.testclient import TestClient

with TestClient(app) as web:
    made = web.post("/images", params={"name": "cat.png"}).json()["job"]
    assert web.get(f"/jobs/{made}").json()["status"] in ("new", "inprogress", "completed")
