"""A simulated shop: files as real systems would deliver them, and beside them the truth about what is wrong with each.

Everything follows from a seed. Time is counted in microseconds since 1970 (UTC) and people, devices, products and
categories by number; names and text come in only where a file is written. Behaviour is made in blocks of whole hours,
about half a million rows each, so memory does not grow with the number of events.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestration.errors import FinegrainError
from orchestration.lake import quote

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

#: Rows of behaviour made at a time.
BLOCK: Final = 500_000
MARKER: Final = "simulation.json"
FOLDERS: Final = ("stream", "ga4", "store", "database", "truth")

Array = NDArray[Any]
#: Columns of equal length by name.
Rows = dict[str, Array]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Market:
    code: str
    country: str
    currency: str
    zone: str
    share: float


MARKETS: Final = (
    Market("DE", "Germany", "EUR", "Europe/Berlin", 0.30),
    Market("FR", "France", "EUR", "Europe/Paris", 0.12),
    Market("ES", "Spain", "EUR", "Europe/Madrid", 0.08),
    Market("GB", "United Kingdom", "GBP", "Europe/London", 0.18),
    Market("SE", "Sweden", "SEK", "Europe/Stockholm", 0.10),
    Market("US", "United States", "USD", "America/New_York", 0.14),
    Market("US", "United States", "USD", "America/Los_Angeles", 0.08),
)
CURRENCIES: Final = ("EUR", "USD", "GBP", "SEK")
#: Units of a currency for one euro, as the shop's price list uses them all year.
RATES: Final = (1.0, 1.04, 0.84, 11.3)
#: Written where a currency should be; no table of rates has them.
UNKNOWN_CURRENCIES: Final = ("XXX", "ZZZ", "POINTS")

CATEGORIES: Final = (
    "electronics", "computers", "smartphones", "kitchenware", "furniture", "gardening", "toys and games", "books",
    "clothing", "footwear", "cosmetics", "sporting goods", "groceries", "pet supplies", "stationery", "musical instruments",
)  # fmt: skip


def misspellings(category: str) -> tuple[str, ...]:
    """How careless hands write a category: a letter lost, doubled, swapped or wrong, and odd case and spacing."""
    at = len(category) // 2
    return (
        category[: at - 1] + category[at:],
        category[:at] + category[at] + category[at:],
        category[: at - 1] + category[at] + category[at - 1] + category[at + 1 :],
        category[:at] + ("x" if category[at] != "x" else "z") + category[at + 1 :],
        category.upper() + "  ",
        " " + category[:at] + category[at + 1 :].title(),
    )


#: Every way a category is written: the right ones first, then each one's misspellings in turn.
SPELLINGS: Final = CATEGORIES + tuple(text for category in CATEGORIES for text in misspellings(category))
WRONG_WAYS: Final = len(misspellings(CATEGORIES[0]))

#: The canonical event types, by code, each with the word that the shop's own tracker uses.
TYPES: Final = {
    "page_view": "page", "login": "login", "search": "search", "view_item_list": "list", "select_item": "click",
    "view_item": "view", "add_to_wishlist": "wish", "add_to_cart": "cart_add", "remove_from_cart": "cart_remove",
    "view_cart": "cart", "begin_checkout": "checkout", "add_payment_info": "payment", "purchase": "buy",
}  # fmt: skip
(PAGE, LOGIN, SEARCH, LIST, SELECT, VIEW, WISH, ADD, REMOVE, CART, CHECKOUT, PAYMENT, PURCHASE) = range(len(TYPES))
STORE_WORDS: Final = {SEARCH: "find", VIEW: "look", ADD: "basket"}

WEB, APP, STORE = range(3)
#: Share of the rows by channel, and (measured) rows of an average visit there.
CHANNEL_ROWS: Final = (0.65, 0.30, 0.05)
VISIT_ROWS: Final = (8.95, 12.05, 4.85)

#: Planted dirt. The number is used inside; the name is the truth file's.
KINDS: Final = (
    "clean", "exact_duplicate", "near_duplicate", "redelivered_event", "repeated_purchase", "order_twin", "late_event",
    "naive_local_time", "wrong_unit", "misspelt_category", "price_outlier", "missing_value", "orphan_user",
    "orphan_product", "disordered_times", "bot", "denied_consent", "malformed_row", "future_event", "unknown_currency",
    "bad_quantity", "bad_price", "orphan_order",
)  # fmt: skip
KIND: Final = {name: code for code, name in enumerate(KINDS)}

DETAILS: Final = (
    "", "price, at random", "price, not at random", "quantity, at random", "cut short", "plain text", "an array",
    "a bad time", "declared", "fast", "stealthy", "missing hour", "doubled hour", "ordinary hour", "times 100",
    "divided by 100", "times 10", "same bytes", "other id, page and agent", "same id, a few ms off",
)  # fmt: skip
DETAIL: Final = {name: code for code, name in enumerate(DETAILS)}

#: Stands for a quantity that is not there.
NO_QUANTITY: Final = -(2**31)
#: People and products from here on exist in no table of the shop.
GHOST_USER: Final = 9_000_000
GHOST_PRODUCT: Final = 900_000

_CHROME = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.0.0 {}Safari/537.36"
AGENTS: Final = (
    *(("desktop", f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_CHROME.format(v, '')}") for v in range(124, 134)),
    *(("desktop", f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_CHROME.format(v, '')}") for v in range(128, 134)),
    *(("mobile", f"Mozilla/5.0 (Linux; Android 14; Pixel 8) {_CHROME.format(v, 'Mobile ')}") for v in range(124, 134)),
    *(
        (
            "mobile",
            f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_{v} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            f"Version/17.{v} Mobile/15E148 Safari/604.1",
        )
        for v in range(1, 7)
    ),
    *(
        (
            "tablet",
            f"Mozilla/5.0 (iPad; CPU OS 17_{v} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            f"Version/17.{v} Mobile/15E148 Safari/604.1",
        )
        for v in range(1, 5)
    ),
)
BOT_AGENTS: Final = (
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)",
    "Baiduspider+(+http://www.baidu.com/search/spider.htm)",
    "python-requests/2.32.3",
)
CAMPAIGNS: Final = (None, ("https://www.google.com/", None), ("https://www.google.com/", "brand_search"),
                    ("https://www.instagram.com/", "spring_looks"), ("https://mail.example/", "newsletter"),
                    ("https://deals.example/", "promo_week"))  # fmt: skip
QUERY_WORDS: Final = ("best", "cheap", "new", "small", "blue", "gift", "used", "sale")

_HOURS_OF_DAY = np.array([2, 1, 1, 1, 1, 2, 4, 7, 9, 10, 11, 12, 13, 12, 11, 11, 12, 13, 15, 18, 20, 18, 11, 5], float)
_WEEKDAYS = np.array([1.0, 0.97, 0.98, 1.0, 1.05, 1.2, 1.25])


@dataclass(frozen=True)
class Summary:
    """What was written: rows by source, rows of planted dirt by kind, and the folder."""

    out: Path
    rows: dict[str, int]
    truth: dict[str, int]

    @property
    def events(self) -> int:
        """Rows of behaviour: stream lines, GA4 item rows and store visits."""
        return self.rows["stream"] + self.rows["ga4_items"] + self.rows["store"]


def simulate(
    out: Path,
    *,
    events: int = 1_000_000,
    seed: int = 7,
    days: int = 90,
    start: date = date(2025, 1, 6),
    progress: Progress | None = None,
) -> Summary:
    """Write a simulated shop of about `events` rows of behaviour over `days` days from `start` (UTC) into `out`.

    The same arguments write the same bytes. `progress(done, total)` is called with rows of behaviour.
    Raises FinegrainError when an argument is out of range or `out` holds something else than a simulation.
    """
    if events < 1000:
        raise FinegrainError(f"events is {events}; a simulated shop needs 1000 or more: give --events 1000")
    if not 2 <= days <= 1000:
        raise FinegrainError(f"days is {days}; give --days between 2 and 1000")
    if seed < 0:
        raise FinegrainError(f"seed is {seed}; give --seed 0 or more")
    _make_room(out)
    world = World.make(events, seed, days, start)
    files = Files(out, world)
    try:
        live_through(world, files, progress or (lambda done, total: None))
        files.finish()
    finally:
        files.close()
    rows, truth = dict(sorted(files.rows.items())), dict(sorted(files.truth.counts.items()))
    about = {"events": events, "seed": seed, "days": days, "start": start.isoformat(), "rows": rows, "truth": truth}
    (out / MARKER).write_text(json.dumps(about, indent=2) + "\n")
    return Summary(out, rows, truth)


def _make_room(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise FinegrainError(f"{out} holds files that are no simulation; give --out a new or empty folder")
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
    # Set first, so that a simulation that was interrupted can be written over.
    (out / MARKER).write_text("{}\n")


# ---------------------------------------------------------------------------------------------------------- numbers


def mix(numbers: Array) -> NDArray[np.uint64]:
    """SplitMix64: numbers to numbers that look random, one to one."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def take(rows: Rows, at: Array) -> Rows:
    return {name: column[at] for name, column in rows.items()}


