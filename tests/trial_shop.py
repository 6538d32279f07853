"""A shop to test finegrain with, and its truth: the data that a new user's sources deliver, and the events that really
happened.

A shop for household goods in Germany, with customers in Austria, Switzerland and Britain, over six weeks in which the
clocks change. It sends its web events through Segment, sells through Shopify, keeps its articles in a CSV file and its
accounts in a database. The generator records each visit, order and refund as it creates it, so the truth is never
derived from the files. It does not use finegrain, and it does not look like the shop that `finegrain simulate`
makes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

BERLIN = ZoneInfo("Europe/Berlin")
FIRST_DAY, DAYS = date(2025, 3, 3), 42  # the clocks go forward on the 30th of March
#: The time when everything has been delivered.
END = datetime(2025, 4, 14, 6, tzinfo=UTC)
SITE = "https://www.lindenhof.example"

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

#: Category, tax in Germany, and the lowest and highest price.
CATEGORIES = (
    ("Geschirr", "0.19", 490, 3990),
    ("Töpfe & Pfannen", "0.19", 1990, 12900),
    ("Gläser", "0.19", 350, 2490),
    ("Kochbücher", "0.07", 990, 4490),
    ("Gewürze", "0.07", 290, 1290),
    ("Küchenmaschinen", "0.19", 4900, 29900),
    ("Textilien", "0.19", 690, 5990),
    ("Deko", "0.19", 450, 6900),
)
BRANDS = ("Tannwald", "Müller & Söhne", "Rosenberg", "Nordlicht", "Käthe")
#: Country, currency, its prices as a multiple of those in euro, whether prices include the tax, and a rate to use instead.
MARKETS = {
    "DE": ("EUR", Decimal("1"), True, None),
    "AT": ("EUR", Decimal("1"), True, None),
    "CH": ("CHF", Decimal("1.05"), False, Decimal("0.081")),
    "GB": ("GBP", Decimal("0.90"), True, Decimal("0.20")),
}
AGENTS = {
    "desktop": (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/133.0.0.0 Safari/537.36",
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.3 Safari/605.1.15",
        "Mozilla/5.0 (X11; Linux x86_64; rv:135.0) Gecko/20100101 Firefox/135.0",
    ),
    "mobile": (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_3 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.3 Mobile/15E148 Safari/604.1",
        "Mozilla/5.0 (Linux; Android 15; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/133.0.0.0 Mobile Safari/537.36",
    ),
    "tablet": (
        "Mozilla/5.0 (iPad; CPU OS 17_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.7 Mobile/15E148 Safari/604.1",
        "Mozilla/5.0 (Linux; Android 14; SM-X710) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/133.0.0.0 Safari/537.36",
    ),
}
BOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
#: Channels, with the names of Google Analytics 4: the referrer, the tags of the link, and their percentage of visits.
CHANNELS: dict[str, tuple[str | None, dict[str, str], int]] = {
    "direct": (None, {}, 34),
    "organic search": ("https://www.google.com/", {}, 26),
    "paid search": ("https://www.google.com/", {"source": "google", "medium": "cpc", "campaign": "fruehling"}, 14),
    "email": (None, {"source": "newsletter", "medium": "email", "campaign": "kw"}, 10),
    "organic social": ("https://l.instagram.com/", {}, 9),
    "referral": ("https://www.haushaltstest.example/pfannen", {}, 7),
}
#: Later states of orders, in percent.
FATES = {
    "paid": 80,
    "pending": 4,
    "voided": 4,
    "cancelled after payment": 2,
    "all lines returned": 3,
    "refunded without lines": 2,
    "some units returned": 3,
    "goodwill": 2,
}


def cents(amount: Decimal) -> Decimal:
    """Rounded to the cent, halves away from zero, as shops do."""
    return amount.quantize(Decimal("0.01"), ROUND_HALF_UP)


def utc(moment: datetime) -> str:
    """A time in Segment's format."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def local(moment: datetime) -> str:
    """A time in Shopify's format: the shop's local time, with its offset."""
    return moment.astimezone(BERLIN).isoformat(timespec="seconds")


