"""Messages that would end a loader: each becomes a dead letter with all its bytes, and all others land once."""

from __future__ import annotations

import json
import random
import signal
import tempfile
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from streams import wait
from test_stream import GOOD, Shop

from orchestration.ingest.stream import isolation
from orchestration.ingest.stream.attempts import Attempts
from orchestration.ingest.stream.loader import Limits
from orchestration.ingest.stream.messages import Messages
from orchestration.ingest.stream.replay import replay
from orchestration.ingest.stream.run import look
from orchestration.lake import lake
from orchestration.lake.positions import Position
from orchestration.mapping.mapping import Stream, Table
from orchestration.sources.bounds import Bounds, beyond, shallow
from orchestration.sources.streams import Chunk

#: Without a limit one uses up DuckDB's memory, the other ends the process: two deep values of one key are merged by recursion.
MANY_KEYS = json.dumps(GOOD | {f"k{n}": n for n in range(60_000)}).encode()
DEEP = json.dumps(GOOD)[:-1].encode() + b', "a": 1, "properties": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
LIMITLESS = Bounds(2**30, 10**9, 10**9)


@pytest.fixture
def shop(tmp_path: Path, extensions: Path) -> Shop:
    return Shop(tmp_path, extensions)


def letters(shop: Shop) -> list[tuple[Any, ...]]:
    return shop.ask("select payload, rule_id, error from lake.raw.dead_letters order by _position")


def users(shop: Shop) -> list[str]:
    return [user for (user,) in shop.ask("select user_id from lake.raw.events order by user_id")]


def good(*numbers: int) -> list[dict[str, Any]]:
    return [GOOD | {"user_id": f"u{n:04}"} for n in numbers]


@pytest.mark.parametrize(
    ("poison", "rule", "said"),
    [
        (MANY_KEYS, "too_many_keys", "it has 60005 keys, of at most 1000"),
        (DEEP, "too_deep", "nested 100001 deep, of at most 100"),
        (b"[" * 200_000, "too_deep", "nested 200000 deep"),
        (json.dumps(GOOD | {"page": "{" * 2**20}).encode(), "over_size", "of at most 1048576"),
    ],
)
def test_messages_beyond_a_limit_are_dead_letters(shop: Shop, poison: bytes, rule: str, said: str) -> None:
    shop.add(*good(1), poison, *good(2))
    assert shop.drain()["dead_letters"] == {rule: 1}
    [(payload, found, error)] = letters(shop)
    assert (payload, found) == (poison, rule)
    assert said in error
    assert users(shop) == ["u0001", "u0002"]
    assert replay(shop.mapping, where=shop.where).still_dead == {rule: 1}


def test_messages_that_only_look_too_large_land(shop: Shop) -> None:
    items = [{"id": n, "tags": {"a": [n]}} for n in range(200)]
    shop.add(
        GOOD | {"page": '[{"' * 500},
        GOOD | {"properties": {"items": items}},
        GOOD | {f"k{n}": n for n in range(900)},
        GOOD | {"properties": {f"k{n}": n for n in range(20_000)}},
        json.dumps(GOOD)[:-1].encode() + b', "properties": ' + b"[" * 99 + b"]" * 99 + b"}",
    )
    done = shop.drain()
    assert (done["rows"], done["dead_letters"]) == (5, {})


def depth(value: Any) -> int:
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max((depth(each) for each in (value.values() if isinstance(value, dict) else value)), default=0)


def cut(value: Any, levels: int) -> Any:
    if not isinstance(value, (dict, list)):
        return value
    if not levels:
        return None
    if isinstance(value, dict):
        return {key: cut(each, levels - 1) for key, each in value.items()}
    return [cut(each, levels - 1) for each in value]


TEXTS = st.text('ab"\\:{}[]é\n', max_size=6)
VALUES = st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=6)


