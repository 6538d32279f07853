"""The events of people and bots: visits with their funnels, and orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from orchestration.simulation.numbers import Array, Rows, mix, size, take, weighted
from orchestration.simulation.words import (
    ADD,
    AGENTS,
    APP,
    ASSISTANT_AGENTS,
    ASSISTANTS,
    BOT_AGENTS,
    BOX,
    CAMPAIGNS,
    CART,
    CHANNEL_ROWS,
    CHECKOUT,
    DAY,
    DETAIL,
    HOUR,
    KIND,
    LIST,
    LOGIN,
    MARKET_CURRENCY,
    MARKETS,
    MINUTE,
    NO_QUANTITY,
    PAGE,
    PAYMENT,
    PURCHASE,
    QUERY_WORDS,
    REMOVE,
    SEARCH,
    SECOND,
    SELECT,
    STORE,
    TYPES,
    VIEW,
    VISIT_ROWS,
    WEB,
    WISH,
)
from orchestration.simulation.world import World

#: When a visitor logs in.
NEVER, BEFORE, DURING = range(3)


@dataclass
class Counters:
    """The next ids, continued from block to block, and the end of each household's last visit (µs)."""

    last_end: Array
    session: int = 0
    event: int = 0
    order: int = 0


def visit(
    world: World, rng: np.random.Generator, visit_counts: Array, first_hour: int, counters: Counters
) -> tuple[Rows, Rows]:
    """Generate the visits of some hours. Returns their event rows, without errors except denied consents, and the purchases among them.

    `visit_counts` are by hour, from `first_hour` on, and by market.
    """
    visits = _visits(world, rng, visit_counts, first_hour)
    views, flags = _product_views(world, rng, visits)
    events = _events(rng, visits, views, flags)
    _drop_overlaps(world, visits, events, counters)
    rows = _rows(world, rng, visits, views, events, counters)
    return rows, take(rows, np.flatnonzero(rows["type"] == PURCHASE))


def _visits(world: World, rng: np.random.Generator, visit_counts: Array, first_hour: int) -> Rows:
    """One row per visit: its person, time, channel and login."""
    hour, market = (index.repeat(visit_counts.ravel()) for index in np.indices(visit_counts.shape).reshape(2, -1))
    n = len(hour)
    start = world.start + ((first_hour + hour + rng.random(n)) * HOUR).astype(np.int64)
    person = weighted(rng, world.activity, world.people_from[market], world.people_from[market + 1])
    channel = _channels(rng, market)
    start = _move_to_clock_change(world, rng, start, channel)
    start = _to_clock(start, channel)
    known = (world.customer[person] >= 0) & (start > world.signup[person] + 2 * MINUTE)
    u = rng.random(n)
    login = np.select([~known, u < 0.45, (u < 0.68) & (channel != STORE)], [NEVER, BEFORE, DURING], default=NEVER)
    views = np.minimum(rng.geometric(0.28, n), 14)
    device = np.where(
        channel == APP,
        len(world.agents) + person,
        world.device_from[person] + (rng.random(n) * world.devices[person]).astype(int),
    )
    return {
        "start": start,
        "person": person,
        "market": market,
        "channel": channel,
        "login": login,
        "views": views,
        "login_at": (rng.random(n) * views).astype(int),
        "device": device,
        "campaign": np.where(rng.random(n) < 0.45, 0, rng.integers(1, len(CAMPAIGNS), n)),
        "declines": rng.random(n) < 0.01,
    }


def _to_clock(t: Array, channel: Array) -> Array:
    """Times at the precision of the channel: seconds in the store, milliseconds on the web."""
    return t - np.where(channel == STORE, t % SECOND, np.where(channel == WEB, t % 1000, 0))


def _channels(rng: np.random.Generator, market: Array) -> Array:
    """A channel for each visit; the store is in Germany."""
    web, app, store = (share / mean for share, mean in zip(CHANNEL_ROWS, VISIT_ROWS, strict=True))
    u = rng.random(len(market)) * (web + app + store)
    store_here = np.where(market == 0, store / MARKETS[0].share, 0)
    # In other markets, web and app get the store's share.
    scale = (web + app + store - store_here) / (web + app)
    return np.where(u < store_here, STORE, np.where(u < store_here + app * scale, APP, WEB))


