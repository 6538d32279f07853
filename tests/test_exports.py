"""Interactions, RecBole's files and sequences equal what plain Python makes of the clean events (tests/plainly); ids keep their codes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from plainly import MICROSECOND, Event, Shop, customer_of, seed
from small_shops import VARS, Homes, ShopMaker, land
from test_as_of import clean_events, everything, telling_moments

from orchestration import cli
from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.features import exports, vocabulary
from orchestration.features.exports import LATE, READ_AS_MISSING, UNREADABLE, Export, Wanted, interactions, recbole
from orchestration.features.sequences import LISTS, sequences
from orchestration.warehouse.publish import publish

WEIGHTS = {
    {"views": "view_item", "cart_adds": "add_to_cart", "purchases": "purchase"}[row["measure"]]: float(row["weight"])
    for row in seed("event_weights")
}


@dataclass(frozen=True)
class Built:
    """A built shop, the arguments of dbt that it was built with, its events for plain Python, and the last time that may be asked for."""

    where: Settings
    arguments: Sequence[str]
    shop: Shop
    last: datetime

    def at_once(self) -> Shop:
        """The same as if each event had arrived when it happened."""
        events = [
            {**event, "available_at": event["event_at"], "known_from": event["event_at"]}
            for event in self.shop.events
            if event["known_to"] is None
        ]
        return Shop(events, [])

    def moments(self, random: Random, count: int) -> list[datetime]:
        return [each for each in telling_moments(random, self.shop.events, count) if each <= self.last]


def opened(where: Settings, arguments: Sequence[str] = ()) -> Built:
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        events = clean_events(con)
        [(last,)] = con.execute(
            "select max(greatest(raw_available_at, event_at)) from int_events__validated where verdict = 'kept'"
        ).fetchall()
    return Built(where, arguments, Shop(events, []), last + MICROSECOND)


@pytest.fixture(scope="module")
def small(homes: Homes) -> Built:
    """A small shop with every kind of error, much of it late."""
    where = homes.make("exports")
    land(where, ShopMaker(Random(20)).shop(events=700, orders=60))
    homes.run(where, "--exclude", "path:models/intermediate/features", "path:models/marts")
    return opened(where, ["--vars", json.dumps(VARS)])


@pytest.fixture(scope="module", params=["small", "simulated"])
def built(request: pytest.FixtureRequest, small: Built, built_shop: Settings) -> Built:
    """That one, and the simulated shop, in which visitors see products before they log in."""
    return small if request.param == "small" else opened(built_shop)


@pytest.fixture(scope="module")
def published(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A copy of the simulated shop, published."""
    home = tmp_path_factory.mktemp("published") / "home"
    shutil.copytree(built_shop.home, home, ignore=shutil.ignore_patterns("logs"))
    where = Settings.below(home, built_shop.extensions)
    publish(where)
    return where


def rows(file: Path) -> list[dict[str, Any]]:
    found = duckdb.sql(f"from '{file}'")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def codes(export: Path, column: str) -> dict[str, int]:
    """A written vocabulary."""
    return {row["value"]: row["code"] for row in rows(export / "vocabulary" / f"{column}.parquet")}


def as_written(events: Sequence[Event], weigh: Callable[[str], float]) -> Counter[tuple[Any, ...]]:
    return Counter(
        (each["customer"], each["product_id"], weigh(each["event_type"]), each["event_at"]) for each in events
    )


# --------------------------------------------------------------------------------------------------- interactions


