"""The simulated shop's people, products, prices and demand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from orchestration.simulation.numbers import Array, running
from orchestration.simulation.words import (
    AGENTS,
    CATEGORIES,
    CHANNEL_ROWS,
    CLEAN_SHARE,
    DAY,
    HOUR,
    MARKETS,
    RATES,
    SECOND,
    VISIT_ROWS,
    WHOLESALE_HOURS,
)

_HOURS_OF_DAY = np.array([2, 1, 1, 1, 1, 2, 4, 7, 9, 10, 11, 12, 13, 12, 11, 11, 12, 13, 15, 18, 20, 18, 11, 5], float)
_WEEKDAYS = np.array([1.0, 0.97, 0.98, 1.0, 1.05, 1.2, 1.25])


@dataclass(frozen=True)
class World:
    """The shop's people, products and demand. People are numbered by market and products by category, so that a market's
    people and a category's products are ranges."""

    seed: int
    days: int
    start: int
    events: int  # requested number of event rows
    visits: int
    # people
    people_from: Array  # first person of each market, and the end
    activity: Array  # running weights of people
    customer: Array  # public number of a customer, -1 for those who never sign up
    signup: Array  # time of signing up, µs
    known: Array  # time when the customer's row arrives, µs
    household: Array
    device_from: Array
    devices: Array  # number of web devices
    favourite: Array  # category
    agents: Array  # agent of each web device
    # products
    category: Array
    products_from: Array  # first product of each category, and the end
    popularity: Array  # running weights of products
    sku: Array  # public number
    price: Array  # EUR by product and day
    known_product: Array  # day when a late product's row arrives, -1 for the others
    promotion: Array  # factor by category and day
    # time
    offset: Array  # local minus UTC, µs, by market and hour
    demand: Array  # share of visits by hour and market
    clock_changes: list[int]  # hours from the start at which German clocks are put forward or back
    wholesale: bool  # whether resellers buy in boxes, in hours of their own

    @staticmethod
    def make(events: int, seed: int, days: int, start: date, wholesale: bool = False) -> World:
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
        # A few customers are in the customer table only days after their first events, which have to wait. All are in it before
        # the export; otherwise their events would be orphans that the truth does not list.
        late = rng.random(people) < 0.01
        wait = (0.5 + 0.2 * days * rng.random(people)) * DAY
        known = np.where(
            late, np.minimum(np.maximum(signup, begin) + wait.astype(int), begin + days * DAY), signup + 2 * SECOND
        )
        known -= known % SECOND
        household = np.arange(people)
        shared = np.flatnonzero((rng.random(people - 1) < 0.02) & (people_market[1:] == people_market[:-1])) + 1
        shared = shared[household[shared - 1] == shared - 1]
        household[shared] = shared - 1
        devices = np.where(is_customer, rng.choice([1, 2, 3], people, p=[0.5, 0.35, 0.15]), 1)
        device_from = running(devices).astype(int)[:-1]
        total_devices = int(devices.sum())
        # Members of a household share the first member's devices.
        device_from[shared], devices[shared] = device_from[shared - 1], devices[shared - 1]
        weight = np.where(is_customer, 1.85, 0.67) * rng.lognormal(0, 0.9, people)

        count = int(np.clip(events // 250, 120, 20_000))
        rank = rng.permutation(count) + 1
        category = np.sort(np.arange(count) % len(CATEGORIES))
        price = _price_history(rng, category, count, days)
        late_products = np.full(count, -1)
        # Neither the best sellers nor products that are hardly viewed.
        some = rng.permutation(np.flatnonzero((rank > 5) & (rank < count // 2)))[: max(2, count // 100)]
        late_products[some] = rng.integers(1, max(2, days // 2), len(some))
        promotion = np.ones((len(CATEGORIES), days + 2))
        length = min(7, max(1, days // 4))
        first = int(days * 0.6)
        promotion[::2, first : first + length] = 0.8

        offset = _offsets(begin, days)
        demand = _demand(begin, days, offset, first, length, share)
        rows_of_visit = 1 / sum(part / mean for part, mean in zip(CHANNEL_ROWS, VISIT_ROWS, strict=True))
        return World(
            seed=seed, days=days, start=begin, events=events,
            visits=max(50, round(events * CLEAN_SHARE / rows_of_visit)),
            people_from=people_from, activity=running(weight), customer=customer, signup=signup, known=known,
            household=household, device_from=device_from, devices=devices,
            favourite=rng.integers(0, len(CATEGORIES), people), agents=rng.integers(0, len(AGENTS), total_devices),
            category=category,
            products_from=np.searchsorted(category, np.arange(len(CATEGORIES) + 1)), popularity=running(rank**-0.9),
            sku=rng.permutation(count) + 1, price=price, known_product=late_products, promotion=promotion,
            offset=offset, demand=demand,
            clock_changes=(np.flatnonzero(np.diff(offset[0, : days * 24])) + 1).tolist(), wholesale=wholesale,
        )  # fmt: skip

    @property
    def people(self) -> int:
        return len(self.customer)

    @property
    def products(self) -> int:
        return len(self.sku)

    @property
    def end(self) -> int:
        return self.start + self.days * DAY

    @property
    def export(self) -> int:
        """The time of the export: rows that arrive later are in no file."""
        return self.end + DAY

    def day(self, t: Array) -> Array:
        """The day of each time, counted from the start, as an index into the price list."""
        day: Array = np.clip((t - self.start) // DAY, 0, self.days + 1)
        return day

    def is_wholesale_hour(self, t: Array) -> Array:
        """Whether each time is in the hours of resellers; never without `wholesale`."""
        first, end = WHOLESALE_HOURS
        hour = t // HOUR % 24
        # 1970-01-01 was a Thursday.
        within: Array = self.wholesale & ((t // DAY + 3) % 7 < 5) & (hour >= first) & (hour < end)
        return within

    def offset_at(self, t: Array, market: Array | int) -> Array:
        """Local time minus UTC, µs, at each time in each market."""
        hour = np.clip((t - self.start) // HOUR, 0, self.offset.shape[1] - 1)
        offset: Array = self.offset[market, hour]
        return offset

    def shown_price(self, product: Array, t: Array, currency: Array) -> Array:
        """The price shown to a customer: the catalogue price at that time, in the currency, after promotion."""
        day = self.day(t)
        euros = self.price[product, day] * self.promotion[self.category[product], day]
        price: Array = np.round(euros * np.array(RATES)[currency], 2)
        return price


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
    """The share of all visits by hour and market, from hour of day, weekday, growth and promotion."""
    utc = begin + np.arange(days * 24) * HOUR
    local = utc[:, None] + offset[:, : days * 24].T
    # 1970-01-01 was a Thursday.
    weekday = (local // DAY + 3) % 7
    day = (utc - begin) // DAY
    pull = np.where((day >= promotion) & (day < promotion + length), 1.5, 1.0) * (1 + 0.25 * day / days)
    demand: Array = _HOURS_OF_DAY[(local // HOUR) % 24] * _WEEKDAYS[weekday] * pull[:, None] * share
    demand /= demand.sum()
    return demand