def _move_to_clock_change(world: World, rng: np.random.Generator, start: Array, channel: Array) -> Array:
    """Move some of the store's visits of a clock-change day into the hour that does not exist or comes twice."""
    for hour in world.clock_changes:
        day = world.start + hour * HOUR // DAY * DAY
        there = (channel == STORE) & (start >= day) & (start < day + DAY) & (rng.random(len(start)) < 0.15)
        # Clocks go back: the hour before the change and the hour after it read the same.
        twice = int(world.offset[0, hour] < world.offset[0, hour - 1])
        within = (rng.random(len(start)) * (1 + twice) * 45 * MINUTE).astype(np.int64)
        start = np.where(there, world.start + (hour - twice) * HOUR + within, start)
    return start


def _product_views(world: World, rng: np.random.Generator, visits: Rows) -> tuple[Rows, Array]:
    """One row per product view of a visit, with flags for the events (TYPES) that go with it."""
    count, login = visits["views"], visits["login"]
    visit = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(visit)) - np.repeat(np.cumsum(count) - count, count)
    low, high = np.zeros(len(visit), int), np.full(len(visit), world.products)
    in_favourite = rng.random(len(visit)) < 0.65
    liked = world.favourite[visits["person"][visit[in_favourite]]]
    low[in_favourite], high[in_favourite] = world.products_from[liked], world.products_from[liked + 1]
    views = {
        "visit": visit,
        "nth": nth,
        "product": weighted(rng, world.popularity, low, high),
        "quantity": rng.choice([1, 2, 3, 4, 6], len(visit), p=[0.82, 0.11, 0.04, 0.02, 0.01]),
    }
    # Four of five who come in wholesale hours are resellers. At most four boxes: times 100, that is still in range.
    resells = world.is_wholesale_hour(visits["start"]) & (mix(visits["start"]) % np.uint64(5) > 0)
    views["quantity"] = np.where(resells[visit], np.minimum(views["quantity"], 4) * BOX, views["quantity"])

    u = rng.random((len(visit), len(TYPES)), dtype=np.float32)
    online = visits["channel"][visit] != STORE
    first, last = nth == 0, nth == count[visit] - 1
    now = (login[visit] == DURING) & (nth == visits["login_at"][visit])
    again = (login[visit] == BEFORE) & first & (u[:, LOGIN] < 0.25)
    flags = np.zeros(u.shape, bool)
    flags[:, PAGE] = first & online
    flags[:, LOGIN] = online & (now | again)
    flags[:, SEARCH] = u[:, SEARCH] < 0.2
    flags[:, LIST] = online & (u[:, LIST] < 0.4)
    flags[:, SELECT] = online & (flags[:, SEARCH] | flags[:, LIST]) & (u[:, SELECT] < 0.6)
    flags[:, VIEW] = True
    flags[:, WISH] = online & (u[:, WISH] < 0.05)
    flags[:, ADD] = u[:, ADD] < np.where(login[visit] != NEVER, 0.17, 0.09)
    flags[:, REMOVE] = online & flags[:, ADD] & (u[:, REMOVE] < 0.1)
    filled = np.zeros(len(count), bool)
    filled[visit[flags[:, ADD] & ~flags[:, REMOVE] & online]] = True
    at_checkout = last & filled[visit]
    flags[:, CART] = at_checkout & (u[:, CART] < 0.7)
    flags[:, CHECKOUT] = at_checkout & (u[:, CHECKOUT] < 0.55)
    flags[:, PAYMENT] = flags[:, CHECKOUT] & (u[:, PAYMENT] < 0.85)
    flags[:, PURCHASE] = flags[:, PAYMENT] & (u[:, PURCHASE] < 0.9)
    return views, flags


