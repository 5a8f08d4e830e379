"""What must not be told on: users, passwords and tokens in the addresses of services."""

import re
from urllib.parse import urlsplit

_USER = re.compile(r"(?<=://)[^/\s'\"]*@")  # up to the last one: a password may hold another
_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]*")


def without_secrets(text: str) -> str:
    """Without users, passwords and queries of the addresses in it."""
    return _QUERY.sub(r"\1", _USER.sub("", text))


def holds_secret(address: str) -> bool:
    """Whether an address says more than where something is."""
    parts = urlsplit(address)
    return bool(parts.username or parts.password or parts.query)
