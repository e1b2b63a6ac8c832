"""What `check` says of secrets and of connections that others could read."""

from __future__ import annotations

from pathlib import Path

import pytest

from workerd.config.build import load
from workerd.exposure import exposures


def exposed(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "workerd.toml").write_text(text)
    return exposures(load(tmp_path, {}))


@pytest.mark.parametrize(
    ("mode", "words"),
    [(0o666, "change"), (0o644, "read"), (0o660, "its group"), (0o640, ""), (0o600, ""), (0o400, "")],
)
def test_files_of_secrets(tmp_path: Path, mode: int, words: str) -> None:
    """Password, tokens and secrets are for the daemon's user, and at most readable by its group."""
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t\n")
    secret.chmod(mode)
    found = exposed(
        tmp_path,
        f'[store]\nurl = "mysql://u@localhost/db"\npassword_file = "{secret}"\n'
        f'[gateway]\ntoken_file = "{secret}"\n'
        f'[webhooks.ops]\nurl = "https://x.example/"\nsecret_file = "{secret}"\n',
    )
    keys = ("store.password_file", "gateway.token_file", "webhooks.ops.secret_file")
    assert len(found) == (3 if words else 0), found
    for sentence, key in zip(found, keys, strict=False):
        assert sentence.startswith(key)
        assert words in sentence
        assert f"{mode:04o}" in sentence
    assert "s3cr3t" not in str(found)


def test_a_gateway_that_other_hosts_reach(tmp_path: Path) -> None:
    """Beyond loopback there must be TLS in front; loopback and Unix sockets are fine."""
    (tmp_path / "tokens").touch(0o600)
    tokens = f'token_file = "{tmp_path}/tokens"'
    for listen, words in (
        ("0.0.0.0:8020", "TLS"), ("10.0.0.1:80", "TLS"), ("127.0.0.1:8020", ""), ("[::1]:8020", ""),
        ("unix:/run/g", ""), ("", ""),
    ):  # fmt: skip
        found = exposed(tmp_path, f'[gateway]\nlisten = "{listen}"\n{tokens if listen else ""}')
        assert bool(found) == bool(words), listen
        assert all(words in sentence for sentence in found)


def test_a_store_on_another_host(tmp_path: Path) -> None:
    """It must be encrypted for certain; on this host it need not."""
    for url, is_exposed in (
        ("mysql://u:s3cr3t@db.internal/x", True), ("mysql://u:s3cr3t@db.internal/x?ssl=preferred", True),
        ("mysql://u@db.internal/x?ssl=off", True), ("mysql://u@db.internal/x?ssl=required", False),
        ("mysql://u@db.internal/x?ssl_ca=/ca", False), ("mysql://u@localhost/x", False),
        ("mysql://u@db/x?unix_socket=/s", False), ("sqlite:////tmp/x", False),
    ):  # fmt: skip
        found = exposed(tmp_path, f'[store]\nurl = "{url}"\n')
        assert bool(found) == is_exposed, url
        assert "s3cr3t" not in str(found)
