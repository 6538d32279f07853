"""What a user agent says: the device (`mobile`, `tablet` or `desktop`; null for bots, televisions and unknown devices), and the class of the client
(clients.py).

A row with a user agent gets both when it is loaded, unless it has its own, so the models work on any engine and need no user agent. DuckDB calls the
functions with whole vectors. Each distinct text is parsed once per process, with ua-parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

import duckdb
from duckdb.func import ARROW, SPECIAL

from orchestration.mapping.personal import known_of
from orchestration.sources.clients import LONGEST, REMEMBERED, client_class_of

_DESKTOPS: Final = frozenset(
    {"Windows", "Mac OS X", "Linux", "Ubuntu", "Fedora", "Debian", "Chrome OS", "FreeBSD", "OpenBSD", "NetBSD"}
)
_PHONES: Final = frozenset({"Windows Phone", "BlackBerry OS", "Firefox OS", "KaiOS", "Symbian OS", "Bada"})
#: Devices that look like a phone or a computer but are not.
_OTHERS: Final = re.compile(
    r"bot\b|crawl|spider|slurp|headless|phantomjs|lighthouse|\btv\b|smart-?tv|appletv|googletv|hbbtv|crkey|roku|\bAFT[A-Z]|bravia|"
    r"playstation|xbox|nintendo|\bwatch|oculus|quest [0-9]",
    re.IGNORECASE,
)
_TABLETS: Final = re.compile(
    r"ipad|tablet(?! pc)|kindle|playbook|silk/(?!.*mobile)|\bKF[A-Z]{2,}\b|nexus (7|9|10)\b", re.IGNORECASE
)


@lru_cache(REMEMBERED)
def device_of(user_agent: str) -> str | None:
    """The device of a user agent. Never raises, whatever the text is."""
    if (known := known_of(user_agent)) is not None:
        return next((each for each in known if each in DEVICES), None)
    if len(user_agent) > LONGEST or _OTHERS.search(user_agent):
        return None
    try:
        import ua_parser  # needed by few mappings

        system, device = ua_parser.parse_os(user_agent), ua_parser.parse_device(user_agent)
    except Exception:  # a text that the parser fails on has no device
        return None
    family = "" if system is None else system.family
    model = "" if device is None else device.family
    if model == "Spider":
        return None
    if _TABLETS.search(user_agent) or _TABLETS.search(model):
        return "tablet"
    if family == "Android":
        return "mobile" if "mobile" in user_agent.lower() or model == "Generic Smartphone" else "tablet"
    if family == "iOS" or family in _PHONES or "Phone" in model:
        return "mobile"
    return "desktop" if family in _DESKTOPS else None


#: The known devices.
DEVICES: Final = ("desktop", "mobile", "tablet")
#: By field of events, what finds it in a user agent.
FOUND: Final[dict[str, Callable[[str], str | None]]] = {"device": device_of, "client_class": client_class_of}


def function(field: str) -> str:
    """The name in SQL of the function that finds a field of `FOUND`."""
    return f"__{field}_of"


def _vectorized(find: Callable[[str], str | None]) -> Callable[[Any], Any]:
    """The same for a vector; each distinct text is parsed once."""
    import pyarrow as pa

    def found(texts: Any) -> Any:
        texts = texts.dictionary_encode()
        if isinstance(texts, pa.ChunkedArray):
            return pa.chunked_array([found(chunk) for chunk in texts.chunks], pa.string())
        return pa.array([find(text) for text in texts.dictionary.to_pylist()], pa.string()).take(texts.indices)

    return found


def register(con: duckdb.DuckDBPyConnection) -> None:
    """Register the functions for a connection and all others to the same database."""
    for field, find in FOUND.items():
        with suppress(duckdb.CatalogException, duckdb.NotImplementedException):  # already registered
            con.create_function(
                function(field), _vectorized(find), ["VARCHAR"], "VARCHAR", type=ARROW, null_handling=SPECIAL
            )


def filled(field: str, value: str, user_agent: str) -> str:
    """SQL of a row's `field` or, if it has none, of what its user agent says."""
    return f"case when nullif(trim({value}), '') is not null or {user_agent} is null then {value} else {function(field)}({user_agent}) end"
