"""The online store: what Feast reads is what was published, and an older vector never replaces a newer one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from servers import HOST, Redis

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError, Unavailable
from orchestration.features.catalog import declared
from orchestration.features.training import keys_of
from orchestration.store import repository
from orchestration.store.backends import Backend, InSqlite, backend
from orchestration.store.lookup import in_words
from orchestration.store.materialize import materialize
from orchestration.store.online import OnlineStore, _key_sql, key_text, moment
from orchestration.store.repository import apply, definitions, opened, source_of
from orchestration.warehouse.publish import publish

KINDS = ("sqlite", "redis")
#: Keys of each mart that tests read: all of a small one.
KEYS = 60


def flush(redis: Redis) -> None:
    with socket.create_connection((HOST, redis.port), timeout=10) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(100).startswith(b"+OK")


@pytest.fixture(scope="module")
def published(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The shop's marts, published; tests only read them."""
    where = replace(built_shop, published=tmp_path_factory.mktemp("published"))
    publish(where)
    return where


@pytest.fixture(params=KINDS)
def shop(
    request: pytest.FixtureRequest, published: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """A home with the published marts, whose online store is new."""
    for name in [name for name in os.environ if name.startswith("FINEGRAIN_") and name != "FINEGRAIN_PRIVACY_KEY"]:
        monkeypatch.delenv(name)
    where = replace(published, home=tmp_path / "home")
    for name, value in where.environment().items():
        monkeypatch.setenv(name, value)
    if request.param == "redis":
        redis = request.getfixturevalue("redis")
        flush(redis)
        monkeypatch.setenv("FINEGRAIN_ONLINE_STORE", f"redis://{HOST}:{redis.port}/0")
    return where


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """An empty store."""
    if request.param == "redis":
        redis = request.getfixturevalue("redis")
        flush(redis)
        opened = backend(f"redis://{HOST}:{redis.port}/0")
    else:
        opened = InSqlite(tmp_path_factory.mktemp("store") / "online.sqlite")
    yield opened
    opened.close()


def finegrain(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def in_parquet(where: Settings, mart: str) -> list[dict[str, Any]]:
    """Some rows of a published mart, as another reader has them."""
    rows = pq.read_table(where.published / "parquet" / mart).to_pylist()
    return random.Random(mart).sample(rows, min(KEYS, len(rows)))


def test_records_are_removed_by_a_part_of_their_key(store: Backend) -> None:
    records = [
        (f"{len(brand)}:{brand}{key}", 5, "l" * 16, f'["{key}"]')
        for brand in ("acme", "x")
        for key in ("ann-1", "ben-2")
    ]
    assert (
        store.write("user_brand_features", records) == 4
        and store.write("item_features", [("ann-1", 5, "l" * 16, "[]")]) == 1
    )
    assert store.search("user_brand_features", re.compile("ann-1")) == 2
    assert (
        store.remove("user_brand_features", ["ann-1", "nobody"]) == 2
        and store.remove("user_brand_features", ["ann-1"]) == 0
    )
    found = store.read("user_brand_features", [key for key, *_ in records])
    assert [each is None for each in found] == [True, False, True, False]
    assert (
        store.search("user_brand_features", re.compile("ann-1")),
        store.search("user_brand_features", re.compile('"ben')),
    ) == (0, 2)
    assert store.search("item_features", re.compile("ann-1")) == 1 and store.remove("category_features", ["ann-1"]) == 0
    if isinstance(store, InSqlite):
        store.remove("item_features", ["ann-1"])
        store.close()
        assert not [path for path in store.path.parent.iterdir() if b"ann-1" in path.read_bytes()]


def alike(theirs: Any, ours: Any) -> bool:
    """Whether Feast's value is the mart's: floats to 1e-9, times to the second, which is all that Feast has."""
    if theirs is None or ours is None:
        return theirs is None and ours is None
    if isinstance(ours, datetime):
        return bool(theirs == ours.replace(microsecond=0, tzinfo=UTC))
    if isinstance(ours, list | str | bool):
        return type(theirs) is type(ours) and bool(theirs == ours)
    return not isinstance(theirs, str) and abs(float(theirs) - float(ours)) <= 1e-9 * max(1.0, abs(float(ours)))


def test_feast_reads_what_was_published(shop: Settings) -> None:
    """Every column of every mart; nulls are null, and the event time is as_of."""
    apply()
    done = materialize()
    assert set(done.marts) == {mart.name for mart in declared()} and not done.unchanged
    feast = opened()
    compared = nulls = 0
    for mart in declared():
        rows = in_parquet(shop, mart.name)
        assert done.marts[mart.name].written == done.marts[mart.name].rows >= len(rows) > 5
        names = keys_of(mart)
        asked = [{name: row[name] for name in names} for row in rows]
        found = feast.get_online_features(
            features=[f"{mart.name}:{each.name}" for each in mart.features],
            entity_rows=[*asked, dict.fromkeys(names, "nobody")],
        ).to_dict(include_event_timestamps=True)
        for feature in mart.features:
            *values, unknown = found[feature.name]
            wrong = [(ask, value, row[feature.name]) for ask, value, row in zip(asked, values, rows, strict=True)
                     if not alike(value, row[feature.name])]  # fmt: skip
            assert not wrong and unknown is None, (mart.name, feature.name, wrong[:3])
            assert found[f"{feature.name}__ts"] == [
                int(row["as_of"].replace(tzinfo=UTC).timestamp()) for row in rows
            ] + [0]
            compared += len(values)
            nulls += values.count(None)
    assert compared > 20_000 and nulls > 500


def test_a_service_has_the_features_of_a_ready_made_spine(shop: Settings) -> None:
    apply()
    materialize()
    feast = opened()
    row = in_parquet(shop, "user_item_features")[0]
    found = feast.get_online_features(
        features=feast.get_feature_service("next_basket"),
        entity_rows=[{name: row[name] for name in ("customer_id", "product_id")}],
        full_feature_names=True,
    ).to_dict()
    marts = {mart.name: mart for mart in declared()}
    wanted = {
        f"{name}__{each.name}"
        for name in ("user_features", "item_features", "user_item_features")
        for each in marts[name].features
    }
    assert set(found) == wanted | {"customer_id", "product_id"}
    assert alike(found["user_item_features__views_lifetime"][0], row["views_lifetime"])
    services = {
        each.name: {view.name for view in each.feature_view_projections} for each in feast.list_feature_services()
    }
    assert services["customer_outcomes"] == {"user_features"}
    assert services["next_in_session"] == {"session_features", "user_features", "item_features", "user_item_features"}


# --------------------------------------------------------------------------------------------------- the guard

WRITES = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=4), min_size=1, max_size=8
)


