"""Personal data is hashed or dropped before a row lands: in fields, payloads, keys and dead letters, of every kind of source."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest import personal
from orchestration.ingest.load import load
from orchestration.ingest.stream.run import stream
from orchestration.lake import lake
from orchestration.mapping.mapping import read_mapping
from orchestration.mapping.personal import Personal, kind_of
from orchestration.store.forget import forget

KEY = "k" * 40
PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 Version/17.0 Mobile/15E148 Safari/604.1"
CRAWLER = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
#: Values that must be in no file of the lake.
SECRETS = ("ann@shop.example", "Ann Lee", "49 170 5550199", "198.51.100.7", "AppleWebKit", "Elm Street")


@pytest.fixture(autouse=True)
def _key(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEGRAIN_PRIVACY_KEY", KEY)


def token(kind: str, value: str) -> str:
    return f"{kind}_{hmac.new(KEY.encode(), f'{kind}:{value}'.encode(), hashlib.sha256).hexdigest()[:32]}"


ANN = token("email", "ann@shop.example")


def rows(where: Settings, sql: str) -> list[tuple[Any, ...]]:
    con = lake.connect(where)
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def found_in_files(folder: Path, values: tuple[str, ...] = SECRETS) -> list[tuple[str, str]]:
    """Which of the values are in which files, Parquet decoded and archives unpacked."""
    found = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        held = path.read_bytes()
        if held[:2] == b"\x1f\x8b":
            held = gzip.decompress(held)
        if held[:4] == b"PAR1":
            held += repr(pq.read_table(path).to_pydict()).encode() + repr(pq.read_metadata(path).to_dict()).encode()
        found += [(str(path), value) for value in values if value.lower().encode() in held.lower()]
    return found


def written(path: Path, source: dict[str, Any], **more: Any) -> Path:
    path.write_text(yaml.safe_dump({"source": "shop", **more, "tables": source}))
    return path


# --- finding it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("email", "email"),
        ("Customer_E-Mail", "email"),
        ("billingEmailAddress", "email"),
        ("phone", "phone"),
        ("mobile_number", "phone"),
        ("first_name", "name"),
        ("lastName", "name"),
        ("address_line_1", "address"),
        ("client_ip", "ip"),
        ("clientIp", "ip"),
        ("userAgent", "user_agent"),
        ("zip", None),
        ("equip", None),
        ("mobile", None),
        ("hotel", None),
        ("product_name", None),
        ("event_name", None),
        ("email_opt_in", None),
        ("country", None),
    ],
)
def test_keys_by_their_names(key: str, kind: str | None) -> None:
    assert kind_of(key, "events") == kind


def test_a_name_is_a_persons_among_customers_alone() -> None:
    assert (kind_of("name", "customers"), kind_of("product_name", "customers"), kind_of("name", "products")) == (
        "name",
        None,
        None,
    )


def cleaned(
    texts: list[str | None], *, is_json: bool = True, policy: Personal | None = None, table: str = "events"
) -> list[str | None]:
    with duckdb.connect() as con:
        personal.register_with(con, KEY.encode())
        con.register("given", pa.table({"v": pa.array(texts, pa.string())}))
        sql = personal.text("v", policy or Personal(), table, is_json=is_json)
        return [found for (found,) in con.execute(f"select {sql} from given").fetchall()]


def test_text_around_it_stays_as_it_is() -> None:
    [found] = cleaned(
        [
            '{ "n":12.50,"big":12345678901234567890123, "email" : "Ann@shop.example","x":"a\\nann@shop.example\\u00e9" ,"t":"@home"}'
        ]
    )
    assert found is not None
    assert found.startswith('{ "n":12.50,"big":12345678901234567890123, "email" : "' + ANN + '","x":"a\\n')
    assert found.endswith(' ,"t":"@home"}')
    assert "ann@" not in found


def test_an_address_within_another() -> None:
    joann = token("email", "joann@shop.example")
    assert cleaned(["ann@shop.example, joann@shop.example"], is_json=False) == [f"{ANN}, {joann}"]


def test_spellings_of_one_address_have_one_token() -> None:
    texts: list[str | None] = [
        "ann@shop.example",
        " ANN@Shop.example",
        "ann%40shop.example",
        None,
        "x @ y",
        "@home",
        "50%40",
    ]
    assert cleaned(texts, is_json=False) == [ANN, f" {ANN}", ANN, None, "x @ y", "@home", "50%40"]


def test_tokens_stay_as_they_are() -> None:
    once = cleaned(
        [json.dumps({"email": "ann@shop.example", "phone": "+49 170 5550199", "ua": CRAWLER, "ip": "198.51.100.7"})]
    )
    assert cleaned(once) == once


@pytest.mark.parametrize(("email", "address"), [("hash", ANN), ("drop", "***"), ("keep", "Ann@shop.example")])
def test_bytes_that_are_no_text(email: Any, address: str) -> None:
    with duckdb.connect() as con:
        personal.register_with(con, KEY.encode())
        con.register("given", pa.table({"v": pa.array([b"\xff Ann@shop.example \x00\xfe", None], pa.binary())}))
        found = con.execute(f"select {personal.binary('v', Personal(email=email))} from given").fetchall()
    assert found == [(b"\xff " + address.encode() + b" \x00\xfe",), (None,)]


def test_of_several_names_of_a_value_the_first_that_is_personal_counts() -> None:
    policy = Personal(columns={"contact": "keep", "note": "drop"})
    assert policy.of("events", "contact", "email") is None  # kept, whatever the other name says
    assert policy.of("events", "id", "email") == ("email", "hash")
    assert policy.of("events", "id", "note") == ("personal", "drop")
    assert policy.of("events", "id") is None and Personal(email="keep").of("events", "email") is None


def test_text_that_is_cut_off() -> None:
    assert cleaned(['{"first_name":"Ann L', '{"phone":["+49 170 555', '{"email":"ann@shop.exa']) == [
        '{"first_name":null',
        '{"phone":null',
        '{"email":"' + token("email", "ann@shop.exa") + '"',
    ]


def reference(value: Any, key: str | None = None) -> Any:
    """What must become of a value, by walking the parsed document."""
    kind = kind_of(key, "events") if key is not None else None
    if kind is not None and kind != "email" and isinstance(value, dict | list):
        return None
    if isinstance(value, dict):
        return {name: reference(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [reference(each) for each in value]
    is_value = (isinstance(value, str) and value != "") or (
        isinstance(value, int | float) and not isinstance(value, bool)
    )
    if kind in ("name", "address", "ip") and is_value:
        return None
    if kind in ("phone", "email") and is_value:
        text = str(value).strip()
        if kind == "email":
            return token("email", text.lower())
        digits = re.sub("[^0-9]", "", text)
        if not text.startswith("+"):
            digits = digits.removeprefix("00")
        return token("phone", digits or text.lower())
    if isinstance(value, str):
        return re.sub(r"[\w.+-]+@(?:[\w-]+\.)+[\w-]*\w", lambda found: token("email", found[0].lower()), value)
    return value


KEYS = st.sampled_from(
    ["email", "phone", "first_name", "client_ip", "note", "street", "n", 'quo"ted', "back\\slash", "zip", "ünïcode"]
)
WORDS = st.sampled_from(
    [
        "ann@shop.example",
        "Joann@shop.example",
        "müller@shop.example",
        "+49 170 5550199",
        "0049-170",
        "x",
        'a "b"',
        "line\nann@shop.example",
        "back\\",
        "",
    ]
)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(0, 10**6), WORDS, st.lists(WORDS, max_size=3).map(" ".join))
DOCUMENTS = st.dictionaries(
    KEYS,
    st.recursive(
        VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(DOCUMENTS, min_size=1, max_size=12), st.booleans())
def test_documents_of_any_shape(documents: list[dict[str, Any]], is_ascii: bool) -> None:
    texts = [json.dumps(each, ensure_ascii=is_ascii) for each in documents]
    found = cleaned(list(texts))
    assert [json.loads(each or "") for each in found] == [reference(each) for each in documents]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=10))
def test_other_texts_are_untouched(texts: list[str]) -> None:
    texts = [
        each.replace("@", "").replace("%40", "").replace("\0", "").encode(errors="ignore").decode() for each in texts
    ]
    given = [json.dumps({"note": each}) for each in texts]
    assert cleaned(list(given)) == given
    assert cleaned(list(texts), is_json=False) == texts


# --- files -------------------------------------------------------------------------------------------------------

EVENTS = [
    {"id": "1", "type": "page_view", "at": "2026-01-01T10:00:00Z", "user": "ann@shop.example", "user_agent": PHONE, "ip": "198.51.100.7",
     "page": "https://shop.example/?e=ann%40shop.example", "customer": {"first_name": "Ann Lee", "phone": ["+49 170 5550199"]}},
    {"id": "2", "type": "page_view", "at": "2026-01-01T10:01:00Z", "user": "u2", "user_agent": CRAWLER, "page": "/p/1"},
]  # fmt: skip
EVENT = {
    "available_at": "event_time",
    "fields": {
        "event_id": "id",
        "event_type": "type",
        "event_at": "at",
        "user_id": "user",
        "user_agent": "user_agent",
        "page": "page",
    },
}
CUSTOMERS = "email,name,phone,street,born,seen\nANN@shop.example,Ann Lee,+49 170 5550199,1 Elm Street,1980,2026-01-01\n"
CUSTOMER = {
    "files": "customers.csv",
    "available_at": "event_time",
    "fields": {"customer_id": "email", "birth_year": "born", "updated_at": "seen"},
}


def written_files(folder: Path, kind: str) -> str:
    if kind == "jsonl":
        (folder / "events.jsonl").write_text("\n".join(map(json.dumps, EVENTS)) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(EVENTS), folder / "events.parquet")
    return f"events.{kind}"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files(home: Settings, tmp_path: Path, kind: str) -> None:
    file = written_files(tmp_path, kind)
    (tmp_path / "customers.csv").write_text(CUSTOMERS)
    mapping = written(tmp_path / "shop.yml", {"events": {"files": file, **EVENT}, "customers": CUSTOMER})
    load(mapping, data=tmp_path, where=home)
    found = rows(
        home, "select user_id, user_agent, device, client_class, page, payload from lake.raw.events order by event_id"
    )
    assert found[0][:5] == (
        ANN,
        f"{token('user_agent', PHONE)}_mobile",
        "mobile",
        None,
        f"https://shop.example/?e={ANN}",
    )
    assert found[1][:5] == ("u2", f"{token('user_agent', CRAWLER)}_crawler", None, "crawler", "/p/1")
    held = json.loads(found[0][5])
    assert (held["user"], held["ip"], held["customer"]) == (ANN, None, {"first_name": None, "phone": None})
    # The same person by another table, in another spelling.
    [(customer, year, payload)] = rows(home, "select customer_id, birth_year, payload from lake.raw.customers")
    assert (customer, year) == (ANN, "1980")
    assert json.loads(payload) == {
        "email": ANN, "name": None, "phone": token("phone", "491705550199"), "street": None, "born": "1980", "seen": "2026-01-01",
    }  # fmt: skip
    assert found_in_files(home.home) == []


def test_rows_mapped_again_from_the_lake_are_the_same(home: Settings, tmp_path: Path) -> None:
    file = written_files(tmp_path, "jsonl")
    mapping = written(tmp_path / "shop.yml", {"events": {"files": file, **EVENT}})
    load(mapping, data=tmp_path, where=home)
    before = rows(
        home, "select user_id, user_agent, device, client_class, page, payload from lake.raw.events order by 1"
    )
    again = {**EVENT, "ids": "case_insensitive"}
    (tmp_path / file).unlink()
    (tmp_path / "other.jsonl").write_text(json.dumps({**EVENTS[1], "id": "3"}) + "\n")
    mapping = written(tmp_path / "shop.yml", {"events": {"files": "*.jsonl", **again}})
    report = load(mapping, data=tmp_path, remap=True, where=home)
    assert sum(each.replaced for each in report.files) == 2
    alive = "from lake.raw.events as t where event_id <> '3' and not exists (select 1 from lake.raw.deletions as d where d._position = t._position and d._ingested_at > t._ingested_at)"
    after = rows(home, f"select user_id, user_agent, device, client_class, page, payload {alive} order by 1")
    assert after == [(user.upper(), *others) for user, *others in before]


def test_ids_without_regard_to_case(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text(CUSTOMERS)
    mapping = written(tmp_path / "shop.yml", {"customers": {**CUSTOMER, "ids": "case_insensitive"}})
    load(mapping, data=tmp_path, where=home)
    assert rows(home, "select customer_id from lake.raw.customers") == [(ANN.upper(),)]


def test_an_id_that_would_be_dropped_is_hashed(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text(CUSTOMERS)
    fields = {**CUSTOMER["fields"], "customer_id": "phone"}  # type: ignore[dict-item]
    mapping = written(tmp_path / "shop.yml", {"customers": {**CUSTOMER, "fields": fields}}, personal={"phone": "drop"})
    load(mapping, data=tmp_path, where=home)
    [(customer, payload)] = rows(home, "select customer_id, payload from lake.raw.customers")
    assert customer == json.loads(payload)["phone"] == token("phone", "491705550199")


def test_what_the_mapping_keeps_and_adds(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text(
        "id,name,card,note,email,seen\nc1,Ann Lee,4711,calls ann@shop.example,ann@shop.example,2026-01-01\n"
    )
    entry = {
        "files": "customers.csv",
        "available_at": "event_time",
        "fields": {"customer_id": "id", "updated_at": "seen"},
    }
    policy = {"columns": {"Name": "keep", "card": "hash", "note": "drop"}}
    load(written(tmp_path / "shop.yml", {"customers": {**entry, "personal": policy}}), data=tmp_path, where=home)
    [(payload,)] = rows(home, "select payload from lake.raw.customers")
    assert json.loads(payload) == {
        "id": "c1", "name": "Ann Lee", "card": token("personal", "4711"), "note": None, "email": ANN, "seen": "2026-01-01",
    }  # fmt: skip


def test_a_mapping_that_keeps_everything(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text(CUSTOMERS)
    policy = dict.fromkeys(["email", "phone", "name", "address", "ip", "user_agent"], "keep")
    load(written(tmp_path / "shop.yml", {"customers": CUSTOMER}, personal=policy), data=tmp_path, where=home)
    [(customer, payload)] = rows(home, "select customer_id, payload from lake.raw.customers")
    assert customer == "ANN@shop.example"
    assert json.loads(payload)["name"] == "Ann Lee"


def test_a_line_that_cannot_be_split_is_not_kept(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text(
        CUSTOMERS + "ann@shop.example,Ann Lee,+49 170 5550199,1 Elm Street,1980,2026-01-01,one more,and more\n"
    )
    load(written(tmp_path / "shop.yml", {"customers": CUSTOMER}), data=tmp_path, where=home)
    [(error, payload)] = rows(home, "select _error, payload from lake.raw.customers where _error is not null")
    assert error
    assert payload == "a line that is not kept, because the file has personal columns: email, name, phone, street"
    assert found_in_files(home.home) == []


def test_ga4(home: Settings, tmp_path: Path) -> None:
    event = {
        "event_date": "20260101", "event_timestamp": "1767261600000000", "event_name": "page_view", "user_id": "ann@shop.example",
        "user_pseudo_id": "v1", "event_params": [{"key": "page_location", "value": {"string_value": "https://x.example/?m=ann%40shop.example"}}],
    }  # fmt: skip
    (tmp_path / "events_20260101.jsonl").write_text(json.dumps(event) + "\n")
    mapping = written(tmp_path / "shop.yml", {"ga4_events": {"files": "events_*.jsonl", "available_at": "event_time"}})
    load(mapping, data=tmp_path, where=home)
    [(user, page)] = rows(home, "select user_id, event_params[1].value.string_value from lake.raw.ga4_events")
    assert (user, page) == (ANN, f"https://x.example/?m={ANN}")
    assert found_in_files(home.home) == []


def test_an_id_made_from_personal_data_is_refused(tmp_path: Path) -> None:
    fields = {**EVENT["fields"], "user_id": {"sql": "coalesce(user, phone)"}}  # type: ignore[dict-item]
    mapping = written(tmp_path / "shop.yml", {"events": {"files": "e.jsonl", **EVENT, "fields": fields}})
    with pytest.raises(FinegrainError, match=r"tables.events.fields.user_id.sql: phone is personal \(phone\)"):
        read_mapping(mapping)


def test_a_misspelt_policy_is_one_error(tmp_path: Path) -> None:
    mapping = written(tmp_path / "shop.yml", {"events": {"files": "e.jsonl", **EVENT}}, personal={"emial": "hash"})
    with pytest.raises(FinegrainError, match=r"personal.emial: .*did you mean 'email'") as error:
        read_mapping(mapping)
    assert len(str(error.value).splitlines()) == 1


# --- streams -----------------------------------------------------------------------------------------------------


def test_streams_and_their_dead_letters(home: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "stream"
    folder.mkdir()
    good = {"event_type": "page_view", "event_at": "2026-01-01T10:00:00Z", "user_id": "ann@shop.example", "user_agent": PHONE,
            "profile": {"first_name": "Ann Lee"}, "client_ip": "198.51.100.7"}  # fmt: skip
    lines = [
        json.dumps(good).encode(),
        json.dumps({**good, "event_at": "ann@shop.example"}).encode(),
        b'{"event_type": "page_view", "user_id": "ann@shop.example", "first_name": "Ann Lee", broken',
        b'{"event_type": "\xff\xfe", "email": "ann@shop.example"}',
    ]
    (folder / "0.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    mapping = written(tmp_path / "shop.yml", {"events": {"stream": {"folder": "stream"}, "available_at": "now"}})
    stream(mapping, data=tmp_path, drain=True, where=home)
    [(user, agent, device, properties)] = rows(
        home, "select user_id, user_agent, device, properties from lake.raw.events"
    )
    assert (user, agent, device) == (ANN, f"{token('user_agent', PHONE)}_mobile", "mobile")
    assert json.loads(properties) == {"profile": {"first_name": None}, "client_ip": None}
    letters = rows(home, "select rule_id, payload, error from lake.raw.dead_letters order by position")
    assert [rule for rule, _, _ in letters] == ["wrong_type", "not_json", "not_utf8"]
    assert all(ANN.encode() in payload for _, payload, _ in letters)
    assert ANN in letters[0][2]
    assert found_in_files(home.home) == []


def test_no_key_for_a_shared_lake(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINEGRAIN_PRIVACY_KEY")
    with duckdb.connect() as con, pytest.raises(FinegrainError, match="FINEGRAIN_PRIVACY_KEY is not set"):
        personal.register(con, Settings(**{**vars(home), "lake_catalog": "postgres:dbname=x"}))


def test_a_lake_has_one_key(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "customers.csv").write_text(CUSTOMERS)
    mapping = written(tmp_path / "shop.yml", {"customers": CUSTOMER})
    load(mapping, data=tmp_path, where=home)
    (tmp_path / "customers.csv").write_text(CUSTOMERS.replace("1980", "1981"))
    monkeypatch.setenv("FINEGRAIN_PRIVACY_KEY", "another key, of more than 32 characters")
    with pytest.raises(FinegrainError, match="was hashed with another key than this one"):
        load(mapping, data=tmp_path, where=home)
    monkeypatch.setenv("FINEGRAIN_PRIVACY_KEY", KEY)
    assert load(mapping, data=tmp_path, where=home).rows == 1


def test_logs_say_nothing(home: Settings, tmp_path: Path) -> None:
    rows_of = "\n".join(f"{n},page_view,2026-01-01,u1,ann@shop.example" for n in range(30))
    (tmp_path / "e.csv").write_text(f"id,type,at,user,price\n{rows_of}\n")
    fields = {"event_id": "id", "event_type": "type", "event_at": "at", "user_id": "user", "price": "price"}
    mapping = written(
        tmp_path / "shop.yml", {"events": {"files": "e.csv", "available_at": "event_time", "fields": fields}}
    )
    with pytest.raises(FinegrainError, match=r"fields\.price: no value of it in .* is a number") as error:
        load(mapping, data=tmp_path, where=home, now=datetime(2026, 1, 2))
    assert "ann@" not in str(error.value)


def test_a_person_is_forgotten_by_their_address(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "customers.csv").write_text(CUSTOMERS + "bob@shop.example,Bob,,,1990,2026-01-01\n")
    mapping = written(tmp_path / "shop.yml", {"customers": CUSTOMER})
    load(mapping, data=tmp_path, where=home)
    done = forget(["Ann@shop.example"], where=home)
    assert (done.person.logins, done.rows, done.is_complete) == ([ANN], {"customers": 1}, True)
    assert found_in_files(home.home, (ANN,)) == []
    assert rows(home, "select birth_year from lake.raw.customers") == [("1990",)]
