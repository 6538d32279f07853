"""Whether the online store says what the warehouse says: each vector beside the same features, computed by the models' SQL as of the vector's own moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings, settings
from orchestration.features.spines import AS_OF
from orchestration.features.training import keys_of
from orchestration.live.plan import plan
from orchestration.sql.text import identifier
from orchestration.store.online import OnlineStore
from orchestration.warehouse import warehouse
from orchestration.warehouse.compiled import Answers, answers, compiled

#: How far two doubles may lie apart, as a share of the greater and 1.
TOLERANCE: Final = 1e-9
EXAMPLES: Final = 5


@dataclass
class OfMart:
    """What was found of a mart: vectors `compared`, of which so many are `different`; keys of the warehouse that the store has `missing`; vectors that are
    `extra`, since the warehouse knows no such key at their moment; and `later` ones, of moments that the warehouse has not reached. `examples` name
    differences."""

    compared: int = 0
    different: int = 0
    missing: int = 0
    extra: int = 0
    later: int = 0
    examples: list[str] = field(default_factory=list)

    def plus(self, other: OfMart) -> OfMart:
        """Of both."""
        added = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        return OfMart(**added)


@dataclass(frozen=True)
class Parity:
    """What was found, by mart."""

    marts: dict[str, OfMart]

    @property
    def is_equal(self) -> bool:
        """Whether nothing is different, missing or extra."""
        return not any(each.different or each.missing or each.extra for each in self.marts.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"equal": self.is_equal, "marts": {name: asdict(each) for name, each in self.marts.items()}}


def parity(
    sample: int = 1_000,
    where: Settings | None = None,
    project: Path = PROJECT,
    keys: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Parity:
    """Compare a random sample of the keys that the warehouse has in each live mart, or the `keys` of marts. Raises FinegrainError."""
    where = where or settings()
    warehouse.must_exist(where.warehouse)
    models = compiled(where, project)
    found: dict[str, OfMart] = {}
    with OnlineStore(where) as store, answers(where, models) as opened:
        opened.con.execute("set timezone = 'UTC'")
        limit = warehouse.last_change(opened.con, "built")
        for mart in keys or plan(models).marts:
            names = keys_of(store.mart(mart))
            asked = keys[mart] if keys else _sample(where, mart, names, sample)
            found[mart] = OfMart()
            rows = []
            for key, vector in zip(asked, store.read(mart, list(asked)), strict=True):
                if vector is None:
                    found[mart].missing += 1
                elif limit is None or vector.as_of > limit + timedelta(microseconds=1):
                    found[mart].later += 1
                else:
                    rows.append({**dict(zip(names, key, strict=True)), AS_OF: vector.as_of, **vector.values})
            if rows:
                _compare(opened, mart, names, rows, found[mart])
    return Parity(found)


def _sample(where: Settings, mart: str, names: Sequence[str], sample: int) -> list[list[str]]:
    columns = ", ".join(map(identifier, names))
    with duckdb.connect() as con:
        warehouse.attach(con, where.warehouse)
        rows = con.execute(
            f"select {columns} from (select distinct {columns} from warehouse.marts.{identifier(mart)}) using sample {sample} rows"
        ).fetchall()
    return [list(row) for row in rows]


def _compare(opened: Answers, mart: str, names: Sequence[str], rows: list[dict[str, Any]], found: OfMart) -> None:
    """Compute the features as of the moment of each vector, and compare."""
    con = opened.con
    con.register("online_rows", pa.Table.from_pylist(rows))
    con.execute("create or replace temp table online as from online_rows")
    con.unregister("online_rows")
    spines = {key: f"select distinct {identifier(key)}, as_of from online" for key in opened.models.spines(mart)}
    relation = opened.ask([mart], spines)[mart]
    kinds = {name: kind for name, kind, *_ in con.execute(f"describe {relation}").fetchall()}
    features = [name for name in rows[0] if name not in (*names, AS_OF) and name in kinds]
    on = " and ".join(f"o.{identifier(name)} = w.{identifier(name)}" for name in (*names, AS_OF))
    checks = ", ".join(_difference(name, kinds[name]) for name in features)
    con.execute(
        f"create or replace temp table compared as select {', '.join('o.' + identifier(name) for name in (*names, AS_OF))}, "
        f"w.as_of is null as is_extra, list_filter([{checks}], x -> x is not null) as differences "
        f"from online as o left join {relation} as w on {on}"
    )
    counts = con.execute(
        "select count(*), count(*) filter (is_extra), count(*) filter (not is_extra and len(differences) > 0) from compared"
    ).fetchall()[0]
    found.compared, found.extra, found.different = map(int, counts)
    for *key, differences in con.execute(
        f"select {', '.join(map(identifier, names))}, as_of, differences[:3] from compared where not is_extra and len(differences) > 0 "
        f"order by all limit {EXAMPLES}"
    ).fetchall():
        found.examples.append(f"{' '.join(map(str, key))}: {'; '.join(differences)}")


def _difference(name: str, kind: str) -> str:
    """SQL of how the two values of a feature differ; null if they do not."""
    online, built = f"o.{identifier(name)}", f"w.{identifier(name)}"
    same = f"{online} is not distinct from {built}"
    if kind.startswith("DECIMAL") or kind in ("DOUBLE", "FLOAT"):
        near = f"abs({online}::double - {built}::double) <= {TOLERANCE} * greatest(1, abs({built}::double))"
        same = f"(({online} is null) = ({built} is null) and coalesce({near}, true))"
    elif kind.startswith(("TIMESTAMP", "DATE")):
        same = f"{online}::timestamp is not distinct from {built}::timestamp"
    return f"case when not ({same}) then '{name} is ' || coalesce({online}::varchar, 'null') || ', not ' || coalesce({built}::varchar, 'null') end"
