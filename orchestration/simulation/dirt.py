"""What is wrong with the rows: known dirt, at most one kind on each."""

from __future__ import annotations

import numpy as np

from orchestration.simulation.behaviour import Counters
from orchestration.simulation.numbers import Array, Rows, join, mix, size, take
from orchestration.simulation.words import (
    ADD,
    AGENTS,
    APP,
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
    NO_QUANTITY,
    PURCHASE,
    RATES,
    SECOND,
    STORE,
    UNKNOWN_CURRENCIES,
    WEB,
    WRONG_WAYS,
)
from orchestration.simulation.world import World


def soil(world: World, rng: np.random.Generator, rows: Rows, counters: Counters) -> Rows:
    """Plant dirt: at most one kind on a row, noted in its `kind`, `detail` and `truth`. Copies are added at the end."""
    n = size(rows)
    channel, kind = rows["channel"], rows["kind"]
    web, app, store = channel == WEB, channel == APP, channel == STORE
    rows["received"] = np.where(
        web, rows["t"] + ((0.08 + rng.exponential(1.5, n)) * 1000).astype(np.int64) * 1000, rows["t"]
    )

    # Orders whose row in the database never came: 3 of 100.
    twin = (rows["order"] >= 0) & has_twin(rows["order"])
    kind[twin] = KIND["order_twin"]

    # A GA4 event with several items stays as it is: dirt on one of them would be dirt on all.
    event = rows["event"]
    single = np.r_[True, event[1:] != event[:-1]] & np.r_[event[1:] != event[:-1], True]
    free = (kind == 0) & (rows["type"] != PURCHASE) & (rows["type"] != LOGIN) & (store | web | single)
    priced = ~np.isnan(rows["price"])
    dear = priced & (rows["price"] > 90 * np.array(RATES)[rows["currency"]])
    product = rows["product"] >= 0
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
        ("missing_value", "price, not at random", 0.03, dear),
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
        ("quantity_outlier", "times 100", 0.01, web & (rows["type"] == ADD) & (rows["quantity"] != NO_QUANTITY)),
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
    _spoil(rng, rows)
    return join([rows, *copies])


def has_twin(order: Array) -> Array:
    """Whether the shop's database has the order, too."""
    known: Array = mix(order) % np.uint64(100) >= 3
    return known


def _odd_hours(world: World, rows: Rows) -> tuple[Array, Array]:
    """The store's rows on the days the clocks change, and what is odd about each one's local time."""
    odd = np.zeros(size(rows), bool)
    detail = np.full(size(rows), DETAIL["ordinary hour"], np.int8)
    t = rows["t"]
    for hour in world.clock_changes:
        at = world.start + hour * HOUR
        day = world.start + hour * HOUR // DAY * DAY
        odd |= (rows["channel"] == STORE) & (t >= day - DAY) & (t < day + 2 * DAY)
        if world.offset[0, hour] > world.offset[0, hour - 1]:
            detail[(t >= at) & (t < at + HOUR) & stale(rows["session"])] = DETAIL["missing hour"]
        else:
            detail[(t >= at - HOUR) & (t < at + HOUR)] = DETAIL["doubled hour"]
    return odd, detail


def stale(session: Array) -> Array:
    """Visits at a kiosk whose clock is put forward an hour too late."""
    late: Array = session % 2 == 0
    return late


def _copies(rng: np.random.Generator, rows: Rows, at: Array, marked: Array, counters: Counters) -> Rows:
    """Second deliveries of rows: the same, nearly the same, or the same id at another time; later, on the web."""
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
    """Purchase pages opened again: every line of an order once more, under new ids, seconds to hours later."""
    order = rows["order"]
    at = np.flatnonzero((order >= 0) & (mix(order + (1 << 32)) % np.uint64(100) < 4))
    copy = take(rows, at)
    # One delay for all the lines of an order.
    delay = np.exp((mix(copy["order"] + (1 << 33)) % np.uint64(10_000)).astype(float) / 10_000 * np.log(2000)) * 5
    delay = (delay * 1000).astype(np.int64) * 1000
    copy["t"], copy["received"] = copy["t"] + delay, copy["received"] + delay
    # New ids that keep apart what was apart.
    copy["event"] = copy["event"] - copy["event"].min(initial=0) + counters.event
    counters.event += int(np.ptp(copy["event"])) + 1 if len(at) else 0
    copy["uid"] = counters.event + np.arange(len(at))
    counters.event += len(at)
    copy["kind"] = np.full(len(at), KIND["repeated_purchase"], np.int8)
    return copy


def _spoil(rng: np.random.Generator, rows: Rows) -> None:
    """Change the values of the rows that were marked."""
    kind, detail, truth = rows["kind"], rows["detail"], rows["truth"]

    def of(name: str) -> Array:
        return np.flatnonzero(kind == KIND[name])

    for name in ("late_event", "future_event", "naive_local_time"):
        truth[of(name)] = rows["t"][of(name)]
    late = of("late_event")
    hours = np.exp(rng.uniform(0, np.log(120), len(late)))
    rows["received"][late] += (hours * 3_600_000).astype(np.int64) * 1000
    future = of("future_event")
    rows["t"][future] += rng.integers(3 * 86_400, 400 * 86_400, len(future)) * SECOND

    price = rows["price"]
    factor = np.ones(len(DETAILS))
    factor[[DETAIL["times 100"], DETAIL["divided by 100"], DETAIL["times 10"]]] = 100, 0.01, 10
    wild, missing, bad = of("price_outlier"), of("missing_value"), of("bad_price")
    truth[wild], truth[bad] = price[wild], price[bad]
    price[wild] = np.maximum(np.round(price[wild] * factor[detail[wild]], 2), 0.01)
    price[bad] = -price[bad]
    counts = detail[missing] == DETAIL["quantity, at random"]
    truth[missing] = np.where(counts, rows["quantity"][missing], price[missing])
    rows["quantity"][missing[counts]] = NO_QUANTITY
    price[missing[~counts]] = np.nan
    bad = of("bad_quantity")
    truth[bad] = rows["quantity"][bad]
    rows["quantity"][bad] = rng.choice([0, -1, -2, 50_000, 99_999], len(bad))
    wild = of("quantity_outlier")
    truth[wild] = rows["quantity"][wild]
    rows["quantity"][wild] *= 100
    odd = of("unknown_currency")
    rows["currency"][odd] = len(CURRENCIES) + rng.integers(0, len(UNKNOWN_CURRENCIES), len(odd))
    ghosts, unknown = of("orphan_user"), of("orphan_product")
    rows["user"][ghosts] = GHOST_USER + rng.integers(0, 900_000, len(ghosts))
    rows["product"][unknown] = GHOST_PRODUCT + rng.integers(0, 90_000, len(unknown))
    wrong = of("misspelt_category")
    truth[wrong] = rows["category"][wrong]
    rows["category"][wrong] = (
        len(CATEGORIES) + rows["category"][wrong] * WRONG_WAYS + rng.integers(0, WRONG_WAYS, len(wrong))
    )
