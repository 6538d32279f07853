"""OpenLineage events of a build: to a file and to a server on loopback, read back with the client's own classes, which are generated from the specification."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import attr
import duckdb
import pytest
from openlineage.client import facet_v2

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.warehouse import openlineage
from orchestration.warehouse.build import Build, Node
from orchestration.warehouse.openlineage import recording

Event = dict[str, Any]


@pytest.fixture(scope="module")
def events(built_shop: Settings) -> list[Event]:
    """The events of the shared shop's build."""
    return [json.loads(line) for line in (built_shop.home / "openlineage.jsonl").read_text("utf-8").splitlines()]


def ended(events: list[Event], job: str) -> Event:
    [found] = [each for each in events if each["job"]["name"] == job and each["eventType"] != "START"]
    return found


def facet_classes() -> dict[str, Any]:
    """The classes of facets, by the address of their schema."""
    modules = [found for name in dir(facet_v2) if isinstance(found := getattr(facet_v2, name), ModuleType)]
    kinds = [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and hasattr(kind, "_get_schema")
    ]
    return {kind._get_schema(): kind for kind in kinds}


def test_every_facet_is_what_its_schema_says(events: list[Event]) -> None:
    classes, seen = facet_classes(), set()
    for event in events:
        assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None
        parts = [event["run"]["facets"], event["job"]["facets"]]
        parts += [
            each.get(key, {})
            for each in event["inputs"] + event["outputs"]
            for key in ("facets", "inputFacets", "outputFacets")
        ]
        for name, facet in ((name, facet) for part in parts for name, facet in part.items()):
            kind = classes[facet["_schemaURL"]]
            known = {field.name.lstrip("_") for field in attr.fields(kind)}
            required = {field.name for field in attr.fields(kind) if field.default is attr.NOTHING}
            given = set(facet) - {"_producer", "_schemaURL"}
            assert required <= given <= known, name
            seen.add(name)
    assert seen == {
        "processing_engine", "parent", "jobType", "schema", "documentation", "symlinks", "columnLineage", "dataQualityAssertions",
    }  # fmt: skip


def test_a_build_is_a_run_with_a_run_of_each_mart_and_its_tests(events: list[Event], built_shop: Settings) -> None:
    assert (events[0]["job"]["name"], events[0]["eventType"]) == ("build", "START")
    assert (events[-1]["job"]["name"], events[-1]["eventType"]) == ("build", "COMPLETE")
    run = events[0]["run"]["runId"]
    with duckdb.connect(str(built_shop.warehouse), read_only=True) as con:
        marts = [
            name
            for (name,) in con.execute(
                "select table_name from duckdb_columns() where schema_name = 'marts' group by 1"
            ).fetchall()
        ]
    jobs = {name for mart in marts for name in (f"build.{mart}", f"audit.{mart}")}
    by_job: dict[str, list[Event]] = {}
    for event in events[1:-1]:
        by_job.setdefault(event["job"]["name"], []).append(event)
        assert event["run"]["facets"]["parent"]["run"]["runId"] == run
    assert set(by_job) == jobs
    for start, end in by_job.values():
        assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
        assert start["run"]["runId"] == end["run"]["runId"] != run
        assert events[0]["eventTime"] <= start["eventTime"] <= end["eventTime"] <= events[-1]["eventTime"]


