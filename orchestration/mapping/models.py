"""Pydantic models of a mapping file. docs/reference/mapping.schema.json is generated from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Tag, model_validator

from orchestration.errors.console import shown
from orchestration.mapping import kinds
from orchestration.mapping.contracts import IDS
from orchestration.mapping.expressions import expression
from orchestration.mapping.kinds import GA4_DAYS, WORD
from orchestration.mapping.messages import TAG
from orchestration.mapping.personal import Personal, Treatment, kind_of


class Strict(BaseModel):
    """A part of a YAML file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def one_of(*keys: str) -> ConfigDict:
    """Require exactly one of these keys in the JSON Schema. The model checks it, too, with a better message."""
    return ConfigDict(json_schema_extra={"oneOf": [{"required": [key]} for key in keys]})


class Field(Strict):
    """Where one contract field comes from: exactly one of a `column`, a constant `value`, a `sql` expression or, where the entry says
    `explode`, a member of the `element` of the list or of its `parent`. `map` translates a column's values; those it does not name pass
    through. `format` says how the text of a time is spelled."""

    model_config = one_of("column", "element", "parent", "value", "sql")

    column: str | None = None
    element: str | None = None
    parent: str | None = None
    value: kinds.Constant = None
    sql: str | None = None
    map: kinds.Translation | None = None
    format: kinds.Formats = ()

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"column": given}
        if not isinstance(given, dict):
            raise ValueError("write a column name, or {value: a constant}, or {sql: an expression}")
        return given

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
        """The column it reads; members of an element have the columns `element.…` and `parent.…`."""
        if self.element is not None:
            return f"element.{self.element}"
        return self.column if self.parent is None else f"parent.{self.parent}"

    @property
    def key(self) -> str | None:
        """The name of the column or of the member that it reads."""
        path = self.element or self.parent
        return self.column if path is None else path.rpartition(".")[2]


class Column(Strict):
    """A column of the file, by name; `format` says how times are spelled in it."""

    column: str
    format: kinds.Formats = ()


class Sql(Strict):
    """A scalar expression over the row's columns; the field that holds it checks it."""

    sql: str


class Stream(Strict):
    """A stream: a topic of Kafka, a stream of Kinesis, or a folder of JSON lines that grow. `settings` go to the client as they
    are (librdkafka's, boto3's); `${NAME}` in them is read from the environment. `registry` is the address of a schema registry."""

    model_config = one_of("kafka", "kinesis", "folder")

    kafka: str | None = None
    kinesis: str | None = None
    folder: str | None = None
    settings: dict[str, kinds.Setting] = {}
    registry: kinds.Address | None = None

    @model_validator(mode="after")
    def _one(self) -> Stream:
        if sum(name is not None for name in (self.kafka, self.kinesis, self.folder)) != 1:
            raise ValueError("name one of: kafka: a topic, kinesis: a stream, folder: a folder")
        if self.folder is not None and self.settings:
            raise ValueError("a folder has no settings")
        if self.registry is not None and self.kafka is None:
            raise ValueError("registry goes with kafka")
        return self

    @property
    def stream_id(self) -> str:
        """The id of the stream within its source: `kafka:shop.events`."""
        kind = "kafka" if self.kafka is not None else "kinesis" if self.kinesis is not None else "folder"
        return f"{kind}:{getattr(self, kind)}"


class Incremental(Strict):
    """Read only rows whose `column` (a time or a number) is past the last run, and again those in the last `overlap` before it."""

    column: str
    overlap: kinds.Overlap | None = None


class Since(Strict):
    """How to ask an API for newer rows only: the query `parameter` is set to the greatest `column` seen so far."""

    parameter: str
    column: str


