"""Feast's point-in-time join (DuckDB) over the published history, beside `finegrain training-set`: where both agree, and where Feast's rows are not
what was known then."""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from orchestration.config.settings import Settings
from orchestration.features.catalog import Mart, declared
from orchestration.features.history import features_of
from orchestration.features.training import keys_of, training_set
from orchestration.store.repository import apply, opened
from orchestration.warehouse.publish import publish

pytestmark = pytest.mark.long
DAYS = [date(2025, 3, 30), date(2025, 4, 2)]
#: When these days end: of these moments the history is.
ENDS = [datetime(2025, 3, 31), datetime(2025, 4, 3)]


@pytest.fixture(scope="module")
def shop(built_shop: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The shop with published marts, and with the features of two days."""
    home = tmp_path_factory.mktemp("history") / "home"
    shutil.copytree(built_shop.home, home, ignore=shutil.ignore_patterns("logs"))
    where = Settings.below(home, built_shop.extensions)
    publish(where)
    features_of(DAYS, where)
    return where


@pytest.fixture
def in_shop(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("FINEGRAIN_ONLINE_STORE", raising=False)
    for name, value in shop.environment().items():
        monkeypatch.setenv(name, value)
    apply()
    return shop


def spine_of(where: Settings, mart: Mart, later: timedelta = timedelta(0), days: str = "*") -> pd.DataFrame:
    """Keys of the mart's history, each as of the moment that it is of, or later."""
    keys = ", ".join(keys_of(mart))
    with duckdb.connect() as con:
        found = con.execute(
            f"select {keys}, as_of from '{where.published}/history/day={days}/{mart.name}.parquet' "
            f"qualify row_number() over (partition by as_of order by md5(concat_ws('/', {keys}))) <= 80"
        ).df()
    return found.assign(as_of=found["as_of"] + later)


def theirs(mart: Mart, spine: pd.DataFrame) -> list[dict[str, Any]]:
    """What Feast joins to the rows of a spine."""
    joined = opened().get_historical_features(
        entity_df=spine.rename(columns={"as_of": "event_timestamp"}).assign(
            event_timestamp=lambda rows: rows["event_timestamp"].dt.tz_localize("UTC")
        ),
        features=[f"{mart.name}:{each.name}" for each in mart.features],
    )
    rows = joined.to_arrow().to_pylist()
    return [{**row, "as_of": row.pop("event_timestamp").astimezone(UTC).replace(tzinfo=None)} for row in rows]


def ours(mart: Mart, spine: pd.DataFrame, where: Settings, out: Path) -> list[dict[str, Any]]:
    """What finegrain computes for them."""
    file = out / "spine.parquet"
    duckdb.sql("from spine").write_parquet(str(file))
    training_set(out / "set", spine=file, features=[mart.name], where=where)
    rows = duckdb.sql(f"from '{out / 'set' / 'all.parquet'}'").to_arrow_table().to_pylist()
    return [{name.removeprefix(f"{mart.name}__"): value for name, value in row.items()} for row in rows]


def by_key(mart: Mart, rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = {tuple(row[name] for name in (*keys_of(mart), "as_of")): row for row in rows}
    assert len(found) == len(rows)
    return found


def alike(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is None and other is None
    if isinstance(one, datetime | list | str | bool):
        return bool(one == other)
    return abs(float(one) - float(other)) <= 1e-9 * max(1.0, abs(float(other)))


def different(mart: Mart, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """(key, as_of, feature) in which they differ."""
    first, second = by_key(mart, one), by_key(mart, other)
    assert first.keys() == second.keys()
    return {
        (*key, each.name)
        for key, row in first.items()
        for each in mart.features
        if not alike(row[each.name], second[key][each.name])
    }


@pytest.mark.parametrize("name", [mart.name for mart in declared()])
def test_at_the_end_of_a_day_feast_joins_what_we_compute(name: str, in_shop: Settings, tmp_path: Path) -> None:
    mart = next(mart for mart in declared() if mart.name == name)
    spine = spine_of(in_shop, mart)
    assert sorted(spine["as_of"].unique()) == [pd.Timestamp(each) for each in ENDS]
    found = theirs(mart, spine)
    assert len(found) == len(spine) > 10
    assert different(mart, found, ours(mart, spine, in_shop, tmp_path)) == set()


def test_within_a_day_feast_is_as_old_as_the_last_snapshot(in_shop: Settings, tmp_path: Path) -> None:
    mart = next(mart for mart in declared() if mart.name == "user_features")
    late = timedelta(hours=18)
    midnight, evening = (spine_of(in_shop, mart, later, str(DAYS[1])) for later in (timedelta(0), late))
    found = theirs(mart, evening)
    assert different(mart, [row | {"as_of": row["as_of"] - late} for row in found], theirs(mart, midnight)) == set()
    differ = {each for *_, each in different(mart, found, ours(mart, evening, in_shop, tmp_path))}
    assert {"views_lifetime", "hours_since_session"} <= differ


def test_feast_joins_a_customer_that_is_no_more(in_shop: Settings, tmp_path: Path) -> None:
    """A visitor who has logged in is another customer from then on. Feast joins what was last known of the visitor; as of the later day there is nothing."""
    mart = next(mart for mart in declared() if mart.name == "user_item_features")
    keys = ", ".join(keys_of(mart))
    first, second = (f"'{in_shop.published}/history/day={day}/{mart.name}.parquet'" for day in DAYS)
    spine = duckdb.sql(
        f"select *, timestamp '{ENDS[1]}' as as_of from (select {keys} from {first} except select {keys} from {second}) order by all limit 80"
    ).df()
    assert len(spine) > 0
    assert {row["views_lifetime"] is None for row in theirs(mart, spine)} == {False}
    assert {row["views_lifetime"] for row in ours(mart, spine, in_shop, tmp_path)} == {None}


def test_a_late_row_leaks_through_feast(in_shop: Settings, tmp_path: Path) -> None:
    """The common way to use Feast: a table of values by the time of the event. Its join asks for the last row before the moment, and a row that
    arrived only after the moment is in it. Both are compared with a count over the events themselves."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Int64

    with duckdb.connect(str(in_shop.published / "finegrain.duckdb"), read_only=True) as con:
        con.execute(
            f"copy (select customer_id, event_at as as_of, count(*) over (partition by customer_id order by event_at, event_id) as views "
            f"from fct_events where event_type = 'view_item') to '{tmp_path}/views.parquet' (format parquet)"
        )
        # Visitors of one identity, so that it does not matter when who was known to be whom. The moment is between a view and its arrival.
        spine = con.execute(
            "select customer_id, event_at + interval 1 second as as_of from fct_events where event_type = 'view_item' "
            "and available_at > event_at + interval 1 minute "
            "and customer_id in (select customer_id from fct_events group by 1 having count(distinct identity) = 1) order by all"
        ).df()
        counted = {
            (customer, as_of): (known, all_of_them)
            for customer, as_of, known, all_of_them in con.execute(
                "select s.customer_id, s.as_of, count(*) filter (e.available_at <= s.as_of), count(*) from spine as s "
                "join fct_events as e on e.customer_id = s.customer_id and e.event_at < s.as_of and e.event_type = 'view_item' group by 1, 2"
            ).fetchall()
        }
    feast = FeatureStore(
        config=RepoConfig(
            project="views", provider="local", registry=str(tmp_path / "registry.db"), offline_store={"type": "duckdb"},
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")}, entity_key_serialization_version=3,
        )
    )  # fmt: skip
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)
    source = FileSource(path=str(tmp_path / "views.parquet"), timestamp_field="as_of")
    feast.apply(
        [
            customer,
            FeatureView(
                name="v",
                entities=[customer],
                schema=[Field(name="views", dtype=Int64)],
                source=source,
                ttl=timedelta(0),
            ),
        ]
    )
    joined = feast.get_historical_features(
        spine.assign(event_timestamp=spine["as_of"].dt.tz_localize("UTC")).drop(columns=["as_of"]), ["v:views"]
    ).to_df()
    leaked = {
        (row.customer_id, row.event_timestamp.to_pydatetime().replace(tzinfo=None)): row.views
        for row in joined.itertuples()
    }
    mart = next(mart for mart in declared() if mart.name == "user_features")
    found = {
        (row["customer_id"], row["as_of"]): row["views_lifetime"] or 0 for row in ours(mart, spine, in_shop, tmp_path)
    }
    assert len(counted) == len(spine) > 3
    assert leaked == {key: all_of_them for key, (_, all_of_them) in counted.items()}
    assert found == {key: known for key, (known, _) in counted.items()}
    assert all(found[key] < leaked[key] for key in counted)
