"""Plants incidents: days on which one source delivers something else than usual, with the truth about each.

Unlike dirt, which is in single rows, an incident is in all rows of a source that arrive on its day. It changes what the files say; what
really happened, and so the shop's database and the rest of the truth, stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestration.simulation.numbers import Array, Rows, join, size, take
from orchestration.simulation.words import AGENTS, APP, CURRENCIES, DAY, DETAIL, HOUR, KIND, SECOND, WEB
from orchestration.simulation.world import World

#: Days without incidents at the beginning, in which detection learns what is usual, and days between two incidents: not a multiple of
#: seven, so that no incident is among the last days of another one's weekday.
QUIET_DAYS: Final = 32
EVERY: Final = 4

#: What an incident makes of the rows of a source that arrive on its day.
Change = Callable[[World, Rows], Rows]


@dataclass(frozen=True)
class Incident:
    """An incident: its name, the channel, source and raw table it is in, what it does, and how the truth describes it."""

    name: str
    channel: int
    source: str
    raw_table: str
    change: Change
    detail: str


def _stop(_: World, rows: Rows) -> Rows:
    return take(rows, np.arange(0))


def _double(_: World, rows: Rows) -> Rows:
    # A copy of a row that is dirty already is as dirty: of a malformed line there are two.
    clean = rows["kind"] == 0
    kind = np.where(clean, KIND["exact_duplicate"], rows["kind"]).astype(rows["kind"].dtype)
    detail = np.where(clean, DETAIL["same bytes"], rows["detail"]).astype(rows["detail"].dtype)
    return join([rows, {**rows, "kind": kind, "detail": detail}])


def _flip_currency(_: World, rows: Rows) -> Rows:
    flipped = np.where(rows["currency"] == CURRENCIES.index("EUR"), CURRENCIES.index("SEK"), rows["currency"])
    return {**rows, "currency": flipped.astype(rows["currency"].dtype)}


def _lose_price(_: World, rows: Rows) -> Rows:
    is_mobile = np.array([device == "mobile" for device, _ in AGENTS])[np.minimum(rows["agent"], len(AGENTS) - 1)]
    return {**rows, "price": np.where(is_mobile & (rows["agent"] < len(AGENTS)), np.nan, rows["price"])}


def _send_cents(_: World, rows: Rows) -> Rows:
    return {**rows, "price": np.round(rows["price"] * 100, 2)}


def _shift_clock(_: World, rows: Rows) -> Rows:
    return {**rows, "t": rows["t"] - HOUR}


def _one_customer(world: World, rows: Rows) -> Rows:
    # Whoever has been a customer for longest: the shop knows them.
    number = world.customer[np.argmin(np.where(world.customer > 0, world.known, np.iinfo(np.int64).max))]
    return {**rows, "user": np.full(size(rows), number, rows["user"].dtype)}


_WEB_SHOP: Final = (WEB, "shop_web", "events")
_APP: Final = (APP, "shop_app", "ga4_events")
INCIDENTS: Final = (
    Incident("source_stops", *_APP, _stop, "no row arrives"),
    Incident("source_doubles", *_WEB_SHOP, _double, "every row arrives twice"),
    Incident("currency_flips", *_WEB_SHOP, _flip_currency, "EUR is SEK"),
    Incident("null_for_device", *_WEB_SHOP, _lose_price, "no price from mobile devices"),
    Incident("prices_in_cents", *_APP, _send_cents, "prices are in cents"),
    Incident("clock_shift", *_WEB_SHOP, _shift_clock, "event times are an hour early"),
    Incident("one_customer", *_WEB_SHOP, _one_customer, "every row has the id of one customer"),
)

#: The shortest history that has room for all incidents, and a day after the last one.
NEEDED_DAYS: Final = QUIET_DAYS + EVERY * len(INCIDENTS)


class Planted:
    """The incidents of one shop. Without any, rows stay as they are."""

    def __init__(self, world: World, incidents: tuple[Incident, ...]) -> None:
        self.world = world
        self.days = {QUIET_DAYS + EVERY * number: incident for number, incident in enumerate(incidents)}

    def apply(self, rows: Rows) -> Rows:
        """The rows as they are delivered."""
        arrived = np.where(rows["channel"] == APP, rows["t"], rows["received"])
        day = (arrived - self.world.start) // DAY
        for at, incident in self.days.items():
            hit = (day == at) & (rows["channel"] == incident.channel)
            if hit.any():
                changed = incident.change(self.world, take(rows, np.flatnonzero(hit)))
                rows, day = _replaced(rows, day, hit, changed, at)
        return rows

    def write(self, out: Path) -> None:
        """Write the truth: one row per incident."""
        first = datetime.fromtimestamp(self.world.start // SECOND, UTC).date()
        rows = [
            {"incident": each.name, "source": each.source, "raw_table": each.raw_table,
             "day": first + timedelta(days=at), "detail": each.detail}
            for at, each in self.days.items()
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), out / "incidents.parquet")


def _replaced(rows: Rows, day: Array, hit: Array, changed: Rows, at: int) -> tuple[Rows, Array]:
    kept = np.flatnonzero(~hit)
    return join([take(rows, kept), changed]), np.r_[day[kept], np.full(size(changed), at)]