class Next(Strict):
    """How an API's pages follow one another: a `cursor` (a path into the answer) sent back as `parameter`; or a `page` number,
    the name of a query parameter; or `link: header`."""

    model_config = one_of("cursor", "page", "link")

    cursor: kinds.JsonPath | None = None
    parameter: str | None = None
    page: str | None = None
    first: int = 1
    link: Literal["header"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Next:
        if len(self.model_fields_set & {"cursor", "page", "link"}) != 1 or bool(self.cursor) != bool(self.parameter):
            raise ValueError("write {cursor: $.next, parameter: cursor}, or {page: page}, or {link: header}")
        return self


class Http(Strict):
    """One resource of an HTTP API. `rows` is the path to the list of rows in an answer."""

    url: kinds.OpenAddress
    headers: dict[str, str] = {}
    parameters: kinds.Parameters = {}
    rows: kinds.JsonPath = "$"
    next: Next | None = None
    since: Since | None = None


class CaseInsensitive(Strict):
    """The id fields that are compared without regard to case."""

    case_insensitive: kinds.IdNames


class Carry(Strict):
    """Columns of a file that only one row of an order fills, and the column that says which rows are `within` one order."""

    columns: kinds.Carried
    within: str


class Csv(Strict):
    """How CSV files are written, where they differ from RFC 4180. `null` is the text of an absent value; `columns` are the names of the
    columns of files without a header. An empty `quote` means that nothing is quoted."""

    delimiter: kinds.Mark | None = None
    quote: kinds.MarkOrNone = '"'
    escape: kinds.Mark | None = None
    null: str | None = None
    columns: kinds.Header = ()

    @model_validator(mode="before")
    @classmethod
    def _null(cls, given: Any) -> Any:
        # YAML reads a key that is spelled null, without quotes, as nothing.
        return {"null" if key is None else key: value for key, value in given.items()} if type(given) is dict else given

    @model_validator(mode="after")
    def _distinct(self) -> Csv:
        used = [mark for mark in (self.delimiter, self.quote or None) if mark]
        if len(set(used)) < len(used) or (self.escape is not None and self.escape == self.delimiter):
            raise ValueError("delimiter, quote and escape must differ")
        return self


class Explosion(NamedTuple):
    """The path to the list whose elements become rows: the keys `outer`. In a nested list, `outer` leads to a list, and in each of its
    elements the keys `inner` lead to the list to explode."""

    outer: tuple[str, ...]
    inner: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The path as it is written in the mapping."""
        return ".".join(self.outer) + ("[]." + ".".join(self.inner) if self.inner else "")


#: The names of the list element, and of the outer list's element that contains it, in expressions of an entry with `explode`.
ELEMENT, PARENT = "element", "parent"

#: The keys that say where an entry's rows come from. An entry has exactly one of them.
ORIGINS: Final = ("files", "stream", "table", "http")

#: The suffix of the fingerprint of an entry that makes several rows from one record.
EXPLODED: Final = "+exploded"


def _bare(given: Column) -> None:
    if given.format:
        raise ValueError("a format goes with available_at")


_Arrival = Annotated[
    Annotated[Literal["event_time", "now"], Tag(WORD)]
    | Annotated[Column, Tag(TAG + "column")]
    | Annotated[Sql, Tag(TAG + "sql")],
    kinds.by_key(
        "write event_time, now, {column: the column that holds the arrival time}, or {sql: an expression that gives it}",
        ("event_time", "now"),
        "column",
        "sql",
    ),
    kinds.checked(lambda given: isinstance(given, Sql) and expression(given.sql)),
]
_Ids = Annotated[
    Annotated[Literal["case_insensitive"], Tag(WORD)] | Annotated[CaseInsensitive, Tag(TAG + "case_insensitive")],
    kinds.by_key(
        "write case_insensitive, or {case_insensitive: [product_id]} for some ids alone",
        ("case_insensitive",),
        "case_insensitive",
    ),
]
_Deletes = Annotated[
    Literal["compare"] | Annotated[Column, kinds.checked(_bare)],
    kinds.otherwise("write compare, or {column: the column that says when a row was deleted}"),
]


class Table(Strict):
    """How the rows of files, a stream, a database's table or an API's resource become rows of one raw table."""

    model_config = one_of(*ORIGINS)

    files: kinds.Paths = ()
    stream: Stream | None = None
    table: str | None = None
    http: Http | None = None
    key: kinds.KeyColumns = ()
    incremental: Incremental | None = None
    deletes: _Deletes | None = None
    format: kinds.Format | None = None
    encoding: kinds.Encoding | None = None
    csv: Csv | None = None
    origin: Literal["web", "database"] = "web"
    time_zone: kinds.Zone | None = None
    expects: kinds.Expected = ()
    available_at: _Arrival
    explode: kinds.ListPath | None = None
    where: kinds.Expression | None = None
    distinct: bool = False
    replaces: kinds.Deliveries | None = None
    ids: _Ids | None = None
    null_ids: kinds.NullIds = ()
    carry: Carry | None = None
    currency: str | None = None
    personal: Personal = Personal()
    fields: dict[str, Field] = {}

    @property
    def caseless(self) -> frozenset[str]:
        """The id fields that are compared without regard to case."""
        return IDS if self.ids == "case_insensitive" else frozenset(self.ids.case_insensitive if self.ids else ())

    @property
    def explosion(self) -> Explosion | None:
        """The parsed `explode`."""
        if self.explode is None:
            return None
        outer, _, inner = self.explode.partition("[].")
        return Explosion(tuple(outer.split(".")), tuple(inner.split(".")) if inner else ())

    @property
    def policy(self) -> Personal:
        """`personal`, with the columns that the mapping reads as ids or keys: these are hashed where they would be dropped, also in the payload, so
        that rows mapped again from it have the same ids."""
        names = {source.key for name, source in self.fields.items() if name in IDS and source.key is not None} | {
            *self.key
        }
        hashed: dict[str, Treatment] = {
            name.lower(): "hash" for name in names if kind_of(name, "") not in (None, "email")
        }
        return self.personal.model_copy(update={"columns": hashed | self.personal.columns})

    def deliveries(self, table: str) -> tuple[str, ...]:
        """The patterns of file names that form a delivery; empty if there are none. `table` is the raw table that this entry fills."""
        return (GA4_DAYS if table == "ga4_events" else ()) if self.replaces is None else self.replaces

    @model_validator(mode="after")
    def _origin(self) -> Table:
        if sum(bool(getattr(self, key)) for key in ORIGINS) != 1:
            raise ValueError(f"say where the rows come from, by one of: {', '.join(ORIGINS)}")
        if self.stream is not None and self.distinct:
            raise ValueError("distinct is for files; a stream never ends")
        return self

    def reading(self, fields: Iterable[str]) -> Table:
        """This entry with these contract fields, each read from the column of the same name."""
        return self.model_copy(update={"fields": {name: Field(column=name) for name in fields}})

    def fingerprint(self, zone: str) -> str:
        """A hash of how rows are mapped, independent of where they come from; `zone` is the time zone of their times."""
        origin = {
            "files",
            "format",
            "replaces",
            "stream",
            "table",
            "http",
            "key",
            "incremental",
            "deletes",
            "time_zone",
        }
        rules = [self.model_dump(mode="json", exclude=origin, exclude_defaults=True), zone]
        digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
        return digest + (EXPLODED if self.explode is not None else "")


def _entries(given: Any) -> Any:
    if not isinstance(given, dict) or not given:
        raise ValueError("write raw tables and how each is filled")
    return {name: tuple(value) if isinstance(value, list) else (value,) for name, value in given.items()}


class Mapping(Strict):
    """A whole mapping file. `tables` holds one or more `Table` by raw table. `reporting_currency` and `shop_time_zone` apply to the
    whole shop, not only to this source (`orchestration.lake.shop`)."""

    source: kinds.Name
    time_zone: kinds.Zone = "UTC"
    reporting_currency: kinds.Currency | None = None
    shop_time_zone: kinds.Zone | None = None
    database: str | None = None
    personal: Personal = Personal()
    tables: Annotated[dict[str, tuple[Table, ...]], BeforeValidator(_entries)]

    def shared(self) -> Mapping:
        """The same mapping, with its `personal` in every entry that has none of its own."""
        tables = {
            name: tuple(
                entry if "personal" in entry.model_fields_set else entry.model_copy(update={"personal": self.personal})
                for entry in entries
            )
            for name, entries in self.tables.items()
        }
        return self.model_copy(update={"tables": tables})

    def entries(self, path: Path) -> Iterator[NumberedEntry]:
        """All entries, in order; `path` is the mapping's own file."""
        for name, entries in self.tables.items():
            for number, entry in enumerate(entries):
                where = f"{shown(path)}: tables.{name}" + (f"[{number + 1}]" if len(entries) > 1 else "")
                yield NumberedEntry(name, number, entry, entry.time_zone or self.time_zone, where)


class NumberedEntry(NamedTuple):
    """An entry with its raw table, its number among that table's entries (from 0), the time zone of its naive times, and its name in
    errors."""

    table: str
    number: int
    entry: Table
    zone: str
    where: str
