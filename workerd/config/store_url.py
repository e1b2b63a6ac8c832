"""`store.url` parsed, with messages that never repeat a password."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from workerd.errors import ConfigError

MYSQL_FORM = "mysql://user:password@host:3306/database"
SQLITE_FORM = "sqlite:////var/lib/workerd/workerd.db"


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """How the connection is encrypted: `off`, `preferred` (if the server can) or `required`.

    `verify` checks the server's certificate and name; naming a `ca` turns it on.
    """

    mode: str = "preferred"
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = False


class MySQLUrl(msgspec.Struct, frozen=True, kw_only=True):
    """Where a MySQL or MariaDB is; the password is kept out of `repr`."""

    user: str
    password: str
    host: str
    port: int
    database: str
    unix_socket: str | None = None
    tls: Tls = Tls()

    def __repr__(self) -> str:
        return f"MySQLAddress({self.shown})"

    @property
    def shown(self) -> str:
        """The address for messages to people."""
        where = self.unix_socket or f"{self.host}:{self.port}"
        return f"{self.user}@{where}/{self.database}"


class SQLiteUrl(msgspec.Struct, frozen=True):
    """The file of an embedded store."""

    path: Path

    @property
    def shown(self) -> str:
        return str(self.path)


StoreUrl = MySQLUrl | SQLiteUrl


def parse_store_url(url: str) -> StoreUrl:
    """What a store URL names; ConfigError says which form was expected."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The message would repeat what stands between ':' and '/', which may be a password.
        raise _fault("percent-encode '#', '/', '?' and '@' in the password") from None
    if parts.fragment:
        raise _fault("percent-encode '#' as %23")
    if parts.scheme == "sqlite":
        return _sqlite(unquote(parts.path), parts.netloc, parts.query)
    if parts.scheme != "mysql":
        raise _fault(f"the engine {parts.scheme!r} is not known")
    database = unquote(parts.path.removeprefix("/"))
    if not database or "/" in database:
        raise _fault("name the database after the host")
    options = _options(parts.query)
    return MySQLUrl(
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        host=parts.hostname or "localhost",
        port=port or 3306,
        database=database,
        unix_socket=options.pop("unix_socket", None),
        tls=_tls(options, parts.hostname or "localhost", "unix_socket=" in parts.query),
    )


def _fault(why: str) -> ConfigError:
    return ConfigError([f'store.url: expected "{MYSQL_FORM}" or "{SQLITE_FORM}"; {why}'])


def _sqlite(path: str, netloc: str, query: str) -> SQLiteUrl:
    if netloc or not path.startswith("//"):
        raise _fault("an embedded store needs an absolute path behind 'sqlite:///'")
    if query:
        raise _fault("an embedded store takes no query parameters")
    return SQLiteUrl(Path(path[1:]))


_KNOWN = ("unix_socket", "ssl", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify")
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def _options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_KNOWN))
    if unknown:
        raise _fault(f"the parameter {unknown[0]!r} is not known, only {', '.join(_KNOWN)}")
    return options


def _tls(options: dict[str, str], host: str, local: bool) -> Tls:
    named = {key: options.get(f"ssl_{key}") for key in ("ca", "cert", "key")}
    verify = options.get("ssl_verify", "true" if named["ca"] else "false")
    if verify not in _TRUTH:
        raise _fault("ssl_verify is true or false")
    required = any(named.values()) or _TRUTH[verify]
    # Nobody listens between two processes of one machine, and encrypting costs CPU there.
    usual = "required" if required else "off" if local or host in _LOOPBACK else "preferred"
    mode = options.get("ssl", usual)
    if mode not in ("off", "preferred", "required"):
        raise _fault("ssl is off, preferred or required")
    return Tls(mode=mode, verify=_TRUTH[verify], **named)
