"""A shop's mapping: one YAML file that says how its columns become the raw contracts (docs/reference/mapping.md).

Everything a user can misspell is checked here, before a byte of data is read: keys, table and field names, time
zones, and the one scalar expression that `sql:` may hold. What depends on the data (do these columns exist?) is
checked in `landing`. Errors name the file, the key, and the nearest right spelling.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import duckdb
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from orchestration.config.settings import is_text
from orchestration.config.yaml_file import read_yaml as read_yaml
from orchestration.errors import FinegrainError, is_secret, keep_secret, keep_secrets_of
from orchestration.errors.console import shown
from orchestration.mapping.contracts import EVENT_TIME, IDS, RAW_TABLES, is_time
from orchestration.sql.functions import ARGUMENTS, FUNCTIONS
from orchestration.sql.text import quote

Format = Literal["parquet", "csv", "jsonl"]

#: Fields without which a row of a table means nothing: each tuple needs at least one of its names mapped.
REQUIRED: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "events": (("event_type",), ("event_at",), ("user_id", "anonymous_id")),
    "ga4_events": (),
    "customers": (("customer_id",),),
    "products": (("product_id",),),
    "orders": (("order_id",),),
    "order_items": (("order_id",), ("product_id",)),
    "refunds": (("order_id",),),
}

_EXTENSIONS: Final[dict[str, Format]] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}


def format_of(name: str) -> Format | None:
    """The format that a file's name tells; `.gz` or `.zip` after it is looked through."""
    return _EXTENSIONS.get(Path(name.removesuffix(".gz").removesuffix(".zip")).suffix.lower())


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where something is near, else the list of what is known."""
    known = list(known)
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lowered, 3, 0.6)
    if close:
        # Of those that are equally near, the one that is named first.
        best = max(lowered, key=lambda name: name in close and difflib.SequenceMatcher(a=name, b=word.lower()).ratio())
        return f"; did you mean '{lowered[best]}'?"
    return f"; known are: {', '.join(known)}" if known else ""


class Strict(BaseModel):
    """A part of a YAML file: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _formats(given: Any) -> tuple[str, ...]:
    if isinstance(given, tuple):  # checked already
        return given
    formats = [given] if isinstance(given, str) else given
    if not isinstance(formats, list) or not formats or not all(isinstance(each, str) for each in formats):
        raise ValueError("write how times are spelled, as in '%d/%m/%Y %H:%M', or a list of such")
    for each in formats:
        _check_format(each)
    return tuple(formats)


#: How the times of a column of text are spelled: formats of strptime, of which the first that reads a text counts.
Formats = Annotated[tuple[str, ...], BeforeValidator(_formats)]


@cache
def _check_format(text: str) -> None:
    """Refuse a format of times that DuckDB does not know, or that leaves open which moment it is. Raises ValueError."""
    if _directive("Z", text):
        raise ValueError(
            f"'{text}': %Z reads abbreviations that mean several zones (BST, IST); write the letters themselves, and their zone in time_zone"
        )
    try:
        [(month, day, hour)] = (
            duckdb.connect()
            .execute(
                f"select strftime(t, '%Y-%m'), strftime(t, '%d'), hour(t) from (select {strptime('x', text)} as t from "
                f"(select strftime(timestamp '2001-02-03 16:05:06', {quote(text)}) as x))"
            )
            .fetchall()
        )
    except duckdb.Error as error:
        said = str(error).splitlines()[0].rpartition("specifier ")[2].removeprefix(f"{text}: ")
        raise ValueError(f"'{text}' is no format of times: {said}") from None
    if (month, day) != ("2001-02", "03"):
        raise ValueError(f"'{text}' does not give a whole date; a time needs year, month and day, as in %d/%m/%Y")
    if hour not in (0, 16):
        raise ValueError(
            f"'{text}' does not say which half of the day %I is in; add %p, or write %H for hours up to 23"
        )


def _directive(letter: str, format: str) -> re.Match[str] | None:
    return re.match(f"(?:[^%]|%[^{letter}])*?%{letter}", format, re.DOTALL)


def has_offset(format: str) -> bool:
    """Whether a format of times reads an offset from UTC."""
    return _directive("z", format) is not None


def strptime(text: str, format: str) -> str:
    """SQL that reads `text` (SQL) by a format: a timestamp, in UTC where the format has an offset; null where it does not read it."""
    text = f"trim({text})"
    moment = f"try_strptime({text}, {quote(format)})"
    found = _directive("z", format)
    if found is None:
        return f"cast({moment} as timestamp)"
    # The engine takes +25:00 and +02:75 for offsets, too.
    after = "".join(
        ".+" if part.startswith("%") else re.escape(part) for part in re.findall("%-?.|[^%]", format[found.end() :])
    )
    offset = f"(?s).*[+-](?:(?:0[0-9]|1[0-3])(?::?[0-5][0-9])?|14(?::?00)?){after}"
    return f"case when regexp_full_match({text}, {quote(offset)}) then timezone('UTC', {moment}) end"