@hypothesis_settings(max_examples=50)
@given(st.lists(OBJECTS, min_size=1, max_size=8), st.booleans(), st.integers(0, 3))
def test_depth_and_keys_are_counted_in_the_bytes(objects: list[dict[str, Any]], ascii_only: bool, start: int) -> None:
    texts = [json.dumps(each, ensure_ascii=ascii_only) for each in objects]
    # The bytes of a slice are in the middle of another array's.
    found = beyond(pa.chunked_array([pa.array(["[" * 9] * start + texts).slice(start)]), Bounds(2**20, 2, 3))
    expected = ["too_deep" if depth(each) > 3 else "too_many_keys" if len(each) > 2 else None for each in objects]
    assert [why and why.partition(":")[0] for why in found.to_pylist()] == expected
    for each, text in zip(objects, texts, strict=True):
        assert json.loads(shallow(text.encode(), 2)) == cut(each, 2)


MOMENTS = (
    "infinity", "-infinity", "Infinity", "epoch", "now", "0044-03-15 (BC) 00:00:00", "-0044-03-15T00:00:00Z",
    "294247-01-10T04:00:54.775807Z", "290309-12-22 (BC) 00:00:00", "9223372036854775807", "10000-01-01T00:00:00Z", "nan",
)  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"time_zone": "Europe/Berlin", "available_at": "event_time"},
        {"available_at": {"sql": "try_cast(event_at as timestamptz)"}},
        {"fields": {**{name: name for name in GOOD}, "event_at": {"sql": "try_cast(event_at as timestamp)"}}},
    ],
)
def test_a_time_outside_of_the_range_is_a_dead_letter(shop: Shop, entry: dict[str, Any]) -> None:
    shop.map(**entry)
    shop.add(*good(1), *(GOOD | {"event_at": each} for each in MOMENTS), *good(2))
    done = shop.drain()
    assert users(shop) == ["u0001", "u0002"]
    assert {rule for _, rule, _ in letters(shop)} <= {"wrong_type", "missing_field"}
    assert sorted(json.loads(payload)["event_at"] for payload, *_ in letters(shop)) == sorted(MOMENTS)
    assert done["event_delay_seconds"] > 0


def test_a_sender_may_set_any_time() -> None:
    """Kafka's time of a message is set by its sender."""
    with duckdb.connect() as con:
        con.execute("attach ':memory:' as lake")
        con.execute("create schema lake.raw")
        shape = ", ".join(f"{name} {kind}" for name, kind in lake.table_columns("dead_letters").items())
        con.execute(f"create table lake.raw.dead_letters ({shape})")
        entry = Table(stream=Stream(folder="in"), available_at="now", fields={})
        writer = Messages(con, "shop", "events", entry, "UTC", "shop.yml")
        times = [-1, 0, 253_402_300_799_999, 253_402_300_800_000, 2**62, 2**63 - 1]
        nothing = [None] * len(times)
        places = [str(n) for n in range(len(times))]
        writer.dead_letter_all(
            Chunk.of([["0"] * len(times), places, [b"x"] * len(times), times, nothing, nothing], {}, {}, 0),
            "a: b",
            datetime(2025, 1, 1),
        )
        assert con.execute("select sent_at::varchar from lake.raw.dead_letters order by position").fetchall() == [
            (None,), ("1970-01-01 00:00:00",), ("9999-12-31 23:59:59.999",), (None,), (None,), (None,)
        ]  # fmt: skip


def test_a_batch_that_fails_because_of_a_message_lands_without_it(shop: Shop) -> None:
    shop.add(*good(*range(10)), MANY_KEYS, *good(*range(10, 15)), MANY_KEYS, b"no JSON", *good(*range(15, 20)))
    done = shop.drain(bounds=LIMITLESS)
    assert (done["rows"], done["dead_letters"], done["batches"]) == (20, {"not_json": 1, "unprocessable": 2}, 1)
    assert users(shop) == [f"u{n:04}" for n in range(20)]
    [first, second, other] = sorted(letters(shop), key=lambda each: each[1] == "not_json")
    assert first[:2] == second[:2] == (MANY_KEYS, "unprocessable")
    assert other[:2] == (b"no JSON", "not_json")
    assert first[2].startswith("Out of Memory Error") and "\n" not in first[2]
    shop.add(*good(20))
    assert shop.drain()["rows"] == 1
    # A reader that only reads within the limits reports another rule.
    assert replay(shop.mapping, rule="unprocessable", where=shop.where).still_dead == {"too_many_keys": 2}