def _events(rng: np.random.Generator, visits: Rows, views: Rows, flags: Array) -> Rows:
    """The events of the product views in order, each some seconds after the previous one."""
    view, kind = np.nonzero(flags)
    visit = views["visit"][view]
    opens = np.r_[True, visit[1:] != visit[:-1]]
    passed = np.cumsum(np.where(opens, 0, np.clip(rng.lognormal(np.log(20), 0.9, len(view)), 1.2, 540)))
    passed -= passed[opens][np.cumsum(opens) - 1]
    t = visits["start"][visit] + (passed * SECOND).astype(np.int64)
    return {"view": view, "type": kind, "visit": visit, "t": t, "kept": np.ones(len(view), bool)}


def _drop_overlaps(world: World, visits: Rows, events: Rows, counters: Counters) -> None:
    """Clear `kept` for visits that begin within an hour of another visit of the same household."""
    visit, t = events["visit"], events["t"]
    end = t[np.r_[visit[1:] != visit[:-1], True]]
    household, start = world.household[visits["person"]], visits["start"]
    by_start = np.lexsort((start, household))
    who, opens = household[by_start], start[by_start]
    # The latest end so far within the household: a running maximum, with an offset per household to keep them separate.
    lift = (who - who.min(initial=0)) * ((int(end.max(initial=0)) - int(start.min(initial=0))) // 1000 + 1)
    ends = (end[by_start] - int(start.min(initial=0))) // 1000 + lift
    latest = (np.maximum.accumulate(ends) - lift) * 1000 + int(start.min(initial=0))
    before = np.r_[0, latest[:-1]]
    before[np.r_[True, who[1:] != who[:-1]]] = 0
    apart = opens > np.maximum(before, counters.last_end[who]) + HOUR
    np.maximum.at(counters.last_end, who[apart], end[by_start][apart])
    kept = np.empty(len(start), bool)
    kept[by_start] = apart
    events["kept"] = kept[visit]


def _rows(world: World, rng: np.random.Generator, visits: Rows, views: Rows, events: Rows, counters: Counters) -> Rows:
    """The rows of kept events: one per item."""
    n = len(visits["start"])
    view, kind, visit = events["view"], events["type"], events["visit"]
    app = visits["channel"][visit] == APP
    lines, line_count, line_from = _cart_lines(world, n, views, events)
    has_cart = (kind == PURCHASE) | (app & ((kind == CHECKOUT) | (kind == PAYMENT)))
    items = np.select([~events["kept"], has_cart, (kind == LIST) & app], [0, line_count[visit], 3], default=1)

    # From here on, one element per row: e is its event, s its visit.
    e = np.repeat(np.arange(len(view)), items)
    s, nth = visit[e], np.arange(len(e)) - np.repeat(np.cumsum(items) - items, items)
    kind, has_cart, channel = kind[e], has_cart[e], visits["channel"][s]
    source = view[e]
    source[has_cart] = lines[line_from[s[has_cart]] + nth[has_cart]]
    product = views["product"][source]
    category = world.category[product]
    # A list shows a product and the next ones.
    listed = (kind == LIST) & (channel == APP)
    first, end = world.products_from[category], world.products_from[category + 1]
    product = np.where(listed, first + (product - first + nth) % (end - first), product)
    names_product = np.isin(kind, (SELECT, VIEW, WISH, ADD, REMOVE)) | listed | has_cart
    counts = np.isin(kind, (ADD, REMOVE)) | has_cart
    t = _to_clock(events["t"][e], channel)
    currency = MARKET_CURRENCY[visits["market"][s]]

    bought = (events["type"] == PURCHASE) & events["kept"]
    order = np.where(bought, counters.order + np.cumsum(bought), -1)
    buys = np.zeros(n, bool)
    buys[visit[bought]] = True
    denied = visits["declines"] & ~buys & (visits["login"] == NEVER) & (visits["channel"] != STORE)
    since = views["nth"][view[e]] - visits["login_at"][s]
    logged_in = (visits["login"][s] == BEFORE) | (
        (visits["login"][s] == DURING) & ((since > 0) | ((since == 0) & (kind >= LOGIN)))
    )
    device = visits["device"][s]
    words = category * len(QUERY_WORDS) + views["nth"][view[e]] % len(QUERY_WORDS)
    rows = {
        "t": t,
        "received": t,
        "type": kind.astype(np.int8),
        "channel": channel.astype(np.int8),
        "session": counters.session + s,
        "began": visits["start"][s],
        "device": device,
        "market": visits["market"][s].astype(np.int8),
        "user": np.where(logged_in, world.customer[visits["person"][s]], -1).astype(np.int32),
        "product": np.where(names_product, product, -1).astype(np.int32),
        "category": np.where(names_product | (kind == LIST), category, -1).astype(np.int16),
        "quantity": np.where(counts, views["quantity"][source], NO_QUANTITY),
        "price": np.where(names_product, world.shown_price(product, t, currency), np.nan),
        "currency": np.where(names_product, currency, -1).astype(np.int8),
        "order": order[e],
        "query": np.where(kind == SEARCH, words, -1).astype(np.int32),
        "agent": world.agents[np.minimum(device, len(world.agents) - 1)].astype(np.int16),
        "campaign": visits["campaign"][s].astype(np.int8),
        "consent": np.where(denied[s], 2, np.where(s % 20 == 0, 0, 1)).astype(np.int8),
        "event": counters.event + e,
        "uid": counters.event + np.arange(len(e)),
        "kind": np.where(denied[s], KIND["denied_consent"], 0).astype(np.int8),
        "detail": np.zeros(len(e), np.int8),
        "truth": np.full(len(e), np.nan),
    }
    counters.session += n
    counters.event += max(len(view), len(e))
    counters.order += int(bought.sum())
    return rows


def _cart_lines(world: World, visits: int, views: Rows, events: Rows) -> tuple[Array, Array, Array]:
    """The final cart of each visit, each product once: the product views that added it, their number per visit, and the index of
    the first one."""
    added = np.zeros(size(views), bool)
    added[events["view"][events["type"] == ADD]] = True
    added[events["view"][events["type"] == REMOVE]] = False
    view = np.flatnonzero(added)
    _, once = np.unique(views["visit"][view] * world.products + views["product"][view], return_index=True)
    view = view[once]
    count = np.bincount(views["visit"][view], minlength=visits)
    return view, count, np.cumsum(count) - count


def bots(world: World, rng: np.random.Generator, counters: Counters) -> Rows:
    """Bots in the web shop: some declare themselves, some click faster than people, some are slow and active day and night (see stealthy_bots)."""
    declared, fast, stealthy = (DETAIL[name] for name in ("declared", "fast", "stealthy"))

    def runs(sort: int, share: float, low: int, high: int, needs: int) -> tuple[Array, Array]:
        """Runs of one sort and their lengths, for a share of all rows; none in a shop with fewer events than `needs`."""
        count = max(1, round(world.events * share * 2 / (low + high))) if world.events >= needs else 0
        return np.full(count, sort), rng.integers(low, high, count)

    sorts = (
        runs(declared, 0.004, 30, 90, 0),
        runs(fast, 0.003, 1500, 2500, 20_000),
        runs(stealthy, 0.0015, 500, 750, 20_000),
    )
    sort, length = (np.concatenate(column) for column in zip(*sorts, strict=True))
    run = np.repeat(np.arange(len(sort)), length)
    n = len(run)
    opens = np.r_[True, run[1:] != run[:-1]]
    gap = np.select(
        [sort[run] == declared, sort[run] == fast],
        [0.5 + rng.exponential(4, n), 1 + rng.exponential(8, n)],
        default=rng.uniform(200, 420, n),
    )
    passed = np.cumsum(gap)
    passed -= passed[opens][run]
    # A fast bot finishes within a day; a stealthy one takes two or three.
    took = (passed[np.r_[opens[1:], True]] * SECOND).astype(np.int64)
    whole_days = np.where(sort == stealthy, 3, 1)
    day = (rng.random(len(sort)) * np.maximum(world.days - whole_days, 1)).astype(int)
    room = np.where(sort == fast, np.maximum(DAY - took, 0), DAY)
    begin = world.start + day * DAY + (rng.random(len(sort)) * room).astype(np.int64)
    t = begin[run] + (passed * SECOND).astype(np.int64)
    t -= t % 1000
    kind = rng.choice([VIEW, LIST, PAGE], n, p=[0.8, 0.15, 0.05])
    product = weighted(rng, world.popularity, np.zeros(n, int), np.full(n, world.products))
    market = rng.integers(0, len(MARKETS), len(sort))[run]
    agent = np.where(
        sort == declared,
        len(AGENTS) + rng.integers(0, len(BOT_AGENTS), len(sort)),
        rng.integers(0, len(AGENTS), len(sort)),
    )
    rows = _web_rows(world, run, t, begin[run], kind, product, market, agent[run], sort[run])
    rows |= {"event": counters.event + np.arange(n), "uid": counters.event + np.arange(n)}
    counters.event += n
    return rows


def _web_rows(
    world: World,
    run: Array,
    t: Array,
    began: Array,
    kind: Array,
    product: Array,
    market: Array,
    agent: Array,
    detail: Array,
) -> Rows:
    """Rows of a bot's runs in the web shop, each with its own visitor and session. `run`: the number of each row's run."""
    n = len(run)
    shows = kind == VIEW
    return {
        "t": t,
        "received": t + 100_000,
        "type": kind.astype(np.int8),
        "channel": np.full(n, WEB, np.int8),
        "session": (1 << 40) + run,
        "began": began,
        "device": len(world.agents) + world.people + run,
        "market": market.astype(np.int8),
        "user": np.full(n, -1, np.int32),
        "product": np.where(shows, product, -1).astype(np.int32),
        "category": np.where(kind == PAGE, -1, world.category[product]).astype(np.int16),
        "quantity": np.full(n, NO_QUANTITY, np.int64),
        "price": np.where(shows, world.shown_price(product, t, MARKET_CURRENCY[market]), np.nan),
        "currency": np.where(shows, MARKET_CURRENCY[market], -1).astype(np.int8),
        "order": np.full(n, -1),
        "query": np.full(n, -1, np.int32),
        "agent": agent.astype(np.int16),
        "campaign": np.zeros(n, np.int8),
        "consent": np.ones(n, np.int8),
        "kind": np.full(n, KIND["bot"], np.int8),
        "detail": detail.astype(np.int8),
        "truth": np.full(n, np.nan),
    }


#: Stealthy bots and assistants come only to shops of so many events, so that smaller ones stay as they are.
_MANY: Final = 100_000
#: Numbers of their runs, and of their events, that no other row has.
_RUNS: Final = (1 << 30, 1 << 31)
_EVENTS: Final = (1 << 41, 1 << 42)


def _runs(world: World, rng: np.random.Generator, share: float, low: int, high: int) -> Array:
    """The lengths of runs of `low` to `high` rows that together are about this share of all rows."""
    return rng.integers(low, high, max(1, round(world.events * share * 2 / (low + high))))


def stealthy_bots(world: World, rng: np.random.Generator) -> Rows | None:
    """Bots in the web shop with a person's user agent, fewer rows than a busy person, and no cart; None in a small shop.

    `regular`: a page at even intervals, for some hours. `broad`: a walk through the catalogue that views each product once, as fast as a person.
    `night`: slow, at uneven intervals, day and night. `residential`: as `broad`, but after some pages it goes on from another address, as another
    visitor.
    """
    if world.events < _MANY:
        return None
    lengths = {
        "regular": _runs(world, rng, 0.002, 120, 280),
        "broad": _runs(world, rng, 0.002, 100, 300),
        "night": _runs(world, rng, 0.002, 150, 300),
        "residential": _runs(world, rng, 0.002, 15, 60),
    }
    sort = np.repeat([DETAIL[name] for name in lengths], [len(each) for each in lengths.values()])
    length = np.concatenate(list(lengths.values()))
    run = np.repeat(np.arange(len(length)), length)
    n, opens = len(run), np.r_[True, run[1:] != run[:-1]]
    first = np.flatnonzero(opens)
    as_a_person = np.clip(rng.lognormal(np.log(20), 0.9, n), 1.2, 540)
    pace = rng.uniform(30, 90, len(length))[run]
    gap = np.select(
        [sort[run] == DETAIL["regular"], sort[run] == DETAIL["night"]],
        # To within a tenth: as a page takes longer or shorter to load.
        [pace * rng.uniform(0.9, 1.1, n), rng.lognormal(np.log(420), 0.7, n)],
        default=as_a_person,
    )
    passed = np.cumsum(gap)
    passed -= passed[opens][run]
    day = (rng.random(len(length)) * max(world.days - 3, 1)).astype(int)
    # All but the slow ones begin in the morning, and end on the same day.
    hour = np.where(sort == DETAIL["night"], rng.uniform(0, 24, len(length)), rng.uniform(6, 14, len(length)))
    begin = world.start + day * DAY + (hour * HOUR).astype(np.int64)
    t = begin[run] + (passed * SECOND).astype(np.int64)
    t -= t % 1000
    kind = rng.choice([VIEW, LIST], n, p=[0.95, 0.05])
    # Through the catalogue in its order, from anywhere.
    nth = np.arange(n) - first[run]
    product = (rng.integers(0, world.products, len(length))[run] + nth) % world.products
    drawn = weighted(rng, world.popularity, np.zeros(n, int), np.full(n, world.products))
    product = np.where(np.isin(sort[run], [DETAIL["broad"], DETAIL["residential"]]), product, drawn)
    market = rng.integers(0, len(MARKETS), len(length))[run]
    agent = rng.integers(0, len(AGENTS), len(length))[run]
    rows = _web_rows(world, _RUNS[0] + run, t, begin[run], kind, product, market, agent, sort[run])
    return rows | {"event": _EVENTS[0] + np.arange(n), "uid": _EVENTS[0] + np.arange(n)}


def assistants(world: World, rng: np.random.Generator) -> Rows | None:
    """Visits of AI assistants that look for a person, and of people whom an assistant has sent; None in a small shop."""
    if world.events < _MANY:
        return None
    length = {
        "agent": _runs(world, rng, 0.002, 2, 10),
        "assistant_referral": _runs(world, rng, 0.002, 2, 10),
    }
    is_agent = np.repeat([True, False], [len(each) for each in length.values()])
    lengths = np.concatenate(list(length.values()))
    run = np.repeat(np.arange(len(lengths)), lengths)
    n, opens = len(run), np.r_[True, run[1:] != run[:-1]]
    passed = np.cumsum(
        np.where(is_agent[run], rng.uniform(0.3, 3, n), np.clip(rng.lognormal(np.log(20), 0.9, n), 1.2, 540))
    )
    passed -= passed[opens][run]
    day = (rng.random(len(lengths)) * max(world.days - 1, 1)).astype(int)
    begin = world.start + day * DAY + (rng.uniform(7, 21, len(lengths)) * HOUR).astype(np.int64)
    t = begin[run] + (passed * SECOND).astype(np.int64)
    t -= t % 1000
    kind = rng.choice([VIEW, LIST], n, p=[0.8, 0.2])
    product = weighted(rng, world.popularity, np.zeros(n, int), np.full(n, world.products))
    market = rng.integers(0, len(MARKETS), len(lengths))[run]
    agent = np.where(
        is_agent,
        len(AGENTS) + len(BOT_AGENTS) + rng.integers(0, len(ASSISTANT_AGENTS), len(lengths)),
        rng.integers(0, len(AGENTS), len(lengths)),
    )[run]
    rows = _web_rows(world, _RUNS[1] + run, t, begin[run], kind, product, market, agent, np.zeros(n))
    sent_by = np.where(is_agent, 0, len(CAMPAIGNS) + rng.integers(0, len(ASSISTANTS), len(lengths)))
    return rows | {
        "event": _EVENTS[1] + np.arange(n),
        "uid": _EVENTS[1] + np.arange(n),
        "kind": np.where(is_agent, KIND["agent"], KIND["assistant_referral"])[run].astype(np.int8),
        "campaign": sent_by[run].astype(np.int8),
    }
