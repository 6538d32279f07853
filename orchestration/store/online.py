"""The newest feature vector of each key, of each feature mart: written and read in bulk.

A vector is one record: its key, its `as_of`, and its values as one JSON list. The names and types of the list are kept once, as its layout. DuckDB
makes the lists; a double comes back as the very same double. Feast reads the same records (orchestration/store/feast_store.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import duckdb

from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError
from orchestration.features.catalog import Mart, declared
from orchestration.features.spines import AS_OF
from orchestration.features.training import keys_of
from orchestration.sql.text import identifier
from orchestration.store.backends import Backend, Record, backend, layout_name, location

if TYPE_CHECKING:
    from types import TracebackType

    import pyarrow as pa

_EPOCH: Final = datetime(1970, 1, 1)
#: Records that are encoded at a time.
CHUNK: Final = 2_000


@dataclass(frozen=True)
class Vector:
    """The features of one key, each as it was at `as_of` (naive UTC). A feature that is null is None; times are naive UTC."""

    as_of: datetime
    values: dict[str, Any]

    @property
    def age(self) -> timedelta:
        """How old the values are now."""
        return datetime.now(UTC).replace(tzinfo=None) - self.as_of


#: Names and DuckDB types of a vector's values, in order.
Layout = list[tuple[str, str]]


class OnlineStore:
    """The online store that the environment says: SQLite, or Redis. Open it once; threads may share it.

    with OnlineStore() as store:
        store.write("user_features", table)
        [ann, nobody] = store.read("user_features", ["…", "nobody"])
    """

    def __init__(self, where: Settings | None = None, *, to: Backend | None = None) -> None:
        """Raises FinegrainError for an invalid setting. No server is asked yet."""
        self.backend = to or backend(location(where or settings()))
        self._con = duckdb.connect(config={"threads": 1})
        self._layouts: dict[str, Layout] = {}

    def __enter__(self) -> OnlineStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._con.close()
        self.backend.close()

    @cached_property
    def marts(self) -> dict[str, Mart]:
        """The feature marts as their YAML declares them."""
        return {mart.name: mart for mart in declared(PROJECT)}

    def mart(self, name: str) -> Mart:
        """A feature mart. Raises FinegrainError for another name."""
        if name not in self.marts:
            near = get_close_matches(name, self.marts, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.marts)}"
            raise FinegrainError(f"there is no feature mart {name}; {hint}")
        return self.marts[name]

    def write(self, mart: str, table: pa.Table) -> int:
        """Write rows of a mart (its key columns, `as_of` in UTC, features; other columns are left out). A row whose as_of is before that of the stored
        vector is skipped; one of the same as_of replaces it. Returns how many were written. Raises FinegrainError, and Unavailable if the
        store's server is away; what was written until then stays, and the same rows can be written again."""
        con = self._con.cursor()
        con.register("given", table)
        try:
            return self.write_from(con, mart, "given")
        finally:
            con.close()

    def write_from(
        self, con: duckdb.DuckDBPyConnection, mart: str, source: str, follow: Callable[[int], object] = int
    ) -> int:
        """The same of a table or view of a DuckDB connection, whatever its size; `follow` is called with the number of rows that were read since its last
        call."""
        layout, query = self._encoding(con, self.mart(mart), source)
        return self.backend.write(mart, _records(con, layout, query, follow))

    def read(self, mart: str, keys: Sequence[str | Sequence[str]]) -> list[Vector | None]:
        """The vectors of keys, in their order; None where there is none. A key is the value of the mart's key column, or of all of them in the order in which
        the mart has them. Raises FinegrainError, and Unavailable if the store's server is away."""
        names = keys_of(self.mart(mart))
        parts = [[key] if isinstance(key, str) else key for key in keys]
        if wrong := next((each for each in parts if len(each) != len(names)), None):
            raise FinegrainError(f"{mart} has the key columns {', '.join(names)}, so {len(wrong)} values are no key")
        found = self.backend.read(mart, [key_text(dict(zip(names, each, strict=True))) for each in parts])
        return [each and self._decoded(*each) for each in found]

    def layout(self, name: str) -> Layout:
        """What the values of a vector are. Raises FinegrainError if the store has lost it."""
        if name not in self._layouts:
            text = self.backend.layout(name)
            if text is None:
                raise FinegrainError(f"{self.backend.name} is incomplete; run `finegrain store materialize --all`")
            self._layouts[name] = [(column, kind) for column, kind in json.loads(text)]
        return self._layouts[name]

    def _encoding(self, con: duckdb.DuckDBPyConnection, mart: Mart, source: str) -> tuple[str, str]:
        """The layout of a table's rows, and the query that makes records of them."""
        kinds = {str(name): str(kind) for name, kind, *_ in con.execute(f"describe {source}").fetchall()}
        keys = keys_of(mart)
        if absent := [name for name in (*keys, AS_OF) if name not in kinds]:
            raise FinegrainError(f"{mart.name}: the rows have no column {', '.join(absent)}")
        features = [(each.name, kinds[each.name]) for each in mart.features if each.name in kinds]
        text = json.dumps(features)
        layout = layout_name(text)
        if layout not in self._layouts:
            self.backend.keep_layout(layout, text)
            self._layouts[layout] = features
        values = ", ".join(_value(name, kind) for name, kind in features)
        return layout, (
            f"select {_key_sql(keys)}, {_value(AS_OF, kinds[AS_OF])}, cast(json_array({values}) as varchar) from {source}"
        )

    def _decoded(self, as_of: int, layout: str, vector: str) -> Vector:
        pairs = zip(self.layout(layout), json.loads(vector), strict=True)
        values = {
            name: moment(value) if kind.startswith("TIMESTAMP") and value is not None else value
            for (name, kind), value in pairs
        }
        return Vector(moment(as_of), values)


def _records(
    con: duckdb.DuckDBPyConnection, layout: str, query: str, follow: Callable[[int], object]
) -> Iterator[Record]:
    con.execute(query)
    while rows := con.fetchmany(CHUNK):
        for key, as_of, vector in rows:
            yield key, as_of, layout, vector
        follow(len(rows))


def _value(name: str, kind: str) -> str:
    """SQL of a value as JSON has it: decimals as doubles, as training sets have them; times in microseconds since 1970."""
    column = identifier(name)
    if kind.startswith("DECIMAL"):
        return f"cast({column} as double{'[]' if kind.endswith('[]') else ''})"
    if kind.startswith("TIMESTAMP WITH"):
        return f"epoch_us({column})"
    return f"epoch_us(cast({column} as timestamp))" if kind.startswith("TIMESTAMP") else column


def _key_sql(keys: Sequence[str]) -> str:
    """SQL of what `key_text` makes of these columns."""
    *first, last = (f"cast({identifier(each)} as varchar)" for each in sorted(keys))
    return " || ".join([*(f"strlen({each}) || ':' || {each}" for each in first), last])


def key_text(key: Mapping[str, str]) -> str:
    """The values of key columns, by name, as one text: sorted by name, and each but the last after its length in bytes, so that no two keys are alike."""
    *first, last = (key[name] for name in sorted(key))
    return "".join(f"{len(each.encode())}:{each}" for each in first) + last


def moment(microseconds: int) -> datetime:
    """Microseconds since 1970 as naive UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)
