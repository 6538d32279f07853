"""Column-level lineage of the marts, down to the raw tables.

The models' SQL is compiled by dbt and parsed by DuckDB itself, so the lineage is that of the SQL that runs. As in OpenLineage, a column has two
kinds of input: fields whose **values** go into it, and fields used in **conditions**: in a CASE or FILTER, in the partitions and order of a window,
and in the groups of a count. A lookup table (exchange rates, event type names) counts as the fields it is looked up by. WHERE clauses and join
keys are left out, because they involve nearly every field and are the same for all features. So are the columns that every raw table has.

Unknown SQL constructs are never guessed at: then only the tables of the mart are listed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Final

import duckdb

from orchestration.config.project import PACKAGE, PROJECT, name_of, roots
from orchestration.config.settings import Settings, settings
from orchestration.errors import console
from orchestration.lake.lake import table_columns
from orchestration.lake.locks import scratch
from orchestration.mapping.contracts import RAW_TABLES

#: Columns that DuckLake adds to a table.
_LAKE_COLUMNS: Final = ("rowid", "snapshot_id")
#: Tables of the lake that are dictionaries, as seeds are.
_DICTIONARIES: Final = ("exchange_rates",)
#: The moment of which features are is what a spine asks, whatever it was made of.
ASKED: Final = "as_of"
#: Where the marts are below models/, and of them those of features.
MARTS: Final = "marts"
FEATURES: Final = f"{MARTS}/features"


class NotTracedError(Exception):
    """A construct of SQL that is not known here."""


@dataclass(frozen=True)
class Origin:
    """Raw fields, as table.field: whose values go into a column, and which decide what goes into it."""

    values: frozenset[str] = frozenset()
    conditions: frozenset[str] = frozenset()

    def __or__(self, other: Origin) -> Origin:
        return Origin(self.values | other.values, self.conditions | other.conditions)

    def as_dict(self) -> dict[str, list[str]]:
        """For JSON."""
        return {"values": sorted(self.values), "conditions": sorted(self.conditions)}

    @staticmethod
    def union(origins: Iterable[Origin]) -> Origin:
        """All of them together."""
        return reduce(Origin.__or__, origins, NOTHING)

    def deciding(self) -> Origin:
        """The same where it only decides: what a condition looks at or, where it only tells constants apart, by what."""
        return Origin(conditions=self.values or self.conditions)

    def of_contracts(self) -> Origin:
        """Without the columns that every raw row carries."""
        return Origin(*(frozenset(filter(_is_of_contract, each)) for each in (self.values, self.conditions)))

    def within(self, path: Iterable[str]) -> Origin:
        """The origin of a field of this struct: down to that field if a raw table delivers a struct."""
        inside = "".join(f".{name}" for name in path)
        return Origin(frozenset(each + inside if _is_struct(each) else each for each in self.values), self.conditions)


NOTHING: Final = Origin()


def _is_of_contract(raw_field: str) -> bool:
    table, name, *_ = raw_field.split(".")
    return name in RAW_TABLES.get(table, {})


def _is_struct(raw_field: str) -> bool:
    table, name, *_ = raw_field.split(".")
    return "STRUCT" in RAW_TABLES.get(table, {}).get(name, "")


@dataclass(frozen=True)
class Lineage:
    """Of one mart: the raw tables and seeds it is made of, the models between, and, unless its SQL could not be traced, the
    origin of each of its columns."""

    raw: list[str]
    seeds: list[str]
    models: list[str]
    columns: dict[str, Origin] | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        traced = None
        if self.columns is not None:
            traced = {name: origin.as_dict() for name, origin in self.columns.items()}
        return {"raw": self.raw, "seeds": self.seeds, "models": self.models, "columns": traced}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Lineage:
        """What `as_dict` made."""
        traced = None
        if stored["columns"] is not None:
            traced = {
                name: Origin(frozenset(each["values"]), frozenset(each["conditions"]))
                for name, each in stored["columns"].items()
            }
        return cls(stored["raw"], stored["seeds"], stored["models"], traced)


def lineage(where: Settings | None = None, *, quiet: bool = True) -> dict[str, Lineage]:
    """The lineage of each mart, by name. It follows from the project's files alone and is kept below the home until
    they change: dbt takes a while to compile them. Raises FinegrainError where dbt cannot."""
    where = where or settings()
    kept = where.home / "lineage.json"
    fingerprint = _fingerprint(PROJECT)
    if kept.exists():
        stored = json.loads(kept.read_text("utf-8"))
        if stored["of"] == fingerprint:
            return {mart: Lineage.from_dict(each) for mart, each in stored["marts"].items()}
    manifest = _compiled(where, quiet=quiet)
    tracer = Tracer(manifest)
    found = {
        node["name"]: tracer.mart(name)
        for name, node in sorted(manifest["nodes"].items())
        if node["resource_type"] == "model" and node["original_file_path"].startswith(f"models/{MARTS}/")
    }
    stored = {"of": fingerprint, "marts": {mart: each.as_dict() for mart, each in found.items()}}
    with scratch(kept.parent, ".draft-") as folder:
        draft = folder / kept.name
        draft.write_text(json.dumps(stored), "utf-8")
        draft.replace(kept)
    return found


def select_marts(folder: str = FEATURES) -> list[str]:
    """What selects the marts of a folder in dbt: finegrain's, and those of the project that have the same folder."""
    having = [root for root in roots() if (root / "models" / folder).is_dir()]
    return [".".join(("fqn:" + name_of(root), *folder.split("/"))) for root in having]


