"""Open Data Contracts (ODCS 3.1) of mappings: what a source is expected to deliver. Those of marts are in `warehouse/data_contracts.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from orchestration import __version__
from orchestration.config.project import PACKAGE, PROJECT, roots, variable
from orchestration.errors import without_secrets
from orchestration.mapping.contracts import RAW_TABLES, declared_columns
from orchestration.mapping.expressions import expression
from orchestration.mapping.kinds import format_of
from orchestration.mapping.mapping import REQUIRED, read_mapping
from orchestration.mapping.models import Field, NumberedEntry, Table

API_VERSION: Final = "v3.1.0"
#: The end of the name of a contract's file.
SUFFIX: Final = ".odcs.yaml"
#: What ODCS calls the formats of a mapping.
_FORMATS: Final = {"csv": "csv", "parquet": "parquet", "jsonl": "json"}
#: libyaml's writer, where PyYAML was built with it.
_DUMPER: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def contract(
    kind: str, name: str, purpose: str, *, owner: str = "", servers: list[dict[str, Any]], schema: list[dict[str, Any]]
) -> dict[str, Any]:
    """A whole contract. `kind`: marts or mappings."""
    return {
        "apiVersion": API_VERSION,
        "kind": "DataContract",
        "id": f"finegrain.{kind}.{name}",
        "name": name,
        "version": __version__,
        "status": "active",
        "description": {"purpose": purpose},
        **({"team": {"name": owner}} if owner else {}),
        "servers": servers,
        "schema": schema,
    }


def sla(hours: float, what: str) -> dict[str, Any]:
    """A service level: something happens at least once in so many hours."""
    return {
        "property": "frequency",
        "value": hours,
        "unit": "h",
        "description": f"{what} at least every {hours:g} hours",
    }


def custom(values: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What ODCS has no word for; values of None are left out."""
    found = [{"property": name, "value": value} for name, value in values.items() if value is not None]
    return {"customProperties": found} if found else {}


def text_rule(text: str) -> dict[str, Any]:
    """A quality rule that no tool can run."""
    return {"type": "text", "description": text}


def write(contract: Mapping[str, Any], folder: Path, name: str | None = None) -> Path:
    """Write a contract into a folder, which is made if needed, under its own name or another. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name or contract['name']}{SUFFIX}"
    text = yaml.dump(dict(contract), Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(text, "utf-8")
    return path


_REFERENCE: Final = re.compile(r"{{\s*(doc|var)\(\s*'(\w+)'\s*\)\s*}}")


def said(text: str, project: Path = PROJECT) -> str:
    """A text of dbt's YAML on one line, with its doc blocks and vars in place. Other Jinja stays as it is."""

    def found(match: re.Match[str]) -> str:
        known = _docs(project).get(match[2]) if match[1] == "doc" else variable(match[2])
        return match[0] if known is None else str(known)

    return " ".join(_REFERENCE.sub(found, text).split())


@cache
def _docs(project: Path) -> dict[str, str]:
    texts = [path.read_text("utf-8") for root in roots(project) for path in sorted((root / "models").rglob("*.md"))]
    return {
        name: text
        for each in texts
        for name, text in re.findall(r"{%-? docs (\w+) -?%}(.*?){%-? enddocs -?%}", each, re.S)
    }


# ------------------------------------------------------------------------------------------------------- mappings


