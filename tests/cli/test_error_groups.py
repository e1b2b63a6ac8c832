"""`errors` and what follows it, on both engines."""

from __future__ import annotations

from tests.cli.conftest import CommandLine


def test_groups_are_listed_shown_resolved_and_muted(cli: CommandLine) -> None:
    """`errors` alone lists the open ones."""
    cli("enqueue", "behave", "kind=error", "--wait", "30s", check=False)
    (group,) = [g for g in cli.json("errors", "--handler", "behave")["errors"] if "ValueError" in g["error"]]
    fingerprint = group["fingerprint"]
    assert fingerprint in cli("errors").stdout
    assert fingerprint in cli("errors", "--since", "1h", "--limit", "50").stdout
    shown = cli("errors", "show", fingerprint).stdout
    assert "ValueError" in shown
    assert "_error" in shown  # the stack
    assert group["job_id"] in shown
    assert cli.json("errors", "show", fingerprint)["stack"]
    of_job = cli("job", "show", group["job_id"]).stdout
    assert f"fingerprint  {fingerprint}" in of_job
    assert "builtins.ValueError" in of_job
    assert "errors show" in cli("why", group["job_id"]).stdout
    assert "reopens it" in cli("errors", "resolve", fingerprint).stderr
    assert fingerprint not in cli("errors").stdout
    assert "resolved" in cli("errors", "--all").stdout
    assert "failures still count" in cli("errors", "mute", fingerprint, "--for", "1d").stderr
    assert "muted until" in cli("errors", "show", fingerprint).stdout


def test_wrong_words(cli: CommandLine) -> None:
    for words in (
        ("errors", "show", "12"),
        ("errors", "nothing"),
        ("errors", "mute", "0" * 16),
        ("errors", "mute", "0" * 16, "--for", "soon"),
    ):
        assert cli(*words, check=False).returncode == 2, words
    assert cli("errors", "show", "0" * 16, check=False).returncode == 1