def join(parts: list[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def size(rows: Rows) -> int:
    return len(next(iter(rows.values())))


def weighted(rng: np.random.Generator, cumulative: Array, low: Array, high: Array) -> Array:
    """For each pair of places, one place from [low, high) drawn by the weights whose running sum (from 0) is given."""
    drawn = cumulative[low] + rng.random(len(low)) * (cumulative[high] - cumulative[low])
    return np.clip(np.searchsorted(cumulative, drawn, side="right") - 1, low, high - 1)


def running(weights: Array) -> Array:
    return np.concatenate([[0.0], np.cumsum(weights)])


# ------------------------------------------------------------------------------------------------------------ world


@dataclass(frozen=True)
class World:
    """The shop before anything happens. People are numbered by market and products by category, so that a market's
    people and a category's products are ranges."""

    seed: int
    days: int
    start: int
    visits: int
    # people
    people_from: Array  # first person of each market, and the end
    activity: Array  # running weights of people
    customer: Array  # public number of a customer, -1 for those who never sign up
    signup: Array  # moment of signing up, µs
    known: Array  # moment the customer's row arrives, µs
    household: Array
    device_from: Array
    devices: Array  # number of web devices
    favourite: Array  # category
    agents: Array  # agent of each web device
    # products
    products_from: Array  # first product of each category, and the end
    popularity: Array  # running weights of products
    sku: Array  # public number
    price: Array  # EUR by product and day
    known_product: Array  # day a late product's row arrives, -1 for the others
    promotion: Array  # factor by category and day
    # time
    offset: Array  # local minus UTC, µs, by market and hour
    demand: Array  # share of visits by hour and market

    @staticmethod
    def make(events: int, seed: int, days: int, start: date) -> World:
        rng = np.random.default_rng([seed, 0])
        begin = int(datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()) * SECOND
        share = np.array([market.share for market in MARKETS])

        customers = max(events // 60, 40)
        people = customers * 5 // 2
        people_market = np.repeat(np.arange(len(MARKETS)), np.diff(np.round(running(share) * people)).astype(int))
        people_from = np.searchsorted(people_market, np.arange(len(MARKETS) + 1))
        is_customer = np.zeros(people, bool)
        is_customer[rng.permutation(people)[:customers]] = True
        customer = np.full(people, -1)
        customer[is_customer] = rng.permutation(customers) + 1
        early = rng.random(people) < 0.75
        signup = begin + np.where(early, -rng.random(people) * 700 * DAY, rng.random(people) * days * DAY).astype(int)
        signup -= signup % SECOND
        # A few customers reach the customer table days after they began to shop: their events have to wait.
        late = rng.random(people) < 0.01
        wait = (0.5 + 0.2 * days * rng.random(people)) * DAY
        known = np.where(late, np.maximum(signup, begin) + wait.astype(int), signup + 2 * SECOND)
        known -= known % SECOND
        household = np.arange(people)
        shared = np.flatnonzero((rng.random(people - 1) < 0.02) & (people_market[1:] == people_market[:-1])) + 1
        shared = shared[household[shared - 1] == shared - 1]
        household[shared] = shared - 1
        devices = np.where(is_customer, rng.choice([1, 2, 3], people, p=[0.5, 0.35, 0.15]), 1)
        device_from = running(devices).astype(int)[:-1]
        total_devices = int(devices.sum())
        # Members of one household share its first member's devices.
        device_from[shared], devices[shared] = device_from[shared - 1], devices[shared - 1]
        weight = np.where(is_customer, 1.85, 0.67) * rng.lognormal(0, 0.9, people)

        count = int(np.clip(events // 250, 120, 20_000))
        rank = rng.permutation(count) + 1
        category = np.sort(np.arange(count) % len(CATEGORIES))
        price = _price_history(rng, category, count, days)
        late_products = np.full(count, -1)
        some = rng.permutation(np.flatnonzero(rank > 5))[: max(1, count // 150)]
        late_products[some] = rng.integers(1, max(2, days // 2), len(some))
        promotion = np.ones((len(CATEGORIES), days + 2))
        length = min(7, max(1, days // 4))
        first = int(days * 0.6)
        promotion[::2, first : first + length] = 0.8

        offset = _offsets(begin, days)
        demand = _demand(begin, days, offset, first, length, share)
        rows_of_visit = 1 / sum(part / mean for part, mean in zip(CHANNEL_ROWS, VISIT_ROWS, strict=True))
        return World(
            seed=seed, days=days, start=begin, visits=max(50, round(events * 0.978 / rows_of_visit)),
            people_from=people_from, activity=running(weight), customer=customer, signup=signup, known=known,
            household=household, device_from=device_from, devices=devices,
            favourite=rng.integers(0, len(CATEGORIES), people), agents=rng.integers(0, len(AGENTS), total_devices),
            products_from=np.searchsorted(category, np.arange(len(CATEGORIES) + 1)), popularity=running(rank**-0.9),
            sku=rng.permutation(count) + 1, price=price, known_product=late_products, promotion=promotion,
            offset=offset, demand=demand,
        )  # fmt: skip

    @property
    def people(self) -> int:
        return len(self.customer)

    @property
    def products(self) -> int:
        return len(self.sku)

    @property
    def category(self) -> Array:
        return np.searchsorted(self.products_from, np.arange(self.products), side="right") - 1

    @property
    def end(self) -> int:
        return self.start + self.days * DAY

    @property
    def export(self) -> int:
        """When the files were taken: what arrives later is in none of them."""
        return self.end + DAY

    def day(self, t: Array) -> Array:
        return np.clip((t - self.start) // DAY, 0, self.days + 1)

    def offset_at(self, t: Array, market: Array | int) -> Array:
        """Local minus UTC, µs, at each moment in each market."""
        return self.offset[market, np.clip((t - self.start) // HOUR, 0, self.offset.shape[1] - 1)]

    def shown_price(self, product: Array, t: Array, currency: Array) -> Array:
        """What a customer saw: the catalogue's price at that moment, in the currency, after promotion."""
        day = self.day(t)
        euros = self.price[product, day] * self.promotion[self.category[product], day]
        return np.round(euros * np.array(RATES)[currency], 2)


def _price_history(rng: np.random.Generator, category: Array, products: int, days: int) -> Array:
    level = rng.lognormal(0, 0.5, len(CATEGORIES))[category]
    base = np.clip(25 * level * rng.lognormal(0, 0.7, products), 1.5, 2500)
    steps = np.ones((products, days + 2))
    changes = int(products * 1.5 * days / 90)
    at = rng.integers(0, products, changes), rng.integers(1, days + 1, changes)
    steps[at] = rng.uniform(0.85, 1.18, changes)
    return np.round(base[:, None] * np.cumprod(steps, axis=1), 2)


def _offsets(begin: int, days: int) -> Array:
    hours = [datetime.fromtimestamp(begin // SECOND, UTC) + timedelta(hours=h) for h in range((days + 3) * 24)]

    def of(zone: ZoneInfo) -> list[int]:
        return [round((hour.astimezone(zone).utcoffset() or timedelta()).total_seconds()) * SECOND for hour in hours]

    by_zone = {market.zone: of(ZoneInfo(market.zone)) for market in MARKETS}
    return np.array([by_zone[market.zone] for market in MARKETS])


def _demand(begin: int, days: int, offset: Array, promotion: int, length: int, share: Array) -> Array:
    """Share of all visits by hour and market: hour of the day, day of the week, growth, and the promotion's pull."""
    utc = begin + np.arange(days * 24) * HOUR
    local = utc[:, None] + offset[:, : days * 24].T
    # 1970-01-01 was a Thursday.
    weekday = (local // DAY + 3) % 7
    day = (utc - begin) // DAY
    pull = np.where((day >= promotion) & (day < promotion + length), 1.5, 1.0) * (1 + 0.25 * day / days)
    demand = _HOURS_OF_DAY[(local // HOUR) % 24] * _WEEKDAYS[weekday] * pull[:, None] * share
    return demand / demand.sum()


# -------------------------------------------------------------------------------------------------------- behaviour


@dataclass
class Counters:
    """Numbers that go on from block to block."""

    session: int = 0
    event: int = 0
    order: int = 0
    last_end: Array = field(default_factory=lambda: np.zeros(0, int))  # of each household's last visit


def live_through(world: World, files: Files, progress: Progress) -> None:
    """Make the shop's whole history, block by block, and hand each block to the files."""
    rng = np.random.default_rng([world.seed, 1])
    visits = rng.multinomial(world.visits, world.demand.ravel()).reshape(world.demand.shape)
    counters = Counters(last_end=np.full(world.people, world.start - DAY))
    files.accept(bots(world, np.random.default_rng([world.seed, 2]), counters))
    total = int(world.visits * 9.4)
    for number, (low, high) in enumerate(_blocks(visits.sum(axis=1))):
        rng = np.random.default_rng([world.seed, 3, number])
        rows, orders = visit(world, rng, visits[low:high], low, counters)
        files.accept(soil(world, rng, rows, counters), orders)
        files.flush(world.start + high * HOUR)
        progress(min(files.written, total), total)
    files.flush(None)
    progress(total, total)


def _blocks(visits_by_hour: Array) -> Iterator[tuple[int, int]]:
    """Ranges of hours with about BLOCK rows each."""
    done = np.cumsum(visits_by_hour) * 10 // BLOCK
    edges = [0, *(np.flatnonzero(np.diff(done)) + 1).tolist(), len(done)]
    return ((low, high) for low, high in zip(edges, edges[1:], strict=False) if high > low)


def visit(world: World, rng: np.random.Generator, visits: Array, first_hour: int, counters: Counters) -> tuple[Rows, Rows]:
    """The visits of some hours: rows of behaviour, clean but for denied consents, and the orders they made.

    `visits` counts them by hour and market.
    """
    hour, market = (index.repeat(visits.ravel()) for index in np.indices(visits.shape).reshape(2, -1))
    n = len(hour)
    start = world.start + ((first_hour + hour + rng.random(n)) * HOUR).astype(np.int64)
    person = weighted(rng, world.activity, world.people_from[market], world.people_from[market + 1])
    channel = _channels(rng, market)
    start = _into_the_odd_hour(world, rng, start, channel)
    start -= np.where(channel == STORE, start % SECOND, np.where(channel == WEB, start % 1000, 0))

    # Who is logged in: 0 never, 1 from the beginning, 2 from a login on the way.
    may = (world.customer[person] >= 0) & (start > world.signup[person] + 2 * MINUTE)
    u = rng.random(n)
    login = np.where(may, np.where(u < 0.45, 1, np.where((u < 0.68) & (channel != STORE), 2, 0)), 0)
    views = np.minimum(rng.geometric(0.28, n), 14)
    login_at = (rng.random(n) * views).astype(int)

    # One row for each product looked at, with a flag for each thing that may happen around it, in their order.
    of = np.repeat(np.arange(n), views)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(views) - views, views)
    last = nth == views[of] - 1
    u = rng.random((len(of), len(TYPES)), dtype=np.float32)
    online = channel[of] != STORE
    happens = np.zeros(u.shape, bool)
    happens[:, PAGE] = (nth == 0) & online
    happens[:, LOGIN] = online & (((login[of] == 2) & (nth == login_at[of])) | ((login[of] == 1) & (nth == 0) & (u[:, LOGIN] < 0.25)))
    happens[:, SEARCH] = u[:, SEARCH] < 0.2
    happens[:, LIST] = online & (u[:, LIST] < np.where(channel[of] == APP, 0.3, 0.4))
    happens[:, SELECT] = online & (happens[:, SEARCH] | happens[:, LIST]) & (u[:, SELECT] < 0.6)
    happens[:, VIEW] = True
    happens[:, WISH] = online & (u[:, WISH] < 0.05)
    happens[:, ADD] = u[:, ADD] < np.where(login[of] > 0, 0.17, 0.09)
    happens[:, REMOVE] = online & happens[:, ADD] & (u[:, REMOVE] < 0.1)

    low, high = np.zeros(len(of), int), np.full(len(of), world.products)
    keen = rng.random(len(of)) < 0.65
    liked = world.favourite[person][of[keen]]
    low[keen], high[keen] = world.products_from[liked], world.products_from[liked + 1]
    product = weighted(rng, world.popularity, low, high)
    quantity = rng.choice([1, 2, 3, 4, 6], len(of), p=[0.82, 0.11, 0.04, 0.02, 0.01])

    # What is left in the cart, each product once: the lines of an order.
    kept = np.flatnonzero(happens[:, ADD] & ~happens[:, REMOVE] & online)
    _, unique = np.unique(of[kept] * world.products + product[kept], return_index=True)
    line = kept[unique]
    lines = np.bincount(of[line], minlength=n)
    line_from = np.cumsum(lines) - lines
    full = last & (lines[of] > 0)
    happens[:, CART] = full & (u[:, CART] < 0.7)
    happens[:, CHECKOUT] = full & (u[:, CHECKOUT] < 0.55)
    happens[:, PAYMENT] = happens[:, CHECKOUT] & (u[:, PAYMENT] < 0.85)
    happens[:, PURCHASE] = happens[:, PAYMENT] & (u[:, PURCHASE] < 0.9)

    # Row by row, flag by flag: the events in their order, each some seconds after the one before.
    place, kind = np.nonzero(happens)
    dwell = np.clip(rng.lognormal(np.log(20), 0.9, len(place)), 1.2, 540)
    owner = of[place]
    opens = np.r_[True, owner[1:] != owner[:-1]]
    passed = np.cumsum(np.where(opens, 0, dwell))
    t = start[owner] + ((passed - passed[opens][np.cumsum(opens) - 1]) * SECOND).astype(np.int64)

    alone = _apart(world.household[person], start, t[np.r_[opens[1:], True]], counters)
    buys = np.zeros(n, bool)
    buys[owner[kind == PURCHASE]] = True
    denied = (rng.random(n) < 0.01) & ~buys & (login == 0) & (channel != STORE)

    # One row for each item of an event that has several.
    app = channel[owner] == APP
    items = np.ones(len(place), int)
    items[(kind == LIST) & app] = 3
    carries = (kind == PURCHASE) | (app & ((kind == CHECKOUT) | (kind == PAYMENT)))
    items[carries] = lines[owner[carries]]
    items[~alone[owner]] = 0
    e = np.repeat(np.arange(len(place)), items)
    nth_item = np.arange(len(e)) - np.repeat(np.cumsum(items) - items, items)
    s, place_e, kind_e, carries_e = owner[e], place[e], kind[e], carries[e]

    item = product[place_e]
    amount = quantity[place_e]
    from_cart = line[np.where(carries_e, line_from[s] + nth_item, 0)] if len(line) else place_e
    item = np.where(carries_e, product[from_cart], item)
    amount = np.where(carries_e, quantity[from_cart], amount)
    category = world.category[item]
    listed = (kind_e == LIST) & (channel[s] == APP)
    first, end = world.products_from[category], world.products_from[category + 1]
    item = np.where(listed, first + (item - first + nth_item) % (end - first), item)
    about_product = np.isin(kind_e, (SELECT, VIEW, WISH, ADD, REMOVE)) | listed | carries_e
    counted = np.isin(kind_e, (ADD, REMOVE)) | carries_e

    order = np.full(len(place), -1)
    bought = (kind == PURCHASE) & alone[owner]
    order[bought] = counters.order + 1 + np.arange(bought.sum())
    counters.order += int(bought.sum())
    currency = np.array([CURRENCIES.index(m.currency) for m in MARKETS])[market[s]]
    device = np.where(
        channel == APP,
        len(world.agents) + person,
        world.device_from[person] + (rng.random(n) * world.devices[person]).astype(int),
    )
    knows_user = (login[s] == 1) | ((login[s] == 2) & ((nth[place_e] > login_at[s]) | ((nth[place_e] == login_at[s]) & (kind_e >= LOGIN))))
    moment = t[e]
    moment -= np.where(channel[s] == STORE, moment % SECOND, np.where(channel[s] == WEB, moment % 1000, 0))
    campaign = np.where(rng.random(n) < 0.45, 0, rng.integers(1, len(CAMPAIGNS), n))
    rows = {
        "t": moment,
        "received": moment,
        "type": kind_e.astype(np.int8),
        "channel": channel[s].astype(np.int8),
        "session": counters.session + s,
        "began": start[s],
        "device": device[s],
        "market": market[s].astype(np.int8),
        "user": np.where(knows_user, world.customer[person[s]], -1).astype(np.int32),
        "product": np.where(about_product, item, -1).astype(np.int32),
        "category": np.where(about_product | (kind_e == LIST), category, -1).astype(np.int16),
        "quantity": np.where(counted, amount, NO_QUANTITY).astype(np.int64),
        "price": np.where(about_product, world.shown_price(item, moment, currency), np.nan),
        "currency": np.where(about_product, currency, -1).astype(np.int8),
        "order": order[e],
        "query": np.where(kind_e == SEARCH, category * len(QUERY_WORDS) + amount % len(QUERY_WORDS), -1).astype(np.int32),
        "agent": world.agents[np.minimum(device[s], len(world.agents) - 1)].astype(np.int16),
        "campaign": campaign[s].astype(np.int8),
        "consent": np.where(denied[s], 2, np.where(s % 20 == 0, 0, 1)).astype(np.int8),
        "event": counters.event + e,
        "uid": counters.event + np.arange(len(e)),
        "kind": np.where(denied[s], KIND["denied_consent"], 0).astype(np.int8),
        "detail": np.zeros(len(e), np.int8),
        "truth": np.full(len(e), np.nan),
    }
    counters.session += n
    counters.event += len(e)
    return rows, take(rows, np.flatnonzero(rows["type"] == PURCHASE))


def _channels(rng: np.random.Generator, market: Array) -> Array:
    """A channel for each visit; the store stands in Germany."""
    web, app, store = (share / mean for share, mean in zip(CHANNEL_ROWS, VISIT_ROWS, strict=True))
    u = rng.random(len(market)) * (web + app + store)
    store_here = np.where(market == 0, store / MARKETS[0].share, 0)
    # Elsewhere web and app share what the German store takes at home.
    scale = (web + app + store - store_here) / (web + app)
    return np.where(u < store_here, STORE, np.where(u < store_here + app * scale, APP, WEB))


def _into_the_odd_hour(world: World, rng: np.random.Generator, start: Array, channel: Array) -> Array:
    """Move some of the store's visits of a clock-change day into the hour that does not exist or comes twice."""
    for hour in changes(world):
        day = world.start + hour * HOUR // DAY * DAY
        there = (channel == STORE) & (start >= day) & (start < day + DAY) & (rng.random(len(start)) < 0.15)
        # Clocks go back: the hour before the change and the hour after it read the same.
        early = world.offset[0, hour] < world.offset[0, hour - 1]
        moved = world.start + (hour - early) * HOUR + (rng.random(len(start)) * (1 + early) * 45 * MINUTE).astype(np.int64)
        start = np.where(there, moved, start)
    return start


def changes(world: World) -> list[int]:
    """The hours (since the start) at which German clocks are put forward or back."""
    return [int(hour) + 1 for hour in np.flatnonzero(np.diff(world.offset[0, : world.days * 24]))]


def _apart(household: Array, start: Array, end: Array, counters: Counters) -> Array:
    """Which visits to keep so that an hour lies between any two of one household. Notes their ends."""
    by_start = np.lexsort((start, household))
    who, opens, ends = household[by_start], start[by_start], end[by_start]
    # The latest end so far within the household: a running maximum over numbers that only grow from one to the next.
    origin = int(opens.min(initial=0))
    span = int(ends.max(initial=0)) - origin + 1
    latest = np.maximum.accumulate((ends - origin) // 1000 + who * (span // 1000 + 1)) - who * (span // 1000 + 1)
    latest = latest * 1000 + origin
    before = np.r_[0, latest[:-1]]
    before[np.r_[True, who[1:] != who[:-1]]] = 0
    fine = opens > np.maximum(before, counters.last_end[who]) + HOUR
    kept = np.empty(len(start), bool)
    kept[by_start] = fine
    np.maximum.at(counters.last_end, who[fine], ends[fine])
    return kept


def bots(world: World, rng: np.random.Generator, counters: Counters) -> Rows:
    """Machines on the web shop: some say so, some click faster than people can, some go slowly and never sleep."""
    budget = world.visits * 9.4

    def runs(kind: str, share: float, low: int, high: int, needs: int) -> tuple[Array, Array]:
        count = max(1, round(budget * share / ((low + high) / 2))) if budget >= needs else 0
        return np.full(count, DETAIL[kind]), rng.integers(low, high, count)

    sorts = [
        runs("declared", 0.004, 30, 90, 0),
        runs("fast", 0.003, 1500, 2500, 20_000),
        runs("stealthy", 0.0015, 500, 750, 20_000),
    ]
    sort, length = (np.concatenate(column) for column in zip(*sorts, strict=True))
    of = np.repeat(np.arange(len(sort)), length)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(length) - length, length)
    gap = np.select(
        [sort[of] == DETAIL["declared"], sort[of] == DETAIL["fast"]],
        [0.5 + rng.exponential(4, len(of)), 1 + rng.exponential(8, len(of))],
        rng.uniform(200, 420, len(of)),
    )
    passed = np.cumsum(gap)
    passed -= passed[nth == 0][of]
    # A fast one does its work within one day; the slow ones take two or three.
    took = passed[np.r_[nth[1:] == 0, True]] * SECOND
    day = (rng.random(len(sort)) * np.maximum(world.days - np.where(sort == DETAIL["stealthy"], 3, 1), 1)).astype(int)
    room = np.where(sort == DETAIL["fast"], np.maximum(DAY - took, 0), DAY)
    begin = world.start + day * DAY + (rng.random(len(sort)) * room).astype(np.int64)
    t = begin[of] + (passed * SECOND).astype(np.int64)
    t -= t % 1000
    u = rng.random(len(of))
    kind = np.where(u < 0.8, VIEW, np.where(u < 0.95, LIST, PAGE))
    product = weighted(rng, world.popularity, np.zeros(len(of), int), np.full(len(of), world.products))
    looks = kind == VIEW
    market = rng.integers(0, len(MARKETS), len(sort))[of]
    currency = np.array([CURRENCIES.index(m.currency) for m in MARKETS])[market]
    agent = np.where(
        sort == DETAIL["declared"],
        len(AGENTS) + rng.integers(0, len(BOT_AGENTS), len(sort)),
        rng.integers(0, len(AGENTS), len(sort)),
    )
    rows = {
        "t": t,
        "received": t + 100_000,
        "type": kind.astype(np.int8),
        "channel": np.full(len(of), WEB, np.int8),
        "session": (1 << 40) + of,
        "began": begin[of],
        "device": len(world.agents) + world.people + of,
        "market": market.astype(np.int8),
        "user": np.full(len(of), -1, np.int32),
        "product": np.where(looks, product, -1).astype(np.int32),
        "category": np.where(kind == PAGE, -1, world.category[product]).astype(np.int16),
        "quantity": np.full(len(of), NO_QUANTITY, np.int64),
        "price": np.where(looks, world.shown_price(product, t, currency), np.nan),
        "currency": np.where(looks, currency, -1).astype(np.int8),
        "order": np.full(len(of), -1),
        "query": np.full(len(of), -1, np.int32),
        "agent": agent[of].astype(np.int16),
        "campaign": np.zeros(len(of), np.int8),
        "consent": np.ones(len(of), np.int8),
        "event": counters.event + np.arange(len(of)),
        "uid": counters.event + np.arange(len(of)),
        "kind": np.full(len(of), KIND["bot"], np.int8),
        "detail": sort[of].astype(np.int8),
        "truth": np.full(len(of), np.nan),
    }
    counters.event += len(of)
    return rows


# ------------------------------------------------------------------------------------------------------------- dirt


def soil(world: World, rng: np.random.Generator, rows: Rows, counters: Counters) -> Rows:
    """Plant dirt: at most one kind on a row, noted in its `kind`, `detail` and `truth`. Copies are added at the end."""
    n = size(rows)
    channel, kind = rows["channel"], rows["kind"]
    web, app, store = channel == WEB, channel == APP, channel == STORE
    rows["received"] = np.where(web, rows["t"] + ((0.08 + rng.exponential(1.5, n)) * 1000).astype(np.int64) * 1000, rows["t"])

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
        ("naive_local_time", "ordinary hour", 0.05, store),
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
    )
    u = rng.random(n)
    base = 0.0
    marked = np.zeros(n, np.int8)
    for name, detail, rate, where in bands:
        hit = (u >= base) & (u < base + rate) & where & free
        marked[hit], rows["detail"][hit] = KIND[name], DETAIL[detail]
        base += rate
    odd, which = _odd_hours(world, rows)
    changed = odd & free & (marked == 0)
    marked[changed], rows["detail"][changed] = KIND["naive_local_time"], which[changed]

    copied = np.isin(marked, [KIND["exact_duplicate"], KIND["near_duplicate"], KIND["redelivered_event"]])
    kind[:] = np.where((marked > 0) & ~copied, marked, kind)
    copies = [_copies(rng, rows, np.flatnonzero(copied), marked[copied], counters), _repeats(rng, rows, counters)]
    rows["detail"][copied] = 0
    _spoil(rng, world, rows)
    return join([rows, *copies])


def has_twin(order: Array) -> Array:
    """Whether the shop's database has the order, too."""
    return mix(order) % np.uint64(100) >= 3


def _odd_hours(world: World, rows: Rows) -> tuple[Array, Array]:
    """The store's rows on the days the clocks change, and what is odd about each one's local time."""
    odd = np.zeros(size(rows), bool)
    detail = np.full(size(rows), DETAIL["ordinary hour"], np.int8)
    t = rows["t"]
    for hour in changes(world):
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
    return session % 2 == 0


def _copies(rng: np.random.Generator, rows: Rows, at: Array, marked: Array, counters: Counters) -> Rows:
    """Second deliveries of rows: the same, nearly the same, or the same id at another time. On the web all come later."""
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


def _spoil(rng: np.random.Generator, world: World, rows: Rows) -> None:
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
    odd = of("unknown_currency")
    rows["currency"][odd] = len(CURRENCIES) + rng.integers(0, len(UNKNOWN_CURRENCIES), len(odd))
    ghosts, unknown = of("orphan_user"), of("orphan_product")
    rows["user"][ghosts] = GHOST_USER + rng.integers(0, 900_000, len(ghosts))
    rows["product"][unknown] = GHOST_PRODUCT + rng.integers(0, 90_000, len(unknown))
    wrong = of("misspelt_category")
    truth[wrong] = rows["category"][wrong]
    rows["category"][wrong] = len(CATEGORIES) + rows["category"][wrong] * WRONG_WAYS + rng.integers(0, WRONG_WAYS, len(wrong))


# ------------------------------------------------------------------------------------------------------------ files


class Truth:
    """What is wrong with which row: (kind, raw_table, source, position, detail, true_value, true_text), by kind."""

    SCHEMA: Final = pa.schema(
        [(name, pa.string()) for name in ("kind", "raw_table", "source", "position", "detail")]
        + [("true_value", pa.float64()), ("true_text", pa.string())]
    )

    def __init__(self, out: Path) -> None:
        self.out = out
        self.parts: list[pa.Table] = []
        self.counts: dict[str, int] = {}

    def add(self, raw_table: str, source: str, position: pa.Array, rows: Rows) -> None:
        """Note rows of behaviour, all of them dirty, with their positions."""
        kind, value = rows["kind"], rows["truth"]
        misspelt = kind == KIND["misspelt_category"]
        columns = [
            pa.array(KINDS).take(pa.array(kind)),
            pa.repeat(raw_table, len(kind)),
            pa.repeat(source, len(kind)),
            position,
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
            rows = whole.filter(pa.compute.equal(whole["kind"], name))
            self.counts[name] = rows.num_rows
            pq.write_table(rows, self.out / f"{name}.parquet")


def coded(codes: Array, texts: tuple[str, ...] | list[str]) -> pa.DictionaryArray:
    """Text by number; nothing where the number is negative."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=codes < 0), pa.array(texts))


def positions(base: str, numbers: Array) -> pa.Array:
    return pa.compute.binary_join_element_wise(base, pa.array(numbers).cast(pa.string()), "#")


def _write_text(file: IO[bytes], lines: pa.ChunkedArray) -> None:
    """Append strings as they lie in memory."""
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
    """The simulated systems' files, filled block by block, each row in the order in which it arrives."""

    def __init__(self, out: Path, world: World) -> None:
        self.out, self.world = out, world
        self.truth = Truth(out / "truth")
        self.rows = dict.fromkeys(("stream", "ga4_events", "ga4_items", "store"), 0)
        self.waiting: list[Rows] = []
        self.orders: list[Rows] = []
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
        """Take rows that are yet to be written, and the purchase rows of new orders."""
        self.waiting.append(rows)
        if orders is not None:
            self.orders.append(orders)
            self._note_logins(rows)

    def _note_logins(self, rows: Rows) -> None:
        at = np.flatnonzero((rows["user"] >= 0) & (rows["user"] < GHOST_USER) & (rows["channel"] != STORE))
        at = at[rows["kind"][at] != KIND["future_event"]]
        at = at[np.argsort(-rows["t"][at], kind="stable")]
        device, t = rows["device"][at], rows["t"][at]
        earlier = t < self.first_login[device]
        # The last assignment wins: the earliest of them all.
        self.first_login[device[earlier]] = t[earlier]
        self.first_user[device[earlier]] = rows["user"][at][earlier]

    def flush(self, until: int | None) -> None:
        """Write what is complete: all rows that arrive before `until`; at the end (None) all that the files reach."""
        rows = join(self.waiting)
        whole = until is None
        moment = self.world.export if until is None else until
        web = rows["channel"] == WEB
        app = rows["channel"] == APP
        store = rows["channel"] == STORE
        # A day's GA4 file is written once the day is over; the last one is whatever is left.
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
        number = np.where(product >= GHOST_PRODUCT, product, self.world.sku[np.minimum(product, self.world.products - 1)])
        return pa.array(number, mask=product < 0)

    def _write_stream(self, rows: Rows) -> None:
        if not size(rows):
            return
        rows = take(rows, np.lexsort((rows["kind"] == KIND["exact_duplicate"], rows["uid"], rows["received"])))
        shift = self.world.offset_at(rows["t"], rows["market"])
        hours = shift // HOUR
        zones = [f"{'-' if h < 0 else '+'}{abs(h):02d}:00" for h in range(-12, 13)]
        paths = ["/", "/login", "/search", "/c/", "/p/", "/p/", "/p/", "/p/", "/p/", "/cart", "/checkout", "/checkout/payment", "/thanks"]
        agents = [(kind, text) for kind, text in AGENTS] + [("desktop", text) for text in BOT_AGENTS]
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
                    [f',"device":"{kind}","ua":"{text}","country":"{m.code}"' for kind, text in agents for m in MARKETS],
                ),
                "campaign": coded(
                    rows["campaign"].astype(int) - 1,
                    [f',"ref":"{c[0]}"' + (f',"campaign":"{c[1]}"' if c[1] else "") for c in CAMPAIGNS if c],
                ),
                "consent": coded(rows["consent"].astype(int) - 1, [',"consent":"granted"', ',"consent":"denied"']),
                "ext": coded(
                    (device % np.uint64(7)).astype(int) - 1,
                    [f',"ext":{{"v":"4.{i}.0","viewport":"{900 + 100 * i}x800","ab":"{"ab"[i % 2]}"}}' for i in range(6)],
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
            rows, number = _losers(rows, number)
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
        for low, high in zip(edges, edges[1:], strict=False):
            base = f"events_{table['event_date'][low]}.parquet"
            pq.write_table(table.slice(low, high - low), self.out / "ga4" / base)
            part, number = _losers({name: column[low:high] for name, column in events.items()}, 1 + np.arange(high - low))
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
        self._write_background()

    def _write_background(self) -> None:
        """What the shop did: rates, promotions, who each device belongs to, and who became known too late."""
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
                case when app then {_APP_VISITOR} else printf('%016x', id) end as anonymous_id,
                printf('C%07d', buyer) as user_id, since from links"""
        ).to_arrow_table()
        self.con.unregister("links")
        pq.write_table(links, truth / "identity_links.parquet")


#: A GA4 pseudo id, as SQL over a 64-bit number `id`.
_APP_VISITOR: Final = "concat(id >> 32, '.', id & 4294967295)"


def queries() -> list[str]:
    return [f"{word} {category}" for category in CATEGORIES for word in QUERY_WORDS]


def _losers(rows: Rows, number: Array) -> tuple[Rows, Array]:
    """Where a row and its copy arrive at one moment, positions decide, compared as text: 'x#10' comes before 'x#9'.
    There the first of the two is the one that does not survive."""
    loses = (rows["kind"] == KIND["exact_duplicate"]) & np.isin(number, 10 ** np.arange(1, 12))
    return rows, np.where(loses, number - 1, number)


# -------------------------------------------------------------------------------------------------------------- ga4


def _lists(present: Array, fields: dict[str, Any]) -> pa.ListArray:
    """A list of structs a row: `present` says which slots (row by row) are there, `fields` hold the present ones."""
    offsets = running(present.sum(axis=1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(list(fields.values()), list(fields)))


def _nothing(n: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(n, kind)


def ga4_table(world: World, rows: Rows, first: Array, skus: pa.Array) -> pa.Table:
    """Events in the shape of GA4's BigQuery export, from item rows; `first` is the place of each event's first row."""
    items = np.diff(np.r_[first, size(rows)])
    event = take(rows, first)
    n = len(first)
    names, markets = list(TYPES), [m.country for m in MARKETS]
    text, whole, real = pa.string(), pa.int64(), pa.float64()

    def words(codes: Array, texts: list[str] | tuple[str, ...]) -> pa.Array:
        return pa.array(texts).take(pa.array(codes.astype(np.int32), mask=codes < 0))

    market, currency = event["market"].astype(int), rows["currency"]
    purchase = event["type"] == PURCHASE
    product = rows["product"] >= 0
    money = np.nan_to_num(rows["price"]) * np.where(rows["quantity"] == NO_QUANTITY, 1, rows["quantity"])
    value = np.round(np.add.reduceat(money, first), 2)
    units = np.add.reduceat(np.where(rows["quantity"] == NO_QUANTITY, 0, rows["quantity"]), first)

    # Parameters: session id, session number, engagement, place, currency, value, search term, method.
    code = event["type"].astype(int)
    has_value = np.isin(code, (ADD, REMOVE, CHECKOUT, PAYMENT, PURCHASE))
    always = np.ones(n, bool)
    present = np.column_stack([always, always, always, always, event["currency"] >= 0, has_value, code == SEARCH, code == LOGIN])
    keys = ["ga_session_id", "ga_session_number", "engagement_time_msec", "page_location", "currency", "value", "search_term", "method"]
    who, which = np.nonzero(present)
    numbers = np.column_stack([event["began"] // SECOND, 1 + event["session"] % 9, 100 + event["uid"] % 29_900])
    integer = which < 3
    places = [f"app://shop/{name}" for name in names]
    spoken = places + list(CURRENCIES) + queries() + ["email"]
    said = np.select(
        [which == 3, which == 4, which == 6, which == 7],
        [code[who], len(places) + event["currency"][who], len(places) + len(CURRENCIES) + event["query"][who], len(spoken) - 1],
        -1,
    )
    values = pa.StructArray.from_arrays(
        [
            words(said, spoken),
            pa.array(numbers[who, np.minimum(which, 2)], mask=~integer),
            _nothing(len(who), real),
            pa.array(value[who], mask=which != 5),
        ],
        ["string_value", "int_value", "float_value", "double_value"],
    )
    parameters = _lists(present, {"key": words(which, keys), "value": values})

    at = np.flatnonzero(product)
    per_euro = np.array(RATES)[np.maximum(currency[at], 0)]
    price = rows["price"][at]
    gone = np.isnan(price)
    quantity = rows["quantity"][at]
    sku = pa.compute.binary_join_element_wise("SKU-", pa.compute.utf8_lpad(skus.take(pa.array(at)).cast(text), 6, "0"), "")
    known = np.minimum(rows["product"][at], world.products - 1)
    lists = [1 if name == "view_item_list" else 0 for name in names]
    item = {
        "item_id": sku,
        "item_name": words(world.category[known], [f"{c} item" for c in CATEGORIES]),
        "item_brand": words(known % len(BRANDS), BRANDS),
        "item_variant": pa.repeat(pa.scalar("(not set)"), len(at)),
        "item_category": words(rows["category"][at].astype(int), CATEGORIES),
        "item_category2": pa.repeat(pa.scalar("(not set)"), len(at)),
        "item_category3": pa.repeat(pa.scalar("(not set)"), len(at)),
        "price_in_usd": pa.array(np.round(price / per_euro * RATES[1], 2), mask=gone),
        "price": pa.array(price, mask=gone),
        "quantity": pa.array(quantity, mask=quantity == NO_QUANTITY),
        "item_revenue": pa.array(price * quantity, mask=gone | (rows["type"][at] != PURCHASE)),
        "coupon": pa.repeat(pa.scalar("(not set)"), len(at)),
        "item_list_name": words(np.array(lists)[rows["type"][at]] - 1, ["Category page"]),
    }
    counts = np.where(product[first], items, 0)
    offsets = pa.array(running(counts).astype(np.int32))
    item_lists = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(list(item.values()), list(item)))

    def struct(**fields: pa.Array) -> pa.StructArray:
        return pa.StructArray.from_arrays(list(fields.values()), list(fields))

    order = pa.compute.binary_join_element_wise("W", pa.compute.utf8_lpad(pa.array(event["order"]).cast(text), 9, "0"), "")
    buyer = pa.compute.binary_join_element_wise(
        "C", pa.compute.utf8_lpad(pa.array(event["user"], mask=event["user"] < 0).cast(text), 7, "0"), ""
    )
    device = mix(event["device"])
    low, high = device & np.uint64(0xFFFFFFFF), device >> np.uint64(32)
    visitor = pa.compute.binary_join_element_wise(pa.array(high).cast(text), pa.array(low).cast(text), ".")
    android = event["agent"] % 2
    medium, source = ["(none)", "organic", "cpc", "social", "email", "affiliate"], ["(direct)", "google", "google", "instagram", "newsletter", "deals"]
    campaign = event["campaign"].astype(int)
    dates = pa.compute.strftime(pa.array(event["t"], pa.timestamp("us")).cast(pa.timestamp("s"), safe=False), "%Y%m%d")
    return pa.table(
        {
            "event_date": dates,
            "event_timestamp": pa.array(event["t"]),
            "event_name": words(code, names),
            "event_params": parameters,
            "event_bundle_sequence_id": pa.array(event["event"] % 10_000),
            "user_id": buyer,
            "user_pseudo_id": visitor,
            "privacy_info": struct(
                analytics_storage=words((event["consent"] == 2).astype(int), ["Yes", "No"]),
                ads_storage=words((event["consent"] == 2).astype(int), ["Yes", "No"]),
            ),
            "device": struct(
                category=words(np.zeros(n), ["mobile"]),
                operating_system=words(android, ["iOS", "Android"]),
                language=words(market, ["de-de", "fr-fr", "es-es", "en-gb", "sv-se", "en-us", "en-us"]),
                web_info=struct(browser=_nothing(n, text), hostname=_nothing(n, text)),
            ),
            "geo": struct(country=words(market, markets), region=_nothing(n, text), city=_nothing(n, text)),
            "traffic_source": struct(
                name=words(campaign, ["(direct)", "(organic)", "brand_search", "spring_looks", "newsletter", "promo_week"]),
                medium=words(campaign, medium),
                source=words(campaign, source),
            ),
            "stream_id": pa.array(np.full(n, 2100450278)),
            "platform": words(android, ["IOS", "ANDROID"]),
            "ecommerce": struct(
                transaction_id=pa.compute.if_else(pa.array(purchase), order, pa.scalar(None, text)),
                purchase_revenue=pa.array(value, mask=~purchase),
                total_item_quantity=pa.array(units, whole, mask=~has_value),
            ),
            "items": item_lists,
        }
    )


# --------------------------------------------------------------------------------------------------------- database

BRANDS: Final = ("Aurora", "Birch", "Cobalt", "Delta", "Ember", "Fjord", "Granite", "Harbor", "Iris", "Juniper", "Kestrel", "Lumen")
_UNITS: Final = ("g", "kg", "lb", "oz", "KG", "lbs", "grams")
_GRAMS: Final = (1.0, 1000.0, 453.59237, 28.349523125, 1000.0, 453.59237, 1.0)

Delivery = tuple[str, pa.Table, list[pa.Table]]


def database(con: duckdb.DuckDBPyConnection, world: World, rng: np.random.Generator, bought: Rows) -> Iterator[Delivery]:
    """The shop's own tables, each as (name, rows, truth): every version of a row, in the order of `updated_at`."""
    yield _customers(con, world, rng)
    yield _products(con, world, rng)
    yield from _orders(con, world, rng, bought)


def _ask(con: duckdb.DuckDBPyConnection, query: str, **tables: pa.Table) -> pa.Table:
    for name, table in tables.items():
        con.register(name, table)
    answer = con.execute(query).to_arrow_table()
    for name in tables:
        con.unregister(name)
    return answer


def _times(t: Array, mask: Array | None = None) -> pa.Array:
    return pa.array(t, pa.timestamp("us"), mask=mask)


def _customers(con: duckdb.DuckDBPyConnection, world: World, rng: np.random.Generator) -> Delivery:
    person = np.flatnonzero(world.customer >= 0)
    n = len(person)
    market = np.searchsorted(world.people_from, person, side="right") - 1
    income = np.round(rng.lognormal(np.log(38_000), 0.45, n), -2)
    facts = pa.table(
        {
            "number": world.customer[person],
            "registered": _times(world.signup[person]),
            "changed": _times(world.known[person]),
            # One in ten moves house or changes their mind: a second version of the row.
            "changed_again": _times(
                world.known[person] + (rng.random(n) * 60 * DAY).astype(np.int64) // SECOND * SECOND + DAY, rng.random(n) > 0.1
            ),
            "born": pa.array(rng.integers(1940, 2007, n)),
            "born_missing": rng.random(n) < 0.15,
            "sex": coded(rng.integers(0, 3, n) - 1, ["f", "m"]),
            "land": coded(market, [m.code for m in MARKETS]),
            "household": pa.array(rng.choice([1, 2, 3, 4, 5], n, p=[0.35, 0.33, 0.15, 0.12, 0.05])),
            "household_missing": rng.random(n) < 0.2,
            "income": income,
            # The rich say it less often: missing, and not at random.
            "income_missing": rng.random(n) < np.where(income > 55_000, 0.7, 0.25),
            "channel": coded(rng.integers(0, 5, n), ["search", "social", "email", "affiliate", "store"]),
            "newsletter": rng.random(n) < 0.4,
        }
    )
    query = f"""
    with versions as (
        select * from facts
        union all
        select * replace (changed_again as changed, not newsletter as newsletter) from facts where changed_again is not null
    ),
    numbered as (
        select *, row_number() over (order by changed, number) as n from versions where changed < make_timestamp({world.export})
    )
    """
    table = _ask(
        con,
        query
        + """select printf('C%07d', number) as customer_no, registered, changed,
            case when not born_missing then born end as born, sex::varchar as sex, land::varchar as land,
            case when not household_missing then household end as household,
            case when not income_missing then income::bigint end as income, channel::varchar as channel, newsletter
            from numbered order by n""",
        facts=facts,
    )
    truth = _ask(
        con,
        query
        + """, gaps as (
            select n, 'income' as what, income as value from numbered where income_missing
            union all select n, 'born', born from numbered where born_missing
            union all select n, 'household', household from numbered where household_missing
        )
        select 'missing_value' as kind, 'customers' as raw_table, 'shop_database' as source,
            'customers.csv#' || n as position, what as detail, value::double as true_value, null::varchar as true_text
        from gaps order by n, what""",
        facts=facts,
    )
    return "customers", table, [truth]


def _products(con: duckdb.DuckDBPyConnection, world: World, rng: np.random.Generator) -> Delivery:
    n = world.products
    late = world.known_product
    changed = np.diff(world.price[:, : world.days + 1], axis=1) != 0
    # The first version of a row, then one for each day on which the price changed after it was known.
    changed &= np.arange(1, world.days + 1) > late[:, None]
    product, day = np.nonzero(changed)
    product, day = np.r_[np.arange(n), product], np.r_[np.maximum(late, 0), day + 1]
    original = np.arange(len(product)) < n
    arrives = world.start + day * DAY
    arrives[original] = np.where(late >= 0, world.start + late * DAY + 9 * HOUR, world.start - 30 * DAY)
    created = np.where(late >= 0, world.start + late * DAY, world.start - (30 + rng.integers(0, 700, n)) * DAY)
    unit = rng.choice(len(_UNITS), n, p=[0.45, 0.2, 0.12, 0.12, 0.04, 0.04, 0.03])
    typical = rng.lognormal(np.log(500), 0.8, len(CATEGORIES))[world.category]
    grams = np.round(np.clip(typical * rng.lognormal(0, 0.35, n), 20, 60_000))
    misspelt = rng.random(n) < 0.02
    weight_missing = rng.random(n) < 0.02
    way = len(CATEGORIES) + world.category * WRONG_WAYS + rng.integers(0, WRONG_WAYS, n)
    versions = pa.table(
        {
            "number": world.sku[product],
            "category": coded(np.where(misspelt, way, world.category)[product], SPELLINGS),
            "right_category": coded(world.category[product], CATEGORIES),
            "misspelt": misspelt[product],
            "brand": coded(product % len(BRANDS), BRANDS),
            "price": world.price[product, day],
            "weight": np.round(grams / np.array(_GRAMS)[unit], 4)[product],
            "unit": coded(unit[product], _UNITS),
            "foreign": (unit > 0)[product],
            "grams": grams[product],
            "weight_missing": weight_missing[product],
            "created": _times(created[product]),
            "changed": _times(arrives),
        }
    )
    query = "with numbered as (select *, row_number() over (order by changed, number) as n from versions) "
    table = _ask(
        con,
        query
        + """select printf('SKU-%06d', number) as sku, brand || ' ' || trim(right_category::varchar) || ' ' || number as name,
            brand::varchar as brand, category::varchar as category, price as price_eur,
            case when not weight_missing then weight end as weight, unit::varchar as unit, created, changed
            from numbered order by n""",
        versions=versions,
    )
    truth = _ask(
        con,
        query
        + """, dirt as (
            select n, number, 'misspelt_category' as kind, null::double as value, right_category::varchar as text
            from numbered where misspelt
            union all select n, number, 'wrong_unit', grams, unit::varchar from numbered where "foreign" and not weight_missing
            union all select n, number, 'missing_value', grams, 'weight' from numbered where weight_missing
        )
        select kind, 'products' as raw_table, 'shop_database' as source, 'products.csv#' || n as position,
            printf('SKU-%06d', number) as detail, value as true_value, text as true_text
        from dirt order by n, kind""",
        versions=versions,
    )
    return "products", table, [truth]


def _orders(con: duckdb.DuckDBPyConnection, world: World, rng: np.random.Generator, bought: Rows) -> Iterator[Delivery]:
    line = {name: bought[name] for name in ("order", "product", "quantity", "price")}
    line = take(line, np.flatnonzero(has_twin(line["order"])))
    order, at = np.unique(bought["order"], return_index=True)
    header = take({**bought, "phone": np.zeros(size(bought), bool)}, at)
    header = take(header, np.flatnonzero(has_twin(order)))
    header, line = _with_phone_orders(world, rng, header, line)
    n = size(header)

    def minutes(low: float, high: float) -> Array:
        return (rng.uniform(low, high, n) * 60).astype(np.int64) * SECOND

    created = header["t"] // 1000 * 1000 + rng.integers(0, 2000, n) * 1000
    u = rng.random(n)
    paid = created + np.where(u < 0.9, minutes(0.5, 20), minutes(60, 2000))
    shipped = paid + minutes(8 * 60, 4 * 24 * 60)
    cancelled = rng.random(n) < 0.02
    # Impossible orders of times: only on orders that the web never saw, so that nothing else depends on them.
    early = (created < world.end - DAY) & header["phone"]
    u = rng.random(n)
    paid_first, shipped_first = early & (u < 0.08), early & (u >= 0.08) & (u < 0.16)
    paid = np.where(paid_first, created - minutes(60, 2880), np.where(shipped_first, created + minutes(1, 20), paid))
    shipped = np.where(shipped_first, paid - minutes(60, 2880), np.where(paid_first, created + minutes(60, 600), shipped))
    cancelled &= ~(paid_first | shipped_first)
    first = created + minutes(1, 60)
    second = np.maximum(first, paid) + minutes(1, 5)
    third = np.maximum(second, shipped) + minutes(1, 30)
    headers = pa.table(
        {
            "number": header["order"], "phone": header["phone"], "buyer": pa.array(header["user"], mask=header["user"] < 0),
            "channel": header["channel"], "id": mix(header["device"]), "id_of_session": mix(header["session"]),
            "began": header["began"] // SECOND,
            "currency": coded(np.array([CURRENCIES.index(m.currency) for m in MARKETS])[header["market"]], CURRENCIES),
            "created": _times(created), "paid": _times(paid), "shipped": _times(shipped, cancelled),
            "first": _times(first), "second": _times(second), "third": _times(third),
            "disorder": coded(np.where(paid_first, 0, np.where(shipped_first, 1, -1)), ["paid before created", "shipped before paid"]),
        }
    )  # fmt: skip
    lines = pa.table({**line, "sku": world.sku[line["product"]]})
    con.register("headers", headers)
    con.register("line_rows", lines)
    con.execute(
        f"""
        create temp table header as select *, printf('%s%09d', case when phone then 'P' else 'W' end, number) as order_id,
            printf('C%07d', buyer) as user_id,
            case when phone then null when channel = {APP} then {_APP_VISITOR} else printf('%016x', id) end as anonymous_id,
            case when phone then null when channel = {APP} then began::varchar else printf('%016x', id_of_session) end as session_id
        from headers;
        create temp table line as select h.*, row_number() over (partition by order_id order by l.sku) as line_id, l.sku, l.quantity, l.price
        from line_rows as l inner join header as h on l."order" = h.number
        """
    )
    known = f"updated_at < make_timestamp({world.export})"
    yield "orders", _ask(
        con,
        f"""
        with versions as (
            select order_id, 'created' as status, null::timestamp as paid_at, null::timestamp as shipped_at, "first" as updated_at from header
            union all select order_id, 'paid', paid, null, "second" from header
            union all select order_id, case when shipped is null then 'cancelled' else 'shipped' end, paid, shipped, third from header
        )
        select v.order_id, user_id, anonymous_id, session_id, v.status, currency::varchar as currency, created as created_at,
            paid_at, shipped_at, v.updated_at, case when phone then 'phone' when channel = {APP} then 'app' else 'web' end as channel
        from versions as v inner join header using (order_id) where {known} order by v.updated_at, v.order_id
        """,
    ), []
    items = _ask(
        con,
        f"""select order_id, line_id, printf('SKU-%06d', sku) as product_id, quantity, price, currency::varchar as currency,
            "first" as updated_at, disorder::varchar as disorder
        from line where {known.replace("updated_at", '"first"')} order by "first", order_id, line_id""",
    )
    yield "order_items", items.drop_columns("disorder"), [
        _ask(
            con,
            """select 'disordered_times' as kind, 'order_items' as raw_table, 'shop_database' as source,
                'order_items.parquet#' || n as position, disorder as detail, null::double as true_value, order_id as true_text
            from (select *, row_number() over () as n from items) where disorder is not null order by n""",
            items=items,
        )
    ]
    yield _refunds(con, world, rng, known)


def _with_phone_orders(world: World, rng: np.random.Generator, header: Rows, line: Rows) -> tuple[Rows, Rows]:
    """Add orders that came by telephone, which no web analytics saw."""
    buyers = np.flatnonzero((world.customer >= 0) & (world.signup < world.end - 2 * DAY))
    n = max(12, size(header) * 6 // 100)
    person = rng.choice(buyers, n)
    earliest = np.maximum(world.signup[person], world.start) + 10 * MINUTE
    t = earliest + (rng.random(n) * (world.end - HOUR - earliest)).astype(np.int64)
    market = np.searchsorted(world.people_from, person, side="right") - 1
    currency = np.array([CURRENCIES.index(m.currency) for m in MARKETS])[market]
    base = int(header["order"].max(initial=0)) + 1
    lines = rng.integers(1, 4, n)
    of = np.repeat(np.arange(n), lines)
    product = weighted(rng, world.popularity, np.zeros(len(of), int), np.full(len(of), world.products))
    _, unique = np.unique(of * world.products + product, return_index=True)
    of, product = of[unique], product[unique]
    phone = {
        **{name: np.full(n, -1, column.dtype) for name, column in header.items()},
        "t": t, "order": base + np.arange(n), "user": world.customer[person], "market": market, "phone": np.ones(n, bool),
    }  # fmt: skip
    phone_line = {
        "order": base + of, "product": product, "quantity": rng.integers(1, 3, len(of)),
        "price": world.shown_price(product, t[of], currency[of]),
    }  # fmt: skip
    return join([header, phone]), join([line, phone_line])


def _refunds(con: duckdb.DuckDBPyConnection, world: World, rng: np.random.Generator, known: str) -> Delivery:
    count = con.execute("select count(*) from line").fetchall()[0][0]
    chances = pa.table(
        {"u": rng.random(count), "back": (rng.uniform(2, 20, count) * DAY).astype(np.int64), "noted": rng.integers(60, 3600, count) * SECOND,
         "part": rng.random(count)}
    )  # fmt: skip
    refunds = _ask(
        con,
        f"""
        with chance as (select *, row_number() over () as sold_line from chances),
        sold as (select *, row_number() over (order by order_id, line_id) as sold_line from line),
        back as (
            select sold.*, (1 + floor(part * quantity))::bigint as returned, shipped + to_microseconds(back) as refunded_at,
                shipped + to_microseconds(back + noted) as updated_at, u
            from sold inner join chance using (sold_line) where u < 0.05 and shipped is not null and disorder is null
        ),
        numbered as (select *, row_number() over (order by updated_at, order_id, line_id) as n from back where {known})
        select printf('R%07d', n) as refund_id, order_id, line_id::varchar as line_id, user_id, printf('SKU-%06d', sku) as product_id,
            returned as quantity, round(returned * price, 2) as amount, currency::varchar as currency, refunded_at, updated_at, n, u
        from numbered order by n
        """,
        chances=chances,
    )
    # Now and then one names an order that no table holds.
    refunds = _ask(
        con,
        "select * replace (case when u < 0.0005 or n = 1 then 'W9' || substr(order_id, 3) else order_id end as order_id) from refunds order by n",
        refunds=refunds,
    )
    truth = _ask(
        con,
        """select 'orphan_order' as kind, 'refunds' as raw_table, 'shop_database' as source, 'refunds.parquet#' || n as position,
            order_id as detail, null::double as true_value, null::varchar as true_text
        from refunds where u < 0.0005 or n = 1 order by n""",
        refunds=refunds,
    )
    return "refunds", refunds.drop_columns(["n", "u"]), [truth]
