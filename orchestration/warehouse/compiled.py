"""The models' SQL as dbt compiles it, to run it on other rows than a build's: the spine of a training set, or the identities that a stream touched.

The SQL is not changed. `Answers` opens an empty database that is called like the warehouse, in which the tables of the warehouse are views, the
spines are the caller's, and the models that read a spine, directly or not, are computed from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import duckdb

from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings
from orchestration.lake import lake
from orchestration.lake.locks import one_at_a_time, scratch
from orchestration.sql.text import quote
from orchestration.warehouse import warehouse
from orchestration.warehouse.build import run_dbt
from orchestration.warehouse.fingerprints import of_files
from orchestration.warehouse.lineage import select_marts
from orchestration.warehouse.pin import pin

#: The spine that a key asks for features: models that have the rows (key, as_of) of a build, and here those of the caller.
SPINES: Final = {
    "customer_id": "int_features__customer_spine",
    "session_id": "int_features__session_spine",
    "product_id": "int_features__product_spine",
    "category": "int_features__category_spine",
}
#: The model of one row that says from which snapshot a build is.
BUILD: Final = "int_identity__build"
#: The model with the clean events, of which tiles and links between visitors and customers are made.
EVENTS: Final = "int_cleaning__events"
#: By key of a spine, the model that has its visible events. No build reads it.
EVENTS_OF: Final = {
    "customer_id": "int_features__customer_events",
    "session_id": "int_features__session_events",
}
#: The folder in the home in which dbt compiles, the file in it that keeps the result, and what the names of folders begin with in which answers are computed.
FOLDER: Final = "compiled"
FILE: Final = "models.json"
DRAFT: Final = ".compiled-"
_LEFT_OUT: Final = ("resource_type:test", "resource_type:unit_test", "resource_type:seed", "resource_type:snapshot")


@dataclass(frozen=True)
class Model:
    """A compiled model. `relation` is its quoted name in the warehouse; `reads` are the names of the models, seeds and snapshots that its SQL reads;
    `live` is how it takes part in live features (orchestration/live/plan.py), as its config says."""

    name: str
    relation: str
    sql: str
    reads: list[str]
    is_view: bool
    live: str | None = None


@dataclass(frozen=True)
class Compiled:
    """The feature marts, the models of `EVENTS_OF` and all models above them, by name. `marts`: the names of the feature marts. `digest`: of the files, settings and variables that
    they were compiled from."""

    digest: str
    marts: list[str]
    models: dict[str, Model]

    def asked(self, marts: Collection[str], *given: str) -> list[Model]:
        """The models that have to be computed for these marts, because they read a spine or a `given` model, in the order in which they read each other."""
        found: dict[str, Model] = {}
        self._visit(marts, found, dict.fromkeys((*SPINES.values(), BUILD, *given), True))
        return list(found.values())

    def _visit(self, names: Collection[str], found: dict[str, Model], known: dict[str, bool]) -> bool:
        any_asked = False
        for name in names:
            if name not in known:
                model = self.models.get(name)
                known[name] = False
                if model:
                    known[name] = self._visit(model.reads, found, known)
                    if known[name]:
                        found[name] = model
            any_asked |= known[name]
        return any_asked

    def spines(self, mart: str) -> set[str]:
        """The keys by which a mart asks its spines."""
        read = {name for model in self.asked([mart]) for name in model.reads}
        return {key for key, spine in SPINES.items() if spine in read}


def compiled(where: Settings, project: Path = PROJECT, arguments: Sequence[str] = ()) -> Compiled:
    """The feature marts and all models above them, as a full build would run them. dbt compiles them again only if a file of the project, a setting of the shop
    or the `arguments` of dbt (such as --vars) have changed. Raises FinegrainError as `run_dbt` does."""
    with lake.connect(where, read_only=True) as con:
        shop = dict(pin(con).shop)
    parts = [of_files(project), shop, list(arguments), str(project)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    file = where.home / FOLDER / FILE
    with one_at_a_time(where.home / FOLDER / ".lock"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(file.read_text("utf-8"))
            if kept["digest"] == digest:
                models = {name: Model(**model) for name, model in kept["models"].items()}
                return Compiled(digest, kept["marts"], models)
        found = _compile(where, project, arguments, digest)
        file.write_text(json.dumps(asdict(found)), "utf-8")
    return found


def _compile(where: Settings, project: Path, arguments: Sequence[str], digest: str) -> Compiled:
    with scratch(where.home, DRAFT) as folder:
        # An empty warehouse of its own: a build may be writing to the other one. Compiling reads no table.
        aside = replace(where, warehouse=folder / "warehouse.duckdb")
        target = where.home / FOLDER
        selected = [f"+{each}" for each in (*select_marts(), *EVENTS_OF.values())]
        asked = [
            "compile",
            "--full-refresh",
            "--target-path",
            str(target),
            "--select",
            *selected,
            "--exclude",
            *_LEFT_OUT,
        ]
        run_dbt([*asked, *arguments], where=aside, project=project)
        nodes = json.loads((target / "manifest.json").read_text("utf-8"))["nodes"].values()
    relations = {node["relation_name"]: node["name"] for node in nodes if node.get("relation_name")}
    models = {
        node["name"]: Model(
            node["name"],
            node["relation_name"],
            node["compiled_code"],
            _names_in(node["compiled_code"], relations),
            node["config"]["materialized"] == "view",
            node["config"]["meta"].get("live"),
        )
        for node in nodes
        if node["resource_type"] == "model" and node.get("compiled_code")
    }
    marts = [
        node["name"] for node in nodes if node["resource_type"] == "model" and node["fqn"][1:3] == ["marts", "features"]
    ]
    return Compiled(digest, sorted(marts), models)


def _names_in(sql: str, relations: Mapping[str, str]) -> list[str]:
    """The names of the relations that a query reads. Comments of models name others, too."""
    code = "\n".join(line for line in sql.splitlines() if not line.lstrip().startswith("--"))
    return [name for relation, name in relations.items() if relation in code]


class Answers:
    """Feature marts for spines of the caller. `folder` is for files that do not fit into memory; `built_from` is the lake snapshot of the last build. With
    `trust_event_time`, each event counts as known when it happened: tiles and links are computed again from events that arrive at once."""

    def __init__(self, models: Compiled, where: Settings, folder: Path, *, trust_event_time: bool = False) -> None:
        self.models = models
        self.con = duckdb.connect(config=warehouse.limits(folder / "spill"))
        warehouse.attach(self.con, where.warehouse)
        self.built_from = warehouse.last_build(self.con, where.warehouse)
        self.con.execute("detach warehouse")
        self.con.execute(f"attach {quote(str(where.warehouse))} as built (read_only)")
        self.con.execute(f"attach {quote(str(folder / 'warehouse.duckdb'))} as warehouse")
        self.con.execute("use warehouse")
        self.con.execute(f"set timezone = 'UTC'; set variable pinned = {self.built_from}::bigint")
        self._present: set[str] = set()
        self._given = (EVENTS,) if trust_event_time else ()

    def close(self) -> None:
        self.con.close()

    def ask(self, marts: Collection[str], spines: Mapping[str, str], *, as_views: bool = False) -> dict[str, str]:
        """Compute marts for the rows (key, as_of) of `spines`, a query by key; a key without one asks nothing. Returns the quoted name of each mart's table, which
        the next call replaces. With `as_views`, what is a view in a warehouse is one here: nothing is computed until it is read."""
        asked = self.models.asked(marts, *self._given)
        by_spine = self.models.asked(marts)
        made = {model.name for model in asked}
        for schema in {model.relation.split(".")[1] for model in asked} | {'"main"'}:
            self.con.execute(f"create schema if not exists warehouse.{schema}")
        self._see({name for model in asked for name in model.reads} - made - {*SPINES.values(), BUILD})
        for model in [each for each in asked if each not in by_spine and each.name not in self._present]:
            self.con.execute(f"create table {model.relation} as {model.sql}")
            self._present.add(model.name)
        for key, spine in SPINES.items():
            query = spines.get(key) or f"select null::varchar as {key}, null::timestamp as as_of where false"
            self.con.execute(f"create or replace table main.{spine} as select distinct {key}, as_of from ({query})")
        self.con.execute(
            f"create or replace table main.{BUILD} as "
            f"select null::timestamp as as_of, null::date as as_of_day, {self.built_from}::bigint as built_from"
        )
        for model in by_spine:
            kind = "view" if model.is_view and (as_views or model.name not in marts) else "table"
            self.con.execute(f"create or replace {kind} {model.relation} as {model.sql}")
        return {name: self.models.models[name].relation for name in marts}

    def _see(self, names: Collection[str]) -> None:
        """Views of tables of the warehouse, under their own names."""
        for name, place in warehouse.places(self.con, "built", set(names) - self._present).items():
            self.con.execute(f"create schema if not exists warehouse.{place.partition('.')[0]}")
            rows = f"select * from built.{place}"
            if name in self._given:
                at_once = "event_at as available_at, event_at as known_from, event_day as arrival_day"
                rows = f"select * replace ({at_once}) from built.{place} where known_to is null"
            self.con.execute(f"create view warehouse.{place} as {rows}")
            self._present.add(name)


@contextlib.contextmanager
def answers(where: Settings, models: Compiled, *, trust_event_time: bool = False) -> Iterator[Answers]:
    """Open `Answers` in a folder of its own below the home; no build can write while it is open."""
    with scratch(where.home, DRAFT) as folder:
        opened = Answers(models, where, folder, trust_event_time=trust_event_time)
        try:
            yield opened
        finally:
            opened.close()
