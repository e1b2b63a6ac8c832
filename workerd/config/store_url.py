"""`store.url` parsed, with messages that never repeat a password."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from workerd.errors import InvalidValue

MYSQL_FORM = "mysql://user:password@host:3306/database"
SQLITE_FORM = "sqlite:////var/lib/workerd/workerd.db"
STORE_URL_FORM = f'"{MYSQL_FORM}" or "{SQLITE_FORM}"'


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
    """Address of a MySQL or MariaDB server; the password is kept out of `repr`."""

    user: str
    password: str
    host: str
    port: int
    database: str
    unix_socket: str | None = None
    tls: Tls = Tls()

    def __repr__(self) -> str:
        return f"MySQLUrl({self.shown})"

    @property
    def is_local(self) -> bool:
        """Whether nobody can listen on the way: a Unix socket, or the loopback interface."""
        return self.unix_socket is not None or self.host in _LOOPBACK

    @property
    def shown(self) -> str:
        """The address without its password."""
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
    """The address in a store URL. Raises InvalidValue with all that is wrong, but never shows the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The message would repeat what stands between ':' and '/', which may be a password.
        raise _invalid(["percent-encode '#', '/', '?' and '@' in the password"]) from None
    wrong = ["percent-encode '#' as %23"] if parts.fragment else []
    if "\0" in url or "%00" in url:
        wrong.append("remove the NUL character")
    if parts.scheme == "sqlite":
        wrong += _wrong_with_sqlite(unquote(parts.path), parts.netloc, parts.query)
        if wrong:
            raise _invalid(wrong)
        return SQLiteUrl(Path(unquote(parts.path)[1:]))
    if parts.scheme != "mysql":
        raise _invalid([*wrong, f"the engine {parts.scheme[:30]!r} is not supported"])
    database = unquote(parts.path.removeprefix("/"))
    if not database or "/" in database:
        wrong.append("name the database, and nothing else, after the host")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not parts.hostname and not options.get("unix_socket"):
        wrong.append("name a host or a unix_socket")
    wrong += _wrong_with_options(options)
    if wrong:
        raise _invalid(wrong)
    return MySQLUrl(
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        host=parts.hostname or "localhost",
        port=port or 3306,
        database=database,
        unix_socket=options.get("unix_socket"),
        tls=_tls(options, parts.hostname or "localhost"),
    )


def _invalid(wrong: list[str]) -> InvalidValue:
    return InvalidValue(f"expected {STORE_URL_FORM}; {'; '.join(wrong)}")


def _wrong_with_sqlite(path: str, netloc: str, query: str) -> list[str]:
    wrong = []
    if netloc or not path.startswith("//") or not path.strip("/"):
        wrong.append("an embedded store needs an absolute path after 'sqlite:///'")
    if query:
        wrong.append("an embedded store takes no query parameters")
    return wrong


_OPTIONS = ("unix_socket", "ssl", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify")
_MODES = ("off", "preferred", "required")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def _wrong_with_options(options: dict[str, str]) -> list[str]:
    wrong = [
        f"the parameter {name[:30]!r} is not known, only {', '.join(_OPTIONS)}"
        for name in sorted(set(options) - set(_OPTIONS))
    ]
    if options.get("ssl", "off") not in _MODES:
        wrong.append("ssl is off, preferred or required")
    if options.get("ssl_verify", "true") not in _BOOLEANS:
        wrong.append("ssl_verify is true or false")
    return wrong


def _tls(options: dict[str, str], host: str) -> Tls:
    files = {key: options.get(f"ssl_{key}") for key in ("ca", "cert", "key")}
    verify = _BOOLEANS[options.get("ssl_verify", "true" if files["ca"] else "false")]
    required = any(files.values()) or verify
    # Nobody can listen between two processes of one host, and encrypting costs CPU there.
    local = "unix_socket" in options or host in _LOOPBACK
    default = "required" if required else "off" if local else "preferred"
    return Tls(mode=options.get("ssl", default), verify=verify, **files)