class Field(Strict):
    """Where one contract field comes from: exactly one of a `column`, a constant `value`, a `sql` expression or, where the entry says
    `explode`, a member of the `element` of the list or of its `parent`. `map` translates a column's values; those it does not name pass
    through. `format` says how the text of a time is spelled."""

    column: str | None = None
    element: str | None = None
    parent: str | None = None
    value: str | int | float | bool | None = None
    sql: str | None = None
    map: dict[str, str | None] | None = None
    format: Formats = ()

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"column": given}
        if not isinstance(given, dict):
            raise ValueError("write a column name, or {value: a constant}, or {sql: an expression}")
        return given

    @field_validator("value", mode="before")
    @classmethod
    def _constant(cls, given: Any) -> Any:
        if isinstance(given, date):  # as YAML reads 2024-03-31
            return str(given)
        if given is not None and not isinstance(given, str | int | float):
            raise ValueError("write one constant: a text, a number, true or false")
        return given

    @field_validator("map", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            raise ValueError("write {value in the file: value here, …}")
        if any(isinstance(value, bool) for pair in given.items() for value in pair):
            raise ValueError('YAML reads yes, no, on, off, true and false as truth values: put them in quotes, "no"')
        return {str(key): value if value is None else str(value) for key, value in given.items()}

    @model_validator(mode="after")
    def _one(self) -> Field:
        if len(self.model_fields_set & {"column", "element", "parent", "value", "sql"}) != 1:
            raise ValueError("give exactly one of column, value and sql (or, with explode, element or parent)")
        if self.column == "":
            raise ValueError("a column has a name")
        for name in ("element", "parent"):
            if name in self.model_fields_set and not all((getattr(self, name) or "").split(".")):
                raise ValueError(
                    f"{name} names a key, or a path of keys with dots between them, as in {name}: price.amount"
                )
        if self.map is not None and self.reads is None:
            raise ValueError("map goes with column")
        if self.format and "value" in self.model_fields_set:
            raise ValueError("format goes with column or sql")
        if self.sql is not None:
            expression(self.sql)
        return self

    @property
    def reads(self) -> str | None:
        """The column that it reads: its own, or the one that a member of an element is called by."""
        if self.element is not None:
            return f"element.{self.element}"
        return self.column if self.parent is None else f"parent.{self.parent}"


def from_environment(text: str, where: str, *, secret: bool = False) -> str:
    """`text` with each `${NAME}` replaced from the environment; what is `secret` is not shown in any error from then on. Raises
    FinegrainError that names the variable and `where`."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise FinegrainError(f"{where}: the environment has no {found[1]}; set it, as in export {found[1]}=…")
        if not is_text(os.environ[found[1]]):
            raise FinegrainError(f"{where}: the environment's {found[1]} is not UTF-8 text; set it again")
        if secret:
            keep_secret(os.environ[found[1]])
        return os.environ[found[1]]

    return re.sub(r"[$][{]([A-Za-z_][A-Za-z0-9_]*)[}]", value, text)


#: Settings of clients that are no secrets, wherever they come from; ones that are addresses may hold some.
_OPEN: Final = re.compile("username|mechanisms?|protocol|group|client[.]id|region|location", re.IGNORECASE)
_ADDRESSES: Final = ("bootstrap.servers", "endpoint_url")


def client_setting(name: str, value: str | int | float | bool, where: str) -> str | int | float | bool:
    """A setting of a stream's client, with `${NAME}` in it from the environment; no error shows what it holds of secrets. Raises
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


class Column(Strict):
    """A column of the file, by name; `format` says how times are spelled in it."""

    column: str
    format: Formats = ()


class Sql(Strict):
    """A scalar expression over the row's columns, checked by whoever makes it."""

    sql: str


class Stream(Strict):
    """A stream: a topic of Kafka, a stream of Kinesis, or a folder of JSON lines that grow. `settings` go to the client as they
    are (librdkafka's, boto3's); `${NAME}` in them is read from the environment. `registry` is the address of a schema registry."""

    kafka: str | None = None
    kinesis: str | None = None
    folder: str | None = None
    settings: dict[str, str | int | float | bool] = {}
    registry: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Stream:
        if sum(name is not None for name in (self.kafka, self.kinesis, self.folder)) != 1:
            raise ValueError("name one of: kafka: a topic, kinesis: a stream, folder: a folder")
        if self.folder is not None and self.settings:
            raise ValueError("a folder has no settings")
        if self.registry is not None and self.kafka is None:
            raise ValueError("registry goes with kafka")
        return self

    @field_validator("registry")
    @classmethod
    def _address(cls, given: str | None) -> str | None:
        if given is not None and not given.startswith(("http://", "https://", "${")):
            raise ValueError("an address begins with https:// or http://")
        return given

    @property
    def place(self) -> str:
        """What tells it from others of the same source: `kafka:shop.events`."""
        kind = "kafka" if self.kafka is not None else "kinesis" if self.kinesis is not None else "folder"
        return f"{kind}:{getattr(self, kind)}"


class Incremental(Strict):
    """Read only rows whose `column` (a time or a number) has moved on since; those of the last `overlap` before it again."""

    column: str
    overlap: str | int | None = None

    @field_validator("overlap")
    @classmethod
    def _span(cls, given: str | int | None) -> str | int | None:
        if isinstance(given, int) and given < 0:
            raise ValueError("an overlap is not negative")
        if isinstance(given, str):
            span(given)
        return given


class Since(Strict):
    """What an API calls the moment from which on it is asked: a query `parameter`, filled with the greatest `column` seen."""

    parameter: str
    column: str


class Next(Strict):
    """How an API's pages follow one another: a `cursor` (a path into the answer) sent back as `parameter`; or a `page` number,
    the name of a query parameter; or `link: header`."""

    cursor: str | None = None
    parameter: str | None = None
    page: str | None = None
    first: int = 1
    link: Literal["header"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Next:
        if len(self.model_fields_set & {"cursor", "page", "link"}) != 1 or bool(self.cursor) != bool(self.parameter):
            raise ValueError("write {cursor: $.next, parameter: cursor}, or {page: page}, or {link: header}")
        return self

    @field_validator("cursor")
    @classmethod
    def _path(cls, given: str | None) -> str | None:
        return json_path(given)


class Http(Strict):
    """One resource of an HTTP API. `rows` is the path to the list of rows in an answer."""

    url: str
    headers: dict[str, str] = {}
    parameters: dict[str, str] = {}
    rows: str = "$"
    next: Next | None = None
    since: Since | None = None

    @field_validator("parameters", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        return {str(key): str(value) for key, value in given.items()} if isinstance(given, dict) else given

    @field_validator("url")
    @classmethod
    def _address(cls, given: str) -> str:
        if not given.startswith(("http://", "https://", "${")):
            raise ValueError("an address begins with https:// or http://")
        # An address as it is here tells rows apart in the lake, so what it holds is shown.
        if "@" in re.split("[/?#]", given.partition("://")[2])[0]:
            raise ValueError(
                "an address here holds no user and password; write them as a header, as in headers: {Authorization: Basic ${SHOP_BASIC}}"
            )
        for name, value in re.findall(r"[?&]([^=&#]+)=([^&#]*)", given):
            if is_secret(name) and not re.fullmatch(r"[$][{]\w+[}]", value):
                raise ValueError(f"write the secret {name} as a variable: parameters: {{{name}: ${{SHOP_KEY}}}}")
        return given

    @field_validator("rows")
    @classmethod
    def _path(cls, given: str) -> str | None:
        return json_path(given)


class CaseInsensitive(Strict):
    """The id fields that are compared without regard to case."""

    case_insensitive: tuple[str, ...]

    @field_validator("case_insensitive")
    @classmethod
    def _ids(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in IDS:
                raise ValueError(f"'{name}' is no id{nearest(name, sorted(IDS))}")
        return given


class Carry(Strict):
    """Columns of a file that only one row of an order fills, and the column that says which rows are `within` one order."""

    columns: tuple[str, ...]
    within: str

    @field_validator("columns", mode="before")
    @classmethod
    def _list(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given


class Csv(Strict):
    """How CSV files are written, where they differ from RFC 4180. `null` is the text of an absent value; `columns` are the names of the
    columns of files without a header. An empty `quote` means that nothing is quoted."""

    delimiter: str | None = None
    quote: str = '"'
    escape: str | None = None
    null: str | None = None
    columns: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _null(cls, given: Any) -> Any:
        # YAML reads a key that is spelled null, without quotes, as nothing.
        return {"null" if key is None else key: value for key, value in given.items()} if type(given) is dict else given

    @field_validator("delimiter", "quote", "escape")
    @classmethod
    def _character(cls, given: str | None, info: ValidationInfo) -> str | None:
        if (
            given is not None
            and (len(given) > 1 or given in "\r\n\0")
            and not (given == "" and info.field_name == "quote")
        ):
            raise ValueError("write one character")
        return given

    @field_validator("columns", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        if not isinstance(given, list) or not given or not all(isinstance(name, str) and name for name in given):
            raise ValueError("write the names of the columns, in order")
        lowered = [name.lower() for name in given]
        twice = next((name for name in given if lowered.count(name.lower()) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is there twice; each column needs its own name")
        return tuple(given)

    @model_validator(mode="after")
    def _distinct(self) -> Csv:
        used = [mark for mark in (self.delimiter, self.quote or None) if mark]
        if len(set(used)) < len(used) or (self.escape is not None and self.escape == self.delimiter):
            raise ValueError("delimiter, quote and escape must differ")
        return self


class Explosion(NamedTuple):
    """Where in a record the list is of which each element becomes a row: the keys that lead to it; or `outer`, the keys to a list whose
    elements each have such a list, by the keys `inner`."""

    outer: tuple[str, ...]
    inner: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """As the mapping spells it."""
        return ".".join(self.outer) + ("[]." + ".".join(self.inner) if self.inner else "")


#: What an expression of an entry with `explode` calls the element of the list, and the element of an outer list that it is in.
ELEMENT, PARENT = "element", "parent"

#: How GA4's export names a day, the final one last: `replaces` of its files, unless the mapping says otherwise.
GA4_DAYS: Final = (r"events_intraday_(\d{8})", r"events_fresh_(\d{8})", r"events_(\d{8})")
#: The keys that say where an entry's rows come from: each has exactly one of them.
ORIGINS: Final = ("files", "stream", "table", "http")


#: How the fingerprint of an entry ends that makes several rows of one record.
EXPLODED: Final = "+exploded"


class Table(Strict):
    """How the rows of files, a stream, a database's table or an API's resource become rows of one raw table."""

    files: tuple[str, ...] = ()
    stream: Stream | None = None
    table: str | None = None
    http: Http | None = None
    key: tuple[str, ...] = ()
    incremental: Incremental | None = None
    deletes: Literal["compare"] | Column | None = None
    format: Format | None = None
    encoding: str | None = None
    csv: Csv | None = None
    origin: Literal["web", "database"] = "web"
    time_zone: str | None = None
    expects: tuple[Literal["customers", "products"], ...] = ()
    available_at: Literal["event_time", "now"] | Column | Sql
    explode: str | None = None
    where: str | None = None
    distinct: bool = False
    replaces: tuple[str, ...] | None = None
    ids: Literal["case_insensitive"] | CaseInsensitive | None = None
    null_ids: tuple[str, ...] = ()
    carry: Carry | None = None
    currency: str | None = None
    fields: dict[str, Field] = {}

    @property
    def caseless(self) -> frozenset[str]:
        """The id fields that are compared without regard to case."""
        return IDS if self.ids == "case_insensitive" else frozenset(self.ids.case_insensitive if self.ids else ())

    @property
    def explosion(self) -> Explosion | None:
        """What `explode` says."""
        if self.explode is None:
            return None
        outer, _, inner = self.explode.partition("[].")
        return Explosion(tuple(outer.split(".")), tuple(inner.split(".")) if inner else ())

    def deliveries(self, table: str) -> tuple[str, ...]:
        """By which patterns files of this entry, which fills `table`, are parts of a delivery; empty for none."""
        return (GA4_DAYS if table == "ga4_events" else ()) if self.replaces is None else self.replaces

    @model_validator(mode="after")
    def _origin(self) -> Table:
        if sum(bool(getattr(self, key)) for key in ORIGINS) != 1:
            raise ValueError(f"say where the rows come from, by one of: {', '.join(ORIGINS)}")
        if self.stream is not None and self.distinct:
            raise ValueError("distinct is for files; a stream never ends")
        return self

    def reading(self, fields: Iterable[str]) -> Table:
        """This entry with contract fields that are called in its rows as they are in the contract."""
        return self.model_copy(update={"fields": {name: Field(column=name) for name in fields}})

    def fingerprint(self, zone: str) -> str:
        """What tells how rows are mapped, wherever they are found; `zone` is that of their times."""
        found = {"files", "format", "replaces", "stream", "table", "http", "key", "incremental", "deletes", "time_zone"}
        told = [self.model_dump(mode="json", exclude=found, exclude_defaults=True), zone]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return digest + (EXPLODED if self.explode is not None else "")

    @field_validator("files", mode="before")
    @classmethod
    def _list(cls, given: Any) -> Any:
        files = [given] if isinstance(given, str) else given
        if not isinstance(files, list) or not files or not all(isinstance(file, str) and file for file in files):
            raise ValueError("write a path, a glob, or a list of them")
        return tuple(files)

    @field_validator("encoding")
    @classmethod
    def _codec(cls, given: str | None) -> str | None:
        try:
            if given is not None:
                "".encode(given)
                codecs.getincrementaldecoder(given)
        except (LookupError, UnicodeError, ValueError):
            raise ValueError(
                f"'{given}' is no text encoding; write one that Python knows, as in utf-16, cp1252 or latin-1"
            ) from None
        return given

    @field_validator("replaces", mode="before")
    @classmethod
    def _patterns(cls, given: Any) -> Any:
        patterns = [given] if isinstance(given, str) else given
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise ValueError("write a regular expression, or a list of them")
        for pattern in patterns:
            try:
                groups = re.compile(pattern).groups
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"'{_short(pattern)}' is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(
                    f"'{pattern}' has {groups or 'no'} groups; write one, around what names the delivery, as in {GA4_DAYS[-1]}"
                )
        return tuple(patterns)

    @field_validator("ids", mode="before")
    @classmethod
    def _caseless(cls, given: Any) -> Any:
        if given not in ("case_insensitive", None) and not isinstance(given, dict):
            raise ValueError("write case_insensitive, or {case_insensitive: [product_id]} for some ids alone")
        return CaseInsensitive.model_validate(given) if isinstance(given, dict) else given

    @field_validator("null_ids", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        words = given if isinstance(given, list) else [given]
        if any(isinstance(word, bool) or not isinstance(word, (str, int)) for word in words):
            raise ValueError('write the ids that stand for none, as in ["0", guest]')
        return tuple(str(word).strip() for word in words)

    @field_validator("key", mode="before")
    @classmethod
    def _columns(cls, given: Any) -> Any:
        key = [given] if isinstance(given, str) else given
        if not isinstance(key, list) or not key or not all(isinstance(column, str) and column for column in key):
            raise ValueError("write the columns that tell one row from another, as in [id]")
        return tuple(key)

    @field_validator("deletes", mode="before")
    @classmethod
    def _deleted(cls, given: Any) -> Any:
        if isinstance(given, dict) and list(given) == ["column"] and isinstance(given["column"], str):
            return Column(column=given["column"])
        if given == "compare":
            return given
        raise ValueError("write compare, or {column: the column that says when a row was deleted}")

    @field_validator("expects", mode="before")
    @classmethod
    def _sorted(cls, given: Any) -> Any:
        return (
            tuple(sorted(set(given))) if isinstance(given, list) and all(isinstance(x, str) for x in given) else given
        )

    @field_validator("available_at", mode="before")
    @classmethod
    def _moment(cls, given: Any) -> Any:
        match given:
            case "event_time" | "now":
                return given
            case {"column": str() as column} if given.keys() <= {"column", "format"}:
                return Column(column=column, format=_formats(given["format"]) if "format" in given else ())
            case {"sql": str() as text} if len(given) == 1:
                expression(text)  # here, since of what may have several types an error is said of each
                return Sql(sql=text)
        raise ValueError(
            "write event_time, now, {column: the column that holds the arrival time}, or {sql: an expression that gives it}"
        )

    @field_validator("explode")
    @classmethod
    def _list_path(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+)*(\[\]\.[^.\[\]]+(\.[^.\[\]]+)*)?", given):
            raise ValueError(
                "write the keys that lead to a list, as in products or properties.products; of a list within each element of another, "
                "refunds[].refund_line_items"
            )
        return given

    @field_validator("where")
    @classmethod
    def _condition(cls, given: str | None) -> str | None:
        if given is not None:
            expression(given)
        return given


class Mapping(Strict):
    """A whole mapping file. `tables` holds one or more `Table` by raw table. `reporting_currency` and `shop_time_zone` are the whole
    shop's, not the source's (`orchestration.lake.shop`)."""

    source: str
    time_zone: str = "UTC"
    reporting_currency: str | None = None
    shop_time_zone: str | None = None
    database: str | None = None
    tables: dict[str, tuple[Table, ...]]

    @field_validator("source")
    @classmethod
    def _name(cls, given: str) -> str:
        if not re.fullmatch("[a-z][a-z0-9_]*", given):
            raise ValueError("write a short name of a-z, 0-9 and _, beginning with a letter")
        return given

    @field_validator("reporting_currency")
    @classmethod
    def _code(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch("[A-Za-z]{3}", given):
            raise ValueError(f"'{_short(given)}' is no currency; write its ISO 4217 code, as in EUR")
        return given and given.upper()

    @field_validator("tables", mode="before")
    @classmethod
    def _lists(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not given:
            raise ValueError("write raw tables and how each is filled")
        return {name: tuple(value) if isinstance(value, list) else (value,) for name, value in given.items()}

    def entries(self, path: Path) -> Iterator[Place]:
        """All entries, in order; `path` is the mapping's own file."""
        for name, entries in self.tables.items():
            for number, entry in enumerate(entries):
                where = f"{shown(path)}: tables.{name}" + (f"[{number + 1}]" if len(entries) > 1 else "")
                yield Place(name, number, entry, entry.time_zone or self.time_zone, where)


class Place(NamedTuple):
    """An entry and where it stands: its raw table, its number among that table's entries (from 0), the time zone of its naive times,
    and how errors name it."""

    table: str
    number: int
    entry: Table
    zone: str
    where: str


def read_mapping(path: str | Path) -> Mapping:
    """Read and check one mapping file. Raises FinegrainError that lists everything wrong with it."""
    path = Path(path)
    given = read_yaml(path, "mapping")
    if not isinstance(given, dict):
        raise FinegrainError(
            f"{shown(path)}: a mapping has the keys source, time_zone and tables (see docs/reference/mapping.md)"
        )
    problems = list(_key_problems(given, ()))
    if not problems:
        try:
            mapping = Mapping.model_validate(given)
        except ValidationError as error:
            problems = sentences(error, given, _keys)
        else:
            problems = list(_problems(mapping))
    if problems:
        raise FinegrainError("\n".join(f"{shown(path)}: {shown(problem)}" for problem in _once(problems)))
    return mapping


def _key_problems(given: Any, place: tuple[Any, ...]) -> Iterator[str]:
    """Keys that YAML does not read as text, but for values of a column (`map`), what an API is asked (`parameters`) and `null`."""
    if isinstance(given, dict):
        for key, value in given.items():
            may_be_odd = place and place[-1] in (("csv",) if key is None else ("map", "parameters"))
            if not isinstance(key, str) and not may_be_odd:
                kind = "nothing" if key is None else "a date" if isinstance(key, date) else "a number"
                name = "null" if key is None else str(key)
                yield f'{".".join((*place, name))}: YAML reads this key as {kind}: put it in quotes, "{name}"'
            yield from _key_problems(value, (*place, str(key)))
    elif isinstance(given, list | tuple):
        for number, value in enumerate(given, 1):
            yield from _key_problems(value, (*place[:-1], f"{place[-1] if place else ''}[{number}]"))


_NUMBERED: Final = re.compile(r"(.*?\btables\.\w+)\[(\d+)\](.*)", re.DOTALL)


def _once(problems: Iterable[str]) -> list[str]:
    """What is wrong with several entries of a table in the same way, once, with their numbers: `tables.events[1-10].fields.price: …`."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for problem in problems:
        found = _NUMBERED.fullmatch(problem)
        same = numbers.setdefault((found[1], found[3]) if found else (problem, ""), [])
        if found:
            same.append(int(found[2]))
    return [f"{before}[{_ranges(each)}]{after}" if each else before for (before, after), each in numbers.items()]


def entries_together(places: Iterable[str]) -> str:
    """Places of a mapping in short: `shop.yml: tables.events[1-3], shop.yml: tables.orders`."""
    return ", ".join(_once(places))


def _ranges(numbers: Iterable[int]) -> str:
    """`1-3, 7` of 1, 2, 3 and 7."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(sorted(set(numbers))), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def mapping_files(path: str | Path) -> list[Path]:
    """The mapping files that `path` names: itself, or every YAML file in the folder."""
    path = Path(path)
    try:
        if not path.is_dir():
            return [path]
        files = sorted(file for file in path.iterdir() if file.suffix in (".yml", ".yaml"))
    except OSError as error:
        raise FinegrainError(f"{shown(path)}: the mapping cannot be read: {error.strerror}") from None
    if not files:
        raise FinegrainError(f"{shown(path)}: the folder holds no mapping (*.yml)")
    return files


def _echo(detail: Any, details: list[Any]) -> bool:
    """A key that is missing only because it was misspelt, which is said already."""
    return detail["type"] == "missing" and any(
        other["type"] == "extra_forbidden"
        and other["loc"][:-1] == detail["loc"][:-1]
        and difflib.get_close_matches(str(other["loc"][-1]), [detail["loc"][-1]], 1, 0.6)
        for other in details
    )


def _where(location: Iterable[Any], given: Any) -> str:
    """A place in the file as the user wrote it: `tables.events.fields.price`."""
    words: list[str] = []
    for step in location:
        if isinstance(step, int) and not isinstance(given, list):
            continue  # a single mapping that was wrapped into a list
        try:
            given = given[step]
        except (KeyError, IndexError, TypeError):
            given = None
        if isinstance(step, int):
            words[-1] += f"[{step + 1}]"
        else:
            words.append(str(step))
    return ".".join(words)


def _keys(parents: list[str]) -> Iterable[str]:
    """The keys that a mapping may have below `parents`."""
    below: dict[str, type[BaseModel]] = {
        "http": Http,
        "stream": Stream,
        "next": Next,
        "since": Since,
        "incremental": Incremental,
        "csv": Csv,
        "ids": CaseInsensitive,
        "carry": Carry,
    }
    models: dict[int, type[BaseModel]] = {0: Mapping, 2: Table}
    return models.get(len(parents), below.get(parents[-1] if parents else "", Field)).model_fields


def sentences(error: ValidationError, given: Any, keys: Callable[[list[str]], Iterable[str]]) -> list[str]:
    """Everything wrong with the content `given` of a YAML file, each with its place in the file. `keys` tells the keys that there
    may be below a place, for a hint where one is misspelt."""
    details = [{**detail, "loc": _in_file(detail, given)} for detail in error.errors()]
    said = [_sentence(detail, given, keys) for detail in _told_once(details) if not _echo(detail, details)]
    return list(dict.fromkeys(said))


def _in_file(detail: Any, given: Any) -> tuple[Any, ...]:
    """Where an error is, without the names of types that pydantic adds where several are possible."""
    location = [step for step in detail["loc"] if step != "[key]"]
    depth = 0
    for step in location:
        if isinstance(step, int) and not isinstance(given, list):
            depth += 1  # a single mapping that was wrapped into a list
            continue
        try:
            given = given[step]
        except (KeyError, IndexError, TypeError):
            break
        depth += 1
    return tuple(location[: depth + 1] if detail["type"] == "missing" else location[:depth])


#: What a value is not, by pydantic's type of error, where several types are possible.
_TYPES: Final = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}


def _told_once(details: list[Any]) -> Iterator[Any]:
    """One error for a value that is of none of the types that are possible, in place of one for each of them."""
    possible: dict[tuple[Any, ...], list[str]] = {}
    for detail in details:
        if detail["type"] in _TYPES:
            possible.setdefault(detail["loc"], []).append(_TYPES[detail["type"]])
    for detail in details:
        types = list(dict.fromkeys(possible.get(detail["loc"], [])))
        if detail["type"] in _TYPES and len(types) > 1:
            yield {**detail, "msg": f"write {', '.join(types[:-1])} or {types[-1]}"}
        else:
            yield detail


#: Parts of a mapping of which no error quotes a value.
_PRIVATE: Final = {"database", "http", "stream", "headers", "parameters", "settings", "registry", "url"}


def _sentence(detail: Any, given: Any, keys: Callable[[list[str]], Iterable[str]]) -> str:
    """One pydantic error as a sentence."""
    location = [step for step in detail["loc"] if step != "[key]"]
    where = _where(location, given)
    match detail["type"]:
        case "extra_forbidden":
            parents = [str(step) for step in location[:-1] if not isinstance(step, int)]
            return f"{where}: no such key" + nearest(str(location[-1]), keys(parents))
        case "missing":
            hint = ""
            if location[-1] == "available_at":
                hint = ": say when the shop could have known a row: event_time, now, or {column: …} or {sql: …}"
            return f"{where}: this key is missing" + hint
        case "literal_error":
            known = re.findall("'([^']*)'", detail["ctx"]["expected"])
            return f"{where}: '{_short(str(detail['input']))}' is not one of its values" + nearest(
                str(detail["input"]), known
            )
        case "model_type" | "dict_type":
            if _PRIVATE & set(location):
                return f"{where}: write keys and values here"
            return f"{where}: write keys and values here, not {json.dumps(detail['input'], default=str, skipkeys=True)[:60]}"
        case _:
            message = detail["msg"].removeprefix("Value error, ")
            return f"{where}: {message[0].lower()}{message[1:]}" if message[1].islower() else f"{where}: {message}"


def _problems(mapping: Mapping) -> Iterator[str]:
    """What one key alone does not show."""
    if mapping.time_zone not in time_zones():
        yield f"time_zone: '{mapping.time_zone}' is no time zone" + _zone_hint(mapping.time_zone)
    if mapping.shop_time_zone is not None and mapping.shop_time_zone not in time_zones():
        yield f"shop_time_zone: '{mapping.shop_time_zone}' is no time zone" + _zone_hint(mapping.shop_time_zone)
    tabled = [name for name, entries in mapping.tables.items() for entry in entries if entry.table is not None]
    if tabled and mapping.database is None:
        yield f"tables.{tabled[0]}.table: say in which database, as in database: ${{SHOP_DATABASE_URL}}, beside source"
    if mapping.database is not None and not tabled:
        yield "database: no entry reads a table of it; write table: instead of files:, or leave database out"
    for name, entries in mapping.tables.items():
        if name not in RAW_TABLES:
            yield f"tables.{name}: no such raw table" + nearest(name, RAW_TABLES)
            continue
        for number, table in enumerate(entries, 1):
            where = f"tables.{name}" + (f"[{number}]" if len(entries) > 1 else "")
            yield from _table_problems(where, name, table)
        # Else a file that one entry takes for a delivery would be lacking in what another says of it.
        if len({table.deliveries(name) for table in entries if table.files}) > 1:
            yield f"tables.{name}: its entries differ in replaces; write the same in all that read files"


def _table_problems(where: str, name: str, table: Table) -> Iterator[str]:
    if table.time_zone is not None and table.time_zone not in time_zones():
        yield f"{where}.time_zone: '{table.time_zone}' is no time zone" + _zone_hint(table.time_zone)
    yield from _origin_problems(where, name, table)
    if name == "ga4_events":
        if table.fields:
            yield f"{where}.fields: GA4's export keeps its own shape; leave `fields` out"
        if table.format == "csv":
            yield f"{where}.format: GA4's export is nested; export it as parquet or jsonl"
        if table.stream is not None:
            yield f"{where}.stream: GA4's export comes as files"
        if table.carry is not None:
            yield f"{where}.carry: each row of GA4's export is whole; leave it out"
        if table.explode is not None:
            yield f"{where}.explode: the models unfold the items of GA4's export; leave it out"
        return
    if table.currency is not None:
        yield f"{where}.currency: this is for ga4_events; here map the field, as in currency: {{value: EUR}}"
    yield from _element_problems(where, table)
    if table.stream is not None and not table.fields:
        return  # keys that are named as the fields are
    for field, source in table.fields.items():
        if field not in RAW_TABLES[name]:
            yield f"{where}.fields.{field}: {name} has no such field" + nearest(field, RAW_TABLES[name])
        elif source.format and not is_time(field):
            yield f"{where}.fields.{field}.format: {field} is no time; leave format out"
    for names in REQUIRED[name]:
        if not table.fields.keys() & set(names):
            hint = ""
            if "anonymous_id" in names and "order_id" in table.fields:
                order = table.fields["order_id"].column or "{sql: …}"
                hint = f"; the order itself can stand for its buyer: anonymous_id: {order}"
            yield f"{where}.fields: {' or '.join(names)} is missing; without it a row of {name} means nothing{hint}"
    if table.available_at == "event_time" and EVENT_TIME[name] not in table.fields:
        yield (
            f"{where}.available_at: event_time reads the field {EVENT_TIME[name]}, which is not mapped; "
            "map it, or write now, {column: …} or {sql: …}"
        )


def _element_problems(where: str, table: Table) -> Iterator[str]:
    """Whether members of elements are read where there are elements."""
    if table.explode is not None and table.stream is not None and not table.fields:
        yield f"{where}.explode: say in fields what is read of the element, as in product_id: {{element: id}}"
    if table.explode is not None and table.carry is not None:
        yield f"{where}.carry: this does not go with explode; each element has the columns of its record already"
    for field, source in table.fields.items():
        if source.element is not None and table.explode is None:
            yield f"{where}.fields.{field}.element: this goes with explode, which says of which list"
        elif source.parent is not None and not (table.explosion and table.explosion.inner):
            yield (
                f"{where}.fields.{field}.parent: this goes with explode of a list within the elements of another, as in "
                "refunds[].refund_line_items"
            )


def _origin_problems(where: str, name: str, table: Table) -> Iterator[str]:
    """Whether it is plain where the rows come from, and the keys are those of that kind of place."""
    origin = next(key for key in ORIGINS if getattr(table, key))
    keyed = origin in ("table", "http")
    wrong = {"table": ("format",), "http": ("format", "incremental")}.get(origin, ("key", "incremental", "deletes"))
    for key in wrong if origin == "files" else (*wrong, "replaces", "carry", "encoding", "csv"):
        if getattr(table, key):
            yield f"{where}.{key}: this does not go with {origin}"
    if table.csv is not None and table.format not in (None, "csv"):
        yield f"{where}.csv: this does not go with {table.format} files"
    if table.encoding is not None and table.format == "parquet":
        yield f"{where}.encoding: this does not go with parquet files"
    if table.replaces and name in ("customers", "products"):
        yield f"{where}.replaces: {name} keep their history, and nothing of it is taken back; leave it out"
    if keyed:
        if name == "ga4_events":
            yield f"{where}: GA4's export comes in files"
        if not table.key:
            yield f"{where}.key: this key is missing: name the columns that tell one row from another, as in key: [id]"
        if origin == "http" and table.deletes == "compare" and table.http and table.http.since:
            yield f"{where}.deletes: compare needs every row, and since asks for the newer ones only"


def span(text: str) -> str:
    """`10 minutes` as a SQL interval. Raises ValueError where it is none."""
    found = re.fullmatch(r"(\d+) *(second|minute|hour|day|week)s?", text.strip())
    if not found:
        raise ValueError("write a number of seconds, minutes, hours, days or weeks, as in 10 minutes")
    return f"interval '{found[1]} {found[2]}s'"


def json_path(text: str | None) -> str | None:
    """`$.a.b` or `$`, checked. Raises ValueError."""
    if text is not None and not re.fullmatch(r"\$(\.[A-Za-z0-9_-]+)*", text):
        raise ValueError("write a path like $.data.items, or $ for the whole answer")
    return text


@cache
def time_zones() -> frozenset[str]:
    """The zones DuckDB knows; it reads the times, so its list counts and not the machine's."""
    return frozenset(row[0] for row in duckdb.connect().execute("select name from pg_timezone_names()").fetchall())


def _zone_hint(zone: str) -> str:
    close = difflib.get_close_matches(zone, time_zones(), 1, 0.6)
    return f"; did you mean '{close[0]}'?" if close else "; write an IANA name like Europe/London"


#: What an expression may be made of. All else (subqueries, windows, stars, parameters) reads more than its row.
_CLASSES: Final = frozenset(
    {
        "BETWEEN",
        "CASE",
        "CAST",
        "COLLATE",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "FUNCTION",
        "LAMBDA",
        "OPERATOR",
    }
)
#: The operators that are no functions. GROUPING and * are of more than one row or column.
_OPERATORS: Final = frozenset(
    {
        "ARRAY_CONSTRUCTOR",
        "ARRAY_EXTRACT",
        "ARRAY_SLICE",
        "COMPARE_IN",
        "COMPARE_NOT_IN",
        "OPERATOR_COALESCE",
        "OPERATOR_IS_NOT_NULL",
        "OPERATOR_IS_NULL",
        "OPERATOR_NOT",
        "OPERATOR_NULLIF",
        "OPERATOR_TRY",
        "STRUCT_EXTRACT",
    }
)


def _refused(node: Any) -> str | None:
    """What a function lacks to be used in an expression, as a sentence without its subject; None where nothing is wrong."""
    name = node["function_name"].lower()
    if node["catalog"]:
        return f"{node['catalog']}.{node['schema']}.{name}: write functions without schema or catalogue"
    if name not in FUNCTIONS:
        close = difflib.get_close_matches(name, sorted(FUNCTIONS), 1, 0.6)
        return f"{name}() is not one of the functions that an expression may use" + (
            f"; did you mean {close[0]}()?" if close else "; docs/reference/mapping.md says which it may use"
        )
    if len(node["children"]) < ARGUMENTS.get(name, 0):
        return f"{name}() reads the clock here; give it {ARGUMENTS[name]} arguments"
    return None


@cache
def expression(text: str) -> tuple[str, ...]:
    """Check that `text` is one scalar expression over a row; the columns it names, in order of appearance. Raises ValueError with a
    sentence."""
    try:
        return _parsed(text)
    except (RecursionError, duckdb.Error):
        raise ValueError(f"'{_short(text)}' is too long or nested too deeply to be read") from None


def _parsed(text: str) -> tuple[str, ...]:
    """The parser, not a pattern, decides: the text must be one SELECT of one item, from nowhere, whose tree holds only row-wise parts."""
    if "\0" in text:
        raise ValueError("a SQL expression holds no NUL characters")
    con = duckdb.connect()
    [(answer,)] = con.execute(f"select json_serialize_sql({quote('select ' + text)})").fetchall()
    tree = json.loads(answer)
    if tree["error"]:
        raise ValueError(
            f"'{_short(text)}' is no SQL expression: {tree['error_message'].splitlines()[0]} (quote a column that is an SQL word, as in \"at\")"
        )
    statements = [statement["node"] for statement in tree["statements"]]
    node = statements[0] if len(statements) == 1 else {}
    one = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not node["modifiers"]
        and not node["cte_map"]["map"]
        and not any(node[part] for part in ("where_clause", "group_expressions", "having", "qualify", "sample"))
    )
    if not one or text.rstrip().endswith(";"):
        raise ValueError(f"'{_short(text)}' is not one scalar expression over the row's columns")
    if node["select_list"][0]["alias"]:
        raise ValueError(f"'{_short(text)}' has a name of its own; leave the alias out")
    return tuple(dict.fromkeys(_columns(node["select_list"][0], text, frozenset())))


def _columns(node: Any, text: str, bound: frozenset[str], lambdas: bool = False) -> Iterator[str]:
    """Walk an expression's tree, refuse what is not row-wise, yield the columns that no lambda binds."""
    if isinstance(node, list):
        for child in node:
            yield from _columns(child, text, bound, lambdas)
    if not isinstance(node, dict):
        return
    kind = node.get("class")
    if kind is not None and kind not in _CLASSES:
        raise ValueError(f"'{_short(text)}' reads more than the row's own columns ({kind.lower()})")
    if kind == "CONSTANT":
        return
    if kind == "COLUMN_REF":
        if node["column_names"][0] not in bound:
            yield node["column_names"][0]
        return
    if kind == "OPERATOR" and node["type"] not in _OPERATORS:
        raise ValueError(f"'{_short(text)}' reads more than the row's own columns ({node['type'].lower()})")
    if kind == "FUNCTION":
        refused = _refused(node)
        if refused:
            raise ValueError(f"'{_short(text)}': {refused}")
        # The parser puts functions that it makes of syntax into `main`; else `a.lower()` is lower(a).
        if node["schema"] not in ("", "main", *bound):
            yield node["schema"]
    if kind == "LAMBDA" and lambdas:  # elsewhere the same arrow reads a member of JSON
        left = node["lhs"] if isinstance(node["lhs"], list) else [node["lhs"]]
        names = [child["column_names"][0] for part in left for child in (part.get("children") or [part])]
        yield from _columns(node["expr"], text, bound | set(names))
        return
    lambdas = kind == "FUNCTION" and re.match("list_|array_|apply|filter|reduce", node["function_name"]) is not None
    for value in node.values():
        yield from _columns(value, text, bound, lambdas)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "…"
