"""What the shop's mappings connect: source systems, connectors, loaders, and the raw tables they fill."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestration.config.settings import Environment
from orchestration.errors import FinegrainError
from orchestration.mapping.mapping import Mapping, Table, mapping_files, read_mapping

SHOP: Final = "FINEGRAIN_SHOP"
DATA: Final = "FINEGRAIN_DATA"


@dataclass(frozen=True)
class Connection:
    """One mapping file. `name` is its source, or its file's where two files have one source; `pulled` and `streamed` are the raw
    tables that its connector and its loaders fill, with the kinds of place that rows come from."""

    name: str
    path: Path
    mapping: Mapping
    pulled: dict[str, tuple[str, ...]]
    streamed: dict[str, tuple[str, ...]]

    @property
    def kinds(self) -> set[str]:
        """What kinds of system its rows come from."""
        return {kind for kinds in (*self.pulled.values(), *self.streamed.values()) for kind in kinds}


def data() -> str | None:
    """`FINEGRAIN_DATA`, where relative paths of mappings begin."""
    return Environment.read().data


def connections() -> list[Connection]:
    """What `FINEGRAIN_SHOP` names: a mapping file, or a folder of them; nothing when it is not set. Raises FinegrainError."""
    shop = Environment.read().shop
    if not shop:
        return []
    if not Path(shop).exists():
        raise FinegrainError(
            f"{SHOP} (--shop) is {shop}, which is not there; name a mapping file or a folder of them (docs/reference/mapping.md)"
        )
    read = [(path.resolve(), read_mapping(path)) for path in mapping_files(shop)]
    sources = Counter(mapping.source for _, mapping in read)
    return [
        _connection(mapping.source if sources[mapping.source] == 1 else f"{mapping.source}_{path.stem}", path, mapping)
        for path, mapping in read
    ]


def _connection(name: str, path: Path, mapping: Mapping) -> Connection:
    pulled: dict[str, set[str]] = {}
    streamed: dict[str, set[str]] = {}
    for place in mapping.entries(path):
        side = streamed if place.entry.stream is not None else pulled
        side.setdefault(place.table, set()).add(_kind(place.entry, place.table, mapping))
    return Connection(name, path, mapping, _sorted(pulled), _sorted(streamed))


def _sorted(tables: dict[str, set[str]]) -> dict[str, tuple[str, ...]]:
    return {table: tuple(sorted(kinds)) for table, kinds in sorted(tables.items())}


def _kind(entry: Table, table: str, mapping: Mapping) -> str:
    """As Dagster calls it."""
    if entry.stream is not None:
        return "kafka" if entry.stream.kafka else "kinesis" if entry.stream.kinesis else "json"
    if entry.http is not None:
        return "http"
    if entry.table is not None:
        return "mysql" if (mapping.database or "").startswith(("mysql", "mariadb")) else "postgres"
    if table == "ga4_events":
        return "googleanalytics"
    if any(file.startswith("s3://") for file in entry.files):
        return "s3"
    suffix = Path(entry.files[0]).suffixes[:1]
    return {".parquet": "parquet", ".csv": "csv"}.get(suffix[0] if suffix else "", "file")
