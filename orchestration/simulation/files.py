"""Writes the files that the simulated systems deliver, and the truth about their errors."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestration.simulation.database import database
from orchestration.simulation.ga4 import APP_VISITOR, ga4_table
from orchestration.simulation.incidents import Incident, Planted
from orchestration.simulation.numbers import Array, Rows, coded, join, mix, size, take, times
from orchestration.simulation.words import (
    AGENTS,
    APP,
    ASSISTANT_AGENTS,
    ASSISTANTS,
    BOT_AGENTS,
    CAMPAIGNS,
    CATEGORIES,
    COPIES,
    CURRENCIES,
    DAY,
    DETAIL,
    DETAILS,
    GHOST_PRODUCT,
    GHOST_USER,
    HOUR,
    KIND,
    KINDS,
    MARKETS,
    NO_QUANTITY,
    RATES,
    SECOND,
    SPELLINGS,
    STORE,
    STORE_WORDS,
    TYPES,
    UNKNOWN_CURRENCIES,
    WEB,
    queries,
)
from orchestration.simulation.world import World
from orchestration.sql.text import quote


class Truth:
    """The truth about planted errors, one file per kind: the row (`position` as the loader numbers it; for tables, `key` is the
    product, customer or order), the `detail` of the error, and the true value."""

    SCHEMA: Final = pa.schema(
        [(name, pa.string()) for name in ("kind", "raw_table", "source", "position", "key", "detail")]
        + [("true_value", pa.float64()), ("true_text", pa.string())]
    )

    def __init__(self, out: Path) -> None:
        self.out = out
        self.parts: list[pa.Table] = []
        self.counts: dict[str, int] = {}

    def add(self, raw_table: str, source: str, position: pa.Array, rows: Rows) -> None:
        """Record event rows with planted errors, with their positions."""
        kind, value = rows["kind"], rows["truth"]
        misspelt = kind == KIND["misspelt_category"]
        columns = [
            pa.array(KINDS).take(pa.array(kind)),
            pa.repeat(raw_table, len(kind)),
            pa.repeat(source, len(kind)),
            position,
            pa.nulls(len(kind), pa.string()),
            coded(np.where(rows["detail"] > 0, rows["detail"], -1), DETAILS).cast(pa.string()),
            pa.array(value, mask=np.isnan(value) | misspelt),
            coded(np.where(misspelt, np.nan_to_num(value), -1).astype(int), CATEGORIES).cast(pa.string()),
        ]
        self.parts.append(pa.Table.from_arrays(columns, schema=self.SCHEMA))

    def add_table(self, table: pa.Table) -> None:
        self.parts.append(table.select(self.SCHEMA.names).cast(self.SCHEMA))

    def write(self) -> None:
        whole = pa.concat_tables(self.parts).combine_chunks()
        for name in KINDS[1:]:
            rows = whole.filter(pc.equal(whole["kind"], name))
            self.counts[name] = rows.num_rows
            pq.write_table(rows, self.out / f"{name}.parquet")


def positions(base: str, numbers: Array) -> pa.Array:
    return pc.binary_join_element_wise(base, pa.array(numbers).cast(pa.string()), "#")


def _write_text(file: IO[bytes], lines: pa.ChunkedArray) -> None:
    """Append strings directly from Arrow's buffers."""
    for chunk in lines.chunks:
        _, offsets, data = chunk.buffers()
        wide = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
        edges = np.frombuffer(offsets, wide)[chunk.offset : chunk.offset + len(chunk) + 1]
        file.write(memoryview(data)[int(edges[0]) : int(edges[-1])])


