"""A copy of the simulated shop with a stream of further events: of the day after its last, with late ones, copies, logins, bots and broken lines."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from orchestration.config.project import PROJECT
from orchestration.config.settings import Settings
from orchestration.ingest.load import load
from orchestration.live.live import live
from orchestration.live.parity import OfMart, Parity, parity
from orchestration.simulation.simulate import simulate
from orchestration.store.online import OnlineStore
from orchestration.warehouse.build import build

MAPPING = {
    "source": "shop_web",
    "tables": {
        "events": {
            "stream": {"folder": "live"},
            "expects": ["customers", "products"],
            "available_at": {"column": "received_at"},
        }
    },
}
MARTS = ("user_features", "session_features", "user_item_features", "user_category_features", "user_brand_features")
_FIELDS = {
    "orders": "order_id user_id status currency created_at updated_at",
    "order_items": "order_id line_id product_id quantity price currency updated_at",
    "refunds": "refund_id order_id user_id product_id quantity amount currency refunded_at updated_at",
    "customers": "customer_id country created_at updated_at",
    "products": "product_id title brand category price currency updated_at",
}
#: The shop's database, as JSON lines.
DATABASE: dict[str, Any] = {
    "source": "shop_database",
    "tables": {
        name: {
            "files": f"database_{name}/*.jsonl",
            "origin": "database",
            "available_at": {"column": "updated_at"},
            "fields": {field: field for field in fields.split()},
            **({"expects": ["customers", "products"]} if name in ("order_items", "refunds") else {}),
        }
        for name, fields in _FIELDS.items()
    },
}
_TYPES = [
    *["view_item"] * 8,
    *["view_item_list"] * 3,
    "search",
    *["add_to_cart"] * 3,
    "remove_from_cart",
    "begin_checkout",
    "purchase",
    "page_view",
]


@dataclass
class LiveShop:
    """A home with a built shop, and a stream `live` beside it."""

    where: Settings
    users: list[str]
    visitors: list[str]
    products: list[str]
    begin: datetime
    random: random.Random
    made: int = 0

    @classmethod
    def copy_of(cls, built: Settings, home: Path, seed: int = 1) -> LiveShop:
        shutil.copytree(built.home, home, symlinks=True)
        where = Settings.below(home, built.extensions)
        (home / "live").mkdir()
        (home / "live.yml").write_text(json.dumps(MAPPING))
        with duckdb.connect(str(where.warehouse), read_only=True) as con:
            ids = {
                name: [
                    row[0]
                    for row in con.execute(
                        f"select distinct {name} from main.int_cleaning__events where {name} is not null order by 1"
                    ).fetchall()
                ]
                for name in ("user_id", "anonymous_id", "product_id")
            }
            [(as_of,)] = con.execute("select as_of from main.int_identity__build").fetchall()
        day = datetime.combine(as_of.date(), datetime.min.time()) + timedelta(days=1)
        return cls(where, ids["user_id"], ids["anonymous_id"], ids["product_id"], day, random.Random(seed))

    @property
    def mapping(self) -> Path:
        return self.where.home / "live.yml"

    def add(self, count: int) -> list[dict[str, Any]]:
        """Append events to the stream; returns them."""
        lines = [self._line() for _ in range(count)]
        with (self.where.home / "live" / "events.jsonl").open("a") as out:
            for line in lines:
                out.write(json.dumps(line) + "\n")
                if self.random.random() < 0.03:  # delivered twice
                    out.write(json.dumps(line) + "\n")
                if self.random.random() < 0.01:
                    out.write("{broken\n")
        return lines

    def stream(self, *lines: dict[str, Any]) -> None:
        """Append these to the stream."""
        with (self.where.home / "live" / "events.jsonl").open("a") as out:
            out.writelines(json.dumps(line) + "\n" for line in lines)

    def _line(self) -> dict[str, Any]:
        pick = self.random
        self.made += 1
        received = self.begin + timedelta(minutes=20, seconds=self.made * 7)
        happened = received - timedelta(seconds=pick.random() * 3)
        if pick.random() < 0.08:  # late, by minutes or by weeks
            happened -= timedelta(minutes=pick.choice([20, 31, 600, 60 * 24 * 9]))
        # Few at a time, so that carts, sessions and logins come together; and new ones.
        of_hour = random.Random(self.made // 40)
        user, visitor = of_hour.choice(self.users), of_hour.choice(self.visitors)
        who: dict[str, Any] = {"anonymous_id": visitor}
        chance = pick.random()
        if chance < 0.35:
            who = {"user_id": user, "anonymous_id": visitor}
        elif chance < 0.45:
            who = {"user_id": user}
        elif chance < 0.55:
            who = {"anonymous_id": f"new visitor {pick.randrange(20)}"}
        elif chance < 0.58:
            who = {"user_id": pick.choice(self.users), "anonymous_id": f"new visitor {pick.randrange(20)}"}
        kind = pick.choice(_TYPES)
        line = {
            "event_id": f"live {self.made}",
            "event_type": kind,
            "event_at": f"{happened.isoformat()}Z",
            "received_at": f"{received.isoformat()}Z",
            **who,
            "device": pick.choice(["mobile", "desktop", None]),
        }
        if kind not in ("search", "page_view", "begin_checkout"):
            line |= {
                "product_id": pick.choice(self.products) if pick.random() < 0.98 else "no such product",
                "price": pick.choice([1.5, 20, 99.99, None, 100_000]),
                "currency": pick.choice(["EUR", "USD", None]),
                "quantity": pick.choice([1, 2, None]),
                "category": pick.choice([None, "Shoes", "a new category"]),
            }
        if kind == "purchase":
            line["order_id"] = f"live order {pick.randrange(self.made // 5 + 1)}"
        return line

    def load(self, **tables: list[dict[str, Any]]) -> None:
        """Load rows of the shop's database."""
        for name, rows in tables.items():
            folder = self.where.home / f"database_{name}"
            folder.mkdir(exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{len(list(folder.iterdir()))}.jsonl").write_text(text)
        mapping = self.where.home / "database.yml"
        entries = {name: entry for name, entry in DATABASE["tables"].items() if name in tables}
        mapping.write_text(json.dumps({**DATABASE, "tables": entries}))
        load(mapping, data=self.where.home, where=self.where)

    def live(self, **given: Any) -> dict[str, Any]:
        """Load the stream, and write the vectors of all that came."""
        return live(self.mapping, data=self.where.home, drain=True, where=self.where, **given)

    def live_from_the_lake(self) -> dict[str, Any]:
        """Write the vectors of all that others loaded."""
        return live(drain=True, where=self.where)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command in a process of its own."""
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "orchestration.cli",
                "live",
                str(self.mapping),
                "--data",
                str(self.where.home),
                *arguments,
            ],
            env={**os.environ, **self.where.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def build(self) -> None:
        done = build(where=self.where)
        assert done.passed, [(node.name, node.message) for node in done.failed]

    def keys(self, mart: str) -> list[list[str]]:
        """All keys of a mart that the SQLite store has."""
        with sqlite3.connect(self.where.home / "store" / "online.sqlite") as con:
            if not con.execute("select 1 from sqlite_master where name = ?", [mart]).fetchall():
                return []
            return [_parts(row[0]) for row in con.execute(f'select key from "{mart}"').fetchall()]

    def parity(self) -> Parity:
        """Every vector of the store beside the warehouse, so many at a time as fit into memory."""
        found: dict[str, OfMart] = {}
        for mart in MARTS:
            keys = self._named(mart)
            for begin in range(0, max(len(keys), 1), 10_000):
                each = parity(where=self.where, keys={mart: keys[begin : begin + 10_000]}).marts[mart]
                found[mart] = found[mart].plus(each) if mart in found else each
        return Parity(found)

    def _named(self, mart: str) -> list[list[str]]:
        """Keys in the order of the mart's columns; the store has them by name."""
        with OnlineStore(self.where) as store:
            names = list(store.mart(mart).keys)
        names = names[: names.index("as_of")]
        return [[key[sorted(names).index(name)] for name in names] for key in self.keys(mart)]


def _parts(text: str) -> list[str]:
    """The values of a key of one or two columns, by name (orchestration/store/online.py, `key_text`)."""
    length, colon, rest = text.partition(":")
    if not (colon and length.isdecimal()):
        return [text]
    first = rest.encode()[: int(length)].decode()
    return [first, rest[len(first) :]]


#: By file of a simulated shop: SQL of when its rows arrive, UTC; null if it is unreadable. Of lines, the column is `line`.
_ARRIVE = {
    "stream/events.jsonl": """try_cast(regexp_extract(line, '"received_at":"([^"]*)"', 1) as timestamp)""",
    "store/visits.csv": "timezone('UTC', timezone('Europe/Berlin', try_cast(local_time as timestamp)))",
    "database/customers.csv": "try_cast(changed as timestamp)",
    "database/products.csv": "try_cast(changed as timestamp)",
    "database/orders.parquet": "try_cast(updated_at as timestamp)",
    "database/order_items.parquet": "try_cast(updated_at as timestamp)",
    "database/refunds.parquet": "try_cast(updated_at as timestamp)",
    "ga4/events_20250106.parquet": "make_timestamp(event_timestamp)",
    "ga4/events_20250107.parquet": "make_timestamp(event_timestamp)",
}
_READ = {
    ".jsonl": "read_csv('{}', columns = {{'line': 'varchar'}}, header = false, delim = '\1', quote = '', escape = '')",
    ".csv": "read_csv('{}', all_varchar = true)",
    ".parquet": "'{}'",
}
_WRITE = {
    ".jsonl": "format csv, header false, delimiter '\1', quote '', escape ''",
    ".csv": "header, delimiter ','",
    ".parquet": "format parquet",
}


class Arrivals:
    """A simulated shop of two days whose rows are loaded when they arrive, those of a part of the second day at once."""

    def __init__(self, folder: Path, events: int, where: Settings) -> None:
        self.whole, self.loaded = folder / "whole", folder / "loaded"
        self.shop = LiveShop(where, [], [], [], datetime(2025, 1, 7), random.Random(1))
        simulate(self.whole, events=events, days=2, start=date(2025, 1, 6))
        self._since, self._part = datetime(1, 1, 1), 0
        # Files that come bit by bit, each with a part.
        (folder / "mappings").mkdir()
        self.mappings = folder / "mappings"
        for each in (PROJECT / "examples" / "simulated_shop").glob("*.yml"):
            text = re.sub(r"files: (database|store)/(\w+)\.", r"files: \1/\2*.", each.read_text())
            (self.mappings / each.name).write_text(text)

    def load(self, upto: datetime) -> None:
        """Load what arrives until then."""
        for name, arrives in _ARRIVE.items():
            file = Path(name)
            to = self.loaded / file.with_stem(f"{file.stem}_{self._part}")
            to.parent.mkdir(parents=True, exist_ok=True)
            read = _READ[file.suffix].format(self.whole / file)
            arrives = f"coalesce({arrives}, timestamp '2025-01-06')"
            duckdb.execute(
                f"copy (select * from {read} where {arrives} >= $since and {arrives} < $upto) to '{to}' ({_WRITE[file.suffix]})",
                {"since": self._since, "upto": upto},
            )
            if self._part and duckdb.execute(f"select count(*) from {_READ[file.suffix].format(to)}").fetchall() == [
                (0,)
            ]:
                to.unlink()
        self._since, self._part = upto, self._part + 1
        load(self.mappings, data=self.loaded, where=self.shop.where)
