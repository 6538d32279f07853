"""Plants known errors (dirt) in the rows, at most one kind per row."""

from __future__ import annotations

import numpy as np

from orchestration.simulation.behaviour import Counters
from orchestration.simulation.numbers import Array, Rows, join, mix, size, take
from orchestration.simulation.words import (
    ADD,
    AGENTS,
    APP,
    BOX,
    CATEGORIES,
    CURRENCIES,
    DAY,
    DETAIL,
    DETAILS,
    GHOST_PRODUCT,
    GHOST_USER,
    HOUR,
    KIND,
    LOGIN,
    MISSPELLINGS,
    NO_QUANTITY,
    PURCHASE,
    RATES,
    SECOND,
    STORE,
    UNKNOWN_CURRENCIES,
    WEB,
)
from orchestration.simulation.world import World


def plant(world: World, rng: np.random.Generator, rows: Rows, counters: Counters) -> Rows:
    """Plant errors, at most one kind per row, and note them in its `kind`, `detail` and `truth`. Copies are added at the end."""
    n = size(rows)
    channel, kind = rows["channel"], rows["kind"]
    web, app, store = channel == WEB, channel == APP, channel == STORE
    rows["received"] = np.where(
        web, rows["t"] + ((0.08 + rng.exponential(1.5, n)) * 1000).astype(np.int64) * 1000, rows["t"]
    )

    # 3 of 100 orders are missing in the database.
    twin = (rows["order"] >= 0) & has_twin(rows["order"])
    kind[twin] = KIND["order_twin"]

    # A GA4 event with several items stays as it is: an error in one item would affect all of them.
    event = rows["event"]
    single = np.r_[True, event[1:] != event[:-1]] & np.r_[event[1:] != event[:-1], True]
    free = (kind == 0) & (rows["type"] != PURCHASE) & (rows["type"] != LOGIN) & (store | web | single)
    priced = ~np.isnan(rows["price"])
    expensive = priced & (rows["price"] > 90 * np.array(RATES)[rows["currency"]])
    product = rows["product"] >= 0
    added = web & (rows["type"] == ADD) & (rows["quantity"] != NO_QUANTITY)
    # Not in the hour after, in which visits that began before it go on.
    at_another_hour = world.wholesale & ~(world.is_wholesale_hour(rows["t"]) | world.is_wholesale_hour(rows["began"]))
    at_another_hour &= ~world.is_wholesale_hour(rows["t"] - HOUR) & (rows["quantity"] <= 4)
    bands = (
        ("exact_duplicate", "same bytes", 0.006, web | app | store),
        ("near_duplicate", "other id, page and agent", 0.004, web),
        ("redelivered_event", "same id, a few ms off", 0.004, web),
        ("late_event", "", 0.008, web),
        ("naive_local_time", "", 0.05, store),
        ("misspelt_category", "", 0.006, web & (rows["category"] >= 0)),
        ("price_outlier", "times 100", 0.003, priced),
        ("price_outlier", "divided by 100", 0.003, priced),
        ("price_outlier", "times 10", 0.001, priced),
        ("missing_value", "price, at random", 0.004, priced),
        ("missing_value", "price, not at random", 0.03, expensive),
        ("missing_value", "quantity, at random", 0.02, web & (rows["type"] == ADD)),
        ("orphan_user", "", 0.006, rows["user"] >= 0),
        ("orphan_product", "", 0.004, product),
        ("malformed_row", "cut short", 0.001, web),
        ("malformed_row", "plain text", 0.0005, web),
        ("malformed_row", "an array", 0.0005, web),
        ("malformed_row", "a bad time", 0.002, web | store),
        ("future_event", "", 0.002, web),
        ("unknown_currency", "", 0.003, web & priced),
        ("bad_quantity", "", 0.02, web & (rows["quantity"] != NO_QUANTITY)),
        ("bad_price", "", 0.001, web & priced),
        ("quantity_outlier", "times 100", 0.01, added),
        # The last one, so that without wholesale hours nothing else changes.
        ("seasonal_outlier", "a box at another hour", 0.02, added & at_another_hour),
    )
    u = rng.random(n)
    base = 0.0
    marked = np.zeros(n, np.int8)
    for name, detail, rate, where in bands:
        hit = (u >= base) & (u < base + rate) & where & free
        marked[hit], rows["detail"][hit] = KIND[name], DETAIL[detail]
        base += rate
    odd, which = _odd_hours(world, rows)
    local = (marked == KIND["naive_local_time"]) | (odd & free & (marked == 0))
    marked[local], rows["detail"][local] = KIND["naive_local_time"], which[local]

    copied = np.isin(marked, [KIND["exact_duplicate"], KIND["near_duplicate"], KIND["redelivered_event"]])
    kind[:] = np.where((marked > 0) & ~copied, marked, kind)
    copies = [_copies(rng, rows, np.flatnonzero(copied), marked[copied], counters), _repeats(rng, rows, counters)]
    rows["detail"][copied] = 0
    _change_values(rng, rows)
    return join([rows, *copies])


def has_twin(order: Array) -> Array:
    """Whether the shop's database also has the order."""
    known: Array = mix(order) % np.uint64(100) >= 3
    return known


