"""Mapping values that come from environment variables, such as secrets."""

from __future__ import annotations

import os
import re
from typing import Final

from orchestration.config.settings import is_text
from orchestration.errors import FinegrainError, is_secret, keep_secret, keep_secrets_of


def from_environment(text: str, where: str, *, secret: bool = False) -> str:
    """`text` with each `${NAME}` replaced from the environment. A `secret` value is masked in all later errors. Raises FinegrainError
    that names the variable and `where`."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise FinegrainError(f"{where}: the environment has no {found[1]}; set it, as in export {found[1]}=…")
        if not is_text(os.environ[found[1]]):
            raise FinegrainError(f"{where}: the environment's {found[1]} is not UTF-8 text; set it again")
        if secret:
            keep_secret(os.environ[found[1]])
        return os.environ[found[1]]

    return re.sub(r"[$][{]([A-Za-z_][A-Za-z0-9_]*)[}]", value, text)


#: Client settings that are not secret, even if they come from the environment; and addresses, which may contain a password.
_OPEN: Final = re.compile("username|mechanisms?|protocol|group|client[.]id|region|location", re.IGNORECASE)
_ADDRESSES: Final = ("bootstrap.servers", "endpoint_url")


def client_setting(name: str, value: str | int | float | bool, where: str) -> str | int | float | bool:
    """A setting of a stream's client, with `${NAME}` replaced from the environment. Secrets in it are masked in all errors. Raises
    FinegrainError."""
    if not isinstance(value, str):
        return value
    if name in _ADDRESSES:
        found = from_environment(value, where)
        for address in found.split(","):
            keep_secrets_of(address)
        return found
    found = from_environment(value, where, secret=_OPEN.search(name) is None)
    if is_secret(name):
        keep_secret(found)
    return found
