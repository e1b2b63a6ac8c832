from datetime import UTC, datetime, timedelta

client.pause("greet")
client.enqueue("greet", run_at=datetime.now(UTC) - timedelta(seconds=8.4))