def _fingerprint(project: Path) -> str:
    digest = hashlib.sha256()
    files = [Path(__file__), PACKAGE / "models" / "staging" / "_sources.yml"]
    for root in roots(project):
        files += [root / "dbt_project.yml", *(root / "seeds").glob("*.csv")]
        files += [*(root / "models").rglob("*.sql"), *(root / "macros").rglob("*.sql")]
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _compiled(where: Settings, *, quiet: bool) -> dict[str, Any]:
    """dbt's manifest with the SQL of the marts and all that they read, as of a first build: in an empty home of its own, so
    that no warehouse is opened and none is waited for."""
    from orchestration.warehouse.build import run_dbt  # dbt takes seconds to import, and what is kept needs none of it

    with (
        scratch(Path(tempfile.gettempdir()), "finegrain-lineage-") as folder,
        console.progress("trace lineage", 1, quiet=quiet) as advance,
    ):
        arguments = ["compile", "--full-refresh", "--target-path", str(folder)]
        arguments += ["--select", *(f"+{each},resource_type:model" for each in select_marts(MARTS))]
        run_dbt(
            arguments,
            where=Settings.below(folder / "home", where.extensions),
            on_node=lambda name, number, of: advance(1 / of, name),
        )
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return manifest


#: Columns of a relation in order; a column of an unnamed expression has the name "".
_Columns = list[tuple[str, Origin]]


@dataclass
class _Table:
    """A relation in a FROM clause. `any_column` is the origin of whatever column a table function may have."""

    alias: str
    columns: _Columns
    any_column: Origin | None = None

    def find(self, name: str) -> Origin | None:
        found = [origin for each, origin in self.columns if each == name]
        return found[0] if found else self.any_column

    def looked_up_by(self, keys: Origin) -> _Table:
        """A dictionary, which no raw field went into, translates the keys that it is looked up by."""
        if any(origin != NOTHING for _, origin in self.columns) or self.any_column is not None:
            return self
        return _Table(self.alias, [(name, keys) for name, _ in self.columns])


@dataclass
class _Scope:
    """The names that an expression may use: those of the relations, then aliases of the same SELECT, then those outside."""

    tables: list[_Table]
    outside: _Scope | None = None
    aliases: dict[str, Origin] = field(default_factory=dict)

    def find(self, names: list[str]) -> Origin:
        if len(names) > 1:
            for table in self.tables:
                if table.alias == names[0] and (origin := table.find(names[1])) is not None:
                    return origin.within(names[2:])
        for table in self.tables:
            if (origin := table.find(names[0])) is not None:
                return origin.within(names[1:])
        if names[0] in self.aliases:
            return self.aliases[names[0]].within(names[1:])
        if self.outside is None:
            raise NotTracedError(f"no column {'.'.join(names)}")
        return self.outside.find(names)