@pytest.mark.long  # a dozen processes
def test_a_message_that_kills_its_process_does_so_twice(shop: Shop) -> None:
    shop.add(*good(*range(3)), DEEP, *good(*range(3, 6)))
    without_bound = ("--drain", "--deepest", str(10**9))
    for _ in range(2):
        killed = shop.run(*without_bound)
        killed.communicate()
        assert killed.returncode == -signal.SIGSEGV
    third = shop.run(*without_bound)
    said = third.communicate()
    assert third.returncode == 0, said
    assert users(shop) == [f"u{n:04}" for n in range(6)]
    [(payload, rule, error)] = letters(shop)
    assert (payload, rule) == (DEEP, "unprocessable")
    assert "SIGSEGV" in error
    assert list((shop.where.home / "attempts").iterdir()) == []
    again = replay(shop.mapping, bounds=LIMITLESS, where=shop.where)
    assert (again.rows, again.still_dead) == (0, {"unprocessable": 1})


@pytest.mark.long
def test_kills_of_the_loader_lose_no_message(shop: Shop) -> None:
    shop.add(*good(*range(9_000)))
    for number in (1, 2):
        loader = shop.run("--drain")
        wait(partial(is_noted, shop, number), pause=0.002)
        loader.kill()
        loader.communicate()
    assert noted(shop) == 2
    assert shop.drain()["dead_letters"] == {}
    assert users(shop) == [f"u{n:04}" for n in range(9_000)]
    assert noted(shop) == 0


def is_noted(shop: Shop, times: int) -> bool:
    return noted(shop) == times


def noted(shop: Shop) -> int:
    """How often a batch was recorded that has begun and not ended."""
    texts = [path.read_text() for path in (shop.where.home / "attempts").glob("*.json")]
    return max((int(json.loads(text)["begun"]) for text in texts if text), default=0)


def test_after_a_death_batches_are_processed_one_at_a_time(tmp_path: Path) -> None:
    def moves(at: str, to: str) -> dict[str, tuple[Position | None, Position]]:
        return {"0": (Position("0", at), Position("0", to))}

    def started() -> Attempts:
        attempts = Attempts(tmp_path, "shop/events/kafka:t")
        attempts.claimed({"0": Position("0", "0")})
        return attempts

    first = started()
    attempt, other = first.of(moves("0", "5")), first.of(moves("5", "9"))
    attempt.begin()
    other.begin()
    assert (attempt.deaths, attempt.is_careful, len(attempt.notes), len(other.notes)) == (0, False, 1, 0)
    second = started()  # the first has died
    attempt, other = second.of(moves("0", "5")), second.of(moves("5", "9"))
    assert (attempt.deaths, attempt.is_careful, other.is_careful) == (1, True, True)
    attempt.begin()
    attempt.end()  # it has landed
    other.begin()  # and here it ends
    third = Attempts(tmp_path, "shop/events/kafka:t")
    third.claimed({"0": Position("0", "5")})
    assert third.of(moves("5", "9")).deaths == 1
    of_another_table = Attempts(tmp_path, "shop/customers/kafka:t")
    of_another_table.claimed({"0": Position("0", "5")})
    assert of_another_table.of(moves("5", "9")).deaths == 0


#: By kind, a message and the rule that it breaks, if any.
KINDS: dict[str, tuple[Any, str | None]] = {
    "good": (None, None),
    "keys": (MANY_KEYS, "too_many_keys"),
    "deep": (DEEP, "too_deep"),
    "infinite": (json.dumps(GOOD | {"event_at": "infinity"}).encode(), "wrong_type"),
    "broken": (b'{"event_type": ', "not_json"),
}