@examples(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(WRITES)
def test_the_newest_stays_in_whatever_order_they_come(store: Backend, batches: list[list[tuple[int, int]]]) -> None:
    mart = f"mart_{uuid.uuid4().hex}"
    newest: dict[str, tuple[int, str, str]] = {}
    for number, batch in enumerate(batches):
        records = [(f"k{key}", as_of, "l" * 16, f"[{number},{place}]") for place, (key, as_of) in enumerate(batch)]
        accepted = 0
        for key, *record in records:
            if key not in newest or record[0] >= newest[key][0]:
                newest[key] = (int(record[0]), str(record[1]), str(record[2]))
                accepted += 1
        assert store.write(mart, records) == accepted
    assert store.read(mart, ["k0", "k1", "k2", "k3"]) == [newest.get(f"k{key}") for key in range(4)]
    store.drop(mart)


def test_writers_at_once_leave_the_newest(store: Backend) -> None:
    """Three writers with the same vectors, shuffled, in small batches, each with connections of its own. A reader never sees one go back."""
    moments, keys = 40, 25
    newest = [0] * keys
    went_back: list[tuple[int, int]] = []
    errors: list[BaseException] = []
    writing = threading.Event()
    writing.set()

    def write(seed: int) -> None:
        own = backend(store.name)
        try:
            records = [(f"k{key}", at, "l" * 16, f"[{at}]") for at in range(1, moments + 1) for key in range(keys)]
            random.Random(seed).shuffle(records)
            for first in range(0, len(records), 7):
                own.write("mart", records[first : first + 7])
        except BaseException as error:
            errors.append(error)
        finally:
            own.close()

    def read() -> None:
        while writing.is_set():
            for key, record in enumerate(store.read("mart", [f"k{key}" for key in range(keys)])):
                seen = record[0] if record else 0
                if seen < newest[key]:
                    went_back.append((newest[key], seen))
                newest[key] = seen

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=[seed]) for seed in range(3)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    writing.clear()
    reader.join()
    assert not errors and not went_back and max(newest) == moments
    assert store.read("mart", [f"k{key}" for key in range(keys)]) == [(moments, "l" * 16, f"[{moments}]")] * keys