def test_a_mart_names_its_columns_and_the_raw_fields_of_each(events: list[Event], built_shop: Settings) -> None:
    with duckdb.connect(str(built_shop.warehouse), read_only=True) as con:
        for mart in ("fct_orders", "user_features", "dim_shop", "event_ledger"):
            [mart_of] = ended(events, f"build.{mart}")["outputs"]
            assert mart_of["namespace"] == f"duckdb://{built_shop.warehouse}"
            assert mart_of["name"] == f"warehouse.marts.{mart}"
            described = [(name, kind) for name, kind, *_ in con.execute(f"describe marts.{mart}").fetchall()]
            assert [(each["name"], each["type"]) for each in mart_of["facets"]["schema"]["fields"]] == described
            assert set(mart_of["facets"]["columnLineage"]["fields"]) == {name for name, _ in described}
            [link] = mart_of["facets"]["symlinks"]["identifiers"]
            assert link["namespace"] == f"duckdb://{built_shop.published / 'finegrain.duckdb'}"
    order = ended(events, "build.fct_orders")
    assert {"raw.orders", "raw.order_items", "raw.events"} <= {each["name"] for each in order["inputs"]}
    assert {each["namespace"] for each in order["inputs"]} == {f"ducklake:{built_shop.lake_catalog}"}
    fields = order["outputs"][0]["facets"]["columnLineage"]["fields"]
    sources = {
        (each["name"], each["field"]): {kind["type"] for kind in each["transformations"]}
        for each in fields["tax"]["inputFields"]
    }
    assert "DIRECT" in sources["raw.orders", "tax"]
    # Nothing of an order's tax comes from a customer, and a raw table that is read is an input.
    assert not any(table == "raw.customers" for table, _ in sources)
    assert {table for table, _ in sources} <= {each["name"] for each in order["inputs"]}
    views = ended(events, "build.user_features")["outputs"][0]["facets"]["columnLineage"]["fields"]["views_7d"][
        "inputFields"
    ]
    assert ("raw.events", "event_type") in {(each["name"], each["field"]) for each in views}


def test_the_tests_of_a_mart_are_assertions_on_it(events: list[Event], built_shop: Settings) -> None:
    [mart] = ended(events, "audit.dim_customers")["inputs"]
    results = mart["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert {(each["assertion"], each.get("column")) for each in results} == {
        ("unique", "customer_id"), ("unique", "user_id"), ("every_row", None),
    }  # fmt: skip
    assert all(each["success"] is True for each in results)
    assert mart["name"] == ended(events, "build.dim_customers")["outputs"][0]["name"]


# ------------------------------------------------------------------------------------------------------ a server


class Server:
    """A listener on loopback; `answer` says the status of each request, after however long it takes."""

    def __init__(self, answer: Callable[[], int]) -> None:
        self.requests: list[tuple[str, str | None, Event]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, self.headers.get("Authorization"), body))
                self.send_response(answer())
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(answer: Callable[[], int]) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.close()


def a_build(*, test: str = "pass") -> Build:
    """A build of one mart, whose test has this status."""
    asks = {"model": "{{ get_where_subquery(ref('dim_shop')) }}", "column_name": "shop_time_zone"}
    return Build(
        [
            Node("int_identity__build", "model", "success", 0.1),
            Node("dim_shop", "model", "success", 0.2),
            Node(
                "not_null_dim_shop",
                "test",
                test,
                0.1,
                "Got 1 result",
                int(test == "fail"),
                rows=[{"email": "eve@shop.com"}],
                test="not_null",
                asks=asks,
            ),
            *([Node("dim_customers", "model", "skipped", 0)] if test == "fail" else []),
        ],
        1,
        0.1,
    )


def send(where: Settings, done: Build) -> list[str]:
    """Record a build that ended like this; the notes of it."""
    with recording(where) as record:
        record.started("dim_shop")
        record.ended(done)
    return record.notes


def test_a_server_gets_each_event(built_shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda: 201) as server:
        monkeypatch.setenv("OPENLINEAGE_URL", server.address)
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "a-key-of-mine")
        monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "shop")
        assert send(built_shop, a_build()) == []
    assert {path for path, *_ in server.requests} == {"/api/v1/lineage"}
    assert {key for _, key, _ in server.requests} == {"Bearer a-key-of-mine"}
    said = [(body["job"]["namespace"], body["job"]["name"], body["eventType"]) for *_, body in server.requests]
    assert said == [
        ("shop", "build", "START"),
        ("shop", "build.dim_shop", "START"),
        ("shop", "build.dim_shop", "COMPLETE"),
        ("shop", "audit.dim_shop", "START"),
        ("shop", "audit.dim_shop", "COMPLETE"),
        ("shop", "build", "COMPLETE"),
    ]


def test_another_endpoint_below_a_path(built_shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda: 200) as server:
        monkeypatch.setenv("FINEGRAIN_OPENLINEAGE", f"{server.address}/base")
        monkeypatch.setenv("OPENLINEAGE_ENDPOINT", "/openapi/lineage")
        assert send(built_shop, a_build()) == []
    assert {path for path, *_ in server.requests} == {"/base/openapi/lineage"}