_STREAM_LINE: Final = """
with lines as (
    select kind, detail, received, concat(
        '{"event_id":"', printf('%016x', id), '","type":"', word, '","ts":',
        case
            when kind = $malformed and detail = $bad_time then (['"soon"', 'true', '{"s":1}'])[(1 + id % 3)::bigint]
            when id_of_device % 5 = 0 then (t // 1000)::varchar
            else concat('"', strftime(make_timestamp(t + shift), '%Y-%m-%dT%H:%M:%S.%g'), zone, '"')
        end,
        ',"received_at":"', strftime(make_timestamp(received), '%Y-%m-%dT%H:%M:%S.%gZ'), '"',
        ',"user":"' || printf('C%07d', buyer) || '"',
        ',"visitor":"', printf('%016x', id_of_device), '","session":"', printf('%016x', id_of_session), '"',
        ',"sku":"' || printf('SKU-%06d', sku) || '"', category,
        ',"qty":' || quantity, ',"price":' || price, currency, ',"order":"' || printf('W%09d', purchase) || '"', query,
        ',"page":"https://shop.example', path, case when path = '/p/' then printf('SKU-%06d', sku) end,
        case when kind = $near then '?utm_source=retry' end, '"', client, campaign, consent, ext, '}'
    ) as line
    from rows
)
select case
    when kind <> $malformed or detail = $bad_time then line || chr(10)
    when detail = $cut then substr(line, 1, 60 + received // 1000 % 50) || chr(10)
    when detail = $array then '[' || line || ']' || chr(10)
    else 'upstream connect error or disconnect/reset before headers' || chr(10)
end as line
from lines
"""

_STORE_LINE: Final = """
select concat(
    printf('%016x', id), ',K', 1 + id_of_session % 12, ',',
    case when kind = $malformed then 'n/a' else strftime(make_timestamp(t + shift), '%Y-%m-%d %H:%M:%S') end, ',',
    printf('C%07d', buyer), ',T-', printf('%012d', visit), ',', word, ',', printf('SKU-%06d', sku), ',',
    quantity, ',', price, ',', query, chr(10)
) as line
from rows
"""