def day_of(moment: datetime) -> date:
    """The day in the shop's time zone."""
    return moment.astimezone(BERLIN).date()


# --- what there is -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Article:
    """An article of the shop, with its price in euro."""

    sku: str
    title: str
    brand: str
    category: str
    price: Decimal
    tax_rate: Decimal

    def price_in(self, country: str) -> Decimal:
        """The price in a country, in its currency: a price in euro keeps its ending, others end in 0."""
        _, factor, _, _ = MARKETS[country]
        return self.price if factor == 1 else (self.price * factor).quantize(Decimal("0.1"), ROUND_HALF_UP) + 0

    def tax_in(self, country: str) -> Decimal:
        return MARKETS[country][3] or self.tax_rate


@dataclass(frozen=True)
class Device:
    """A browser, with the id that Segment gives it."""

    anonymous_id: str
    kind: str
    agent: str


@dataclass
class Person:
    """A visitor; `login` is the id of an account, if there is one."""

    number: int
    country: str
    login: str | None
    devices: list[Device]
    shares_device: bool = False

    @property
    def currency(self) -> str:
        return MARKETS[self.country][0]


# --- what happened -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Visit:
    """One visit of one person on one device: the times of its web events, each with its type."""

    person: Person
    device: Device
    channel: str
    #: The information that identifies the channel.
    changed_via: str
    moments: list[tuple[datetime, str]] = field(default_factory=list)
    order: Order | None = None
    login_is_known: bool = False
    put_in_cart: Decimal = Decimal(0)

    @property
    def started_at(self) -> datetime:
        return self.moments[0][0]

    @property
    def ended_at(self) -> datetime:
        return self.moments[-1][0]

    def has(self, kind: str) -> bool:
        return any(what == kind for _, what in self.moments)


@dataclass(frozen=True)
class Line:
    """A line of an order; `discount` and `tax` are for all its units. The order says whether the tax is included in the
    price or added."""

    line_id: str
    article: Article
    quantity: int
    price: Decimal
    discount: Decimal
    tax: Decimal

    @property
    def gross(self) -> Decimal:
        return self.price * self.quantity


@dataclass(frozen=True)
class Refund:
    """Money paid back; `items` are (line, units, worth, tax), empty if the shop named no lines."""

    refund_id: str
    at: datetime
    amount: Decimal
    items: tuple[tuple[Line, int, Decimal, Decimal], ...] = ()


@dataclass(eq=False)
class Order:
    """An order and its later states. All money is in its currency."""

    order_id: str
    person: Person
    placed_at: datetime
    currency: str
    tax_included: bool
    lines: list[Line]
    shipping: Decimal
    shipping_tax: Decimal
    code: str | None
    visit: Visit | None
    names_visitor: bool = True
    has_web_event: bool = True
    has_server_event: bool = False
    #: (since when, financial_status, whether cancelled)
    history: list[tuple[datetime, str, bool]] = field(default_factory=list)
    refunds: list[Refund] = field(default_factory=list)

    @property
    def gross(self) -> Decimal:
        return sum((line.gross for line in self.lines), Decimal(0))

    @property
    def discount(self) -> Decimal:
        return sum((line.discount for line in self.lines), Decimal(0))

    @property
    def tax(self) -> Decimal:
        return sum((line.tax for line in self.lines), self.shipping_tax)

    @property
    def total(self) -> Decimal:
        """The amount that the buyer pays."""
        return self.gross - self.discount + self.shipping + (Decimal(0) if self.tax_included else self.tax)

    @property
    def refunded(self) -> Decimal:
        return sum((refund.amount for refund in self.refunds), Decimal(0))

    @property
    def units(self) -> int:
        return sum(line.quantity for line in self.lines)

    @property
    def status(self) -> str:
        _, status, is_cancelled = self.history[-1]
        return "cancelled" if is_cancelled else status

    @property
    def is_sale(self) -> bool:
        return self.status not in ("cancelled", "pending", "voided")