@pytest.mark.parametrize("trust_event_time", [False, True])
def test_interactions_are_what_was_known_at_the_end_of_each_file(
    built: Built, tmp_path: Path, trust_event_time: bool
) -> None:
    """Late events are in no file; a visitor is a user of their own until the login is known."""
    shop = built.at_once() if trust_event_time else built.shop
    random, late, relinked = Random(7), 0, 0
    for number in range(8):
        # At events, and a microsecond beside them; early enough and late enough that no file is empty.
        times = sorted(event["event_at"] for event in shop.events)
        places = [random.uniform(low, low + 0.1) for low in (0, 0.45, 0.65, 0.85)]
        since, *splits, until = (
            times[int(place * len(times))] + random.choice((-1, 0, 1)) * MICROSECOND for place in places
        )
        splits = splits[: number % 3]
        as_of = random.choice((until, min(until + timedelta(days=1), built.last), built.last))
        kinds = [list(WEIGHTS), ["view_item", "search", "add_to_wishlist"]][number % 2]
        weigh = (lambda kind: 1.0) if number % 2 else WEIGHTS.__getitem__
        wanted = Wanted(
            kinds if number % 2 else (), number % 2 == 1, since if number % 4 else None, until, as_of, splits
        )
        out = tmp_path / str(number)
        done = interactions(
            out, wanted, where=built.where, arguments=built.arguments, trust_event_time=trust_event_time
        )
        begins, ends = [wanted.since or datetime.min, *splits], [*splits, until]
        users, items = (
            {code: value for value, code in codes(out, name).items()} for name in ("customer_id", "product_id")
        )
        in_files: Counter[str] = Counter()
        for name, begin, end, known in zip(
            [("interactions",), ("train", "test"), ("train", "valid", "test")][len(splits)],
            begins, ends, [*splits, as_of], strict=True,
        ):  # fmt: skip
            expected = [
                event
                for event in shop.visible(known)
                if event["product_id"] and event["event_type"] in kinds and begin <= event["event_at"] < end
            ]
            found = rows(out / f"{name}.parquet")
            assert as_written(expected, weigh) == Counter(
                (users[row["user_id"]], items[row["item_id"]], row["weight"], row["datetime"]) for row in found
            )
            assert [row["datetime"] for row in found] == sorted(row["datetime"] for row in found)
            assert done.files[f"{name}.parquet"] == len(found) > 0
            in_the_end = {event["event_id"]: event["customer"] for event in shop.visible(as_of)}
            in_files.update(event["event_id"] for event in expected)
            # A web's hit that the shop's database has replaced since is not there in the end.
            relinked += sum(
                in_the_end.get(event["event_id"], event["customer"]) != event["customer"] for event in expected
            )
        everything_known = [
            event
            for event in shop.visible(as_of)
            if event["product_id"] and event["event_type"] in kinds and begins[0] <= event["event_at"] < until
        ]
        assert done.notes.get(LATE, 0) == sum(event["event_id"] not in in_files for event in everything_known)
        late += done.notes.get(LATE, 0)
    # The small shop has late events, the simulated one visitors who log in later.
    assert relinked > 0 or built.arguments
    assert late == 0 if trust_event_time else late > 0 or not built.arguments


def test_without_options_they_are_what_the_build_knows(built_shop: Settings, tmp_path: Path) -> None:
    """The sums of weights are what the marts say of customers and products."""
    done = interactions(tmp_path / "out", Wanted(), where=built_shop)
    assert done.files.keys() == {"interactions.parquet"} and done.notes == {}
    with duckdb.connect() as con:
        con.execute(f"attach '{built_shop.warehouse}' as warehouse (read_only)")
        here = tmp_path / "out"
        differ = con.execute(
            f"""
            with weights as (
                select u.value as customer_id, i.value as product_id, sum(weight) as weight
                from '{here}/interactions.parquet' as e
                join '{here}/vocabulary/customer_id.parquet' as u on e.user_id = u.code
                join '{here}/vocabulary/product_id.parquet' as i on e.item_id = i.code
                group by all
            )
            select count(*) filter (weight is distinct from expected), count(*)
            from weights full join (
                select customer_id, product_id, any_value(views_lifetime + 3 * cart_adds_lifetime) + 10 * count(e.event_id) as expected
                from warehouse.marts.user_item_features as f
                left join (from warehouse.marts.fct_events where event_type = 'purchase') as e using (customer_id, product_id)
                group by all
                having expected > 0
            ) using (customer_id, product_id)
            """
        ).fetchall()
    assert differ[0][0] == 0 and differ[0][1] > 100


