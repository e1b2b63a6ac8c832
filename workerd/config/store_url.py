"""`store.url` parsed, with messages that never repeat a password."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from workerd.errors import InvalidValue

MYSQL_FORM = "mysql://user:password@host:3306/database"
SQLITE_FORM = "sqlite:////var/lib/workerd/workerd.db"
DEFAULT_PORT = 3306
MAX_PORTS = 65536
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


class Host(msgspec.Struct, frozen=True):
    """Name or literal address of a server, and its port."""

    name: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class MySQLUrl(msgspec.Struct, frozen=True, kw_only=True):
    """Address of a MySQL or MariaDB database; the password is kept out of `repr`.

    `hosts`: the servers that may hold it, tried in this order; one alone with a `unix_socket`.
    """

    user: str
    password: str
    hosts: tuple[Host, ...]
    database: str
    unix_socket: str | None = None
    tls: Tls = Tls()

    def __repr__(self) -> str:
        return f"MySQLUrl({self.shown})"

    @property
    def is_local(self) -> bool:
        """Whether nobody can listen on the way: a Unix socket, or the loopback interface."""
        return self.unix_socket is not None or all(host.name in _LOOPBACK for host in self.hosts)

    @property
    def shown(self) -> str:
        """The address without its password."""
        where = self.unix_socket or ",".join(map(str, self.hosts))
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
        hosts = _hosts(parts.netloc.rpartition("@")[2])
    except ValueError as error:
        # Its message would repeat what stands between ':' and '/', which may be a password.
        if isinstance(error, _WrongPort) and "@" in parts.netloc:
            raise _invalid([f"give each host a port below {MAX_PORTS}"]) from None
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
    wrong += _wrong_with_hosts(hosts, options.get("unix_socket"))
    wrong += _wrong_with_options(options)
    if wrong:
        raise _invalid(wrong)
    hosts = tuple(host if host.name else Host("localhost", host.port) for host in hosts)
    return MySQLUrl(
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        hosts=hosts,
        database=database,
        unix_socket=options.get("unix_socket"),
        tls=_tls(options, hosts),
    )


def may_be_encrypted(url: str) -> bool:
    """Whether connections to this valid address use TLS, at least if the server can."""
    address = parse_store_url(url)
    return isinstance(address, MySQLUrl) and address.tls.mode != "off"


def _invalid(wrong: list[str]) -> InvalidValue:
    return InvalidValue(f"expected {STORE_URL_FORM}; {'; '.join(wrong)}")


class _WrongPort(ValueError):
    """A port that no host has."""


def _hosts(text: str) -> tuple[Host, ...]:
    """The servers in `host:port,host:port`, each with or without its port. Raises ValueError."""
    return tuple(map(_host, text.split(",")))


def _host(text: str) -> Host:
    name, port = text, ""
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(text)
        port = rest[1:]
    elif ":" in text:
        name, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        raise ValueError(text)
    if len(port) > 5 or int(port or 0) >= MAX_PORTS:
        raise _WrongPort
    return Host(name.lower(), int(port or 0) or DEFAULT_PORT)


def _wrong_with_hosts(hosts: tuple[Host, ...], unix_socket: str | None) -> list[str]:
    if len(hosts) == 1:
        return [] if hosts[0].name or unix_socket else ["name a host or a unix_socket"]
    wrong = [] if all(host.name for host in hosts) else ["name a host before and after each ','"]
    if len(set(hosts)) < len(hosts):
        wrong.append("name each host once")
    if unix_socket:
        wrong.append("name several hosts or a unix_socket, not both")
    return wrong


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
    elif options.get("ssl", "required") != "required" and _requires_tls(options):
        wrong.append("ssl_ca, ssl_cert, ssl_key and ssl_verify=true need ssl=required")
    return wrong


def _requires_tls(options: dict[str, str]) -> bool:
    return _BOOLEANS[options.get("ssl_verify", "false")] or bool(
        options.keys() & {"ssl_ca", "ssl_cert", "ssl_key"}
    )


def _tls(options: dict[str, str], hosts: tuple[Host, ...]) -> Tls:
    files = {key: options.get(f"ssl_{key}") for key in ("ca", "cert", "key")}
    verify = _BOOLEANS[options.get("ssl_verify", "true" if files["ca"] else "false")]
    # Nobody can listen between two processes of one host, and encrypting costs CPU there.
    local = "unix_socket" in options or all(host.name in _LOOPBACK for host in hosts)
    default = "required" if _requires_tls(options) else "off" if local else "preferred"
    return Tls(mode=options.get("ssl", default), verify=verify, **files)
