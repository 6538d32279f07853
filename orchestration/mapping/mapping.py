"""A shop's mapping: one YAML file that says how its columns become the raw contracts (docs/reference/mapping.md).

Everything a user can misspell is checked here, before any data is read: keys, table and field names, time zones, and the
expressions in `sql:`. Checks that need the data (do these columns exist?) are in `landing`. Errors name the file, the key,
and the nearest valid spelling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from orchestration.config.yaml_file import read_yaml as read_yaml
from orchestration.errors import FinegrainError
from orchestration.errors.console import shown
from orchestration.mapping.contracts import EVENT_TIME, IDS, RAW_TABLES, is_time
from orchestration.mapping.environment import client_setting as client_setting
from orchestration.mapping.environment import from_environment as from_environment
from orchestration.mapping.expressions import expression as expression
from orchestration.mapping.kinds import Format as Format
from orchestration.mapping.kinds import format_of as format_of
from orchestration.mapping.messages import entries_together as entries_together
from orchestration.mapping.messages import nearest as nearest
from orchestration.mapping.messages import once
from orchestration.mapping.messages import sentences as sentences
from orchestration.mapping.models import ELEMENT as ELEMENT
from orchestration.mapping.models import EXPLODED as EXPLODED
from orchestration.mapping.models import ORIGINS
from orchestration.mapping.models import PARENT as PARENT
from orchestration.mapping.models import Column as Column
from orchestration.mapping.models import Csv as Csv
from orchestration.mapping.models import Explosion as Explosion
from orchestration.mapping.models import Field as Field
from orchestration.mapping.models import Http as Http
from orchestration.mapping.models import Mapping as Mapping
from orchestration.mapping.models import NumberedEntry as NumberedEntry
from orchestration.mapping.models import Sql as Sql
from orchestration.mapping.models import Stream as Stream
from orchestration.mapping.models import Strict as Strict
from orchestration.mapping.models import Table as Table
from orchestration.mapping.times import has_offset as has_offset
from orchestration.mapping.times import span as span
from orchestration.mapping.times import strptime as strptime

#: The required fields by table: of each tuple, at least one field must be mapped.
REQUIRED: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "events": (("event_type",), ("event_at",), ("user_id", "anonymous_id")),
    "ga4_events": (),
    "customers": (("customer_id",),),
    "products": (("product_id",),),
    "orders": (("order_id",),),
    "order_items": (("order_id",), ("product_id",)),
    "refunds": (("order_id",),),
}


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
        raise FinegrainError("\n".join(f"{shown(path)}: {shown(problem)}" for problem in once(problems)))
    return mapping.shared()


def _key_problems(given: Any, place: tuple[Any, ...]) -> Iterator[str]:
    """Report keys that YAML does not read as text, except in `map` and `parameters`, and `null` in `csv`."""
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


def _models(kind: Any) -> list[type[BaseModel]]:
    """The pydantic models within a type."""
    return (
        [kind]
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        else [each for part in get_args(kind) for each in _models(part)]
    )


def _keys(parents: list[str]) -> Iterable[str]:
    """The valid keys below `parents`."""
    models: list[type[BaseModel]] = [Mapping]
    for parent in parents:
        found = [model.model_fields[parent].annotation for model in models if parent in model.model_fields]
        models = [each for kind in found for each in _models(kind)] or models
    return dict.fromkeys(name for model in models for name in model.model_fields)


def mapping_files(path: str | Path) -> list[Path]:
    """The mapping files at `path`: the file itself, or every YAML file in the folder."""
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


def _problems(mapping: Mapping) -> Iterator[str]:
    """Problems that involve more than one key."""
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
        # Entries of a table must agree on which files form a delivery.
        if len({table.deliveries(name) for table in entries if table.files}) > 1:
            yield f"tables.{name}: its entries differ in replaces; write the same in all that read files"


#: Keys that an entry of ga4_events may not have (`format` may not be csv), and why.
_NOT_OF_GA4: Final = {
    "fields": "GA4's export keeps its own shape; leave `fields` out",
    "format": "GA4's export is nested; export it as parquet or jsonl",
    "stream": "GA4's export comes as files",
    "carry": "each row of GA4's export is whole; leave it out",
    "explode": "the models unfold the items of GA4's export; leave it out",
}


def _table_problems(where: str, name: str, table: Table) -> Iterator[str]:
    yield from _origin_problems(where, name, table)
    if name == "ga4_events":
        for key, why in _NOT_OF_GA4.items():
            if getattr(table, key) and (key != "format" or table.format == "csv"):
                yield f"{where}.{key}: {why}"
        return
    if table.currency is not None:
        yield f"{where}.currency: this is for ga4_events; here map the field, as in currency: {{value: EUR}}"
    yield from _element_problems(where, table)
    if table.stream is not None and not table.fields:
        return  # message keys have the names of the fields
    for field, source in table.fields.items():
        if field not in RAW_TABLES[name]:
            yield f"{where}.fields.{field}: {name} has no such field" + nearest(field, RAW_TABLES[name])
        elif source.format and not is_time(field):
            yield f"{where}.fields.{field}.format: {field} is not a time; leave format out"
        if field in IDS and source.sql is not None:
            yield from _personal_problems(f"{where}.fields.{field}.sql", name, table, source.sql)
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


def _personal_problems(place: str, name: str, table: Table, text: str) -> Iterator[str]:
    """An id made by an expression from personal data would land as it is. (E-mail addresses are found in any text.)"""
    for column in expression(text):
        found = table.personal.of(name, column)
        if found is not None and found[0] != "email":
            yield (
                f"{place}: {column} is personal ({found[0]}), and an id made from it would land readable; map the column itself, "
                f"which is hashed then, or say personal: {{columns: {{{column}: keep}}}}"
            )


def _element_problems(where: str, table: Table) -> Iterator[str]:
    """Problems of `explode`, `element` and `parent`."""
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
    """Keys that do not fit where the rows come from."""
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