def test_what_feast_writes_is_guarded_too(shop: Settings) -> None:
    """`write_to_online_store`, as Feast's push and its own materialize use it."""
    import pandas as pd

    apply()
    feast = opened()
    mart = next(mart for mart in declared() if mart.name == "user_brand_features")

    def write(day: int, views: int) -> None:
        row = {each.name: (float(views) if each.data_type.startswith(("d", "n")) else views) for each in mart.features}
        rows = pd.DataFrame(
            [{"customer_id": "ann", "brand": "Ünique/1", "as_of": datetime(2025, 1, day, tzinfo=UTC), **row}]
        )
        feast.write_to_online_store("user_brand_features", rows)

    def read() -> int:
        asked = [{"customer_id": "ann", "brand": "Ünique/1"}]
        [views] = feast.get_online_features(["user_brand_features:views_7d"], asked).to_dict()["views_7d"]
        return int(views)

    for day, views, seen in ((5, 1, 1), (4, 2, 1), (5, 3, 3), (6, 4, 4)):
        write(day, views)
        assert read() == seen
    with OnlineStore() as store:
        [vector] = store.read("user_brand_features", [["ann", "Ünique/1"]])
        assert vector and vector.as_of == datetime(2025, 1, 6) and vector.values["views_7d"] == 4


def test_feasts_own_sqlite_store_goes_back(tmp_path: Path) -> None:
    """Why there is one of our own. Should this fail one day, Feast has a guard itself."""
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Int64

    feast = FeatureStore(
        config=RepoConfig(
            project="theirs", provider="local", registry=str(tmp_path / "registry.db"),
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")}, entity_key_serialization_version=3,
        )
    )  # fmt: skip
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
    source = FileSource(path=str(tmp_path / "none.parquet"), timestamp_field="as_of")
    view = FeatureView(name="v", entities=[customer], schema=[Field(name="views", dtype=Int64)], source=source)
    feast.apply([customer, view])
    for day, views in ((5, 1), (4, 2)):
        feast.write_to_online_store(
            "v", pd.DataFrame([{"customer_id": "ann", "as_of": datetime(2025, 1, day, tzinfo=UTC), "views": views}])
        )
    assert feast.get_online_features(["v:views"], [{"customer_id": "ann"}]).to_dict()["views"] == [2]


# ------------------------------------------------------------------------------------------- keys and values


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_keys_are_alike_in_sql_and_python_and_never_collide(pairs: list[tuple[str, str]]) -> None:
    pairs = [pair for pair in pairs if "\0" not in "".join(pair)]
    table = pa.table(
        {"b": pa.array([b for b, _ in pairs], pa.string()), "a": pa.array([a for _, a in pairs], pa.string())}
    )
    with duckdb.connect() as con:
        con.register("given", table)
        found = [key for (key,) in con.execute(f"select {_key_sql(['b', 'a'])} from given").fetchall()]
    assert found == [key_text({"a": a, "b": b}) for b, a in pairs]
    assert len(set(found)) == len(set(pairs))


