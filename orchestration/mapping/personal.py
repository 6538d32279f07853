"""Personal data: which keys of a source's rows hold it, by their names, and what is done with it before a row lands.

E-mail addresses are also found within any text. A value that is hashed becomes a token, `email_` and 32 hex digits: the same address gives the same
token wherever it stands, so identities still match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, field_validator

Treatment = Literal["hash", "drop", "keep"]
Kind = Literal["email", "phone", "name", "address", "ip", "user_agent", "personal"]

#: Between the words of a key.
_GAP: Final = "[_. -]?"
#: The names of keys by kind, in lower case, after any words and a separator: `customer_email`, `billing-phone`.
_NAMES: Final[dict[Kind, str]] = {
    "email": f"e[_-]?mail(?:{_GAP}address)?|mail{_GAP}address",
    "phone": f"(?:tele)?phone(?:{_GAP}(?:number|no|nr))?|mobile{_GAP}(?:phone|number|no|nr)|tel|fax|msisdn",
    "name": f"(?:first|last|full|given|family|middle|maiden|customer|contact|recipient|cardholder){_GAP}name|surname|forename",
    "address": f"street(?:{_GAP}(?:address|name|number))?|address{_GAP}(?:line)?{_GAP}[123]",
    "ip": f"ip(?:{_GAP}addr(?:ess)?)?|remote{_GAP}addr(?:ess)?|x[_-]forwarded[_-]for",
    "user_agent": f"user{_GAP}agent(?:{_GAP}string)?|ua",
}
#: The same at the end of words written together: `customerEmail`.
_TOGETHER: Final[dict[Kind, str]] = {
    "email": "E?[Mm]ail(?:Address)?",
    "phone": "(?:Tele)?Phone(?:Number)?|Mobile(?:Phone|Number)",
    "name": "(?:First|Last|Full|Given|Family|Middle|Customer|Contact|Recipient|Cardholder)Name",
    "address": "Street(?:Address|Name|Number)?|Address(?:Line)?[123]",
    "ip": "I[Pp](?:Addr(?:ess)?)?",
    "user_agent": "User[Aa]gent(?:String)?",
}
#: Keys that are personal in one raw table alone.
_IN_TABLE: Final[dict[str, dict[Kind, str]]] = {"customers": {"name": "name"}}
_BEFORE: Final = "(?:[A-Za-z0-9]+[_. -])*"

#: A token: a kind and 32 hex digits of its hash. That of a user agent says the device and the class of the client, if they are known.
TOKEN: Final = re.compile("(?:email|phone|name|address|ip|personal)_[0-9a-f]{32}|user_agent_[0-9a-f]{32}((?:_[a-z]+)*)")


def known_of(user_agent: str) -> list[str] | None:
    """What the token of a user agent says of it; None for a user agent itself."""
    found = TOKEN.fullmatch(user_agent) if user_agent.startswith("user_agent_") else None
    return None if found is None else found[1].split("_")[1:]


def email_pattern(word: str) -> str:
    """The regular expression of an e-mail address, in JSON text, plain text or a URL; `word` is a class of letters, digits and `_`."""
    return rf"(?:[{word}.%+'-]|\\u[0-9A-Fa-f]{{4}})+(?:@|%40)(?:[{word}-]+[.])+[{word}-]*[{word}]"


#: The same for Python.
EMAIL: Final = re.compile(email_pattern(r"\w"))


def masked(text: str) -> str:
    """A text for people, without the e-mail addresses in it."""
    return EMAIL.sub("•••", text)


class Personal(BaseModel):
    """What is done with each kind of personal data: `hash` (a token takes its place), `drop` (it becomes null) or `keep`. `columns` decides for
    single columns or keys, by name, and adds those that their names do not give away."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    email: Treatment = "hash"
    phone: Treatment = "hash"
    name: Treatment = "drop"
    address: Treatment = "drop"
    ip: Treatment = "drop"
    user_agent: Treatment = "hash"
    columns: dict[str, Treatment] = {}

    @field_validator("columns")
    @classmethod
    def _named(cls, given: dict[str, Treatment]) -> dict[str, Treatment]:
        if any(not name for name in given):
            raise ValueError("a column has a name")
        return {name.lower(): treatment for name, treatment in given.items()}

    def treatment(self, kind: Kind) -> Treatment:
        """What is done with a kind; columns that are listed and match no kind are of the kind `personal`, and hashed."""
        return "hash" if kind == "personal" else getattr(self, kind)

    def of(self, table: str, *keys: str) -> tuple[Kind, Treatment] | None:
        """The kind of data below a key of a row of a raw table, and whether it is hashed or dropped; None if it is not personal, or kept. Of several names
        of one value, the first that is personal counts."""
        for key in keys:
            kind, listed = kind_of(key, table), self.columns.get(key.lower())
            if kind is not None or listed is not None:
                kind = kind or "personal"
                treatment = listed or self.treatment(kind)
                return None if treatment == "keep" else (kind, treatment)
        return None

    def keys(self, table: str) -> Iterator[str]:
        """Regular expressions of the keys to hash or drop, in the syntax that Python and RE2 share."""
        for kind in _NAMES:
            if self.treatment(kind) != "keep":
                yield _pattern(kind, table)
        for name, treatment in self.columns.items():
            if treatment != "keep":
                yield f"(?i:{re.escape(name)})"


@cache
def _pattern(kind: Kind, table: str) -> str:
    alone = _IN_TABLE.get(table, {}).get(kind)
    return f"{_BEFORE}(?i:{_NAMES[kind]})|[A-Za-z0-9]*(?:{_TOGETHER[kind]})" + (f"|(?i:{alone})" if alone else "")


@cache
def kind_of(key: str, table: str) -> Kind | None:
    """The kind of personal data that the name of a key stands for, in rows of a raw table."""
    return next((kind for kind in _NAMES if re.fullmatch(_pattern(kind, table), key)), None)
