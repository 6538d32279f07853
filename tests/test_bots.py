"""Days that seem to be a bot's: what the models say of each event agrees with plain Python, which looks at what had arrived before it. Built in one go, in
several builds, and with what had arrived by some time alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from random import Random
from statistics import fmean, pstdev

import duckdb
import pytest
from small_shops import BOT_BEHAVIOUR, FIRST_DAY, MAX_EVENTS_PER_IDENTITY_DAY, Homes, Row, at, land

from orchestration.config.settings import Settings

VIEWS = ("view_item", "view_item_list", "page_view")
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Hit:
    """An event of a visitor, when it arrived, and the row that says so."""

    visitor: str
    kind: str
    moment: datetime
    arrived: datetime
    product: str | None
    row: Row


def hits_of(random: Random, visitors: int) -> list[Hit]:
    """Days of visitors: even or uneven, of views alone or not, of few or many products, over few or many hours; late, in order or out of it; and
    some events twice, or beginning as an engagement."""
    hits: list[Hit] = []

    def add(visitor: str, kind: str, moment: datetime, product: str | None) -> None:
        delay = random.choice((0, 0, 0, 0, 0, 1, 7, 45, 600)) * MINUTE
        fields = {"event_type": kind, "event_at": moment.isoformat(), "anonymous_id": visitor, "product_id": product}
        row = Row("events", "web", f"hit {len(hits):05}", moment + delay, fields)
        hits.append(Hit(visitor, kind, moment, row.available_at, product, row))

    for number in range(visitors):
        even, alone, products = (random.random() < share for share in (0.3, 0.7, 0.5))
        pause = random.choice((0.3, 4, 50))
        day = FIRST_DAY + timedelta(days=random.randrange(3))
        moment = at(day, random.uniform(0, 36_000))
        for _ in range(random.randrange(3, MAX_EVENTS_PER_IDENTITY_DAY)):
            kind = random.choice(VIEWS if alone else (*VIEWS, "search", "add_to_cart", "user_engagement"))
            product = f"P{random.randrange(20 if products else 2)}" if kind in ("view_item", "add_to_cart") else None
            add(f"V{number}", kind, moment, product)
            if random.random() < 0.1:
                add(f"V{number}", random.choice((kind, "user_engagement")), moment, product)
            moment += timedelta(minutes=pause * (random.uniform(0.8, 1.2) if even else random.expovariate(1)))
            moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
            if moment.date() != day:
                break
    return hits


def expected(hits: Iterable[Hit]) -> set[str]:
    """The positions of the events that are a bot's."""
    days = defaultdict(list)
    for hit in hits:
        days[hit.visitor, hit.moment.date()].append(hit)
    found = set()
    for day in days.values():
        if len(day) < BOT_BEHAVIOUR["moments"]:
            continue
        first_arrival = {
            moment: min(h.arrived for h in day if h.moment == moment) for moment in {h.moment for h in day}
        }
        so_far: list[list[Hit]] = []
        is_bot = False
        for moment in sorted(first_arrival, key=lambda each: (first_arrival[each], each)):
            known = [hit for hit in day if hit.moment == moment and hit.arrived == first_arrival[moment]]
            acts = [hit for hit in known if hit.kind != "user_engagement"]
            so_far += [acts] if acts else []
            is_bot = is_bot or seems_automated(so_far)
            if is_bot:
                found |= {hit.row.position for hit in day if hit.moment == moment}
    return found


def seems_automated(moments: list[list[Hit]]) -> bool:
    if len(moments) < BOT_BEHAVIOUR["moments"]:
        return False
    times = [acts[0].moment for acts in moments]
    gaps = [abs(later - earlier) / MINUTE for earlier, later in pairwise(times)]
    if pstdev(gaps) <= BOT_BEHAVIOUR["variation"] * fmean(gaps):
        return True
    if any(hit.kind not in VIEWS for acts in moments for hit in acts):
        return False
    viewed = [product for acts in moments for product in {hit.product for hit in acts if hit.kind == "view_item"}]
    return len({time.hour for time in times}) >= BOT_BEHAVIOUR["hours"] or (
        len(set(viewed)) >= BOT_BEHAVIOUR["products"] and len(set(viewed)) >= BOT_BEHAVIOUR["new_share"] * len(viewed)
    )


def flagged(home: Settings) -> set[str]:
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        query = "select position from int_events__validated where list_contains(reasons, 'bot_behaviour')"
        return {position for (position,) in con.execute(query).fetchall()}


@pytest.fixture(scope="module")
def hits() -> list[Hit]:
    return hits_of(Random(20), 300)


SELECT = ("--select", "+int_events__validated")


def test_the_shop_has_days_of_each_kind(hits: list[Hit]) -> None:
    by_visitor = defaultdict(set)
    bots = expected(hits)
    for hit in hits:
        by_visitor[hit.visitor].add(hit.row.position in bots)
    assert min(list(by_visitor.values()).count(kinds) for kinds in ({True, False}, {False})) > 60


def test_each_event_is_compared_with_what_arrived_before_it(homes: Homes, hits: list[Hit]) -> None:
    home = homes.make("bots")
    land(home, Random(1).sample([hit.row for hit in hits], k=len(hits)))
    homes.run(home, "--full-refresh", *SELECT)
    assert flagged(home) == expected(hits)


def test_builds_step_by_step_say_the_same(homes: Homes, hits: list[Hit]) -> None:
    """In any order: rows of one day come in several builds."""
    home = homes.make("bots step by step")
    rows = Random(2).sample([hit.row for hit in hits], k=len(hits))
    for part in (rows[:700], rows[700:800], rows[800:]):
        land(home, part)
        homes.run(home, *SELECT)
    assert flagged(home) == expected(hits)


def test_what_comes_later_changes_nothing_of_what_came_before(homes: Homes, hits: list[Hit]) -> None:
    """The verdict on what had arrived by some time is that of today."""
    some_time = sorted(hit.arrived for hit in hits)[len(hits) // 2]
    known = [hit for hit in hits if hit.arrived <= some_time]
    home = homes.make("bots then")
    land(home, [hit.row for hit in known])
    homes.run(home, "--full-refresh", *SELECT)
    then, today = flagged(home), expected(hits)
    assert then == {position for position in today if position in {hit.row.position for hit in known}}
    assert then and then != today
