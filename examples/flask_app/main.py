"""Call the application as its users do."""

from __future__ import annotations

from app import app

with app.test_client() as http:
    job = http.post("/images/cat.png").get_json()["job"]
    answer = http.get(f"/jobs/{job}").get_json()
    print(answer)
    assert answer == {"status": "completed", "result": "cat.png@200"}
    assert http.get("/jobs/00000000-0000-0000-0000-000000000000").status_code == 404