def test_a_failed_test_fails_the_audit_and_the_build_and_sends_no_values(
    built_shop: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "new folder" / "events.jsonl"
    monkeypatch.setenv("FINEGRAIN_OPENLINEAGE", str(file))
    assert send(built_shop, a_build(test="fail")) == []
    events = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert ended(events, "build.dim_shop")["eventType"] == "COMPLETE"
    assert not any("dim_customers" in event["job"]["name"] for event in events)
    for job in ("audit.dim_shop", "build"):
        event = ended(events, job)
        assert event["eventType"] == "FAIL"
        assert event["run"]["facets"]["errorMessage"]["message"] == "failed: not_null_dim_shop"
    [mart] = ended(events, "audit.dim_shop")["inputs"]
    [result] = mart["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert (result["success"], result["column"], result["actual"]) == (False, "shop_time_zone", "1 rows")
    assert "eve@shop.com" not in file.read_text("utf-8")


@pytest.mark.parametrize(("error", "state"), [(FinegrainError("no"), "FAIL"), (KeyboardInterrupt(), "ABORT")])
def test_a_build_that_stops_early_says_so(
    built_shop: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, state: str
) -> None:
    monkeypatch.setenv("FINEGRAIN_OPENLINEAGE", str(tmp_path / "events.jsonl"))
    with pytest.raises(type(error)), recording(built_shop):
        raise error
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text("utf-8").splitlines()]
    assert [event["eventType"] for event in events] == ["START", state]


def test_no_server_answers(built_shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda: 200) as server:
        pass
    monkeypatch.setenv("FINEGRAIN_OPENLINEAGE", server.address)
    [note] = send(built_shop, a_build())
    assert "lineage was not sent completely" in note and "\n" not in note


def test_a_server_that_refuses_is_asked_once(built_shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda: 503) as server:
        monkeypatch.setenv("FINEGRAIN_OPENLINEAGE", server.address)
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "a-key-of-mine")
        [note] = send(built_shop, a_build())
    assert "503" in note and "a-key-of-mine" not in note
    assert len(server.requests) == 1


def test_a_server_that_hangs_costs_a_bounded_time(built_shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openlineage, "PATIENCE", 0.2)
    answered = threading.Event()

    def hang() -> int:
        answered.wait(20)
        return 200

    with serving(hang) as server:
        monkeypatch.setenv("FINEGRAIN_OPENLINEAGE", server.address)
        began = time.monotonic()
        [note] = send(built_shop, a_build())
        assert time.monotonic() - began < 10
        answered.set()
    assert "timed out" in note.lower()


def test_a_slow_server_costs_a_bounded_time(built_shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openlineage, "ALL_PATIENCE", 0.5)

    def slow() -> int:
        time.sleep(0.3)
        return 200

    with serving(slow) as server:
        monkeypatch.setenv("FINEGRAIN_OPENLINEAGE", server.address)
        [note] = send(built_shop, a_build())
    assert "more than 0.5 seconds" in note
    assert 1 <= len(server.requests) <= 3


def test_without_a_setting_nothing_is_sent(built_shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openlineage, "lineage", lambda *_: pytest.fail("the lineage was traced"))
    assert send(built_shop, a_build()) == []


@pytest.mark.parametrize("value", ["https://user:word@host", "ftp://host/file", "https://host?token=x"])
def test_an_address_that_is_none_is_refused(built_shop: Settings, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FINEGRAIN_OPENLINEAGE", value)
    with (
        pytest.raises(FinegrainError, match=r"FINEGRAIN_OPENLINEAGE .* OPENLINEAGE_API_KEY") as caught,
        recording(built_shop),
    ):
        pass
    assert "word" not in str(caught.value)


def test_a_file_that_cannot_be_written_is_named(
    built_shop: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FINEGRAIN_OPENLINEAGE", str(tmp_path / "file" / "events.jsonl"))
    with pytest.raises(FinegrainError, match=r"cannot be written.*FINEGRAIN_OPENLINEAGE"), recording(built_shop):
        pass
