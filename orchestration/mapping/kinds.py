"""The types of values in a mapping: how pydantic checks them, and their JSON Schema."""

from __future__ import annotations

import codecs
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    GetJsonSchemaHandler,
    ValidationError,
    WrapValidator,
)
from pydantic import Field as Key
from pydantic_core import CoreSchema, core_schema

from orchestration.errors import is_secret
from orchestration.mapping.contracts import IDS
from orchestration.mapping.expressions import expression
from orchestration.mapping.messages import TAG, nearest, short
from orchestration.mapping.times import check_format, check_zone, span

Format = Literal["parquet", "csv", "jsonl"]

#: The file names of a day in GA4's export, the final one last: the default of `replaces` for its files.
GA4_DAYS: Final = (r"events_intraday_(\d{8})", r"events_fresh_(\d{8})", r"events_(\d{8})")

#: The tag of the members of a union that are plain words.
WORD: Final = TAG + "word"

_EXTENSIONS: Final[dict[Format, str]] = {"parquet": "parquet pq", "csv": "csv tsv", "jsonl": "jsonl ndjson json"}


def format_of(name: str) -> Format | None:
    """The format by a file name's suffix, ignoring a final `.gz` or `.zip`."""
    suffix = Path(name.removesuffix(".gz").removesuffix(".zip")).suffix.lower().removeprefix(".")
    return next((format for format, endings in _EXTENSIONS.items() if suffix in endings.split()), None)


def by_key(message: str, words: tuple[str, ...], *keys: str) -> Discriminator:
    """A discriminator of a union by tag: WORD if the value is one of `words`, otherwise the one of `keys` it has. Any other value is an
    error with this `message`."""

    def kind(given: Any) -> str | None:
        if isinstance(given, str):
            return WORD if given in words else None
        has = partial(operator.contains, given) if isinstance(given, dict) else partial(hasattr, given)
        found = [key for key in keys if has(key) or (len(keys) == 1 and isinstance(given, dict))]
        return TAG + found[0] if len(found) == 1 else None

    return Discriminator(kind, custom_error_type="kind", custom_error_message=message)


def checked(check: Callable[[Any], object]) -> AfterValidator:
    """A validator that returns the value as it is; `check` raises ValueError if it is invalid."""

    def unchanged(given: Any) -> Any:
        check(given)
        return given

    return AfterValidator(unchanged)


def otherwise(message: str) -> WrapValidator:
    """Replaces the errors of all members of a union by one error with this `message`."""

    def check(given: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(given)
        except ValidationError:
            raise ValueError(message) from None

    return WrapValidator(check)


@dataclass(frozen=True)
class Like:
    """A text that matches the whole pattern, also in the JSON Schema; the error is `message`, with {} replaced by the text."""

    pattern: str
    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^(?:{self.pattern})$"}

    def _check(self, given: str) -> str:
        if not re.fullmatch(self.pattern, given):
            raise ValueError(self.message.replace("{}", short(given)))
        return given


def texts(message: str, *, least: int = 1, single: bool = True) -> BeforeValidator:
    """A list of texts that are not empty or, if `single`, one text instead of a list. Any other value is an error with this `message`."""
    text = Annotated[str, Key(min_length=1)]
    several = Annotated[list[text], Key(min_length=least)]

    def check(given: Any) -> tuple[str, ...]:
        found = [given] if single and isinstance(given, str) else given
        if isinstance(found, tuple):  # already checked
            return found
        is_list = isinstance(found, list) and len(found) >= least
        if not is_list or not all(isinstance(each, str) and each for each in found):
            raise ValueError(message)
        return tuple(found)

    return BeforeValidator(check, json_schema_input_type=text | several if single else several)


def _constant(given: Any) -> Any:
    if isinstance(given, date):  # as YAML reads 2024-03-31
        return str(given)
    if given is not None and not isinstance(given, str | int | float):
        raise ValueError("write one constant: a text, a number, true or false")
    return given


def _translation(given: Any) -> Any:
    if not isinstance(given, dict):
        raise ValueError("write {value in the file: value here, …}")
    if any(isinstance(value, bool) for pair in given.items() for value in pair):
        raise ValueError('YAML reads yes, no, on, off, true and false as truth values: put them in quotes, "no"')
    return given


def _span(given: str | int) -> None:
    if isinstance(given, str):
        span(given)
    elif given < 0:
        raise ValueError("an overlap is not negative")


def _open_address(given: str) -> None:
    # The address becomes part of row positions in the lake, so it must not contain secrets.
    if "@" in re.split("[/?#]", given.partition("://")[2])[0]:
        raise ValueError(
            "an address here holds no user and password; write them as a header, as in headers: {Authorization: Basic ${SHOP_BASIC}}"
        )
    for name, value in re.findall(r"[?&]([^=&#]+)=([^&#]*)", given):
        if is_secret(name) and not re.fullmatch(r"[$][{]\w+[}]", value):
            raise ValueError(f"write the secret {name} as a variable: parameters: {{{name}: ${{SHOP_KEY}}}}")


def _id_names(given: tuple[str, ...]) -> None:
    for name in given:
        if name not in IDS:
            raise ValueError(f"'{name}' is not an id{nearest(name, sorted(IDS))}")


def _distinct(given: tuple[str, ...]) -> None:
    lowered = [name.lower() for name in given]
    twice = next((name for name in given if lowered.count(name.lower()) > 1), None)
    if twice is not None:
        raise ValueError(f"'{twice}' is there twice; each column needs its own name")


def _codec(given: str) -> None:
    try:
        "".encode(given)
        codecs.getincrementaldecoder(given)
    except (LookupError, UnicodeError, ValueError):
        raise ValueError(
            f"'{given}' is not a text encoding; write one that Python knows, such as utf-16, cp1252 or latin-1"
        ) from None


def _delivery_names(given: tuple[str, ...]) -> None:
    for pattern in given:
        try:
            groups = re.compile(pattern).groups
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"'{short(pattern)}' is not a regular expression: {error}") from None
        if groups != 1:
            raise ValueError(
                f"'{pattern}' has {groups or 'no'} groups; write one, around what names the delivery, as in {GA4_DAYS[-1]}"
            )