@pytest.mark.long
@hypothesis_settings(max_examples=6, deadline=None)
@given(st.lists(st.sampled_from(["good"] * 4 + [*KINDS]), min_size=1, max_size=40), st.integers(1, 15))
def test_the_rest_lands_once_wherever_the_poison_is(extensions: Path, kinds: list[str], rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shop = Shop(Path(folder), extensions)
        sent = [KINDS[kind][0] or json.dumps(*good(n)).encode() for n, kind in enumerate(kinds)]
        shop.add(*sent)
        shop.drain(limits=Limits(rows=rows))
        assert users(shop) == [f"u{n:04}" for n, kind in enumerate(kinds) if kind == "good"]
        expected = sorted((line, KINDS[kind][1]) for line, kind in zip(sent, kinds, strict=True) if kind != "good")
        assert sorted((payload, rule) for payload, rule, _ in letters(shop)) == expected


@pytest.mark.long
@hypothesis_settings(max_examples=4, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=64))
def test_only_what_fails_alone_is_set_aside(tmp_path_factory: pytest.TempPathFactory, are_bad: list[bool]) -> None:
    lines = [MANY_KEYS if is_bad else json.dumps(*good(n)).encode() for n, is_bad in enumerate(are_bad)]
    if sum(are_bad) > 4:  # each takes seconds until the memory is used up
        lines = [line if line != MANY_KEYS or n < 4 else json.dumps(*good(n)).encode() for n, line in enumerate(lines)]
    nothing = [None] * len(lines)
    batch = Chunk.of(
        [["a"] * len(lines), [str(n) for n in range(len(lines))], lines, [-1] * len(lines), nothing, nothing], {}, {}, 0
    )
    with duckdb.connect() as con:
        entry = Table(stream=Stream(folder="in"), available_at="now", fields={})
        writer = Messages(con, "shop", "events", entry, "UTC", "shop.yml", bounds=LIMITLESS)
        found = isolation.pieces(writer, batch, tmp_path_factory.mktemp("home"), "192MB")
    assert [place for piece in found for place in piece.messages.table["position"].to_pylist()] == [
        str(n) for n in range(len(lines))
    ]
    bad = [piece.messages.table["payload"].to_pylist() for piece in found if piece.why]
    assert bad == [[MANY_KEYS]] * lines.count(MANY_KEYS)


def test_the_doctor_looks_at_poison(shop: Shop) -> None:
    shop.add(*good(1), DEEP, MANY_KEYS)
    entry = Table(stream=Stream(folder=str(shop.folder)), available_at="now", fields={})
    found = look(entry, "shop", "shop.yml", rows=3, seconds=2).to_pylist()
    assert [each["text"] and json.loads(each["text"])["user_id"] for each in found] == ["u0001", None, None]
    assert [each["undecoded"] and each["undecoded"].partition(":")[0] for each in found] == [
        None,
        "too_deep",
        "too_many_keys",
    ]


def test_decoded_messages_have_limits_too() -> None:
    """With a registry's schema the decoded message may be larger than its bytes."""
    found = beyond(pa.chunked_array([pa.array(["x" * 11, "x" * 10, None])]), Bounds(size=10))
    assert found.to_pylist() == ["over_size: it has 11 bytes, of at most 10", None, None]


@given(st.integers(1, 30), st.randoms(use_true_random=False))
def test_each_message_is_whole_whatever_kills_the_processes(count: int, chance: random.Random) -> None:
    deadly, bad = ({n for n in range(count) if chance.random() < 0.1} for _ in range(2))

    def run(writer: Any, path: Path, todo: list[isolation.Span], memory: str) -> Any:
        tried: dict[isolation.Span, str | None] = {}
        stack = todo[::-1]
        while stack:
            span = stack.pop()
            if deadly & set(range(*span)) or chance.random() < 0.05:
                return tried, (span, "died")
            if not bad & set(range(*span)):
                tried[span] = None
            elif span[1] - span[0] == 1:
                tried[span] = "unprocessable: it fails"
            else:
                stack += [((span[0] + span[1]) // 2, span[1]), (span[0], (span[0] + span[1]) // 2)]
            if chance.random() < 0.05:
                return tried, (span, "died when it was over")
        return tried, None

    nothing = [None] * count
    places = [str(n) for n in range(count)]
    batch = Chunk.of([["0"] * count, places, [b"x"] * count, [-1] * count, nothing, nothing], {}, {}, 0)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(isolation, "_run", run)
        found = isolation.pieces(cast(Messages, None), batch, Path(folder), "192MB")
    assert [place for piece in found for place in piece.messages.table["position"].to_pylist()] == places
    condemned = {place for piece in found if piece.why for place in piece.messages.table["position"].to_pylist()}
    assert condemned >= {str(n) for n in deadly | bad}