VALUES = {
    "views_1h": [0, 2**62, None],
    "revenue_1h": [0.1, 123456789.1234, None],
    "night_share_90d": [1 / 3, 5e-324, None],
    "session_seconds_mean_90d_was_missing": [True, False, None],
    "rfm_segment": ['say "ü"\n\\', "", None],
}


def user_rows(keys: list[str], as_of: datetime) -> pa.Table:
    return pa.table({"customer_id": keys, "as_of": pa.array([as_of] * len(keys), pa.timestamp("us")), **VALUES})


def test_values_come_back_as_they_were(store: Backend) -> None:
    keys, as_of = ["ann", "bén", "c' or 1"], datetime(2025, 3, 1, 12, 30, 15, 123456)
    table = user_rows(keys, as_of)
    with OnlineStore(to=store) as online:
        assert online.write("user_features", table) == 3
        found = online.read("user_features", [*reversed(keys), "dan"])
        assert found.pop() is None
        for place, vector in enumerate(reversed([each for each in found if each])):
            assert vector.as_of == as_of and vector.age > timedelta(days=1)
            assert vector.values == {name: values[place] for name, values in VALUES.items()}
        # A time with a zone is the same moment, whatever the zone of this machine.
        aware = table.set_column(
            1, "as_of", table["as_of"].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", "Asia/Tokyo"))
        )
        assert online.write("user_features", aware) == 3
        assert [each and each.as_of for each in online.read("user_features", keys)] == [as_of] * 3
        # Of other columns, after a release: what was written before is still read.
        assert online.write("user_features", table.slice(0, 1).select(["customer_id", "as_of", "views_1h"])) == 1
        [ann, ben] = online.read("user_features", ["ann", "bén"])
        assert ann and ben and ann.values == {"views_1h": 0} and len(ben.values) == len(VALUES)
        assert online.write("user_features", user_rows(keys, as_of - timedelta(microseconds=1))) == 0
        with pytest.raises(FinegrainError, match="user_features: the rows have no column as_of"):
            online.write("user_features", table.drop_columns(["as_of"]))
        with pytest.raises(FinegrainError, match="no feature mart user_featurs; did you mean user_features"):
            online.write("user_featurs", table)
        with pytest.raises(FinegrainError, match="customer_id, brand"):
            online.read("user_brand_features", ["ann"])


# ------------------------------------------------------------------------------------------------ materialize


def dump(where: Settings) -> dict[str, Any]:
    """All that the store has of some marts."""
    with OnlineStore() as store:
        return {
            mart: {key: store.read(mart, [key]) for key in (row["customer_id"] for row in in_parquet(where, mart))}
            for mart in ("user_features",)
        }


def test_materialize_again_changes_nothing(shop: Settings) -> None:
    first = materialize()
    before = dump(shop)
    again = materialize()
    assert not again.marts and sorted(again.unchanged) == sorted(first.marts)
    forced = materialize(everything=True)
    assert {name: (mart.rows, mart.written) for name, mart in forced.marts.items()} == {
        name: (mart.rows, mart.rows) for name, mart in first.marts.items()
    }
    assert dump(shop) == before
    some = materialize(marts=["item_features"], everything=True)
    assert list(some.marts) == ["item_features"]
    with pytest.raises(FinegrainError, match="did you mean item_features"):
        materialize(marts=["item_feature"])


