"""What a config value may be: each check takes the raw value and gives the typed one, or says what it must be.

A check's ValueError completes the sentence "KEY is VALUE; it must be …". What a key is called and what it is for
stands in `keys.py`.
"""

from __future__ import annotations

import codecs
import ipaddress
import re
import shlex
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from pipeline.fields import Field, parse_field

Check = Callable[[Any], Any]
_METADATA_HOSTS = {"169.254.169.254", "fd00:ec2::254", "metadata.google.internal", "metadata", "100.100.100.200"}


def text(value: Any) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    if "\0" in value:
        raise ValueError("a text without NUL")
    return value


def flag(value: Any) -> bool:
    """true or false, not "yes" in quotes and not 1."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def whole(low: int, high: int | None = None, unit: str = "") -> Check:
    """A whole number of a range."""
    words = _range_words(low, high, unit)

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"a whole number, {words}")
        if value < low or (high is not None and value > high):
            raise ValueError(words)
        return value

    return check


def number(low: float, high: float | None = None, unit: str = "") -> Check:
    """A finite number of a range."""
    words = _range_words(low, high, unit)

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise ValueError(f"a number, {words}")
        if value < low or (high is not None and value > high):
            raise ValueError(words)
        return float(value)

    return check


def _range_words(low: float, high: float | None, unit: str) -> str:
    bounds = f"at least {low:,}" if high is None else f"from {low:,} to {high:,}"
    if not unit:
        return bounds
    return f"{bounds} {unit}" if low == 1 and high is None else f"{bounds} {unit}s"


def one_of(*choices: str) -> Check:
    """One of a few words."""

    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of: {', '.join(choices)}")
        return str(value)

    return check


def optional(check: Check) -> Check:
    """The same, or nothing (null)."""
    return lambda value: None if value is None else check(value)


def encoding(value: Any) -> str:
    """A text encoding that Python knows."""
    try:
        name = codecs.lookup(text(value)).name
        "".encode(name)
    except (LookupError, ValueError):
        raise ValueError("an encoding that Python knows, e.g. utf-8, utf-16, cp1252, iso8859-1") from None
    return name


def delimiter(value: Any) -> str:
    """What stands between two cells."""
    if not isinstance(value, str) or len(value) != 1 or value in '"\r\n\0 ':
        raise ValueError('one character, e.g. ";" or "\\t", and no quote, space or line end')
    return value


def fields(value: Any) -> tuple[Field, ...]:
    """name → column or template, in the order of the file."""
    if not isinstance(value, dict) or not value:
        raise ValueError("a list of lines such as 'person: author', each a field name and a column or a template")
    parsed = []
    for name, source in value.items():
        if not isinstance(name, str) or not isinstance(source, str):
            raise ValueError(f"names and sources are texts, but {name!r} is {source!r}; put it in quotes if it is meant so")
        try:
            parsed.append(parse_field(name, source))
        except ValueError as problem:
            raise ValueError(str(problem)) from None
    return tuple(parsed)


def is_loopback(host: str) -> bool:
    """This machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_metadata_host(host: str) -> bool:
    """A cloud's metadata service, by name or by its address in any spelling (`0xA9FEA9FE`, `::ffff:a9fe:a9fe`)."""
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host in _METADATA_HOSTS
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_link_local or str(address) in _METADATA_HOSTS


def collection(value: Any) -> str:
    """A name that Weaviate takes as it is, with room for what a generation adds."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z][A-Za-z0-9_]{0,127}", value):
        raise ValueError("a name of letters, digits and _ that begins with a capital, e.g. EntityString")
    return value


def names(value: Any) -> tuple[str, ...]:
    """A list of field names; whether there are such fields is asked with all keys together."""
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError("a list of fields, e.g. [person, title]")
    return tuple(sorted(set(value)))


def word(value: Any) -> str:
    """What may stand in a URL as it is."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value):
        raise ValueError('letters, digits, ".", "_" and "-"; put a date in quotes, e.g. "2024-10-21"')
    return value


def program(value: Any) -> tuple[str, ...]:
    """A program and its arguments: a list, or one text that is cut as a shell would cut it. No shell ever sees it."""
    words = "a program and its arguments, e.g. [./notify.sh, me@example.org] or './notify.sh me@example.org'"
    try:
        parts = shlex.split(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(words) from None
    if not isinstance(parts, list | tuple) or not parts or not all(isinstance(part, str) and "\0" not in part for part in parts):
        raise ValueError(words)
    if not parts[0].strip():
        raise ValueError(words)
    return tuple(parts)


def ping(value: Any) -> str:
    """A URL that is asked for, with '?' or without; a name or password in it would be sent along."""
    words = "a URL such as https://hc-ping.com/…"
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(words)
    _url(value.partition("?")[0], words)
    if "#" in value:
        raise ValueError("a URL without '#'")
    return value


def server(value: Any) -> str:
    """The URL of a server's root (its safety is checked with `allow_insecure`)."""
    found = _url(value, "a URL such as http://localhost:8080")
    if urlsplit(found).path:
        raise ValueError("the URL of the server's root, without a path")
    return found


def group(value: Any) -> int:
    """A group of this machine, by name or number; its number."""
    import grp

    words = "the name or the number of a group of this machine"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(words)
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        try:
            return grp.getgrnam(value).gr_gid
        except (KeyError, ValueError):
            raise ValueError(words) from None
    if not 0 <= int(value) < 2**32 - 1:
        raise ValueError(words)
    return int(value)


def host(value: Any) -> str:
    """The name or address of a machine, and nothing around it."""
    if not isinstance(value, str) or not (re.fullmatch(r"[A-Za-z0-9._-]+", value) or _is_ipv6(value)):
        raise ValueError("the name or address of a host, without a port")
    if _is_metadata_host(value.lower().rstrip(".")):
        raise ValueError("a host of yours, not a cloud's metadata service")
    return value


def _is_ipv6(value: str) -> bool:
    try:
        ipaddress.IPv6Address(value)
    except ValueError:
        return False
    return True


def service(value: Any) -> str:
    """`local`, `openai`, or the URL of a compatible service (its safety is checked with `allow_insecure`)."""
    words = "local, openai, or a URL such as https://host/v1"
    if value in ("local", "openai"):
        return str(value)
    return _url(value, words)


def _url(value: Any, words: str) -> str:
    """An http(s) URL with nothing secret in it, and not of a cloud's metadata service."""
    if not isinstance(value, str) or "://" not in value:
        raise ValueError(words)
    try:
        parts = urlsplit(value)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise ValueError(words) from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(words)
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL without a name or password in it; keys come from the environment")
    if parts.query or parts.fragment:
        raise ValueError("a URL without '?' or '#'")
    if _is_metadata_host(host.lower().rstrip(".")):
        raise ValueError("the URL of a service of yours, not of a cloud's metadata service")
    return value.rstrip("/")
