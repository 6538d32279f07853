"""Exports as shops have them, from file to verdict: rejected rows and their corrections, order lines without numbers,
ids that are placeholders or that a spreadsheet rounded, consent, case, currencies. One warehouse, built in two steps,
has a source for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from small_shops import Homes

from orchestration.config.settings import Settings
from orchestration.ingest.load import load
from orchestration.quality.doctor import examine
from orchestration.simulation.simulate import simulate

ORDER = "o,at,u,sku,n,p"
FIELDS: dict[str, Any] = {
    "event_type": {"value": "purchase"},
    "event_at": "at",
    "user_id": "u",
    "order_id": "o",
    "product_id": "sku",
    "quantity": "n",
    "price": "p",
    "currency": {"value": "EUR"},
}
AT = "2024-03-02 10:00:00"
#: By source: the files of the first build, those of the second, the entry's keys, and fields beside `FIELDS`.
SOURCES: dict[str, tuple[dict[str, str], dict[str, str], dict[str, Any], dict[str, Any]]] = {
    "corrected": (
        {"1.csv": f"e,{ORDER}\ne1,1,{AT},k1,p1,1,\"12,50\"\ne2,2,{AT},k1,p1,0,5\ne3,3,{AT},k1,p1,1,-5\n"},
        {"2.csv": f"e,{ORDER}\ne1,1,{AT},k1,p1,1,12.50\ne2,2,{AT},k1,p1,1,5\ne3,3,{AT},k1,p1,1,5\n"},
        {},
        {"event_id": "e"},
    ),
    "corrected_currency": (
        {"1.csv": f"e,cur,{ORDER}\ne1,EURO,1,{AT},k2,p1,1,10\n"},
        {"2.csv": f"e,cur,{ORDER}\ne1,EUR,1,{AT},k2,p1,1,10\n"},
        {},
        {"event_id": "e", "currency": "cur"},
    ),
    # The second file delivers the first order again, in another order of rows, and a new one.
    "lines": (
        {"1.csv": f"{ORDER}\nA,{AT},u1,cup,1,10\nA,{AT},u1,cup,2,9\nA,{AT},u1,cup,2,9\nA,{AT},u1,plate,1,5\n"},
        {"2.csv": f"{ORDER}\nA,{AT},u1,plate,1,5\nA,{AT},u1,cup,2,9\nA,{AT},u1,cup,1,10\nA,{AT},u1,cup,2,9\nB,{AT},u2,cup,1,10\n"},
        {},
        {},
    ),
    # Each line has an id of the client's; the first was sent twice.
    "identified": (
        {"1.csv": f"e,{ORDER}\ni1,I,{AT},u8,cup,1,10\ni2,I,{AT},u8,cup,2,9\ni1,I,{AT},u8,cup,1,10\n"},
        {},
        {},
        {"event_id": "e"},
    ),
    # Shopify only fills the order's columns on its first row.
    "carried": (
        {"1.csv": f"cur,{ORDER}\nGBP,S1,{AT},ann,cup,1,10\n,S1,{AT},,plate,1,5\nUSD,S2,{AT},bob,cup,1,10\n,S3,{AT},cat,cup,1,10\n"},
        {},
        {"carry": {"columns": ["cur", "u"], "within": "o"}},
        {"currency": "cur"},
    ),
    "rounded": (
        {"1.csv": f"{ORDER}\n1.23457E+12,{AT},u1,p1,1,10\n1.23457E+12,{AT},u2,p1,1,10\n1234567890123,{AT},u3,p1,1,10\n"},
        {},
        {},
        {},
    ),
    "nobody": (
        {"1.csv": f"{ORDER}\n1,{AT},NULL,p1,1,10\n2,{AT},\\N,p1,1,10\n3,{AT},undefined,p1,1,10\n4,{AT},0,p1,1,10\n5,{AT},None,p1,1,1\n6,{AT},Nora,p1,1,1\n"},
        {},
        {"null_ids": ["0"]},
        {},
    ),
    "spelled": (
        {"1.csv": f"{ORDER}\n1,{AT},a12Gny,p1,1,10\n2,{AT},a12GnY,P1,1,10\n3,{AT},\ta12Gny\u00a0,\u200bp1,1,10\n"},
        {},
        {},
        {},
    ),
    "caseless": (
        {"1.csv": f"{ORDER}\n1,{AT},u1,ab-1,1,10\n2,{AT},U1,AB-1,1,10\n"},
        {},
        {"ids": {"case_insensitive": ["product_id"]}},
        {},
    ),
    "pence": (
        {"1.csv": f"cur,{ORDER}\nGBp,1,{AT},k4,p1,1,1000\nGBX,2,{AT},k4,p1,1,1000\nGBP,3,{AT},k4,p1,1,10\n,4,{AT},k4,p1,1,10\n"},
        {},
        {},
        {"currency": "cur"},
    ),
    "consents": (
        {
            "1.csv": f"c,{ORDER}\n"
            + "".join(
                f"{word},{n},{AT},k3,p1,1,10\n"
                for n, word in enumerate(
                    ["", "true", "f", "F", "n", "N", "off", "0.0", "DENY", "opt-out", "withdrawn", "rejected", "declined",
                     '"{""analytics"":false}"', '"{""analytics_storage"":""granted""}"', "who knows"]
                )
            )
        },
        {},
        {},
        {"consent": "c"},
    ),
}  # fmt: skip


def mapping(folder: Path, source: str) -> Path:
    """The mapping of a source, next to its files."""
    _, _, keys, fields = SOURCES[source]
    entry = {"files": f"{source}/*.csv", "available_at": "event_time", "fields": {**FIELDS, **fields}, **keys}
    path = folder / f"{source}.yml"
    path.write_text(yaml.safe_dump({"source": source, "tables": {"events": entry}}), "utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def shop(homes: Homes, folder: Path) -> Settings:
    """All sources in one warehouse; the files of the second step came to an incremental build."""
    where = homes.make("inputs")
    for step in (0, 1):
        for source, of in SOURCES.items():
            (folder / source).mkdir(exist_ok=True)
            for name, text in of[step].items():
                (folder / source / name).write_text(text, "utf-8")
            if of[step]:
                load(mapping(folder, source), data=folder, where=where)
        homes.run(where, "--select", "+int_events__validated")
    return where


def rows(where: Settings, source: str, columns: str) -> list[tuple[Any, ...]]:
    """Columns of a source's rows with their verdicts, in the order of its files."""
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        return con.execute(
            f"select {columns} from int_events__validated where source = ? "
            "order by split_part(position, '#', 1), split_part(position, '#', 2)::int",
            [source],
        ).fetchall()


