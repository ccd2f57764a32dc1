"""The keys of cache entries: computed from everything that an entry depends on, and shortened in the log."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping

_LOG = logging.getLogger("hugepfn.cache")
_LOGGED_MAX = 12  # characters of a key, or of a part that it depends on


def key_of(what: str, parts: Mapping[str, str | bytes]) -> str:
    """The key of a cache entry, from everything that it depends on.

    The parts are logged, long ones as a digest: the logs of two runs show why an entry was built again.

    :param what: the kind of thing, for the log: "template".
    """
    digests = {name: _digest(part if isinstance(part, bytes) else part.encode()) for name, part in parts.items()}
    key = _digest("".join(f"{name} {digest}\n" for name, digest in digests.items()).encode())[:32]
    shown = [
        f"{name} {part if isinstance(part, str) and len(part) <= _LOGGED_MAX else digests[name][:_LOGGED_MAX]}"
        for name, part in parts.items()
    ]
    _LOG.debug("key of %s %s: %s", what, short(key), ", ".join(shown))
    return key


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def short(name: str) -> str:
    """The name of an entry for the log, with the beginning of its key."""
    return re.sub(r"[0-9a-f]{32}$", lambda key: key[0][:_LOGGED_MAX], name)