class Files:
    """The files of the simulated systems, written block by block, with rows in the order of arrival."""

    def __init__(self, out: Path, world: World, incidents: tuple[Incident, ...] = ()) -> None:
        self.out, self.world = out, world
        self.incidents = Planted(world, incidents)
        self.truth = Truth(out / "truth")
        self.rows = dict.fromkeys(("stream", "ga4_events", "ga4_items", "store"), 0)
        self.waiting: list[Rows] = []
        self.orders: list[Rows] = []
        self.visits: list[Rows] = []
        self.first_login = np.full(len(world.agents) + world.people, np.iinfo(np.int64).max)
        self.first_user = np.full(len(self.first_login), -1)
        self.con = duckdb.connect()
        self.con.execute("set timezone = 'UTC'")
        self.stream = (out / "stream" / "events.jsonl").open("wb")
        self.store = (out / "store" / "visits.csv").open("wb")
        self.store.write(b"visit_id,terminal,local_time,loyalty_id,ticket,action,sku,quantity,price,search_text\n")

    @property
    def written(self) -> int:
        return self.rows["stream"] + self.rows["ga4_items"] + self.rows["store"]

    def close(self) -> None:
        self.stream.close()
        self.store.close()
        self.con.close()

    def accept(self, rows: Rows, orders: Rows | None = None) -> None:
        """Add rows to write, and the purchase rows of new orders."""
        self.waiting.append(self.incidents.apply(rows))
        if orders is not None:
            self.orders.append(orders)
            self._note_logins(rows)
            self._note_visits(rows)

    def _note_logins(self, rows: Rows) -> None:
        at = np.flatnonzero((rows["user"] >= 0) & (rows["user"] < GHOST_USER) & (rows["channel"] != STORE))
        at = at[rows["kind"][at] != KIND["future_event"]]
        at = at[np.argsort(-rows["t"][at], kind="stable")]
        device, t = rows["device"][at], rows["t"][at]
        earlier = t < self.first_login[device]
        # The last assignment wins, which is the earliest login.
        self.first_login[device[earlier]] = t[earlier]
        self.first_user[device[earlier]] = rows["user"][at][earlier]

    def _note_visits(self, rows: Rows) -> None:
        """Record user, device and times of each visit of a block, without copies and with true times."""
        rows = take(rows, np.flatnonzero(~np.isin(rows["kind"], [KIND[name] for name in COPIES])))
        t = np.where(rows["kind"] == KIND["future_event"], np.nan_to_num(rows["truth"]), rows["t"]).astype(np.int64)
        order = np.lexsort((t, rows["session"]))
        rows, t = take(rows, order), t[order]
        opens = np.flatnonzero(np.r_[True, np.diff(rows["session"]) != 0][: len(t)])
        user = np.where(rows["user"] < GHOST_USER, rows["user"], -1)
        self.visits.append(
            {
                **{name: rows[name][opens] for name in ("session", "channel", "device", "began")},
                "user": np.maximum.reduceat(user, opens) if len(opens) else user,
                "first": t[opens],
                "last": t[np.r_[opens[1:], len(t)] - 1] if len(opens) else t,
            }
        )

    def flush(self, until: int | None) -> None:
        """Write all rows that arrive before `until`; at the end (None) all rows up to the export."""
        rows = join(self.waiting)
        whole = until is None
        moment = self.world.export if until is None else until
        web = rows["channel"] == WEB
        app = rows["channel"] == APP
        store = rows["channel"] == STORE
        # A day's GA4 file is written once the day is over; the last file has all remaining rows.
        today = rows["t"] < moment - (0 if whole else (moment - self.world.start) % DAY)
        due = np.where(app, today, rows["received"] < moment)
        self.waiting = [take(rows, np.flatnonzero(~due))]
        self._write_stream(take(rows, np.flatnonzero(web & due)))
        self._write_store(take(rows, np.flatnonzero(store & due)))
        self._write_ga4(take(rows, np.flatnonzero(app & due)))

    def _text(self, file: IO[bytes], query: str, columns: dict[str, Any]) -> None:
        codes = {
            "malformed": KIND["malformed_row"], "near": KIND["near_duplicate"], "bad_time": DETAIL["a bad time"],
            "cut": DETAIL["cut short"], "array": DETAIL["an array"],
        }  # fmt: skip
        self.con.register("rows", pa.table(columns))
        answer = self.con.execute(query, {name: code for name, code in codes.items() if f"${name}" in query})
        _write_text(file, answer.to_arrow_table().column(0))
        self.con.unregister("rows")

    def _skus(self, product: Array) -> pa.Array:
        number = np.where(
            product >= GHOST_PRODUCT, product, self.world.sku[np.minimum(product, self.world.products - 1)]
        )
        return pa.array(number, mask=product < 0)

    def _write_stream(self, rows: Rows) -> None:
        if not size(rows):
            return
        rows = take(rows, np.lexsort((rows["kind"] == KIND["exact_duplicate"], rows["uid"], rows["received"])))
        shift = self.world.offset_at(rows["t"], rows["market"])
        hours = shift // HOUR
        zones = [f"{'-' if h < 0 else '+'}{abs(h):02d}:00" for h in range(-12, 13)]
        paths = [
            "/",
            "/login",
            "/search",
            "/c/",
            "/p/",
            "/p/",
            "/p/",
            "/p/",
            "/p/",
            "/cart",
            "/checkout",
            "/checkout/payment",
            "/thanks",
        ]
        agents = [*AGENTS, *(("desktop", text) for text in BOT_AGENTS + ASSISTANT_AGENTS)]
        device = mix(rows["device"])
        self._text(
            self.stream,
            _STREAM_LINE,
            {
                "kind": rows["kind"], "detail": rows["detail"], "received": rows["received"], "t": rows["t"],
                "shift": shift, "id": mix(rows["uid"]), "id_of_device": device, "id_of_session": mix(rows["session"]),
                "word": coded(rows["type"], list(TYPES.values())),
                "zone": coded(hours + 12, zones),
                "buyer": pa.array(rows["user"], mask=rows["user"] < 0),
                "sku": self._skus(rows["product"]),
                "category": coded(rows["category"], [f',"category":"{text}"' for text in SPELLINGS]),
                "quantity": pa.array(rows["quantity"], mask=rows["quantity"] == NO_QUANTITY),
                "price": pa.array(rows["price"], mask=np.isnan(rows["price"])),
                "currency": coded(rows["currency"], [f',"currency":"{c}"' for c in CURRENCIES + UNKNOWN_CURRENCIES]),
                "purchase": pa.array(rows["order"], mask=rows["order"] < 0),
                "query": coded(rows["query"], [f',"q":"{text}"' for text in queries()]),
                "path": coded(rows["type"], paths),
                "client": coded(
                    rows["agent"].astype(int) * len(MARKETS) + rows["market"],
                    [
                        f',"device":"{device_name}","ua":"{text}","country":"{market.code}"'
                        for device_name, text in agents
                        for market in MARKETS
                    ],
                ),
                "campaign": coded(
                    rows["campaign"].astype(int) - 1,
                    [f',"ref":"{c[0]}"' + (f',"campaign":"{c[1]}"' if c[1] else "") for c in CAMPAIGNS + ASSISTANTS if c],
                ),
                "consent": coded(rows["consent"].astype(int) - 1, [',"consent":"granted"', ',"consent":"denied"']),
                "ext": coded(
                    (device % np.uint64(7)).astype(int) - 1,
                    [f',"ext":{{"v":"4.{i}.0","viewport":"{900 + 100 * i}x800","ab":{i % 2}}}' for i in range(6)],
                ),
            },
        )  # fmt: skip
        self._note("events", "shop_web", "events.jsonl", "stream", rows)

    def _write_store(self, rows: Rows) -> None:
        if not size(rows):
            return
        rows = take(rows, np.lexsort((rows["kind"] == KIND["exact_duplicate"], rows["uid"], rows["t"])))
        late_clock = (rows["kind"] == KIND["naive_local_time"]) & (rows["detail"] == DETAIL["missing hour"])
        shift = self.world.offset_at(rows["t"], 0) - np.where(late_clock, HOUR, 0)
        self._text(
            self.store,
            _STORE_LINE,
            {
                "kind": rows["kind"], "t": rows["t"], "shift": shift, "id": mix(rows["uid"]),
                "id_of_session": mix(rows["session"]), "visit": rows["session"],
                "word": coded(rows["type"], [STORE_WORDS.get(code, "") for code in range(len(TYPES))]),
                "buyer": pa.array(rows["user"], mask=rows["user"] < 0),
                "sku": self._skus(rows["product"]),
                "quantity": pa.array(rows["quantity"], mask=rows["quantity"] == NO_QUANTITY),
                "price": pa.array(rows["price"], mask=np.isnan(rows["price"])),
                "query": coded(rows["query"], queries()),
            },
        )  # fmt: skip
        self._note("events", "shop_store", "visits.csv", "store", rows)

    def _note(self, raw_table: str, source: str, base: str, name: str, rows: Rows) -> None:
        number = self.rows[name] + 1 + np.arange(size(rows))
        self.rows[name] += len(number)
        if name != "stream":
            number = duplicate_numbers(rows, number)
        dirty = np.flatnonzero(rows["kind"])
        self.truth.add(raw_table, source, positions(base, number[dirty]), take(rows, dirty))

    def _write_ga4(self, rows: Rows) -> None:
        if not size(rows):
            return
        copy = rows["kind"] == KIND["exact_duplicate"]
        rows = take(rows, np.lexsort((copy, rows["event"], rows["t"])))
        copy = rows["kind"] == KIND["exact_duplicate"]
        first = np.flatnonzero(np.r_[True, (np.diff(rows["event"]) != 0) | np.diff(copy)])
        self.rows["ga4_events"] += len(first)
        self.rows["ga4_items"] += size(rows)
        table = ga4_table(self.world, rows, first, self._skus(rows["product"]))
        events = take(rows, first)
        day = (events["t"] - self.world.start) // DAY
        edges = np.r_[np.flatnonzero(np.r_[True, np.diff(day) != 0]), len(day)].tolist()
        for low, high in pairwise(edges):
            base = f"events_{table['event_date'][low]}.parquet"
            pq.write_table(table.slice(low, high - low), self.out / "ga4" / base)
            part = take(events, np.arange(low, high))
            number = duplicate_numbers(part, 1 + np.arange(high - low))
            dirty = np.flatnonzero(part["kind"])
            self.truth.add("ga4_events", "shop_app", positions(base, number[dirty]), take(part, dirty))

    def finish(self) -> None:
        """Write the database's tables and the truth."""
        rng = np.random.default_rng([self.world.seed, 4])
        for name, table, truth in database(self.con, self.world, rng, join(self.orders)):
            self.rows[name] = table.num_rows
            path = self.out / "database" / name
            if name in ("customers", "products"):
                self.con.register("answer", table)
                self.con.execute(f"copy answer to {quote(str(path) + '.csv')} (header)")
                self.con.unregister("answer")
            else:
                pq.write_table(table, path.with_suffix(".parquet"))
            for part in truth:
                self.truth.add_table(part)
        self.truth.write()
        if self.incidents.days:
            self.incidents.write(self.out / "truth")
        self._write_background()

    def _write_background(self) -> None:
        """Write facts about the shop: exchange rates, promotions, the owners of devices, and visits."""
        world, truth = self.world, self.out / "truth"
        pq.write_table(pa.table({"currency": CURRENCIES, "per_euro": RATES}), truth / "rates.parquet")
        category, day = np.nonzero(world.promotion[:, : world.days] != 1)
        pq.write_table(
            pa.table(
                {
                    "category": pa.array(CATEGORIES).take(pa.array(category)),
                    "day": pa.array(world.start + day * DAY, pa.timestamp("us")).cast(pa.date32()),
                    "factor": world.promotion[category, day],
                }
            ),
            truth / "promotions.parquet",
        )
        device = np.flatnonzero(self.first_user >= 0)
        self.con.register(
            "links", pa.table({"app": device >= len(world.agents), "id": mix(device), "buyer": self.first_user[device],
                               "since": pa.array(self.first_login[device], pa.timestamp("us"))})
        )  # fmt: skip
        links = self.con.execute(
            f"""select case when app then 'shop_app' else 'shop_web' end as source,
                case when app then {APP_VISITOR} else printf('%016x', id) end as anonymous_id,
                printf('C%07d', buyer) as user_id, since from links"""
        ).to_arrow_table()
        self.con.unregister("links")
        pq.write_table(links, truth / "identity_links.parquet")
        self._write_visits()

    def _write_visits(self) -> None:
        """Write all visits of people: their ids as in the source, the login, if any, and the first and last time."""
        visits = join(self.visits)
        visits = take(visits, np.argsort(visits["session"], kind="stable"))
        self.con.register(
            "visit_rows",
            pa.table(
                {
                    "number": visits["session"], "channel": visits["channel"], "began": visits["began"] // SECOND,
                    "id": mix(visits["device"]), "id_of_session": mix(visits["session"]),
                    "buyer": pa.array(visits["user"], mask=visits["user"] < 0),
                    "first_at": times(visits["first"]), "last_at": times(visits["last"]),
                }
            ),
        )  # fmt: skip
        ticket, web_id = "printf('T-%012d', number)", "printf('%016x', {})"
        answer = self.con.execute(
            f"""select
                case channel when {APP} then 'shop_app' when {STORE} then 'shop_store' else 'shop_web' end as source,
                case channel when {APP} then {APP_VISITOR} when {STORE} then {ticket} else {web_id.format("id")} end
                    as anonymous_id,
                case channel when {APP} then began::varchar when {STORE} then {ticket}
                    else {web_id.format("id_of_session")} end as session_id,
                printf('C%07d', buyer) as user_id, first_at, last_at
            from visit_rows"""
        ).to_arrow_table()
        self.con.unregister("visit_rows")
        pq.write_table(answer, self.out / "truth" / "visits.parquet")


def duplicate_numbers(rows: Rows, number: Array) -> Array:
    """The row number to record for each row. Of a row and its adjacent exact copy, the smaller position, compared as text, is kept:
    'x#10' sorts before 'x#9', so there the first row is the duplicate.
    """
    loses = (rows["kind"] == KIND["exact_duplicate"]) & np.isin(number, 10 ** np.arange(1, 12))
    noted: Array = np.where(loses, number - 1, number)
    return noted
