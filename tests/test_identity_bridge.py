"""Labels join to an old feature file: with the ids of that time some of the buyers are lost, with the bridge none are.
docs/how-to/join-labels.md contains the join, which runs here unchanged."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from plainly import customer_of
from small_shops import Homes, Row, land

from orchestration.config.settings import Settings
from orchestration.warehouse.publish import publish

T1 = datetime(2024, 4, 1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)

#: What the page and this test read.
MARTS = ("user_features", "dim_customers", "fct_orders", "bridge_identities")


def seen(kind: str, moment: datetime, **ids: str) -> Row:
    fields = {"event_type": kind, "event_at": moment.isoformat(), "product_id": "P", "price": "10", **ids}
    return Row("events", "web", f"{moment} {sorted(ids.items())} {kind}", moment, fields)


def profile(user: str, moment: datetime) -> Row:
    return Row("customers", "shop", user, moment, {"customer_id": user}, origin="database")


def published(homes: Homes, where: Settings, rows: list[Row]) -> Path:
    """Land rows, build, publish; the folder of Parquet files. The audit counts as passed: it is not tested here."""
    land(where, rows)
    homes.run(where, "--select", *(f"+{mart}" for mart in MARTS))
    with duckdb.connect(str(where.warehouse)) as con:
        con.execute("update main.builds set command = 'build', is_whole = true, status = 'passed'")
    publish(where)
    return where.published / "parquet"


def the_join_of_the_page(project: Path) -> str:
    [sql] = re.findall(
        r"```sql\n(.*?)```", (project / "docs" / "how-to" / "join-labels.md").read_text("utf-8"), re.DOTALL
    )
    return str(sql)


@pytest.mark.long
def test_labels_find_the_customers_of_an_old_file(
    homes: Homes, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = homes.make("bridge")
    visitors = [f"V{number}" for number in range(4)]
    before = [seen("view_item", T1 - DAY + number * HOUR, anonymous_id=each) for number, each in enumerate(visitors)]
    before += [seen("view_item", T1 - HOUR, user_id="U1"), profile("U1", T1 - 2 * DAY), profile("U2", T1 - 2 * DAY)]
    # It existed before the moment but is not part of it: --as-of leaves it out.
    later = seen("login", T1 + HOUR, anonymous_id="V0", user_id="U1")

    monkeypatch.setenv("FINEGRAIN_AS_OF", T1.isoformat())
    old = tmp_path / "old"
    old.mkdir()
    folder = published(homes, shop, [*before, later])
    for mart in ("user_features", "dim_customers"):
        pd.read_parquet(folder / mart).to_parquet(old / f"{mart}.parquet")
    monkeypatch.delenv("FINEGRAIN_AS_OF")

    # V0 becomes U1, V1 an unknown login, V2 stays a visitor; U2, who had a customer row but no event, buys too.
    linked = [
        seen("login", T1 + 2 * DAY, anonymous_id="V1", user_id="U9"),
        seen("purchase", T1 + 3 * DAY, user_id="U1", order_id="1"),
        seen("purchase", T1 + 4 * DAY, user_id="U9", order_id="2"),
        seen("purchase", T1 + 5 * DAY, anonymous_id="V2", order_id="3"),
        seen("purchase", T1 + 6 * DAY, user_id="U2", order_id="4"),
    ]
    now = published(homes, shop, linked)

    file = set(pd.read_parquet(old / "user_features.parquet").customer_id)
    assert file == {customer_of(f"a:{each}") for each in visitors} | {customer_of("u:U1")}
    buyers = {customer_of(f"a:{each}") for each in ("V0", "V1", "V2")} | {customer_of("u:U1")}
    orders = pd.read_parquet(now / "fct_orders")
    naive = file & set(orders[orders.ordered_at >= T1].customer_id)
    assert naive == {customer_of("a:V2"), customer_of("u:U1")} < buyers

    sql = the_join_of_the_page(project)
    assert joined(sql, shop, old / "user_features.parquet") == {each: each in buyers for each in file}

    # The same for those who only had a row in the customer table.
    found = joined(sql, shop, old / "dim_customers.parquet")
    assert found[customer_of("u:U2")] and not found[customer_of("a:V3")]

    # A link does not change once it exists: U2 logs in on the devices of V0 and V1.
    bridge = pd.read_parquet(now / "bridge_identities")
    again = [seen("login", T1 + 9 * DAY + n * HOUR, anonymous_id=f"V{n}", user_id="U2") for n in range(2)]
    published(homes, shop, again)
    after = pd.read_parquet(now / "bridge_identities")
    key = ["identity", "customer_id"]
    assert after.sort_values(key).reset_index(drop=True).equals(bridge.sort_values(key).reset_index(drop=True))


def joined(sql: str, shop: Settings, file: Path) -> dict[str, bool]:
    """By customer id in the file, its label by the page's join."""
    with duckdb.connect(str(shop.published / "finegrain.duckdb"), read_only=True) as con:
        con.execute(f"create temp view old_features as select *, timestamp '{T1}' as known_at from '{file}'")
        rows = con.execute(sql).fetchall()
    assert len(rows) == len(pd.read_parquet(file))
    return {row[0]: bool(row[-1]) for row in rows}