def of_mapping(path: Path, renewed_within: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The contract of a mapping file: by raw table that it fills, the columns that it reads. `renewed_within`: hours within which new rows
    of a raw table come. Raises FinegrainError if the mapping is not valid."""
    mapping = read_mapping(path)
    entries = list(mapping.entries(path))
    found = contract(
        "mappings",
        mapping.source,
        f"What {mapping.source} delivers to finegrain, as the mapping {path.name} reads it.",
        servers=[_server(each, mapping.database) for each in entries],
        schema=[_object(each) for each in entries],
    )
    hours = {each: (renewed_within or {})[each] for each in mapping.tables if each in (renewed_within or {})}
    levels = [sla(value, f"New rows of {table} come") for table, value in hours.items()]
    return {**found, **({"slaProperties": levels} if levels else {})}


def _name(each: NumberedEntry) -> str:
    return each.table + (f"_{each.number + 1}" if each.number else "")


def _server(each: NumberedEntry, database: str | None) -> dict[str, Any]:
    """Where an entry's rows come from. Secrets and `${NAME}` are not resolved."""
    entry, name = each.entry, {"server": _name(each)}
    if entry.files:
        kind = _FORMATS.get(entry.format or format_of(entry.files[0]) or "", "")
        kind_of = {"format": kind} if kind else {}
        place = without_secrets(entry.files[0])
        if place.startswith("s3://"):
            return {**name, "type": "s3", "location": place, **kind_of}
        return {**name, "type": "local", "path": place, **({"format": "csv"} | kind_of)}
    if entry.stream is not None and entry.stream.kafka is not None:
        host = without_secrets(str(entry.stream.settings.get("bootstrap.servers", "")))
        return {**name, "type": "kafka", "host": host, "format": "json"}
    where = without_secrets(
        (entry.stream and entry.stream.stream_id)
        or (entry.http and entry.http.url)
        or f"table {entry.table} of {database}"
    )
    return {**name, "type": "custom", "description": where}


def _object(each: NumberedEntry) -> dict[str, Any]:
    entry = each.entry
    kind, place = next(
        (kind, place)
        for kind, place in (
            ("file", without_secrets(", ".join(entry.files))),
            ("topic", entry.stream and entry.stream.stream_id),
            ("table", entry.table),
            ("resource", entry.http and without_secrets(entry.http.url)),
        )
        if place
    )
    constants = {name: field.value for name, field in entry.fields.items() if "value" in field.model_fields_set}
    rules = [
        f"{' and '.join(entry.expects)} of these rows are known to the shop, or come later" if entry.expects else "",
        f"times without an offset are in {each.zone}",
        f"only rows where {entry.where} count" if entry.where else "",
        f"each element of {entry.explode} is a row" if entry.explode else "",
    ]
    return {
        "name": _name(each),
        "physicalName": place,
        "physicalType": kind,
        "logicalType": "object",
        "description": f"Fills {each.table} (docs/reference/raw-tables.md).",
        "properties": list(_properties(each)),
        "quality": [text_rule(rule) for rule in rules if rule],
        **custom({"rawTable": each.table, "constants": constants or None}),
    }


def _fields(each: NumberedEntry) -> dict[str, Field]:
    """The contract fields with what each reads. Messages without a mapping, and GA4's export, have the fields as columns."""
    entry = each.entry
    return entry.fields or {name: Field(column=name) for name in RAW_TABLES[each.table]}


def _columns_of(field: Field) -> Iterable[str]:
    if field.sql is not None:
        return expression(field.sql)
    return [field.reads] if field.reads is not None else []


def _properties(each: NumberedEntry) -> Iterator[dict[str, Any]]:
    entry, declared = each.entry, declared_columns(PACKAGE).get(each.table, {})
    fills: dict[str, list[str]] = {}
    for name, field in _fields(each).items():
        for column in _columns_of(field):
            fills.setdefault(column, []).append(name)
    for column in _other_columns(entry):
        fills.setdefault(column, [])
    needed = {names[0] for names in REQUIRED[each.table] if len(names) == 1}
    for column, names in fills.items():
        fields = [_fields(each)[name] for name in names]
        formats = [text for field in fields for text in field.format]
        meanings = [f"{name}: {said(declared.get(name, {}).get('description', ''))}" for name in names]
        is_needed = any(name in needed and field.sql is None for name, field in zip(names, fields, strict=True))
        yield {
            "name": column,
            "description": " ".join(meanings) or "Read by the mapping, and kept with the row.",
            **({"required": True} if is_needed or column in entry.key else {}),
            **({"primaryKey": True, "primaryKeyPosition": entry.key.index(column) + 1} if column in entry.key else {}),
            **custom({"fills": names or None, "formats": formats or None}),
        }


def _other_columns(entry: Table) -> Iterator[str]:
    """Columns that an entry reads beside its fields."""
    yield from entry.key
    for part in (entry.available_at, entry.incremental, entry.deletes):
        if column := getattr(part, "column", None):
            yield column
    for text in (getattr(entry.available_at, "sql", None), entry.where):
        yield from expression(text) if text else ()
    if entry.carry is not None:
        yield from (*entry.carry.columns, entry.carry.within)
    if entry.explode is not None:
        yield entry.explode.partition(".")[0].removesuffix("[]")
