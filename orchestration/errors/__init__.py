"""Errors that are shown to the user: one sentence that names the file, the field and the fix. Secrets are removed from the text, because
servers, drivers and libraries quote the addresses and settings they were given."""

from __future__ import annotations

import os
import re
from typing import ClassVar, Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

#: What a secret is replaced with.
HIDDEN: Final = "…"
#: Names of settings, parameters and variables whose values are secrets, as a regular expression.
SECRET: Final = (
    r"pass(?:word|wd|phrase|code)?|pwd|secret|token|credentials?|signature|sig|jaas[._-]config|oauthbearer[._-]config|user[._-]info|webhook"
    r"|(?:api|access|private|account|shared|auth|client|storage)[._-]?key(?:[._-]?id)?|key[._-]?(?:id|pem)|authorization|auth|bearer"
)
_NAMED: Final = rf"(?<![a-z])(?:[a-z0-9]+[._-])*(?:{SECRET})(?:[._-]id)?(?![a-z])"
_SECRET_NAME: Final = re.compile(rf"(?:^|[._-])(?:\w*?(?:{SECRET})|key)$", re.IGNORECASE)
#: A URL. It ends at a space or quote; a password may contain anything else.
_ADDRESS: Final = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<rest>[^\s\"'<>]+)", re.IGNORECASE)
_QUERY: Final = re.compile(r"([?&;][^=&?#\s]+=)[^&#\s\"')\]},;]+")
_VALUE: Final = r"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\""
#: `password=x`, `password:x`, `"password": "x"`. A name without a value is left alone.
_PAIRS: Final = re.compile(
    rf"(?P<name>{_NAMED})(?:(?P<sign>\s*=\s*|:)(?:{_VALUE}|[^\s,;&'\"}})\]]+)|(?P<json>[\"']\s*:\s*)(?:{_VALUE}))",
    re.IGNORECASE,
)
_SCHEMES: Final = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{4,}", re.IGNORECASE)

#: URL schemes in which the user name is not a secret.
_DATABASES: Final = ("postgres", "mysql", "mariadb")

#: Passwords of test servers that are also ordinary words in our messages.
_NO_SECRETS: Final = {"finegrain", "password", "secret", "test", "user"}
#: Values known to be secret.
_known: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether the value of a setting, a parameter or a variable of this name is a secret."""
    return _SECRET_NAME.search(name) is not None


def keep_secret(*values: str) -> None:
    """Have `without_secrets` hide these values, also in their URL-encoded forms. Values shorter than four characters are ignored: they would
    match ordinary text."""
    for value in values:
        spelled = (value, value.strip(), unquote(value), quote(value, safe=""), quote(value), quote_plus(value))
        _known.update(each for each in spelled if len(each) >= 4)


def keep_secrets_of(address: str) -> None:
    """Have `without_secrets` hide the password of a URL, a user name given without a password, and secret values in its query. Also works on
    text that is not a valid URL."""
    before, at, _ = address.partition("://")[2].rpartition("@") if "://" in address else address.rpartition("@")
    user, colon, password = before.partition(":")
    if at:
        keep_secret(password if colon else user)
        if not re.search("://", address):  # cannot tell which part is the password
            keep_secret(*re.split("[:/@]", before))
    try:
        pairs = parse_qsl(urlsplit(address).query)
    except ValueError:
        pairs = []
    keep_secret(*(value for name, value in pairs if is_secret(name)))


def _address(found: re.Match[str]) -> str:
    scheme, rest = found["scheme"], found["rest"]
    server = rest.partition("/")[0]
    # In http and s3 URLs an @ after the host is part of the path. If the port is not a number, the password contains a slash.
    is_plain = "@" in server or re.fullmatch(r"([^:@]*|\[[^\]]*\])(:\d*)?", server)
    end = len(server) if scheme.lower() in ("http://", "https://", "s3://") and is_plain else len(rest)
    before, _, after = rest[:end].rpartition("@")
    is_shown = before in ("", "user:password") or (":" not in before and scheme.lower().startswith(_DATABASES))
    return scheme + _QUERY.sub(rf"\1{HIDDEN}", rest if is_shown else f"{HIDDEN}@{after}{rest[end:]}")


def without_secrets(text: str) -> str:
    """`text` with secrets replaced: values after secret-looking names, credentials and query values in URLs, values given to `keep_secret`,
    and values of environment variables with secret-looking names (PGPASSWORD, AWS_SECRET_ACCESS_KEY)."""
    named = [name for name in os.environ if is_secret(name) and name not in ("PWD", "OLDPWD")]
    variables = {value for name in named if len(value := os.environ[name]) >= 6}
    for secret in sorted((_known | variables) - _NO_SECRETS, key=len, reverse=True):
        if secret in text:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    text = _ADDRESS.sub(_address, text)
    text = _PAIRS.sub(lambda found: f"{found['name']}{found['sign'] or found['json']}{HIDDEN}", text)
    return _SCHEMES.sub(rf"\1 {HIDDEN}", text)


class SafeError(Exception):
    """An error whose text contains no secrets."""

    def __init__(self, text: str = "") -> None:
        super().__init__(without_secrets(text))


class FinegrainError(SafeError):
    """An error the user can fix. The command line prints only the message and exits with code 2."""

    exit_code: ClassVar[int] = 2


class Unavailable(FinegrainError):
    """A server that finegrain needs is temporarily unavailable (EX_TEMPFAIL of sysexits.h). A loader waits and retries."""

    exit_code = 75