class Tracer:
    """Traces columns through the compiled models of a manifest, each model once."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self._nodes: dict[str, Any] = {**manifest["nodes"], **manifest["sources"]}
        self._names = {
            (node["schema"].lower(), (node.get("alias") or node["identifier"]).lower()): name
            for name, node in self._nodes.items()
            if node["resource_type"] in ("model", "seed", "snapshot", "source")
        }
        self._known: dict[str, _Columns] = {}
        self._con = duckdb.connect()

    def mart(self, name: str) -> Lineage:
        """The lineage of one model."""
        kinds: dict[str, set[str]] = {"source": set(), "seed": set(), "model": set()}
        for each in self._above(name):
            node = self._nodes[each]
            kinds.setdefault(node["resource_type"], set()).add(node["name"])
        try:
            traced = {column: origin.of_contracts() for column, origin in self.model(name)}
        except NotTracedError:
            traced = None
        return Lineage(sorted(kinds["source"]), sorted(kinds["seed"]), sorted(kinds["model"]), traced)

    def _above(self, name: str) -> Iterator[str]:
        seen, waiting = {name}, [name]
        while waiting:
            for each in self._nodes[waiting.pop()].get("depends_on", {}).get("nodes", []):
                if each not in seen:
                    seen.add(each)
                    waiting.append(each)
                    yield each

    def model(self, name: str) -> _Columns:
        """The columns of a model, seed or source with their origins."""
        if name not in self._known:
            self._known[name] = self._columns(self._nodes[name])
        return self._known[name]

    def _columns(self, node: Mapping[str, Any]) -> _Columns:
        table = node["name"]
        if node["resource_type"] == "source":
            names = (*map(str.lower, table_columns(table)), *_LAKE_COLUMNS)
            if table in _DICTIONARIES:
                return [(each, NOTHING) for each in names]
            return [(each, Origin(frozenset({f"{table}.{each}"}))) for each in names]
        if node["resource_type"] == "seed":
            with (Path(node["root_path"]) / node["original_file_path"]).open(encoding="utf-8", newline="") as file:
                return [(each.lower(), NOTHING) for each in next(csv.reader(file))]
        if not node.get("compiled_code"):
            raise NotTracedError(f"{table} is not compiled")
        return self.query(node["compiled_code"])

    def query(self, sql: str) -> _Columns:
        """The columns of a query with their origins."""
        [(text,)] = self._con.execute("select json_serialize_sql(?::varchar)", [sql]).fetchall()
        parsed = json.loads(text)
        if parsed["error"]:
            raise NotTracedError(parsed["error_message"])
        return self._node(parsed["statements"][0]["node"], {}, None)

    def _node(self, node: Mapping[str, Any], ctes: Mapping[str, _Columns], outside: _Scope | None) -> _Columns:
        known = dict(ctes)
        for each in node["cte_map"]["map"]:
            if each["value"].get("aliases"):
                raise NotTracedError("a CTE that renames its columns")
            known[each["key"].lower()] = self._node(each["value"]["query"]["node"], known, outside)
        if node["type"] == "SET_OPERATION_NODE":
            left, right = (self._node(node[side], known, outside) for side in ("left", "right"))
            if node["setop_type"] not in ("UNION", "EXCEPT", "INTERSECT") or len(left) != len(right):
                raise NotTracedError(f"a {node['setop_type']} of {len(left)} and {len(right)} columns")
            return [(name, one | other) for (name, one), (_, other) in zip(left, right, strict=True)]
        if node["type"] != "SELECT_NODE" or node["aggregate_handling"] != "STANDARD_HANDLING":
            raise NotTracedError(f"a {node['type']} with {node.get('aggregate_handling')}")
        return self._select(node, known, outside)

    def _select(self, node: Mapping[str, Any], ctes: Mapping[str, _Columns], outside: _Scope | None) -> _Columns:
        scope = _Scope(self._from(node["from_table"], ctes, outside), outside)
        found: _Columns = []
        for item in node["select_list"]:
            if item["class"] == "STAR":
                expanded = self._star(item, ctes, scope)
            else:
                name = (item["alias"] or (item.get("column_names") or [""])[-1]).lower()
                expanded = [(name, self._expression(item, ctes, scope))]
                if item["alias"]:
                    scope.aliases[name] = expanded[0][1]
            found += expanded
        groups = NOTHING
        for each in node["group_expressions"]:
            by_position = each["class"] == "CONSTANT" and "INTEGER" in each["value"]["type"]["id"]
            groups |= found[each["value"]["value"] - 1][1] if by_position else self._expression(each, ctes, scope)
        # A count takes in no values; it is of the rows that agree in these.
        return [(name, origin if origin.values else origin | groups.deciding()) for name, origin in found]

    def _star(self, item: Mapping[str, Any], ctes: Mapping[str, _Columns], scope: _Scope) -> _Columns:
        if item["columns"] or item.get("expr") or item.get("rename_list") or item.get("qualified_exclude_list"):
            raise NotTracedError("a star with columns()")
        left_out = {name.lower() for name in item["exclude_list"]}
        replaced = {each["key"].lower(): each["value"] for each in item["replace_list"]}
        found: _Columns = []
        for table in scope.tables:
            if item["relation_name"] and item["relation_name"].lower() != table.alias:
                continue
            if table.any_column is not None:
                raise NotTracedError(f"all columns of the function {table.alias}")
            found += [
                (name, self._expression(replaced[name], ctes, scope) if name in replaced else origin)
                for name, origin in table.columns
                if name not in left_out
            ]
        return found

    def _from(self, source: Mapping[str, Any], ctes: Mapping[str, _Columns], outside: _Scope | None) -> list[_Table]:
        kind = source["type"]
        if kind == "EMPTY":
            return []
        if kind == "JOIN":
            return self._join(source, ctes, outside)
        alias = source["alias"].lower()
        if kind == "BASE_TABLE":
            table = source["table_name"].lower()
            return [
                _Table(alias or table, _renamed(self._relation(source["schema_name"].lower(), table, ctes), source))
            ]
        if kind == "SUBQUERY":
            return [_Table(alias, _renamed(self._node(source["subquery"]["node"], ctes, outside), source))]
        if kind == "EXPRESSION_LIST":
            rows = [[self._expression(each, ctes, _Scope([], outside)) for each in row] for row in source["values"]]
            return [
                _Table(
                    alias,
                    _renamed(
                        [(f"col{n}", Origin.union(each)) for n, each in enumerate(zip(*rows, strict=True))], source
                    ),
                )
            ]
        if kind == "TABLE_FUNCTION":
            function = source["function"]
            name = function["function_name"].lower()
            if name == "ducklake_table_insertions":
                raw = function["children"][2]["value"]["value"]
                return [_Table(alias or name, self._relation("raw", raw, {}))]
            if name not in ("unnest", "range", "generate_series"):
                raise NotTracedError(f"the table function {name}")
            return [_Table(alias or name, [], self._expression(function, ctes, _Scope([], outside)))]
        raise NotTracedError(f"a {kind} in a FROM clause")

    def _join(self, source: Mapping[str, Any], ctes: Mapping[str, _Columns], outside: _Scope | None) -> list[_Table]:
        if source["using_columns"] or source["ref_type"] not in ("REGULAR", "CROSS", "ASOF"):
            raise NotTracedError(f"a join {source['ref_type']} using {source['using_columns']}")
        left = self._from(source["left"], ctes, outside)
        right = self._from(source["right"], ctes, _Scope(left, outside))
        if not source.get("condition"):
            return left + right
        keys = self._expression(source["condition"], ctes, _Scope(left + right, outside))
        return left + [table.looked_up_by(keys) for table in right]

    def _relation(self, schema: str, table: str, ctes: Mapping[str, _Columns]) -> _Columns:
        if not schema and table in ctes:
            return ctes[table]
        if (schema, table) not in self._names:
            raise NotTracedError(f"the table {schema}.{table}")
        return self.model(self._names[schema, table])

    def _expression(self, expression: Mapping[str, Any], ctes: Mapping[str, _Columns], scope: _Scope) -> Origin:
        def of(each: Any) -> Origin:
            return self._expression(each, ctes, scope) if each else NOTHING

        kind = expression["class"]
        if kind == "CONSTANT":
            return NOTHING
        if kind == "COLUMN_REF":
            names = [name.lower() for name in expression["column_names"]]
            return NOTHING if names[-1] == ASKED else scope.find(names)
        if kind == "CASE":
            checks = expression["case_checks"]
            whens = Origin.union(of(check["when_expr"]) for check in checks)
            return (
                whens.deciding()
                | Origin.union(of(check["then_expr"]) for check in checks)
                | of(expression["else_expr"])
            )
        if kind in ("FUNCTION", "WINDOW"):
            orders = expression["orders"] if kind == "WINDOW" else expression["order_bys"].get("orders", [])
            order = Origin.union(of(each["expression"]) for each in orders)
            partition = Origin.union(of(each) for each in expression.get("partitions", []))
            children = Origin.union(of(each) for each in expression["children"])
            others = Origin.union(of(expression.get(part)) for part in ("offset_expr", "default_expr"))
            # The value of a rank is made of what it ranks by.
            ranked = kind == "WINDOW" and not expression["children"]
            chosen = (
                of(expression.get("filter") or expression.get("filter_expr"))
                | partition
                | (NOTHING if ranked else order)
            )
            return children | others | (order if ranked else NOTHING) | chosen.deciding()
        if kind == "SUBQUERY":
            inner = Origin.union(origin for _, origin in self._node(expression["subquery"]["node"], ctes, scope))
            return inner | of(expression.get("child"))
        if kind == "LAMBDA":
            named = _parameters(expression["lhs"])
            return self._expression(
                expression["expr"], ctes, _Scope([_Table("", [(name, NOTHING) for name in named])], scope)
            )
        if kind == "OPERATOR" and expression["type"] == "STRUCT_EXTRACT":
            whole, key = expression["children"]
            return of(whole).within([str(key["value"]["value"]).lower()])
        if kind in ("CAST", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN"):
            parts = [expression.get(name) for name in ("child", "left", "right", "input", "lower", "upper")]
            return Origin.union(map(of, [*parts, *expression.get("children", [])]))
        raise NotTracedError(f"a {kind}")


def _renamed(found: _Columns, source: Mapping[str, Any]) -> _Columns:
    names = [name.lower() for name in source.get("column_name_alias") or []]
    return [(names[n] if n < len(names) else name, origin) for n, (name, origin) in enumerate(found)]


def _parameters(expression: Any) -> list[str]:
    """The parameters of a lambda: one column name, or several in a row."""
    if expression["class"] == "COLUMN_REF":
        return [expression["column_names"][-1].lower()]
    return [name for each in expression.get("children", []) for name in _parameters(each)]