@dataclass
class Truth:
    """Everything that happened."""

    articles: list[Article] = field(default_factory=list)
    persons: list[Person] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    #: The login of each device: that of the first event, by arrival, that names both.
    owners: dict[str, str] = field(default_factory=dict)
    #: Broken rows that were mixed in, by the reason for which each must be quarantined.
    planted: Counter[str] = field(default_factory=Counter)
    #: Numbers of Segment's rows: all, and those that are delivered again.
    delivered: int = 0
    redelivered: int = 0

    @property
    def sales(self) -> list[Order]:
        return [order for order in self.orders if order.is_sale]


@dataclass
class Sources:
    """The data that the shop's systems deliver."""

    events: list[tuple[datetime, str]] = field(default_factory=list)
    accounts: list[dict[str, Any]] = field(default_factory=list)


# --- the generator -----------------------------------------------------------------------------------------------


class TrialShop:
    """Generates the shop; `truth` is what happened, `write` delivers it."""

    def __init__(self, seed: int = 7, persons: int = 2600) -> None:
        self.random = Random(seed)
        self.truth = Truth()
        self.sources = Sources()
        self._numbers = Counter[str]()
        #: (arrival, login) of rows with both a device and a login.
        self._seen_together: dict[str, tuple[datetime, str]] = {}
        self._articles()
        self._persons(persons)
        for person in self.truth.persons:
            self._life(person)
        self._phone_orders()
        self._side_by_side()
        self._broken_rows()
        self.truth.visits.sort(key=lambda visit: visit.started_at)
        self.truth.orders.sort(key=lambda order: order.placed_at)
        self.truth.owners = {device: login for device, (_, login) in self._seen_together.items()}

    def _next(self, what: str, start: int) -> int:
        self._numbers[what] += 1
        return start + self._numbers[what]

    def _one_of(self, weighted: dict[str, int]) -> str:
        return self.random.choices(list(weighted), list(weighted.values()))[0]

    # what there is

    def _articles(self) -> None:
        for place, (category, rate, low, high) in enumerate(CATEGORIES):
            for number in range(15):
                price = Decimal(self.random.randrange(low, high, 10)) / 100
                sku = f"{'GTLBWMXD'[place]}-{1000 + 37 * number}"
                self.truth.articles.append(
                    Article(
                        sku,
                        f"{category} „Nr. {number + 1}“",
                        self.random.choice(BRANDS),
                        category,
                        price,
                        Decimal(rate),
                    )
                )

    def _device(self) -> Device:
        kind = self._one_of({"desktop": 45, "mobile": 45, "tablet": 10})
        number = self.random.getrandbits(128)
        return Device(f"{number:032x}", kind, self.random.choice(AGENTS[kind]))

    def _persons(self, count: int) -> None:
        for number in range(count):
            country = self._one_of({"DE": 82, "AT": 8, "CH": 6, "GB": 4})
            has_account = self.random.random() < 0.55
            login = str(self._next("login", 70000)) if has_account else None
            devices = [self._device() for _ in range(2 if self.random.random() < 0.2 else 1)]
            self.truth.persons.append(Person(number, country, login, devices))
        # Two people on one device, both with an account.
        with_account = [person for person in self.truth.persons if person.login and len(person.devices) == 1]
        for one, other in zip(with_account[:80:2], with_account[1:80:2], strict=True):
            other.devices = [one.devices[0]]
            one.shares_device = other.shares_device = True

    # visits

    def _life(self, person: Person) -> None:
        """All visits of a person, never two at a time on one device, and at least two hours apart."""
        for _ in range(min(9, 1 + int(self.random.expovariate(0.7)))):
            device = self.random.choice(person.devices)
            start = self._free_moment(person, device)
            if start is not None:
                self._visit(person, device, start)

    def _free_moment(self, person: Person, device: Device) -> datetime | None:
        for _ in range(20):
            start = self._moment()
            busy = (visit for visit in self.truth.visits if visit.person is person or visit.device is device)
            if all(start > visit.ended_at + 2 * HOUR or start < visit.started_at - 3 * HOUR for visit in busy):
                return start
        return None

    def _moment(self) -> datetime:
        """A time of a shopper's day in Berlin, midnight included."""
        day = FIRST_DAY + self.random.randrange(DAYS) * DAY
        hour = self.random.choices(
            range(24), [4, 2, 1, 0, 0, 1, 3, 5, 7, 8, 8, 8, 9, 8, 8, 8, 9, 10, 12, 14, 15, 13, 9, 6]
        )[0]
        naive = datetime(day.year, day.month, day.day, hour, self.random.randrange(60), self.random.randrange(60))
        # Converted to UTC and back: a local time that does not exist becomes one that does.
        moment = naive.replace(tzinfo=BERLIN).astimezone(UTC)
        return min(moment, END - 12 * HOUR).replace(microsecond=1000 * self.random.randrange(1000))

    def _visit(self, person: Person, device: Device, start: datetime, may_buy: bool = True) -> Visit:
        random = self.random
        channel = random.choices(list(CHANNELS), [share for *_, share in CHANNELS.values()])[0]
        referrer, tags, _ = CHANNELS[channel]
        if channel == "direct" and random.random() < 0.1:
            referrer = f"{SITE}/"  # a tab that was left open
        query = "&".join(f"utm_{name}={value}" for name, value in tags.items())
        # Segment reads the campaign from the link's tags, unless its library is old, and does not read the tags that Google Ads adds by itself.
        campaign = {"name" if name == "campaign" else name: value for name, value in tags.items()}
        changed_via = "tags and campaign" if tags else "referrer" if referrer else "nothing"
        if channel == "paid search" and int(device.anonymous_id, 16) % 2:
            query, campaign, changed_via = "gclid=Cj0KCQjw_trial", {}, "gclid"
        elif tags and int(device.anonymous_id, 16) % 3 == 0:
            campaign, changed_via = {}, "tags"
        visit = Visit(person, device, channel, changed_via)
        self.truth.visits.append(visit)
        clock = [start]
        page = ["/" + ("?" + query if query else "")]
        user = person.login if person.login and random.random() < 0.3 else None

        def pass_time() -> None:
            seconds = random.uniform(4, 240) if random.random() < 0.97 else random.uniform(600, 1500)
            clock[0] += timedelta(milliseconds=round(1000 * seconds))

        def tell(kind: str, name: str | None, properties: dict[str, Any], type_: str = "track") -> None:
            is_first = not visit.moments
            visit.moments.append((clock[0], kind))
            visit.login_is_known = visit.login_is_known or user is not None
            context = {
                "userAgent": device.agent,
                "locale": "de-DE",
                "page": {
                    "url": SITE + page[0],
                    "path": page[0],
                    "referrer": (referrer or "") if is_first else SITE + "/",
                },
                "campaign": campaign if is_first else {},
            }
            self._segment(clock[0], type_, name, device.anonymous_id, user, context, properties)

        def identify() -> None:
            nonlocal user
            if person.login and user is None:
                user = person.login
                tell("login", None, {}, "identify")
                clock[0] += timedelta(milliseconds=random.randrange(200, 3000))

        tell("page_view", None, {"path": "/", "title": "Lindenhof"}, "page")
        cart: dict[Article, int] = {}
        for _ in range(min(14, int(random.expovariate(0.32)))):
            pass_time()
            if random.random() < 0.18:
                words = random.choice(("pfanne", "gläser set", "backbuch", "geschenk", "töpfe"))
                page[0] = f"/suche?q={words.replace(' ', '+')}"
                tell("search", "Products Searched", {"query": words})
                continue
            article = random.choice(self.truth.articles)
            page[0] = f"/artikel/{article.sku}"
            tell("view_item", "Product Viewed", self._product(article, person))
            if random.random() < 0.24:
                pass_time()
                quantity = 1 if random.random() < 0.92 else random.randint(2, 6)
                tell("add_to_cart", "Product Added", self._product(article, person, quantity))
                cart[article] = cart.get(article, 0) + quantity
                visit.put_in_cart += quantity * article.price_in(person.country)
        if cart and random.random() < 0.62:
            pass_time()
            page[0] = "/kasse"
            identify()
            bought = dict(list(cart.items())[:5])
            products = [self._product(article, person, quantity) for article, quantity in bought.items()]
            for product in products:
                del product["currency"]
            tell("begin_checkout", "Checkout Started", {"currency": person.currency, "products": products})
            if may_buy and random.random() < 0.72:
                pass_time()
                page[0] = "/danke"
                order = self._order(person, clock[0].replace(microsecond=0), bought, visit)
                clock[0] += timedelta(milliseconds=random.randrange(1500, 9000))
                completed = {
                    "order_id": order.order_id,
                    "currency": order.currency,
                    "total": float(order.total),
                    "revenue": float(order.gross - order.discount),
                    "tax": float(order.tax),
                    "shipping": float(order.shipping),
                    "discount": float(order.discount),
                    "coupon": order.code,
                    "products": products,
                }
                if order.has_server_event:
                    self._segment(
                        clock[0],
                        "track",
                        "Order Completed",
                        None,
                        user,
                        {"library": {"name": "analytics-python"}},
                        completed,
                    )
                elif order.has_web_event:
                    tell("purchase", "Order Completed", completed)
        return visit

    def _product(self, article: Article, person: Person, quantity: int = 1) -> dict[str, Any]:
        return {
            "product_id": article.sku,
            "sku": article.sku,
            "name": article.title,
            "brand": article.brand,
            "category": article.category,
            "price": float(article.price_in(person.country)),
            "quantity": quantity,
            "currency": person.currency,
        }

    def _segment(
        self,
        at: datetime,
        type_: str,
        name: str | None,
        anonymous: str | None,
        user: str | None,
        context: dict[str, Any],
        properties: dict[str, Any],
    ) -> None:
        """Deliver one event: mostly within seconds, sometimes late, sometimes twice."""
        random = self.random
        delay = timedelta(seconds=random.uniform(0.1, 20))
        if random.random() < 0.015:
            delay = timedelta(seconds=random.uniform(600, 40 * 3600))
        message = {
            "messageId": f"ajs-{random.getrandbits(96):024x}",
            "type": type_,
            "event": name,
            "anonymousId": anonymous,
            "userId": user,
            "timestamp": utc(at),
            "context": context,
            "properties": properties,
        }
        received = min(at + delay, END - MINUTE)
        self._deliver(received, message)
        if anonymous and user:
            self._seen_together[anonymous] = min(self._seen_together.get(anonymous, (received, user)), (received, user))
        if random.random() < 0.02:
            self.truth.redelivered += 1
            self._deliver(min(received + timedelta(seconds=random.uniform(1, 30 * 3600)), END - MINUTE), message)

    def _deliver(self, received: datetime, message: dict[str, Any]) -> None:
        received = received.replace(microsecond=received.microsecond // 1000 * 1000)
        self.truth.delivered += 1
        self.sources.events.append((received, json.dumps({**message, "receivedAt": utc(received)}, ensure_ascii=False)))

    # orders

    def _order(self, person: Person, at: datetime, bought: dict[Article, int], visit: Visit | None) -> Order:
        random = self.random
        currency, _, tax_included, _ = MARKETS[person.country]
        code = random.choices((None, "FRUEHLING10", "WILLKOMMEN5"), (80, 13, 7))[0]
        prices = {article: article.price_in(person.country) for article in bought}
        gross = sum((prices[article] * quantity for article, quantity in bought.items()), Decimal(0))
        fixed_left = min(Decimal(5), gross)
        lines = []
        for place, (article, quantity) in enumerate(bought.items(), 1):
            worth = prices[article] * quantity
            discount = Decimal(0)
            if code == "FRUEHLING10":
                discount = cents(worth * Decimal("0.1"))
            elif code == "WILLKOMMEN5":
                discount = fixed_left if place == len(bought) else min(fixed_left, cents(5 * worth / gross))
                fixed_left -= discount
            tax = self._tax(worth - discount, article.tax_in(person.country), tax_included)
            lines.append(Line(str(self._next("line", 9_100_000)), article, quantity, prices[article], discount, tax))
        shipping = Decimal("0.00") if gross > 60 else Decimal("4.95")
        shipping_tax = self._tax(shipping, MARKETS[person.country][3] or Decimal("0.19"), tax_included)
        order = Order(
            order_id=str(self._next("order", 5_400_000)),
            person=person,
            placed_at=at,
            currency=currency,
            tax_included=tax_included,
            lines=lines,
            shipping=shipping,
            shipping_tax=shipping_tax,
            code=code,
            visit=visit,
        )
        if visit is not None:
            visit.order = order
        how = random.random()
        if person.login:
            order.has_server_event = how < 0.2
            order.has_web_event = how >= 0.25  # a few visitors block web events
        else:
            order.names_visitor = how < 0.6
        self._fate(order)
        self.truth.orders.append(order)
        return order

    @staticmethod
    def _tax(amount: Decimal, rate: Decimal, is_included: bool) -> Decimal:
        return cents(amount * rate / (1 + rate) if is_included else amount * rate)

    def _later(self, than: datetime, hours: float) -> datetime:
        """A time after another and before the end, to the second."""
        return min(than + timedelta(seconds=round(self.random.uniform(0.05, 1) * hours * 3600)), END - HOUR)

    def _fate(self, order: Order) -> None:
        at = order.placed_at
        fate = self._one_of(FATES)
        first = "pending" if fate in ("pending", "voided") else "paid"
        order.history = [(at, first, False)]
        if fate in ("paid", "pending"):
            return
        later = self._later(at, 24 * 12)
        if fate == "voided":
            order.history.append((later, "voided", True))
        elif fate == "cancelled after payment":
            order.history.append((later, "refunded", True))
            order.refunds.append(
                self._refund(later, order.total, [(line, line.quantity) for line in order.lines], order)
            )
        elif fate == "all lines returned":
            order.history.append((later, "refunded", False))
            order.refunds.append(self._refund(later, None, [(line, line.quantity) for line in order.lines], order))
        elif fate == "refunded without lines":
            order.history.append((later, "refunded", False))
            order.refunds.append(self._refund(later, order.total, [], order))
        elif fate == "goodwill":
            order.history.append((later, "partially_refunded", False))
            order.refunds.append(self._refund(later, cents(order.total * Decimal("0.15")), [], order))
        else:
            order.history.append((later, "partially_refunded", False))
            line = self.random.choice(order.lines)
            back = self.random.randint(1, line.quantity)
            order.refunds.append(self._refund(later, None, [(line, back)], order))

    def _refund(self, at: datetime, amount: Decimal | None, back: list[tuple[Line, int]], order: Order) -> Refund:
        """The payment for the units of the lines that come back; unless an amount is given, this is refunded."""
        items = []
        for line, units in back:
            share = Decimal(units) / line.quantity
            items.append((line, units, cents((line.gross - line.discount) * share), cents(line.tax * share)))
        if amount is None:
            amount = sum((worth + (0 if order.tax_included else tax) for _, _, worth, tax in items), Decimal(0))
        return Refund(str(self._next("refund", 880_000)), at, amount, tuple(items))

    def _phone_orders(self) -> None:
        """Orders by telephone, at least a day from any visit of the person."""
        with_account = [person for person in self.truth.persons if person.login and not person.shares_device]
        made = 0
        for person in self.random.sample(with_account, 60):
            at = self._moment().replace(microsecond=0)
            visits = (visit for visit in self.truth.visits if visit.person is person)
            if made < 15 and all(abs(at - visit.started_at) > DAY for visit in visits):
                order = self._order(person, at, {self.random.choice(self.truth.articles): 1}, None)
                order.has_web_event = order.has_server_event = False
                made += 1

    def _side_by_side(self) -> None:
        """A phone and a computer at the same time: two visits of one person."""
        with_two = [person for person in self.truth.persons if person.login and len(person.devices) > 1]
        for person in self.random.sample(with_two, 25):
            first = self._free_moment(person, person.devices[0])
            if first is not None:
                self._visit(person, person.devices[0], first, may_buy=False)
                self._visit(person, person.devices[1], first + 3 * MINUTE, may_buy=False)

    def _broken_rows(self) -> None:
        """Rows with errors, one or a few of each kind."""
        random, day = self.random, datetime(2025, 3, 20, 10, tzinfo=UTC)
        article = self.truth.articles[0]
        product = self._product(article, self.truth.persons[0])

        def plant(reason: str, number: int, **changes: Any) -> None:
            at = day + number * HOUR
            message = {
                "messageId": f"broken-{number}",
                "type": "track",
                "event": "Product Viewed",
                "anonymousId": f"{random.getrandbits(128):032x}",
                "userId": None,
                "timestamp": utc(at),
                "context": {"userAgent": AGENTS["desktop"][0], "page": {"url": SITE, "referrer": ""}, "campaign": {}},
                "properties": product,
                **changes,
            }
            self.truth.planted[reason] += 1
            self._deliver(at + MINUTE, message)

        plant("missing_event_at", 1, timestamp="gestern")
        plant("missing_event_at", 2, timestamp=None)
        plant("missing_identity", 3, anonymousId=None)
        plant("unknown_event_type", 4, event="Banner Hovered")
        plant("unknown_product", 5, properties={**product, "product_id": "Z-1", "sku": "Z-1"})
        plant("bot_user_agent", 6, context={"userAgent": BOT, "page": {"url": SITE, "referrer": ""}, "campaign": {}})
        plant("event_in_future", 7, timestamp="2031-01-01T00:00:00.000Z")
        plant("quantity_out_of_range", 8, event="Product Added", properties={**product, "quantity": -3})
        for number in (9, 10):
            received, text = self.sources.events[number]
            self.truth.planted["malformed"] += 1
            self.truth.delivered += 1
            self.sources.events.append((received, text[: len(text) // 2]))

    # --- deliveries

    def write(self, folder: Path) -> None:
        """Segment's events and Shopify's orders by week, and the articles."""
        folder.mkdir(parents=True, exist_ok=True)
        by_week: dict[str, list[str]] = {}
        for received, text in sorted(self.sources.events):
            by_week.setdefault(week_of(received), []).append(text)
        for week, texts in by_week.items():
            write_lines(folder / "segment" / f"events_{week}.jsonl", texts)
        for week, orders in self._order_deliveries().items():
            write_lines(folder / "shopify" / f"orders_{week}.jsonl", [json.dumps(order) for order in orders])
        rows = ["Artikelnummer;Bezeichnung;Marke;Warengruppe;Preis;Währung;Stand"]
        for each in self.truth.articles:
            price = f"{each.price:.2f}".replace(".", ",")
            title = each.title.replace('"', '""')
            rows.append(f'{each.sku};"{title}";{each.brand};{each.category};{price};EUR;2025-03-01 06:00:00')
        (folder / "artikel.csv").write_bytes("\r\n".join([*rows, ""]).encode("cp1252"))

    def accounts(self) -> list[tuple[str, str, str, int | None, datetime, datetime]]:
        """Rows of the database's customers: id, name, country, year of birth, created and changed at."""
        random = Random(3)
        found = []
        for person in self.truth.persons:
            if person.login:
                created = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=random.randrange(24 * 400))
                born = random.randrange(1945, 2005) if random.random() < 0.6 else None
                found.append((person.login, f"Person {person.number}", person.country, born, created, created + HOUR))
        return found

    def _order_deliveries(self) -> dict[str, list[dict[str, Any]]]:
        """By week the orders that changed in it, each in its state at the end of the week."""
        found: dict[str, list[dict[str, Any]]] = {}
        for order in self.truth.orders:
            newest = {week_of(moment): moment for moment, _, _ in order.history}
            for week, moment in newest.items():
                found.setdefault(week, []).append(self.as_shopify_says(order, moment))
        return dict(sorted(found.items()))

    def as_shopify_says(self, order: Order, moment: datetime) -> dict[str, Any]:
        """An order as Shopify's Admin API returns it, as of a time."""
        updated, status, is_cancelled = [each for each in order.history if each[0] <= moment][-1]
        person, currency = order.person, order.currency

        def money(amount: Decimal) -> dict[str, Any]:
            amounts = {"amount": f"{amount:.2f}", "currency_code": currency}
            return {"shop_money": amounts, "presentment_money": amounts}

        def rate_of(line: Line) -> float:
            return float(line.article.tax_in(person.country))

        def line_item(line: Line) -> dict[str, Any]:
            return {
                "id": int(line.line_id),
                "sku": line.article.sku,
                "title": line.article.title,
                "quantity": line.quantity,
                "price": f"{line.price:.2f}",
                "price_set": money(line.price),
                "total_discount": "0.00",  # Shopify only counts the line's own discount here, not the share of a code
                "discount_allocations": [
                    {
                        "amount": f"{line.discount:.2f}",
                        "amount_set": money(line.discount),
                        "discount_application_index": 0,
                    }
                ]
                if line.discount
                else [],
                "tax_lines": [
                    {"title": "MwSt", "rate": rate_of(line), "price": f"{line.tax:.2f}", "price_set": money(line.tax)}
                ],
                "taxable": True,
            }

        def refund_item(line: Line, units: int, worth: Decimal, tax: Decimal) -> dict[str, Any]:
            return {
                "id": int(line.line_id) + 40_000_000,
                "line_item_id": int(line.line_id),
                "quantity": units,
                "restock_type": "return",
                "subtotal": float(worth),
                "total_tax": float(tax),
                "line_item": line_item(line),
            }

        kind = "percentage" if order.code == "FRUEHLING10" else "fixed_amount"
        codes = [{"code": order.code, "amount": f"{order.discount:.2f}", "type": kind}] if order.code else []
        noted = (
            [{"name": "anonymous_id", "value": order.visit.device.anonymous_id}]
            if order.visit is not None and not person.login and order.names_visitor
            else []
        )
        return {
            "id": int(order.order_id),
            "name": f"#{order.order_id[-5:]}",
            "created_at": local(order.placed_at),
            "processed_at": local(order.placed_at),
            "updated_at": local(updated),
            "cancelled_at": local(updated) if is_cancelled else None,
            "financial_status": status,
            "currency": currency,
            "presentment_currency": currency,
            "taxes_included": order.tax_included,
            "total_line_items_price": f"{order.gross:.2f}",
            "total_discounts": f"{order.discount:.2f}",
            "subtotal_price": f"{order.gross - order.discount:.2f}",
            "total_shipping_price_set": money(order.shipping),
            "total_tax": f"{order.tax:.2f}",
            "total_price": f"{order.total:.2f}",
            "discount_codes": codes,
            "customer": {"id": int(person.login)} if person.login else None,
            "note_attributes": noted,
            "source_name": "shopify_draft_order" if order.visit is None else "web",
            "line_items": [line_item(line) for line in order.lines],
            "refunds": [
                {
                    "id": int(refund.refund_id),
                    "created_at": local(refund.at),
                    "refund_line_items": [refund_item(*item) for item in refund.items],
                    "transactions": [
                        {"kind": "refund", "status": "success", "amount": f"{refund.amount:.2f}", "currency": currency}
                    ],
                }
                for refund in order.refunds
                if refund.at <= moment
            ],
        }


def week_of(moment: datetime) -> str:
    """The week of a time in UTC, as 2025-W10."""
    year, week, _ = moment.astimezone(UTC).isocalendar()
    return f"{year}-W{week:02}"


def write_lines(path: Path, texts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(text + "\n" for text in texts), "utf-8")