def _odd_hours(world: World, rows: Rows) -> tuple[Array, Array]:
    """The store's rows around clock changes, and whether each one's local time is missing or doubled."""
    odd = np.zeros(size(rows), bool)
    detail = np.full(size(rows), DETAIL["ordinary hour"], np.int8)
    t = rows["t"]
    for hour in world.clock_changes:
        at = world.start + hour * HOUR
        day = world.start + hour * HOUR // DAY * DAY
        odd |= (rows["channel"] == STORE) & (t >= day - DAY) & (t < day + 2 * DAY)
        if world.offset[0, hour] > world.offset[0, hour - 1]:
            detail[(t >= at) & (t < at + HOUR) & clock_is_late(rows["session"])] = DETAIL["missing hour"]
        else:
            detail[(t >= at - HOUR) & (t < at + HOUR)] = DETAIL["doubled hour"]
    return odd, detail


def clock_is_late(session: Array) -> Array:
    """Visits at a terminal whose clock is put forward an hour late."""
    late: Array = session % 2 == 0
    return late


def _copies(rng: np.random.Generator, rows: Rows, at: Array, marked: Array, counters: Counters) -> Rows:
    """Second deliveries of rows: identical, nearly identical, or with the same id at another time. On the web they arrive later."""
    copy = take(rows, at)
    n = len(at)
    copy["kind"] = marked
    web = copy["channel"] == WEB
    delay = (np.exp(rng.uniform(np.log(1), np.log(20_000), n)) * 1000).astype(np.int64) * 1000
    near, again = marked == KIND["near_duplicate"], marked == KIND["redelivered_event"]
    copy["received"] = copy["received"] + np.where(web, delay, 0)
    copy["t"] = copy["t"] + np.where(again, rng.integers(1, 40, n) * 1000, 0)
    copy["uid"] = np.where(near, counters.event + np.arange(n), copy["uid"])
    copy["agent"] = np.where(near, (copy["agent"] + 1) % len(AGENTS), copy["agent"]).astype(np.int16)
    counters.event += n
    return copy


def _repeats(rng: np.random.Generator, rows: Rows, counters: Counters) -> Rows:
    """Purchase pages that were opened again: all lines of an order a second time, with new ids, seconds to hours later."""
    order = rows["order"]
    at = np.flatnonzero((order >= 0) & (mix(order + (1 << 32)) % np.uint64(100) < 4))
    copy = take(rows, at)
    # All lines of an order have the same delay.
    delay = np.exp((mix(copy["order"] + (1 << 33)) % np.uint64(10_000)).astype(float) / 10_000 * np.log(2000)) * 5
    delay = (delay * 1000).astype(np.int64) * 1000
    copy["t"], copy["received"] = copy["t"] + delay, copy["received"] + delay
    # Distinct ids stay distinct.
    copy["event"] = copy["event"] - copy["event"].min(initial=0) + counters.event
    counters.event += int(np.ptp(copy["event"])) + 1 if len(at) else 0
    copy["uid"] = counters.event + np.arange(len(at))
    counters.event += len(at)
    copy["kind"] = np.full(len(at), KIND["repeated_purchase"], np.int8)
    return copy


def _change_values(rng: np.random.Generator, rows: Rows) -> None:
    """Change the values of the marked rows."""
    kind, detail, truth = rows["kind"], rows["detail"], rows["truth"]

    def rows_of(name: str) -> Array:
        return np.flatnonzero(kind == KIND[name])

    for name in ("late_event", "future_event", "naive_local_time"):
        truth[rows_of(name)] = rows["t"][rows_of(name)]
    late = rows_of("late_event")
    hours = np.exp(rng.uniform(0, np.log(120), len(late)))
    rows["received"][late] += (hours * 3_600_000).astype(np.int64) * 1000
    future = rows_of("future_event")
    rows["t"][future] += rng.integers(3 * 86_400, 400 * 86_400, len(future)) * SECOND

    price = rows["price"]
    factor = np.ones(len(DETAILS))
    factor[[DETAIL["times 100"], DETAIL["divided by 100"], DETAIL["times 10"]]] = 100, 0.01, 10
    outliers, missing, bad = rows_of("price_outlier"), rows_of("missing_value"), rows_of("bad_price")
    truth[outliers], truth[bad] = price[outliers], price[bad]
    price[outliers] = np.maximum(np.round(price[outliers] * factor[detail[outliers]], 2), 0.01)
    price[bad] = -price[bad]
    counts = detail[missing] == DETAIL["quantity, at random"]
    truth[missing] = np.where(counts, rows["quantity"][missing], price[missing])
    rows["quantity"][missing[counts]] = NO_QUANTITY
    price[missing[~counts]] = np.nan
    bad = rows_of("bad_quantity")
    truth[bad] = rows["quantity"][bad]
    rows["quantity"][bad] = rng.choice([0, -1, -2, 50_000, 99_999], len(bad))
    outliers = rows_of("quantity_outlier")
    truth[outliers] = rows["quantity"][outliers]
    rows["quantity"][outliers] *= 100
    outliers = rows_of("seasonal_outlier")
    truth[outliers] = rows["quantity"][outliers]
    rows["quantity"][outliers] *= BOX
    odd = rows_of("unknown_currency")
    rows["currency"][odd] = len(CURRENCIES) + rng.integers(0, len(UNKNOWN_CURRENCIES), len(odd))
    unknown_users, unknown_products = rows_of("orphan_user"), rows_of("orphan_product")
    rows["user"][unknown_users] = GHOST_USER + rng.integers(0, 900_000, len(unknown_users))
    rows["product"][unknown_products] = GHOST_PRODUCT + rng.integers(0, 90_000, len(unknown_products))
    wrong = rows_of("misspelt_category")
    truth[wrong] = rows["category"][wrong]
    rows["category"][wrong] = (
        len(CATEGORIES) + rows["category"][wrong] * MISSPELLINGS + rng.integers(0, MISSPELLINGS, len(wrong))
    )