def test_the_first_file_does_not_depend_on_what_came_later(small: Built, tmp_path: Path) -> None:
    """Its rows and codes are those of an export as of its end."""
    split = sorted(event["event_at"] for event in small.shop.events)[len(small.shop.events) // 8]
    interactions(tmp_path / "both", Wanted(splits=[split]), where=small.where, arguments=small.arguments)
    interactions(tmp_path / "then", Wanted(as_of=split), where=small.where, arguments=small.arguments)
    assert rows(tmp_path / "both" / "train.parquet") == rows(tmp_path / "then" / "interactions.parquet")
    for column in ("customer_id", "product_id"):
        then, both = codes(tmp_path / "then", column), codes(tmp_path / "both", column)
        assert list(then.items()) == list(both.items())[: len(then)]
        assert list(then) == sorted(then)
    both, then = (
        {*codes(tmp_path / name, "customer_id"), *codes(tmp_path / name, "product_id")} for name in ("both", "then")
    )
    assert both > then


def test_the_same_export_twice_and_with_an_earlier_vocabulary(small: Built, tmp_path: Path) -> None:
    middle = sorted(event["event_at"] for event in small.shop.events)[len(small.shop.events) // 3]
    abouts = []
    for name in ("one", "two"):
        interactions(tmp_path / name, Wanted(as_of=middle), where=small.where, arguments=small.arguments)
        abouts.append(yaml.safe_load((tmp_path / name / "made_from.yml").read_text("utf-8")))
    assert rows(tmp_path / "one" / "interactions.parquet") == rows(tmp_path / "two" / "interactions.parquet")
    assert {**abouts[0], "made_at": None} == {**abouts[1], "made_at": None}
    interactions(
        tmp_path / "later", Wanted(since=middle), where=small.where, arguments=small.arguments, earlier=tmp_path / "one"
    )
    for column in ("customer_id", "product_id"):
        before, after = codes(tmp_path / "one", column), codes(tmp_path / "later", column)
        assert list(after.items())[: len(before)] == list(before.items())
        assert list(after.values()) == list(range(len(after)))
    assert codes(tmp_path / "later", "customer_id").keys() > codes(tmp_path / "one", "customer_id").keys()


# ----------------------------------------------------------------------------------------------------- vocabularies

TEXTS = st.lists(
    st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4), st.integers(0, 2))
)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_codes_never_change_when_values_are_added(made: list[list[tuple[str, int]]]) -> None:
    """Each export is given the vocabulary of the one before it."""
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as con:
        earlier: Path | None = None
        before: dict[str, int] = {}
        for number, values in enumerate(made):
            con.execute("create or replace table given (value varchar, place integer)")
            if values:
                con.executemany("insert into given values (?, ?)", values)
            table = vocabulary.encode(con, "product_id", "from given union all select null, 0", earlier)
            export = Path(folder) / str(number)
            export.mkdir()
            places: dict[str, int] = {}
            for value, place in values:
                places[value] = min(place, places.get(value, place))
            new = sorted(
                (value for value in places if value not in before), key=lambda value: (places[value], value.encode())
            )
            expected = {**before, **{value: len(before) + place for place, value in enumerate(new)}}
            assert vocabulary.write(con, "product_id", table, export) == len(expected)
            assert codes(export, "product_id") == expected
            earlier, before = export, expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select 'a' as value, 1 as code", "is no vocabulary: it needs each value once, with the codes 0, 1, 2 and so on"),
        ("from (values ('a', 0), ('a', 1)) as t (value, code)", "is no vocabulary"),
        ("from (values ('a', 0), (null, 1)) as t (value, code)", "is no vocabulary"),
        ("select 1 as product", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_vocabulary_is_said_in_one_sentence(query: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocabulary").mkdir()
    duckdb.sql(f"copy ({query}) to '{tmp_path}/vocabulary/product_id.parquet' (format parquet)")
    with duckdb.connect() as con, pytest.raises(FinegrainError, match=message) as error:
        vocabulary.encode(con, "product_id", "select 'b' as value, 0 as place", tmp_path)
    assert "product_id.parquet" in str(error.value) and "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------- RecBole


def atomic(file: Path) -> pd.DataFrame:
    """An atomic file as RecBole reads it (recbole/data/dataset/dataset.py, _load_feat): the types of the header, and pandas' Python parser."""
    header = file.read_text("utf-8").splitlines()[0].split("\t")
    kinds = {field: {"token": str, "float": float}[field.split(":")[1]] for field in header}
    found = pd.read_csv(file, delimiter="\t", usecols=header, dtype=kinds, engine="python")
    return found.rename(columns={field: field.split(":")[0] for field in header})


ODD = ["a\tb", 'q"x"', "two\nlines", "cr\rhere", "with space", "ü≠", "'", "NA", "null", "None"]


def test_recboles_files_have_any_id_and_the_features_of_the_first_split(built_shop: Settings, tmp_path: Path) -> None:
    """Products whose id RecBole would read as missing are left out."""
    home = tmp_path / "home"
    shutil.copytree(built_shop.home, home, ignore=shutil.ignore_patterns("logs"))
    where = Settings.below(home, built_shop.extensions)
    with duckdb.connect(str(where.warehouse)) as con:
        for number, name in enumerate(ODD, start=1):
            con.execute(
                "update int_cleaning__events set product_id = ? where product_id = ?", [name, f"SKU-{number:06}"]
            )
        kept = "event_type in ('view_item', 'add_to_cart', 'purchase') and product_id is not null"
        expected = Counter(
            con.execute(
                "select l.customer_id, product_id, event_type, event_at from int_cleaning__events as e join int_identity__links as l using (identity) "
                f"where {kept} and l.known_to is null and e.known_to is null and product_id not in ('NA', 'null', 'None')"
            ).fetchall()
        )
        [(unreadable,)] = con.execute(
            f"select count(*) from int_cleaning__events where {kept} and known_to is null and product_id in ('NA', 'null', 'None')"
        ).fetchall()
    done = recbole(tmp_path / "one", Wanted(), where=where)
    found = atomic(tmp_path / "one" / "one.inter")
    times = [datetime(1970, 1, 1) + timedelta(microseconds=round(each * 1e6)) for each in found["timestamp"]]
    assert Counter(zip(found["user_id"], found["item_id"], found["event_type"], times, strict=True)) == expected
    assert done.notes == {UNREADABLE: unreadable} and unreadable > 0
    assert set(ODD) - set(READ_AS_MISSING) <= set(found["item_id"])

    splits = [datetime(2025, 4, 1), datetime(2025, 4, 5)]
    names = [
        "user_features.views_30d",
        "user_features.rfm_segment",
        "item_features.price_now",
        "item_features.category",
    ]
    recbole(tmp_path / "split", Wanted(splits=splits), features=names, where=where)
    parts = [atomic(tmp_path / "split" / f"split.{name}.inter") for name in ("train", "valid", "test")]
    users, items = (atomic(tmp_path / "split" / f"split.{kind}") for kind in ("user", "item"))
    every = pd.concat(parts)
    assert sorted(users["user_id"]) == sorted(every["user_id"].unique()) and sorted(items["item_id"]) == sorted(
        every["item_id"].unique()
    )
    train = parts[0]
    seconds = (splits[0] - timedelta(days=30) - datetime(1970, 1, 1)).total_seconds()
    views = train[(train["event_type"] == "view_item") & (train["timestamp"] >= seconds)].groupby("user_id").size()
    known = users[users["user_features__views_30d"].notna()].set_index("user_id")["user_features__views_30d"]
    assert set(train["user_id"]) <= set(known.index)
    # Views of products that RecBole cannot read count for customers, too.
    assert (known.loc[views.index] >= views).all() and (known.loc[views.index] == views).mean() > 0.8
    assert items["item_features__price_now"].notna().sum() > 50 and items["item_features__category"].notna().sum() > 50
    said = yaml.safe_load((tmp_path / "split" / "recbole.yaml").read_text("utf-8"))
    assert said["benchmark_filename"] == ["train", "valid", "test"]
    assert said["load_col"] == {"inter": list(every), "user": list(users), "item": list(items)}


# ------------------------------------------------------------------------------------------------------- sequences


def spine_of(file: Path, key: str, keys: list[str], moments: list[datetime]) -> Path:
    table = pd.DataFrame([(each, moment) for each in keys for moment in moments], columns=[key, "as_of"])
    table["label"] = range(len(table))
    table.to_parquet(file)
    return file


@pytest.mark.parametrize("trust_event_time", [False, True])
@pytest.mark.parametrize("key", ["customer_id", "session_id"])
def test_sequences_are_the_last_events_that_were_known(
    built: Built, tmp_path: Path, key: str, trust_event_time: bool
) -> None:
    shop = built.at_once() if trust_event_time else built.shop
    moments = built.moments(Random(3), 60 if built.arguments else 12)
    spine = {"customer_id": "int_features__customer_spine", "session_id": "int_features__session_spine"}[key]
    asked = everything(Shop(built.shop.events, []))[spine]
    file = spine_of(tmp_path / "spine.parquet", key, asked, moments)
    late = 0
    for last, kinds in ((5, None), (3, ["view_item", "search", "purchase"])):
        out = tmp_path / str(last)
        done = sequences(
            out, spine=file, last=last, events=kinds or (), where=built.where, arguments=built.arguments, part=len(asked) * 7,
            trust_event_time=trust_event_time,
        )  # fmt: skip
        vocabularies = {column: codes(out, column) for column in ("product_id", "category", "event_type")}
        found = rows(out / "sequences.parquet")
        assert [(row["as_of"], row[key]) for row in found] == sorted(
            (moment, each) for each in asked for moment in moments
        )
        empty = 0
        for row in found:
            seen = sorted(
                (
                    event
                    for event in shop.visible(row["as_of"])
                    if event["customer" if key == "customer_id" else key] == row[key]
                    and (event["event_type"] in kinds if kinds else event["product_id"])
                ),
                key=lambda event: (event["event_at"], event["event_id"]),
            )[-last:]
            expected: dict[str, Any] = {
                "product_ids": [event["product_id"] for event in seen],
                "categories": [event["category"] for event in seen],
                "event_types": [event["event_type"] for event in seen],
                "event_times": [event["event_at"] for event in seen],
                "seconds_since_previous": [None, *(
                    pytest.approx((event["event_at"] - before["event_at"]).total_seconds(), abs=1e-9)
                    for before, event in itertools.pairwise(seen)
                )][: len(seen)],
            }  # fmt: skip
            for column, values, numbers in (
                ("product_id", "product_ids", "product_codes"),
                ("category", "categories", "category_codes"),
                ("event_type", "event_types", "event_type_codes"),
            ):
                expected[numbers] = [vocabularies[column].get(each, -1) + 1 for each in expected[values]]
            assert {name: row[name] for name in LISTS} == expected, row
            empty += not seen
            happened = [
                event for event in built.shop.events if event["event_at"] < row["as_of"] < event["available_at"]
            ]
            late += any(
                (customer_of(event["identity"]) if key == "customer_id" else event[key]) == row[key]
                for event in happened
            )
        assert sum(done.notes.values()) == empty > 0
        assert max(len(row["event_times"]) for row in found) == last
    assert late > 0 or not built.arguments


def test_sequences_of_candidates_have_the_codes_of_interactions(published: Settings, tmp_path: Path) -> None:
    """Rows with one key and as_of have the same lists; labels and other keys are carried through."""
    interactions(tmp_path / "interactions", Wanted(), where=published)
    done = sequences(
        tmp_path / "out", spine=Path("next_in_session"), label="is_next", of="session_id", part=20, where=published,
        earlier=tmp_path / "interactions",
    )  # fmt: skip
    found = rows(tmp_path / "out" / "sequences.parquet")
    with duckdb.connect(str(published.published / "finegrain.duckdb"), read_only=True) as con:
        spine = con.execute(
            "select session_id, customer_id, product_id, as_of, is_next from next_in_session"
        ).fetchall()
    assert done.files == {"sequences.parquet": len(spine)}
    names = ("session_id", "customer_id", "product_id", "as_of", "is_next")
    assert sorted(tuple(row[name] for name in names) for row in found) == sorted(spine)
    by_group: dict[tuple[Any, ...], list[Any]] = {}
    for row in found:
        lists = [row[name] for name in LISTS]
        assert by_group.setdefault((row["session_id"], row["as_of"]), lists) == lists
    # Each moment is that of the next product in a session: one was seen before.
    assert len(by_group) < len(found) and all(lists[0] for lists in by_group.values())
    before, after = (codes(tmp_path / name, "product_id") for name in ("interactions", "out"))
    assert list(after.items())[: len(before)] == list(before.items())


# ------------------------------------------------------------------------------------------------ the command line


def finegrain(where: Settings, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "export", *arguments],
        cwd=folder, env={**os.environ, **where.environment()}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_commands(published: Settings, tmp_path: Path) -> None:
    done = finegrain(published, tmp_path, "interactions", "--split", "2025-04-01", "--counts", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["files"] == {
        name: len(rows(tmp_path / "interactions" / name)) for name in ("train.parquet", "test.parquet")
    }
    assert {row["weight"] for row in rows(tmp_path / "interactions" / "train.parquet")} == {1.0}
    spine = "select customer_id, as_of from user_features"
    done = finegrain(published, tmp_path, "sequences", "--query", spine, "--last", "2", "--trust-event-time")
    assert done.returncode == 0, done.stderr
    assert "sequences/sequences.parquet: " in done.stdout and "events count from when they happened" in done.stdout
    assert max(len(row["product_ids"]) for row in rows(tmp_path / "sequences" / "sequences.parquet")) == 2
    about = yaml.safe_load((tmp_path / "sequences" / "made_from.yml").read_text("utf-8"))
    assert (about["last"], about["of"], about["trust_event_time"]) == (2, "customer_id", True)


BAD: dict[str, tuple[list[str], str]] = {
    "type": (["interactions", "--events", "view_itm"], "--events: no event is of the type view_itm; did you mean view_item?"),
    "far type": (["sequences", "next_in_session", "--events", "zzz"], "--events: no event is of the type zzz; there are add_payment_info, add_to_cart, "),
    "no weight": (["interactions", "--events", "add_to_wishlist"], "add_to_wishlist has no weight in seeds/event_weights.csv; leave it out, or say --counts"),
    "no product": (["interactions", "--events", "search", "--counts"], "there is no event of the types search about a product from the beginning to 2025-04-08"),
    "window": (["interactions", "--since", "2025-04-02", "--until", "2025-04-01"], "--since: 2025-04-02 00:00:00 is not before the end, 2025-04-01 00:00:00"),
    "empty window": (["interactions", "--since", "2025-01-01", "--until", "2025-01-02"], "interactions would be empty"),
    "until": (["interactions", "--until", "2025-04-02", "--as-of", "2025-04-01"], "--until: 2025-04-02 00:00:00 is later than 2025-04-01 00:00:00"),
    "future": (["recbole", "--as-of", "2030-01-01"], "--as-of: 2030-01-01 00:00:00 is later than the last event that is built"),
    "order": (["interactions", "--split", "2025-04-02,2025-04-01"], "--split: give the time at which the test rows begin"),
    "three": (["interactions", "--split", "2025-04-01,2025-04-02,2025-04-03"], "--split: give the time at which the test rows begin"),
    "outside": (["interactions", "--split", "2025-04-01", "--since", "2025-04-02"], "and after 2025-04-02 00:00:00"),
    "one split": (["recbole", "--split", "2025-04-01"], "--split: RecBole takes train, valid and test rows; give two times"),
    "mart": (["recbole", "--features", "session_features"], "--features: RecBole takes features of user_features and item_features, not of session_features"),
    "feature": (["recbole", "--features", "user_features.view_30d"], "did you mean user_features.views_30d?"),
    "last": (["sequences", "next_in_session", "--last", "0"], "--last is 0; give the number of events to keep, at least 1"),
    "of": (["sequences", "next_in_session", "--of", "product_id"], "--of is product_id; a sequence is of a customer_id or a session_id"),
    "key": (["sequences", "next_basket", "--of", "session_id"], "next_basket: a sequence is of a session_id, which the spine has no column of"),
    "own column": (["sequences", "--query", "select customer_id, as_of, 1 as product_ids from user_features"], "the export has a column product_ids of its own"),
    "no spine": (["sequences"], "name a file with the spine or a ready-made one, or give one as --query, and not both"),
    "vocabulary": (["interactions", "--vocabulary", "elsewhere"], "--vocabulary: elsewhere has no vocabulary/customer_id.parquet"),
    "not empty": (["interactions", "--out", "."], " is not empty; name a new folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(
    case: str, published: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD[case]
    (tmp_path / "something").touch()
    monkeypatch.chdir(tmp_path)
    for name, value in published.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["finegrain", "export", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    assert (stopped.value.code, said.out) == (2, "")
    assert said.err.startswith("error: ") and message in said.err and said.err.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["something"]


def test_without_a_publication_there_is_no_ready_made_spine(built_shop: Settings, tmp_path: Path) -> None:
    with pytest.raises(FinegrainError, match="nothing is published, so there are no marts to query"):
        sequences(tmp_path / "out", spine=Path("next_in_session"), where=built_shop)
    nowhere = Settings.below(tmp_path / "home", built_shop.extensions)
    with pytest.raises(FinegrainError, match="does not exist; run `finegrain build` first"):
        interactions(tmp_path / "out", Wanted(), where=nowhere)


@pytest.mark.parametrize("export", ["interactions", "recbole", "sequences"])
def test_nothing_is_written_half(
    export: str, published: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails at the end leaves neither the folder nor what was made aside."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the disk is full")

    run: dict[str, Callable[[], Export]] = {
        "interactions": lambda: interactions(tmp_path / "out", Wanted(), where=published),
        "recbole": lambda: recbole(tmp_path / "out", Wanted(), where=published),
        "sequences": lambda: sequences(tmp_path / "out", spine=Path("next_in_session"), where=published),
    }
    monkeypatch.setattr("orchestration.features.exports.yaml.safe_dump", fail)
    with pytest.raises(RuntimeError):
        run[export]()
    assert not (tmp_path / "out").exists() and not list(published.home.glob(f"{exports.DRAFT}*"))
    monkeypatch.undo()
    assert run[export]().files.keys() <= {each.name for each in (tmp_path / "out").iterdir()}
