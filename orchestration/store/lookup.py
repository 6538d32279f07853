"""The vector of one key, for people: `finegrain features get customer <id>`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.features.catalog import NEVER_NULL, Mart
from orchestration.features.training import keys_of
from orchestration.store.online import OnlineStore, Vector


@dataclass(frozen=True)
class Found:
    """A key's vector, of the mart that has these key columns."""

    mart: Mart
    key: dict[str, str]
    vector: Vector
    now: datetime

    def as_dict(self) -> dict[str, Any]:
        """For JSON: each value with its as_of (UTC) and its age in seconds."""
        as_of, age = self.vector.as_of.isoformat() + "Z", (self.now - self.vector.as_of).total_seconds()
        return {
            "mart": self.mart.name,
            "key": self.key,
            "features": {
                name: {"value": _plain(value), "as_of": as_of, "age_seconds": age}
                for name, value in self.vector.values.items()
            },
        }

    def show(self, out: Console, like: str = "") -> None:
        """Print it as a table."""
        about = {each.name: each for each in self.mart.features}
        age = in_words(self.now - self.vector.as_of)
        table = Table("feature", "value", "unit", "age", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for name, value in self.vector.values.items():
            if like.lower() not in name.lower():
                continue
            unit = about[name].unit if name in about else ""
            if value is None and name in about and about[name].null_means != NEVER_NULL:
                unit = f"null: {about[name].null_means}"
            table.add_row(name, "null" if value is None else _shown(value), unit, age)
        named = ", ".join(f"{column} {value}" for column, value in self.key.items())
        out.print(f"{self.mart.name} of {named}, as of {self.vector.as_of:%Y-%m-%d %H:%M:%S} UTC, {age} ago")
        out.print(table)


def get(words: Sequence[str], where: Settings | None = None) -> Found:
    """The vector of the key that words say: `customer <id>`, `customer <id> product <id>`. Raises FinegrainError for an unknown entity, a combination that no
    mart has, or a key that the store does not have."""
    with OnlineStore(where) as store:
        marts = {tuple(sorted(keys_of(mart))): mart for mart in store.marts.values()}
        columns = sorted({name for keys in marts for name in keys})
        if not words or len(words) % 2:
            raise FinegrainError(
                "write an entity and its id, as in: finegrain features get customer 42; or several: customer 42 product 7"
            )
        key = {_column(name, columns): value for name, value in zip(words[::2], words[1::2], strict=True)}
        mart = marts.get(tuple(sorted(key)))
        if mart is None or 2 * len(key) != len(words):
            known = "; ".join(" and ".join(map(_entity, keys_of(each))) for each in store.marts.values())
            raise FinegrainError(f"no mart has the key {' and '.join(map(_entity, words[::2]))}; there are: {known}")
        key = {name: key[name] for name in keys_of(mart)}
        [vector] = store.read(mart.name, [list(key.values())])
        if vector is None:
            named = ", ".join(f"{_entity(name)} {value}" for name, value in key.items())
            is_empty = mart.name not in store.backend.marks()
            hint = (
                f"{mart.name} was not materialized yet: run `finegrain store materialize`"
                if is_empty
                else "the key is unknown"
            )
            raise FinegrainError(f"the online store has no {mart.name} of {named}; {hint}")
        return Found(mart, key, vector, datetime.now(UTC).replace(tzinfo=None))


def in_words(age: timedelta) -> str:
    """An age in its largest unit."""
    seconds = age.total_seconds()
    for name, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.1f} s"


def _column(name: str, columns: Sequence[str]) -> str:
    """The key column that an entity's name stands for: customer_id for `customer`."""
    for each in (name, f"{name}_id"):
        if each in columns:
            return each
    near = get_close_matches(name, [*map(_entity, columns), *columns], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(map(_entity, columns))}"
    raise FinegrainError(f"there is no entity {name}; {hint}")


def _entity(column: str) -> str:
    return column.removesuffix("_id")


def _plain(value: Any) -> Any:
    return value.isoformat() + "Z" if isinstance(value, datetime) else value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