def test_a_rejected_row_does_not_hide_its_correction(shop: Settings) -> None:
    """A price that is not a number, a quantity of 0, a negative price, an unknown currency."""
    assert rows(shop, "corrected", "verdict, reasons") == [
        ("quarantined", ["malformed"]),
        ("quarantined", ["quantity_out_of_range"]),
        ("quarantined", ["price_out_of_range"]),
        *[("kept", [])] * 3,
    ]
    assert rows(shop, "corrected_currency", "verdict, reasons") == [
        ("quarantined", ["unknown_currency"]),
        ("kept", []),
    ]


def test_lines_of_an_order_in_one_file_are_different_lines(shop: Settings) -> None:
    """The same product twice with different quantities, and twice with the same; the order counts once, though it is
    delivered again."""
    found = rows(shop, "lines", "order_id, product_id, quantity, verdict")
    assert [row[3] for row in found] == ["kept"] * 4 + ["duplicate"] * 4 + ["kept"]
    kept = sorted((str(o), str(p), int(n)) for o, p, n, verdict in found if verdict == "kept")
    assert kept == [("A", "cup", 1), ("A", "cup", 2), ("A", "cup", 2), ("A", "plate", 1), ("B", "cup", 1)]


def test_lines_with_a_client_s_id_count_once_an_id(shop: Settings) -> None:
    """Two ids are two lines; one id, quantity and price are one event that was sent twice."""
    assert rows(shop, "identified", "line_id, verdict") == [(None, "kept"), ("#2", "kept"), (None, "duplicate")]


def test_values_only_on_the_first_row_of_an_order_are_carried_down(shop: Settings) -> None:
    """Within one order, and no further."""
    assert rows(shop, "carried", "order_id, user_id, currency, is_currency_assumed, verdict") == [
        ("S1", "ann", "GBP", False, "kept"),
        ("S1", "ann", "GBP", False, "kept"),
        ("S2", "bob", "USD", False, "kept"),
        ("S3", "cat", "USD", True, "kept"),
    ]


def test_ids_that_a_spreadsheet_rounded_are_quarantined(shop: Settings) -> None:
    """Item 6."""
    assert rows(shop, "rounded", "verdict, reasons") == [
        ("quarantined", ["unusable_id"]),
        ("quarantined", ["unusable_id"]),
        ("kept", []),
    ]


def test_words_for_null_are_not_ids(shop: Settings) -> None:
    """And neither are the mapping's own placeholders."""
    assert rows(shop, "nobody", "user_id, reasons") == [(None, ["missing_identity"])] * 5 + [("Nora", [])]


def test_ids_are_compared_as_they_are_spelled(shop: Settings) -> None:
    """Ignoring white space around them; and ignoring case only if the mapping says so."""
    assert rows(shop, "spelled", "user_id, product_id") == [("a12Gny", "p1"), ("a12GnY", "P1"), ("a12Gny", "p1")]
    assert rows(shop, "caseless", "user_id, product_id") == [("u1", "AB-1"), ("U1", "AB-1")]


def test_pence_are_hundredths_of_a_pound(shop: Settings) -> None:
    """GBp and GBX; and a price without a currency is marked."""
    found = rows(shop, "pence", "price_reported, warnings")
    assert found[0] == found[1] == found[2] != found[3]
    assert found[3] == (10, ["assumed_currency"])