def _null_ids(given: Any) -> tuple[str, ...]:
    words = given if isinstance(given, list | tuple) else [given]
    if any(isinstance(word, bool) or not isinstance(word, str | int) for word in words):
        raise ValueError('write the ids that stand for none, as in ["0", guest]')
    return tuple(str(word).strip() for word in words)


_Text = Annotated[str, BeforeValidator(str, json_schema_input_type=str | int | float)]
_Asked = Annotated[str, BeforeValidator(str, json_schema_input_type=str | int | float | bool)]
_Texts = tuple[str, ...]

Expression = Annotated[str, checked(expression)]
Constant = Annotated[str | int | float | bool | None, BeforeValidator(_constant)]
#: Values of a column, and query parameters of an API; both are read as text.
Translation = Annotated[dict[_Text, _Text | None], BeforeValidator(_translation)]
Parameters = dict[_Text, _Asked]
#: strptime formats of the times in a text column; the first one that reads a text is used.
Formats = Annotated[
    _Texts,
    checked(lambda given: [check_format(each) for each in given]),
    texts("write how times are spelled, as in '%d/%m/%Y %H:%M', or a list of such"),
]
Zone = Annotated[str, checked(check_zone)]
Overlap = Annotated[str | int, otherwise("write a text or a whole number"), checked(_span)]
Setting = Annotated[str | int | float | bool, otherwise("write a text, a number, true or false")]
Name = Annotated[str, Like("[a-z][a-z0-9_]*", "write a short name of a-z, 0-9 and _, beginning with a letter")]
Currency = Annotated[
    str, Like("[A-Za-z]{3}", "'{}' is not a currency; write its ISO 4217 code, as in EUR"), AfterValidator(str.upper)
]
Address = Annotated[str, Like(r"(https?://|[$][{])[\s\S]*", "an address begins with https:// or http://")]
OpenAddress = Annotated[Address, checked(_open_address)]
JsonPath = Annotated[str, Like(r"\$(\.[A-Za-z0-9_-]+)*", "write a path like $.data.items, or $ for the whole answer")]
ListPath = Annotated[
    str,
    Like(
        r"[^.\[\]]+(\.[^.\[\]]+)*(\[\]\.[^.\[\]]+(\.[^.\[\]]+)*)?",
        "write the keys that lead to a list, as in products or properties.products; of a list within each element of another, "
        "refunds[].refund_line_items",
    ),
]
IdNames = Annotated[tuple[Annotated[str, Key(json_schema_extra={"enum": sorted(IDS)})], ...], checked(_id_names)]
Mark = Annotated[str, Like(r"[^\r\n\0]", "write one character")]
MarkOrNone = Annotated[str, Like(r"[^\r\n\0]?", "write one character")]
Header = Annotated[_Texts, checked(_distinct), texts("write the names of the columns, in order", single=False)]
Paths = Annotated[_Texts, texts("write a path, a glob, or a list of them")]
KeyColumns = Annotated[_Texts, texts("write the columns that tell one row from another, as in [id]")]
Carried = Annotated[_Texts, texts("write the columns that are carried, as in [Currency, Email]")]
Encoding = Annotated[str, checked(_codec)]
Deliveries = Annotated[
    _Texts, checked(_delivery_names), texts("write a regular expression, or a list of them", least=0)
]
NullIds = Annotated[_Texts, BeforeValidator(_null_ids, json_schema_input_type=str | int | list[str | int])]
Expected = Annotated[
    tuple[Literal["customers", "products"], ...], AfterValidator(lambda given: tuple(sorted(set(given))))
]