def test_what_is_newer_stays_and_what_is_no_more_goes(shop: Settings) -> None:
    rows = in_parquet(shop, "user_features")
    as_of = rows[0]["as_of"]
    ours = rows[0]["customer_id"]
    later, earlier = as_of + timedelta(seconds=1), as_of - timedelta(seconds=1)
    with OnlineStore() as store:
        store.write("user_features", user_rows([ours, "new visitor", "x"], later))
        store.write("user_features", user_rows(["merged", rows[1]["customer_id"], "y"], earlier))
        done = materialize().marts["user_features"]
        assert (done.rows - done.written, done.removed) == (1, 2)
        found = store.read("user_features", [ours, "new visitor", "merged", rows[1]["customer_id"]])
        assert [each and each.as_of for each in found] == [later, later, None, as_of]
        assert found[3] and len(found[3].values) == 192


def test_a_store_that_lost_its_data_is_filled_again(shop: Settings) -> None:
    materialize()
    with OnlineStore() as store:
        for mart in store.marts:
            store.backend.drop(mart)
    assert len(materialize().marts) == 8


# ------------------------------------------------------------------------------------------------- repository


@pytest.fixture
def in_sqlite(published: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    where = replace(published, home=tmp_path / "home")
    monkeypatch.delenv("FINEGRAIN_ONLINE_STORE", raising=False)
    for name, value in where.environment().items():
        monkeypatch.setenv(name, value)
    return where


def test_definitions_say_what_the_yaml_says(in_sqlite: Settings, project: Path) -> None:
    apply()
    feast = opened()
    [entity] = [each for each in feast.list_entities() if each.name == "customer"]
    assert entity.join_key == "customer_id" and "customer" in entity.description.lower()
    views = {each.name: each for each in feast.list_feature_views()}
    for mart in declared():
        model = yaml.safe_load((project / f"models/marts/features/{mart.name}.yml").read_text("utf-8"))["models"][0]
        columns = {each["name"]: each for each in model["columns"] if "unit" in each.get("config", {}).get("meta", {})}
        view = views[mart.name]
        assert sorted(view.join_keys) == sorted(keys_of(mart)) and view.ttl == timedelta(days=7)
        assert view.batch_source.timestamp_field == "as_of" and view.owner == "personalization"
        fields = {each.name: each for each in view.features}
        assert fields.keys() == columns.keys()
        for name, column in columns.items():
            meta = column["config"]["meta"]
            assert fields[name].description == " ".join(column["description"].split())
            assert {key: fields[name].tags[key] for key in ("unit", "window", "null_means")} == {
                key: meta[key] for key in ("unit", "window", "null_means")
            }
            assert fields[name].tags["owner"] == "personalization"
    kinds = {each.name: str(each.dtype) for each in views["session_features"].features}
    assert {kinds["started_at"], kinds["last_products"]} == {"UnixTimestamp", "Array(String)"}


def test_what_is_declared_no_more_is_removed(in_sqlite: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = declared()
    monkeypatch.setattr(
        repository,
        "variable",
        lambda name, default: {"churn": ["user_features.orders_*", "user_features.hours_since_order"]},
    )
    apply()
    materialize()
    [churn] = [each for each in opened().list_feature_services() if each.name == "churn"]
    assert {each.name for each in churn.feature_view_projections[0].features} >= {"orders_30d", "hours_since_order"}
    assert "views_30d" not in {each.name for each in churn.feature_view_projections[0].features}
    monkeypatch.undo()
    for name, value in in_sqlite.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        repository, "declared", lambda project: [each for each in everything if each.name != "session_features"]
    )
    done = apply()
    assert {"churn", "session_features", "session"} <= set(done.removed)
    feast = opened()
    assert "session_features" not in {each.name for each in feast.list_feature_views()} | {
        each.name for each in feast.list_data_sources()
    }
    with OnlineStore() as store:
        assert "session_features" not in store.backend.marks()
        assert (
            store.read("session_features", [row["session_id"] for row in in_parquet(in_sqlite, "session_features")][:3])
            == [None] * 3
        )
    assert apply().removed == []


def test_feasts_own_command_reads_the_repository(in_sqlite: Settings) -> None:
    apply()
    done = subprocess.run(
        [Path(sys.executable).with_name("feast"), "-c", in_sqlite.home / "store", "apply"],
        env={**os.environ, "FEAST_LOG_LEVEL": "ERROR"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert {each.name for each in opened().list_feature_views()} == {mart.name for mart in declared()}


def test_a_type_that_feast_has_not_is_one_sentence(in_sqlite: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    [mart] = [each for each in declared() if each.name == "user_brand_features"]
    for kind in ("timestamp[]", "struct(a integer)"):
        wrong = replace(mart, features=[replace(mart.features[0], data_type=kind), *mart.features[1:]])
        monkeypatch.setattr(repository, "declared", lambda project, wrong=wrong: [wrong])
        with pytest.raises(
            FinegrainError, match=rf"user_brand_features\.views_7d: Feast has no type for {re.escape(kind)}"
        ):
            apply()


def test_a_repository_of_another_online_store_is_refused(in_sqlite: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FinegrainError, match=r"feature_store\.yaml does not exist; run `finegrain store apply`"):
        opened()
    apply()
    monkeypatch.setenv("FINEGRAIN_ONLINE_STORE", "redis://127.0.0.1:1/0")
    with pytest.raises(FinegrainError, match="is of another online store"):
        opened()


# -------------------------------------------------------------------------------------------------- commands


def test_the_commands(shop: Settings) -> None:
    assert "8 feature views: " in finegrain("store", "apply").stdout
    nothing = finegrain("features", "get", "customer", "ann")
    assert nothing.returncode == 2 and "user_features was not materialized yet" in nothing.stderr
    assert not (shop.home / "store" / "online.sqlite").exists()  # who only reads makes nothing
    done = finegrain("store", "materialize")
    assert done.returncode == 0, done.stderr
    rows = in_parquet(shop, "user_features")
    assert f"user_features: {len(pq.read_table(shop.published / 'parquet/user_features')):,} rows, " in done.stdout
    customer, row = rows[0]["customer_id"], rows[0]
    shown = finegrain("features", "get", "customer", customer, "--like", "views_30d")
    assert shown.stdout.startswith(
        f"user_features of customer_id {customer}, as of {row['as_of']:%Y-%m-%d %H:%M:%S} UTC, "
    )
    [line] = [line.split() for line in shown.stdout.splitlines() if line.startswith("views_30d ")]
    assert line[:3] == ["views_30d", str(row["views_30d"]), "events"] and line[-1] == "d"
    found = json.loads(finegrain("features", "get", "customer", customer, "--json").stdout)
    assert (
        found["mart"] == "user_features" and found["key"] == {"customer_id": customer} and len(found["features"]) == 192
    )
    for name, each in found["features"].items():
        assert each["as_of"] == row["as_of"].isoformat() + "Z" and each["age_seconds"] > 86_400
        assert each["value"] == (None if row[name] is None else pytest.approx(float(row[name]))
                                 if not isinstance(row[name], str | bool) else row[name])  # fmt: skip
    pair = in_parquet(shop, "user_item_features")[0]
    found = json.loads(
        finegrain("features", "get", "product", pair["product_id"], "customer_id", pair["customer_id"], "--json").stdout
    )
    assert (
        found["mart"] == "user_item_features" and found["features"]["views_lifetime"]["value"] == pair["views_lifetime"]
    )
    for arguments, message in (
        (["custmer", "1"], "there is no entity custmer; did you mean customer?"),
        (["customer", "nobody"], "the online store has no user_features of customer nobody; the key is unknown"),
        (["customer", "1", "session", "2"], "no mart has the key customer and session; there are: "),
        (["customer"], "write an entity and its id"),
    ):
        wrong = finegrain("features", "get", *arguments)
        assert wrong.returncode == 2 and message in wrong.stderr and len(wrong.stderr.splitlines()) == 1, wrong.stderr


def test_ages_are_said_in_their_largest_unit() -> None:
    said = [in_words(timedelta(seconds=seconds)) for seconds in (0.44, 90, 150, 7_300, 200_000)]
    assert said == ["0.4 s", "90.0 s", "2 min", "2 h", "2 d"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "serve-features.md"


def test_the_code_of_the_page(shop: Settings) -> None:
    """docs/how-to/serve-features.md, as it stands there."""
    apply()
    materialize()
    page = PAGE.read_text("utf-8")
    row = in_parquet(shop, "user_item_features")[0]
    names: dict[str, Any] = {"customer": row["customer_id"], "product": row["product_id"]}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.S | re.M):
        exec(block, names)
    table = pq.read_table(shop.published / "parquet" / "user_features").to_pylist()
    [user] = [each for each in table if each["customer_id"] == row["customer_id"]]
    for name in ("views_30d", "hours_since_order", "rfm_segment"):
        known, unknown = names["vector"][name]
        assert alike(known, user[name]) and unknown is None
    assert names["vector"]["views_30d__ts"] == [int(user["as_of"].replace(tzinfo=UTC).timestamp()), 0]
    assert alike(names["row"]["user_item_features__views_30d"][0], row["views_30d"])
    for command in re.findall(r"^finegrain (store \w+|features get)", page, re.M):
        assert finegrain(*command.split(), "--help").returncode == 0, command


def test_feasts_server_answers(shop: Settings) -> None:
    apply()
    materialize()
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "orchestration.cli", "store", "serve", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=10).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, server.stderr and server.stderr.read()
                time.sleep(0.2)
        rows = in_parquet(shop, "item_features")
        [body] = re.findall(r"-d '(\{.*?\})'", PAGE.read_text("utf-8"), re.S)
        asked = json.loads(body)
        assert asked["features"] == ["item_features:views_30d", "item_features:price_now"]
        asked["entities"] = {"product_id": [*(row["product_id"] for row in rows), "nobody"]}
        request = urllib.request.Request(
            f"http://{HOST}:{port}/get-online-features",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)
        columns = dict(zip(found["metadata"]["feature_names"], found["results"], strict=True))
        for name in ("views_30d", "price_now"):
            *values, unknown = columns[name]["values"]
            assert unknown is None and columns[name]["statuses"][-1] == "NOT_FOUND"
            assert all(alike(value, row[name]) for value, row in zip(values, rows, strict=True))
        [moment] = {each[:19] for each in columns["views_30d"]["event_timestamps"][:-1]}
        assert moment == rows[0]["as_of"].isoformat()[:19]
        taken = finegrain("store", "serve", "--port", str(port))
        assert taken.returncode == 2 and f"cannot listen on port {port}" in taken.stderr
    finally:
        server.terminate()
        _, said = server.communicate(timeout=60)
    assert server.returncode == 0 and "Traceback" not in said


# ------------------------------------------------------------------------------------------ stores that are away


def test_a_store_that_is_away_is_one_error(in_sqlite: Settings) -> None:
    away = {"FINEGRAIN_ONLINE_STORE": f"redis://{HOST}:{free_port()}/0"}
    for arguments in (["store", "materialize"], ["features", "get", "customer", "ann"]):
        done = finegrain(*arguments, **away)
        assert done.returncode == Unavailable.exit_code and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith(f"error: the online store {away['FINEGRAIN_ONLINE_STORE']} does not answer: ")


def test_a_password_comes_from_the_environment_and_is_not_shown(
    in_sqlite: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_connection((HOST, redis.port), timeout=10) as connection:
        connection.sendall(b"ACL SETUSER shop on >open-sesame-42 ~* &* +@all\r\n")
        assert connection.recv(100).startswith(b"+OK")
    monkeypatch.setenv("FINEGRAIN_ONLINE_STORE", f"redis://shop@{HOST}:{redis.port}/1")
    for password in ("wrong-sesame-42", None):
        done = finegrain("store", "materialize", **({"FINEGRAIN_ONLINE_STORE_PASSWORD": password} if password else {}))
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "set FINEGRAIN_ONLINE_STORE_PASSWORD" in done.stderr and "wrong-sesame" not in done.stderr
    monkeypatch.setenv("FINEGRAIN_ONLINE_STORE_PASSWORD", "open-sesame-42")
    apply()
    assert len(materialize().marts) == 8
    row = in_parquet(in_sqlite, "user_features")[0]
    found = opened().get_online_features(["user_features:views_30d"], [{"customer_id": row["customer_id"]}]).to_dict()
    assert found["views_30d"] == [row["views_30d"]]
    assert "sesame" not in "".join(
        path.read_text("latin-1") for path in (in_sqlite.home / "store").iterdir() if path.is_file()
    )


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("redis://:secret9@host:6379/0", "holds a password"),
        ("redis://me:secret9@host:6379/0", "holds a password"),
        ("postgres://host/db", "is not an address of Redis; write redis://host:port/0"),
        ("redis://host:6379/zero", "is not an address of Redis"),
        ("/some/file", "is not an address of Redis"),
    ],
)
def test_addresses_that_are_none(address: str, message: str) -> None:
    done = finegrain("store", "materialize", FINEGRAIN_ONLINE_STORE=address)
    assert done.returncode == 2 and message in done.stderr and "secret9" not in done.stderr


def test_a_broken_file_is_one_error(in_sqlite: Settings) -> None:
    file = in_sqlite.home / "store" / "online.sqlite"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(
        FinegrainError,
        match=r"online\.sqlite: file is not a database; remove it, and run `finegrain store materialize`",
    ):
        materialize()


def test_a_writer_that_holds_the_file_for_too_long_is_one_error(
    in_sqlite: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize()
    monkeypatch.setattr("orchestration.store.backends.PATIENCE", 0.2)
    with sqlite3.connect(in_sqlite.home / "store" / "online.sqlite", isolation_level=None) as other:
        other.execute("begin immediate")
        with pytest.raises(Unavailable, match="is being written by another process for too long"):
            materialize(everything=True)
        other.execute("rollback")
    other.close()


WITHOUT_FEAST = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ("feast", "redis") else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if each is PathFinder else each for each in sys.meta_path]
from orchestration.cli import main
main()
"""


def test_without_the_extra_one_sentence_says_how_to_install_it(in_sqlite: Settings) -> None:
    """What needs no Feast works: SQLite is filled and read."""
    for arguments, environment in (
        (["store", "apply"], {}),
        (["store", "serve"], {}),
        (["store", "materialize"], {"FINEGRAIN_ONLINE_STORE": "redis://127.0.0.1:6379/0"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_FEAST, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 2 and "extra 'store'" in done.stderr and len(done.stderr.splitlines()) == 1, (
            done.stderr
        )
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FEAST, "store", "materialize"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_commands_start_without_feast() -> None:
    program = "import sys, orchestration.cli, orchestration.store.online; print(sorted({'feast', 'redis', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_offline_store_reads_history_where_there_is_one(in_sqlite: Settings, tmp_path: Path) -> None:
    where = replace(in_sqlite, published=tmp_path / "elsewhere")
    shutil.copytree(in_sqlite.published / "parquet", where.published / "parquet")
    assert source_of("user_features", where) == str(where.published / "parquet" / "user_features" / "*.parquet")
    day = where.published / "history" / "day=2025-03-31"
    day.mkdir(parents=True)
    shutil.copyfile(
        next((where.published / "parquet" / "user_features").glob("*.parquet")), day / "user_features.parquet"
    )
    assert source_of("user_features", where) == str(where.published / "history" / "day=*" / "user_features.parquet")
    assert source_of("item_features", where).startswith(str(where.published / "parquet"))
    assert {type(each).__name__ for each in definitions(where)} == {"Entity", "FeatureView", "FeatureService"}
    assert moment(0) == datetime(1970, 1, 1)