def test_consent_in_words_and_in_json(shop: Settings) -> None:
    """Both directions, and an unknown word is not consent."""
    found = [reasons for (reasons,) in rows(shop, "consents", "reasons")]
    assert found == [[], []] + [["consent_denied"]] * 12 + [[], ["unknown_consent"]]


def test_the_doctor_says_so_before_the_load(shop: Settings, folder: Path) -> None:
    """Items 12 and 15."""
    [consent] = examine(mapping(folder, "consents"), data=folder, where=shop).entries
    [said] = [each.message for each in consent.findings if each.field == "consent" and each.level == "warning"]
    assert said.startswith("seeds/consent_words.csv does not know 'who knows'; 1 of 16 rows (6.2 %)")
    [nobody] = examine(mapping(folder, "nobody"), data=folder, where=shop).entries
    said_of_ids = [each.message for each in nobody.findings if "a word that means null" in each.message]
    assert said_of_ids == [
        r"4 of 6 rows (66.7 %) have a word that means null, 'NULL', 'None', '\N', and count as empty (seeds/null_words.csv)"
    ]


def test_lines_without_numbers_on_the_simulated_shop(homes: Homes, tmp_path: Path) -> None:
    """Every line of more than one piece is written as two lines without a number, and every order is delivered twice,
    the second time with its rows in another order. Pieces and money by order are those of the shop, exactly."""
    simulate(tmp_path, events=20_000, days=20)
    folder = tmp_path / "database"
    rule = "from (select *, unnest(case when quantity > 1 then [1, quantity - 1] else [quantity] end) as n from lines)"
    with duckdb.connect() as con:
        con.execute(
            f"create table lines as select * from '{folder}/order_items.parquet' where quantity > 0 and price >= 0"
        )
        for name, order in (("1.csv", "order_id, line_id, n"), ("2.csv", "md5(order_id), n desc, product_id")):
            con.execute(
                f"copy (select order_id, product_id, n, price, currency {rule} order by {order}) to '{tmp_path / name}' (header)"
            )
        [(split, whole)] = con.execute(f"select (select count(*) {rule}), (select count(*) from lines)").fetchall()
        assert split > whole + 50
        truth = con.execute(
            "select order_id, sum(quantity)::int, sum(quantity * price::decimal(18, 4)) from lines "
            f"semi join '{folder}/orders.parquet' using (order_id) group by all order by all"
        ).fetchall()
    orders = {
        "files": "database/orders.parquet",
        "origin": "database",
        "available_at": {"column": "updated_at"},
        "fields": {
            **{name: name for name in ("order_id", "user_id", "currency", "created_at", "updated_at")},
            "anonymous_id": "order_id",  # of guests
        },
    }
    lines = {
        "files": "*.csv",
        "origin": "database",
        "available_at": "now",
        "fields": {**{name: name for name in ("order_id", "product_id", "price", "currency")}, "quantity": "n"},
    }
    path = tmp_path / "shop.yml"
    path.write_text(yaml.safe_dump({"source": "shop", "tables": {"orders": orders, "order_items": lines}}), "utf-8")
    where = homes.make("lines")
    load(path, data=tmp_path, where=where)
    homes.run(where, "--select", "+int_events__validated")
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        found = con.execute(
            "select order_id, sum(quantity)::int, sum(quantity * price) from int_events__validated "
            "where raw_table = 'order_items' and verdict = 'kept' group by all order by all"
        ).fetchall()
        verdicts = dict(
            con.execute(
                "select verdict, count(*) from int_events__validated where raw_table = 'order_items' group by all"
            ).fetchall()
        )
    assert found == truth
    assert verdicts.get("duplicate", 0) == verdicts["kept"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ids": "caseless"}, "write case_insensitive, or {case_insensitive: [product_id]} for some ids alone"),
        ({"ids": {"case_insensitive": ["produkt_id"]}}, "'produkt_id' is not an id; did you mean 'product_id'?"),
        ({"null_ids": [True]}, 'write the ids that stand for none, as in ["0", guest]'),
        ({"carry": {"columns": ["cur"], "within": "oo"}}, "has no column 'oo'"),
        ({"currency": "EUR"}, "this is for ga4_events; here map the field"),
    ],
)
def test_a_misspelt_key_is_one_clear_error(shop: Settings, folder: Path, keys: dict[str, Any], said: str) -> None:
    from orchestration.errors import FinegrainError

    entry = {"files": "carried/*.csv", "available_at": "event_time", "fields": FIELDS, **keys}
    path = folder / "slip.yml"
    path.write_text(yaml.safe_dump({"source": "slip", "tables": {"events": entry}}), "utf-8")
    with pytest.raises(FinegrainError) as raised:
        load(path, data=folder, where=shop)
    assert said in str(raised.value)
    assert str(raised.value).startswith(str(path))
