"""What comes into the lake: raw rows after a snapshot, as the models of raw rows see them."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from orchestration.config.settings import Settings
from orchestration.lake import lake
from orchestration.live.plan import RAW
from orchestration.warehouse.compiled import Compiled

_EVENTS, _GA4, _ORDERS, _ITEMS, _REFUNDS, _CUSTOMERS, _PRODUCTS = RAW
#: Raw tables that are read together, and the models of their rows.
_GROUPS = {
    ("events",): [_EVENTS],
    ("ga4_events",): [_GA4],
    ("orders", "order_items", "refunds"): [_ITEMS, _REFUNDS, _ORDERS],
    ("customers",): [_CUSTOMERS],
    ("products",): [_PRODUCTS],
}
#: Models of raw rows of which all of an order, customer or product come again if one came: their table, and the column that says of which one.
_WHOLE = {
    _ORDERS: ("orders", "order_id"),
    _CUSTOMERS: ("customers", "customer_id"),
    _PRODUCTS: ("products", "product_id"),
}


class Feed:
    """Raw rows of the lake by the snapshot in which they came. One thread may use it."""

    def __init__(self, where: Settings, models: Compiled, snapshot: int) -> None:
        self.snapshot = snapshot
        self._sql = {name: models.models[name].sql for name in RAW}
        self._con: duckdb.DuckDBPyConnection = lake.connect(where, read_only=True)
        self._con.execute("set timezone = 'UTC'; set variable arrivals = map([]::varchar[], []::bigint[])")
        self._known: dict[str, int] | None = None
        #: By group, the snapshot up to which it was read.
        self._read = dict.fromkeys(_GROUPS, snapshot)

    def close(self) -> None:
        self._con.close()

    def shapes(self) -> dict[str, pa.Table]:
        """Of each model of raw rows, an empty table."""
        self._set(self.snapshot, self.snapshot)
        return {
            name: self._con.execute(f"select * from ({sql}) limit 0").to_arrow_table()
            for name, sql in self._sql.items()
        }

    def read(self, upto: int | None = None) -> dict[str, pa.Table]:
        """The raw rows that came since the last call, by the name of their model; `snapshot` is that up to which they go, at most `upto`. Of an order, customer
        or product of which anything came, all that is known of it comes again."""
        # Before the snapshot, so that it counts no row of a later one: such a row would be taken for one that was read.
        rows = self._rows()
        [(newest,)] = self._con.execute("select id from lake.current_snapshot()").fetchall()
        newest = min(newest, upto if upto is not None else newest)
        if newest <= self.snapshot:
            return {}
        found: dict[str, pa.Table] = {}
        for tables, names in _GROUPS.items():
            # At first it is not known what came after the build.
            if self._known is not None and all(rows.get(table) == self._known.get(table) for table in tables):
                continue
            self._set(self._read[tables], newest)
            for name in names:
                found[name] = self._whole(name, found) if name in _WHOLE else self._all(name)
            self._read[tables] = newest
        self.snapshot, self._known = newest, None if upto is not None else rows
        return found

    def _set(self, since: int, pinned: int) -> None:
        self._con.execute(f"set variable since = {since}::bigint; set variable pinned = {pinned}::bigint")

    def _all(self, name: str) -> pa.Table:
        return self._con.execute(self._sql[name]).to_arrow_table()

    def _whole(self, name: str, found: dict[str, pa.Table]) -> pa.Table:
        """All rows of the orders, customers or products of which a row came; of orders, also of which a line or a refund came."""
        table, key = _WHOLE[name]
        new = f"select {key} from ducklake_table_insertions('lake', 'raw', '{table}', getvariable('since') + 1, getvariable('pinned'))"
        for other in (_ITEMS, _REFUNDS) if name == _ORDERS else ():
            if other in found:
                self._con.register(f"new_{other}", found[other].select([key]))
                new += f" union all select {key} from new_{other}"
        # The same id may have blanks around it.
        return self._con.execute(
            f"select * from ({self._sql[name]}) where trim({key}) in (select trim({key}) from ({new}))"
        ).to_arrow_table()

    def _rows(self) -> dict[str, int]:
        """How many rows ever came into each raw table. Neither compaction nor deletion changes that."""
        found = self._con.execute(
            "select t.table_name, s.next_row_id from __ducklake_metadata_lake.ducklake_table_stats as s "
            "inner join __ducklake_metadata_lake.ducklake_table as t on s.table_id = t.table_id where t.end_snapshot is null"
        ).fetchall()
        return {str(table): int(count) for table, count in found}
