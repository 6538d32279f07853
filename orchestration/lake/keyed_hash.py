"""Keyed hashes of personal data (HMAC-SHA256) in SQL. The key reaches a connection as variables, so it is never SQL text."""

from __future__ import annotations

import hashlib
from typing import Final

import duckdb

from orchestration.config.privacy_key import privacy_key
from orchestration.config.settings import Settings

#: The block size of SHA-256, in bytes (RFC 2104).
_BLOCK: Final = 64


def give_key(con: duckdb.DuckDBPyConnection, where: Settings) -> None:
    """Give a connection the key. Raises FinegrainError as `privacy_key` does."""
    key = privacy_key(where)
    block = (key if len(key) <= _BLOCK else hashlib.sha256(key).digest()).ljust(_BLOCK, b"\0")
    for name, pad in (("privacy_inner", 0x36), ("privacy_outer", 0x5C)):
        con.execute(f"set variable {name} = $pad", {"pad": bytes(byte ^ pad for byte in block)})


def keyed_hash(text: str) -> str:
    """SQL of the keyed hash of a text (SQL), as 64 hex digits; null if the text is null or the connection has no key."""
    inner = f"sha256(getvariable('privacy_inner') || encode({text}))"
    return f"sha256(getvariable('privacy_outer') || unhex({inner}))"
