"""The key of keyed hashes (HMAC-SHA256) of personal data: without it nobody can find a value from its hash by trying values."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from orchestration.config.settings import Environment, Settings
from orchestration.errors import FinegrainError

#: The file of the key, below the home.
KEY_FILE: Final = "privacy.key"
#: The fewest characters of a key.
LEAST_LENGTH: Final = 32


def privacy_key(where: Settings) -> bytes:
    """The key, as bytes: the text of `FINEGRAIN_PRIVACY_KEY`, or else of `privacy.key` in the home, which is created with 64 random hex digits
    that only its owner can read. Raises FinegrainError if the key is too short, cannot be read or written, or if the lake is shared and
    the variable is not set: every machine needs the same key."""
    given = Environment.read().privacy_key
    if given is not None:
        return _checked(given.get_secret_value(), "FINEGRAIN_PRIVACY_KEY")
    if isinstance(where.lake_catalog, str):
        raise FinegrainError(
            "FINEGRAIN_PRIVACY_KEY is not set: all machines that share a lake need the same key for personal data; "
            "make one with `openssl rand -hex 32`, and set it on each of them"
        )
    path = where.home / KEY_FILE
    try:
        if not path.exists():
            _create(path)
        return _checked(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise FinegrainError(f"{path}: the key for personal data cannot be kept here: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FinegrainError(
            f"{path}: this is not a key; it must be text of {LEAST_LENGTH} characters or more"
        ) from None


def _checked(text: str, place: str) -> bytes:
    key = text.strip().encode()
    if len(key) < LEAST_LENGTH:
        raise FinegrainError(
            f"{place}: a key of {len(key)} characters is too short to keep personal data safe; use {LEAST_LENGTH} or more, "
            "as from `openssl rand -hex 32`"
        )
    return key


def _create(path: Path) -> None:
    """Write a new key, whole or not at all; if another process was first, its key stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{KEY_FILE}-", dir=path.parent)  # readable by its owner alone
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        Path(draft).unlink()
