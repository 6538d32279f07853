"""An API's rows are in the lake once each, even if the server is busy, broken, slow or wrong."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from test_any_name import OURS
from urllib3.exceptions import MaxRetryError
from urllib3.util import Retry

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError, Unavailable
from orchestration.ingest.ingest import TableReport, ingest
from orchestration.lake import lake
from orchestration.mapping.mapping import Http
from orchestration.sources import apis
from orchestration.sql.text import identifier

ROWS = [{"id": n, "name": f"p{n}", "price": n / 4, "updated_at": f"2024-01-{n:02}T00:00:00Z"} for n in range(1, 8)]
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Api:
    """A server on loopback. `answer` maps a path and its parameters to (code, headers, body); `asked` are the requests
    so far."""

    url: str = ""
    answer: Callable[[str, dict[str, str]], Answer | None] = lambda path, asked: None
    asked: list[tuple[str, dict[str, str], dict[str, str], float]] = field(default_factory=list)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    made = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            given = {name: values[0] for name, values in parse_qs(parts.query).items()}
            made.asked.append((parts.path, given, dict(self.headers), time.monotonic()))
            answer = made.answer(parts.path, given)
            if answer is None:  # the connection is cut
                self.connection.close()
                return
            code, headers, body = answer
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(apis, "PAUSE", 0.01)
    monkeypatch.setattr(apis, "PATIENCE", 1.0)
    monkeypatch.setenv("TOKEN", "s3cret")
    yield made
    server.shutdown()
    server.server_close()


def page(rows: list[Any], **more: Any) -> Answer:
    return 200, {}, json.dumps({"data": {"items": rows}, **more}).encode()


def bring(home: Settings, folder: Path, http: dict[str, Any], **entry: Any) -> TableReport:
    path = folder / "api.yml"
    keys = {
        "http": {"headers": {"Authorization": "Bearer ${TOKEN}"}, "rows": "$.data.items", **http},
        "key": "id",
        "available_at": "now",
        "fields": {"product_id": "id", "title": "name", "price": "price", "updated_at": "updated_at"},
        **entry,
    }
    path.write_text(yaml.safe_dump({"source": "shop", "tables": {"products": keys}}))
    [report] = ingest(path, where=home).tables
    return report


def landed(home: Settings, what: str = "product_id, price") -> list[tuple[Any, ...]]:
    con = lake.connect(home, read_only=True)
    try:
        return con.execute(f"select {what} from lake.raw.products order by _position").fetchall()
    finally:
        con.close()


def test_pages_follow_a_cursor_and_only_new_rows_are_requested(home: Settings, tmp_path: Path, api: Api) -> None:
    rows = list(ROWS)

    def answer(path: str, asked: dict[str, str]) -> Answer:
        new = [row for row in rows if str(row["updated_at"]) >= asked.get("updated_since", "")]
        first = int(asked.get("cursor", 0))
        return page(new[first : first + 3], next=first + 3 if first + 3 < len(new) else None)

    api.answer = answer
    http = {
        "url": api.url + "/products?active=1",
        "next": {"cursor": "$.next", "parameter": "cursor"},
        "since": {"parameter": "updated_since", "column": "updated_at"},
    }
    report = bring(home, tmp_path, http)
    assert (report.read, report.landed) == (7, 7) and len(api.asked) == 3
    assert all(
        headers["Authorization"] == "Bearer s3cret" and given["active"] == "1" for _, given, headers, _ in api.asked
    )
    assert landed(home) == [(str(n), str(n / 4)) for n in range(1, 8)]
    rows[2] = {**rows[2], "price": 9, "updated_at": "2024-02-01T00:00:00Z"}
    report = bring(home, tmp_path, http)
    assert api.asked[-1][1]["updated_since"] == "2024-01-07T00:00:00Z"
    assert (report.read, report.landed, report.unchanged) == (2, 1, 1)
    assert ("3", "9") in landed(home)


def test_a_time_that_cannot_be_read_does_not_move_the_position(home: Settings, tmp_path: Path, api: Api) -> None:
    times = ["2024-01-02T00:00:00Z", "infinity", "9999-12-31T00:00:00Z", "2024/09/09", "2024-01-03T00:00:00Z"]
    rows = [{"id": n, "name": "x", "price": 1, "updated_at": at} for n, at in enumerate(times)]
    api.answer = lambda path, asked: page(rows)
    http = {"url": api.url + "/products", "since": {"parameter": "s", "column": "updated_at"}}
    report = bring(home, tmp_path, http)
    assert report.landed == 5
    assert report.notes == ["3 rows whose updated_at is neither a number nor a time, so they do not move the position"]
    bring(home, tmp_path, http)
    assert api.asked[-1][1]["s"] == "2024-01-03T00:00:00Z"


@pytest.mark.parametrize(
    ("times", "position"),
    [
        (["2024-01-02T00:00:00Z", "2099-01-01T00:00:00Z", "2024-01-03T00:00:00Z"], "2024-01-03T00:00:00Z"),
        (
            [1704153600, 4070908800, 1704240000],
            "1704240000",
        ),  # the same, in seconds: the mapping reads a time from them
        (["2099-01-01T00:00:00Z"] * 3, None),
    ],
)
def test_a_time_in_the_future_does_not_move_the_position(
    home: Settings, tmp_path: Path, api: Api, times: list[Any], position: str | None
) -> None:
    api.answer = lambda path, asked: page(
        [{"id": n, "name": "x", "price": 1, "updated_at": at} for n, at in enumerate(times)]
    )
    http = {"url": api.url + "/products", "since": {"parameter": "s", "column": "updated_at"}}
    report = bring(home, tmp_path, http)
    assert report.landed == 3
    [note] = report.notes
    assert note.startswith(f"updated_at is in the future, up to {max(times)}, in some rows")
    assert bring(home, tmp_path, http).landed == 0
    assert api.asked[-1][1].get("s") == position


def test_a_number_that_is_not_a_time_is_never_in_the_future(home: Settings, tmp_path: Path, api: Api) -> None:
    api.answer = lambda path, asked: page([{"id": n, "name": "x", "version": 4070908800 + n} for n in range(3)])
    http = {"url": api.url + "/products", "since": {"parameter": "s", "column": "version"}}
    fields = {"product_id": "id", "title": "name"}
    assert bring(home, tmp_path, http, fields=fields).notes == []
    bring(home, tmp_path, http, fields=fields)
    assert api.asked[-1][1]["s"] == "4070908802"


def test_a_position_in_the_future_is_left(home: Settings, tmp_path: Path, api: Api) -> None:
    """Earlier versions of finegrain could leave one: the resource is read from the beginning."""
    rows = ROWS[:3]
    api.answer = lambda path, asked: page([row for row in rows if str(row["updated_at"]) >= asked.get("s", "")])
    http = {"url": api.url + "/products", "since": {"parameter": "s", "column": "updated_at"}}
    assert bring(home, tmp_path, http).landed == 3
    with lake.connect(home) as con:
        con.execute("update lake.raw.positions set position = '2099-01-01T00:00:00Z'")
    rows = ROWS
    report = bring(home, tmp_path, http)
    assert (report.landed, report.unchanged) == (4, 3)
    assert report.notes[0].startswith("the position 2099-01-01T00:00:00Z is in the future")
    bring(home, tmp_path, http)
    assert api.asked[-1][1]["s"] == "2024-01-07T00:00:00Z"


def test_a_key_of_any_name_is_a_column(home: Settings, tmp_path: Path, api: Api) -> None:
    """Also if it has the name of a column of ours; a row that comes twice in one run counts once, with the later
    content."""
    rows = [{"id": n, **{name: f"{name}={n}" for name in OURS}} for n in (1, 2, 1)]
    rows[2]["__is_deleted"] = "later"
    api.answer = lambda path, asked: page(rows)
    read = [name for name in OURS if name]
    sql = {"sql": f"to_json([{', '.join(identifier(name) for name in read)}])"}
    fields = {
        "product_id": "id",
        "title": "__n",
        "brand": "__bad",
        "category": "rowid",
        "weight_unit": "__is_deleted",
        "properties": sql,
    }
    entry = {"fields": fields, "key": ["id", "__key"], "available_at": {"column": "__payload"}}
    assert bring(home, tmp_path, {"url": api.url + "/products"}, **entry).landed == 2
    assert bring(home, tmp_path, {"url": api.url + "/products"}, **entry).landed == 0
    found = landed(home, "_error, payload, title, brand, category, weight_unit, properties")
    for row, (error, payload, *texts, properties) in zip((rows[2], rows[1]), found, strict=True):
        assert error is None and json.loads(payload) == row
        assert texts == [row[name] for name in ("__n", "__bad", "rowid", "__is_deleted")]
        assert json.loads(properties) == [row[name] for name in read]


def test_numbers_keep_their_digits(home: Settings, tmp_path: Path, api: Api) -> None:
    """In fields, in the key and in the payload, where they stay numbers."""
    body = b'{"data": {"items": [{"id": 12345678901234567890, "price": 1234567890123456.10, "name": "at \\"1234567890123456.10\\""}, '
    body += b'{"id": 12345678901234567891, "price": 12.5, "updated_at": null}, {"id": 3, "updated_at": "2024-01-01"}]}}'
    api.answer = lambda path, asked: (200, {}, body)
    assert bring(home, tmp_path, {"url": api.url + "/products"}).landed == 3
    assert bring(home, tmp_path, {"url": api.url + "/products"}).landed == 0
    assert landed(home)[:2] == [("12345678901234567890", "1234567890123456.10"), ("12345678901234567891", "12.5")]
    [(payload,), *_] = landed(home, "payload")
    assert '"price":1234567890123456.10,' in payload
    assert json.loads(payload)["name"] == 'at "1234567890123456.10"'


def test_pages_by_number_and_by_link(home: Settings, tmp_path: Path, api: Api) -> None:
    def answer(path: str, asked: dict[str, str]) -> Answer:
        first = 3 * (int(asked.get("p", 1)) - 1)
        code, headers, body = page(ROWS[first : first + 3])
        if path == "/linked" and first + 3 < len(ROWS):
            headers = {
                "Link": f'</other>; rel="prev", </linked?p={asked.get("p", "1")[0:1] and first // 3 + 2}>; rel="next"'
            }
        return code, headers, body

    api.answer = answer
    assert bring(home, tmp_path, {"url": api.url + "/counted", "next": {"page": "p"}}).landed == 7
    assert bring(home, tmp_path, {"url": api.url + "/linked", "next": {"link": "header"}}).landed == 7


def test_a_server_that_is_busy_broken_or_silent_is_asked_again(home: Settings, tmp_path: Path, api: Api) -> None:
    whole = page(ROWS)
    troubles: list[Answer | None] = [
        (429, {"Retry-After": "1"}, b""),
        (503, {}, b"down"),
        None,
        (200, {"Content-Length": str(len(whole[2]))}, whole[2][:50]),
        whole,
    ]

    def answer(path: str, asked: dict[str, str]) -> Answer | None:
        trouble = troubles[len(api.asked) - 1]
        if trouble is not None and trouble[2] == whole[2][:50]:
            raise ConnectionAbortedError  # the body ends too soon
        return trouble

    api.answer = answer
    assert bring(home, tmp_path, {"url": api.url}).landed == 7
    assert api.asked[1][3] - api.asked[0][3] >= 1.0


def fetched(folder: Path, url: str) -> bytes:
    resource = Http.model_validate(
        {"url": url, "rows": "$.data.items", "headers": {"Authorization": "Bearer ${TOKEN}"}}
    )
    assert apis.fetch(resource, None, folder, "products") == 1
    return (folder / "000001.json").read_bytes()


def test_no_log_shows_what_is_asked(tmp_path: Path, api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"), pytest.raises(Unavailable):
        fetched(tmp_path, f"{api.url}/?token=${{TOKEN}}")
    assert len(api.asked) == 6 and "s3cret" not in caplog.text


def test_a_body_that_ends_too_soon_is_asked_for_again(tmp_path: Path, api: Api) -> None:
    whole = page(ROWS)
    cut = (200, {"Content-Length": str(len(whole[2]))}, whole[2][:50])
    api.answer = lambda path, asked: cut if len(api.asked) < 3 else whole
    assert fetched(tmp_path, api.url) == whole[2] and len(api.asked) == 3
    api.answer = lambda path, asked: cut
    with pytest.raises(Unavailable, match=r"gives no whole answer \(.*50 bytes read.*\), 6 times"):
        fetched(tmp_path, api.url)
    assert len(api.asked) == 9


@pytest.mark.parametrize(("asks", "least"), [("later", 0.0), ("-1", 0.0), ("0", 0.0), ("1", 1.0), ("9" * 400, 0.5)])
def test_a_server_may_ask_for_a_pause(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch, asks: str, least: float
) -> None:
    monkeypatch.setattr(apis, "LONGEST_PAUSE", 1.0)
    api.answer = lambda path, asked: page(ROWS) if len(api.asked) > 1 else (503, {"Retry-After": asks}, b"")
    fetched(tmp_path, api.url)
    assert least <= api.asked[1][3] - api.asked[0][3] < least + 5


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apis.random, "uniform", lambda low, high: 1.0)
    retries: Retry = apis._Retry(total=apis.TRIES - 1)
    pauses = []
    for _ in range(apis.TRIES - 1):
        retries = retries.increment("GET", "/", error=OSError())
        pauses.append(retries.get_backoff_time())
    assert pauses == [apis.PAUSE * factor for factor in (1, 2, 4, 8, 16)]
    with pytest.raises(MaxRetryError):
        retries.increment("GET", "/", error=OSError())


def test_redirects_within_a_server_are_followed(tmp_path: Path, api: Api) -> None:
    api.answer = lambda path, asked: page(ROWS) if path == "/new" else (301, {"Location": "/new"}, b"")
    fetched(tmp_path, f"{api.url}/old")
    assert [(path, headers["Authorization"]) for path, _, headers, _ in api.asked] == [
        ("/old", "Bearer s3cret"),
        ("/new", "Bearer s3cret"),
    ]
    api.answer = lambda path, asked: (302, {"Location": f"{path}x"}, b"")
    with pytest.raises(FinegrainError, match="redirects again and again"):
        fetched(tmp_path, f"{api.url}/old")


def test_a_proxy_is_asked_where_the_environment_names_one(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", api.url.replace("//", "//me:pa55word@"))
    monkeypatch.setenv("no_proxy", "")
    api.answer = lambda path, asked: page(ROWS)
    fetched(tmp_path, "http://shop.example/products")
    [(path, _, headers, _)] = api.asked
    assert path == "/products" and headers["Host"] == "shop.example"
    assert {name.lower(): value for name, value in headers.items()}[
        "proxy-authorization"
    ] == "Basic " + base64.b64encode(b"me:pa55word").decode()
    monkeypatch.setenv("http_proxy", "http://pa55word:")
    with pytest.raises(FinegrainError) as refused:
        fetched(tmp_path, "http://shop.example/products")
    assert "pa55word" not in str(refused.value)


def test_rows_that_vanish_come_back_or_come_twice(home: Settings, tmp_path: Path, api: Api) -> None:
    answers = [[*ROWS, ROWS[0]], ROWS[1:], [{**ROWS[0], "extra": [1]}, *ROWS[1:]], [7, {"id": 1}, *ROWS[1:]]]
    api.answer = lambda path, asked: page(answers[len(api.asked) - 1])
    got = [bring(home, tmp_path, {"url": api.url}, deletes="compare") for _ in answers]
    assert [(each.landed, each.deleted, each.malformed) for each in got] == [(7, 0, 0), (0, 1, 0), (1, 0, 0), (2, 0, 1)]
    assert any("new column 'extra'" in note for note in got[2].notes)
    assert [(error, payload) for error, payload in landed(home, "_error, payload") if error] == [
        ("not a JSON object", "7")
    ]


def test_what_an_api_does_wrong_is_one_sentence(
    home: Settings, tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = {"next": {"cursor": "$.next", "parameter": "cursor"}}
    wrong: list[tuple[Answer | None, dict[str, Any], str]] = [
        ((401, {}, b"s3cret"), {}, r"answers 401 .*are the headers right"),
        ((404, {}, b""), {}, "answers 404 .*are address and parameters right"),
        ((500, {}, b""), {}, "answers 500 .*6 times; nothing has landed"),
        (None, {}, "gives no whole answer .*6 times"),
        ((200, {}, b"<html>"), {}, "is not JSON"),
        ((200, {}, b'{"items": []}'), {}, r"has no list at \$.data.items; it has: items"),
        (page(ROWS, next=3), cursor, "leads to the same page again, after 2 pages"),
        (page(ROWS, next="http://127.0.0.1:1/x"), cursor, "leads to another server"),
        ((302, {"Location": "http://127.0.0.1:1/x"}, b""), {}, "redirects to another server"),
        (page([{"name": "x"}]), {}, "no row of .* has 'id'|has no column 'id'"),
        (page(ROWS[:1]), {"since": {"parameter": "s", "column": "changed"}}, "'changed'"),
    ]
    for answer, http, said in wrong:
        api.answer = lambda path, asked, answer=answer: answer  # type: ignore[misc]
        with pytest.raises(FinegrainError, match=said) as caught:
            bring(home, tmp_path, {"url": api.url, **http})
        assert "\n" not in str(caught.value) and "s3cret" not in str(caught.value), caught.value
        assert "rows.jsonl" not in str(caught.value), caught.value
    monkeypatch.delenv("TOKEN")
    with pytest.raises(FinegrainError, match="the environment has no TOKEN"):
        bring(home, tmp_path, {"url": api.url})
    assert landed(home) == [] and not list((home.home / "tmp").iterdir())


def test_an_empty_answer_lands_nothing(home: Settings, tmp_path: Path, api: Api) -> None:
    api.answer = lambda path, asked: page([])
    assert bring(home, tmp_path, {"url": api.url}).landed == 0


def test_rows_of_an_api_are_mapped_again(home: Settings, tmp_path: Path, api: Api) -> None:
    """By another field; a field that only newer answers have is null in older rows."""
    api.answer = lambda path, asked: page(ROWS[:2])
    bring(home, tmp_path, {"url": api.url})
    fields = {"product_id": "id", "title": "id", "brand": "maker"}
    api.answer = lambda path, asked: page([*ROWS[:2], {**ROWS[2], "maker": "M"}])
    with pytest.raises(FinegrainError, match="2 rows would be replaced, 0 deleted, 0 unchanged"):
        bring(home, tmp_path, {"url": api.url}, fields=fields)
    with lake.connect(home, read_only=True) as con:
        assert con.execute("select count(*) from lake.raw.deletions").fetchall() == [(0,)]
    ingest(tmp_path / "api.yml", remap=True, where=home)
    assert landed(home, "title, brand")[-1] == ("3", "M")
    assert sorted(landed(home, "title, brand, _position[1:0]"))[:2] == [("1", None, ""), ("2", None, "")]
    with lake.connect(home, read_only=True) as con:
        assert con.execute("select count(*), count(row_key) from lake.raw.deletions").fetchall() == [(2, 0)]


def test_an_object_where_a_value_is_expected(home: Settings, tmp_path: Path, api: Api) -> None:
    """In some rows, those rows are malformed; in all rows, the mapping is wrong."""
    odd = {**ROWS[0], "name": {"en": "p1"}}
    api.answer = lambda path, asked: page([odd, *ROWS[1:3]])
    got = bring(home, tmp_path, {"url": api.url, "rows": "$.data.items"})
    assert (got.landed, got.malformed) == (3, 1)
    con = lake.connect(home, read_only=True)
    try:
        found = con.execute("select title, _error from lake.raw.products order by _position").fetchall()
    finally:
        con.close()
    assert found == [(None, "name holds an object or a list"), ("p2", None), ("p3", None)]
    api.answer = lambda path, asked: page([{**row, "name": ["p"]} for row in ROWS])
    with pytest.raises(FinegrainError, match=r"fields\.title: column 'name' of .* is a list; extract a value from it"):
        bring(home, tmp_path, {"url": api.url, "rows": "$.data.items"})


def test_a_deeply_nested_row_loses_no_page(home: Settings, tmp_path: Path, api: Api) -> None:
    deep = b'{"id": "deep", "name": "n", "more": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    first = page([ROWS[0], "DEEP"], next="two")[2].replace(b'"DEEP"', deep)
    api.answer = lambda path, asked: page([ROWS[1]]) if asked.get("cursor") else (200, {}, first)
    bring(home, tmp_path, {"url": api.url, "rows": "$.data.items", "next": {"cursor": "$.next", "parameter": "cursor"}})
    assert sorted(landed(home, "product_id")) == [("1",), ("2",), ("deep",)]
