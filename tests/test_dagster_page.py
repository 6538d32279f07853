"""The proxy in front of Dagster's page: pages of other sites cannot start anything, however a browser sends the
request."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from servers import free_ports
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from orchestration.config.published import REPORT as FILE
from orchestration.config.settings import Settings
from orchestration.dagster.page import HOSTS, REPORT, Guard, Report, names
from orchestration.ingest.stream.watch import Watch

START = "mutation { launchRun(executionParams: {selector: {}}) { __typename } }"
ASK = "{ version }"
JSON = {"content-type": "application/json"}


def client(*allowed: str, address: str = "http://127.0.0.1:3000") -> TestClient:
    """A server behind the guard that answers every request."""

    async def yes(request: Request) -> PlainTextResponse:
        return PlainTextResponse("yes")

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("yes")
        await websocket.close()

    app = Starlette(
        routes=[WebSocketRoute("/graphql", socket), Route("/{path:path}", yes, methods=["GET", "POST", "DELETE"])]
    )
    return TestClient(Guard(Report(app), allowed), base_url=address)


@pytest.mark.parametrize(
    ("host", "allowed", "passes"),
    [
        ("127.0.0.1:3000", (), True),
        ("localhost:3000", (), True),
        ("LOCALHOST:3000", (), True),
        ("[::1]:3000", (), True),
        ("localhost:8080", (), True),  # ssh -L 8080:localhost:3000
        ("localhost.", (), True),
        ("evil.example", (), False),
        ("evil.example:3000", (), False),
        ("127.0.0.1.evil.example:3000", (), False),
        ("localhost.evil.example", (), False),
        ("localhost@evil.example", (), False),
        ("localhost:3000@evil.example", (), False),
        ("localhost:x", (), False),
        ("localhost/evil.example", (), False),
        ("10.0.0.7:3000", (), False),
        ("0.0.0.0:3000", ("0.0.0.0:3000",), False),
        ("", (), False),
        ("dagster.shop.example", (), False),
        ("dagster.shop.example", ("dagster.shop.example",), True),
        ("Dagster.Shop.example:3000", ("dagster.shop.example",), True),
        ("more.dagster.shop.example", ("dagster.shop.example",), False),
    ],
)
def test_only_known_hosts_are_answered(host: str, allowed: tuple[str, ...], passes: bool) -> None:
    server = client(*allowed)
    for headers in ({"host": host}, {"host": host, "x-forwarded-host": "localhost:3000"}):
        for path in ("/", "/graphql?query=%7Bversion%7D", "/logs/x.out", "/download_debug/1"):
            assert server.get(path, headers=headers).status_code == (200 if passes else 403), path
        assert server.post("/graphql", headers={**headers, **JSON}).status_code == (200 if passes else 403)


def test_the_address_that_was_connected_to_is_a_host() -> None:
    """Kubernetes' probes use it, where the server listens on 0.0.0.0."""
    assert client(address="http://10.0.0.7:3000").get("/server_info").status_code == 200
    assert client(address="http://evil.example:3000").get("/server_info").status_code == 403
    assert (
        client(address="http://10.0.0.7:3000").get("/server_info", headers={"host": "evil.example"}).status_code == 403
    )


def test_two_host_headers_are_refused() -> None:
    assert client().get("/", headers=[("host", "localhost:3000"), ("host", "evil.example")]).status_code == 403


@pytest.mark.parametrize(
    ("origin", "host", "passes"),
    [
        (None, "localhost:3000", True),
        ("http://localhost:3000", "localhost:3000", True),
        ("https://dagster.shop.example", "dagster.shop.example", True),
        ("https://dagster.shop.example", "dagster.shop.example:443", True),
        ("https://dagster.shop.example", "127.0.0.1:3000", True),  # a proxy that changes the Host
        ("http://dagster.shop.example:8080", "127.0.0.1:3000", False),
        ("https://more.dagster.shop.example", "dagster.shop.example", False),
        ("https://evil.example", "localhost:3000", False),
        ("http://evil.example:3000", "localhost:3000", False),
        ("http://localhost:8080", "localhost:3000", False),
        ("http://localhost", "localhost:3000", False),
        ("http://localhost:3000.evil.example", "localhost:3000", False),
        ("null", "localhost:3000", False),
        ("", "localhost:3000", False),
        ("file://", "localhost:3000", False),
        ("chrome-extension://localhost:3000", "localhost:3000", False),
    ],
)
def test_pages_of_other_sites_are_refused(origin: str | None, host: str, passes: bool) -> None:
    server = client("dagster.shop.example")
    headers = {"host": host, **({} if origin is None else {"origin": origin})}
    expected = 200 if passes else 403
    assert server.get("/", headers=headers).status_code == expected
    assert server.post("/graphql", headers={**headers, **JSON}, content=b"{}").status_code == expected
    assert server.post("/report_asset_check/a", headers={**headers, **JSON}).status_code == expected
    assert server.delete("/", headers=headers).status_code == expected
    if passes:
        with server.websocket_connect("/graphql", headers=headers) as socket:
            assert socket.receive_text() == "yes"
    else:
        with pytest.raises(WebSocketDisconnect), server.websocket_connect("/graphql", headers=headers):
            pass


def test_a_websocket_by_another_name_is_refused() -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        client().websocket_connect("/graphql", headers={"host": "evil.example", "origin": "http://evil.example"}),
    ):
        pass


@pytest.mark.parametrize(
    ("query", "status"),
    [
        (ASK, 200),
        ("query Q { version }", 200),
        ("no GraphQL {", 405),
        (START, 405),
        ("mutation M { a } query Q { version }", 405),
        ("query Q { version } mutation M { a }", 405),
        ("# a remark\n\ufeff mutation{a}", 405),
        ("subscription { a }", 405),
        ("fragment F on T { a } mutation { a }", 405),
        ("mutation { a " + "{ a " * 4000 + "}" * 4001, 405),
    ],
)
def test_a_get_changes_nothing(query: str, status: int) -> None:
    server = client()
    for path in ("/graphql", "/graphql/"):
        assert server.get(path, params={"query": query}).status_code == status
        assert server.get(path, params=[("query", ASK), ("query", query)]).status_code == status
        assert server.get(path, params=[("query", query), ("query", ASK)]).status_code == status
        assert server.head(path, params={"query": query}).status_code == status


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_headers_that_name_another_site_count(site: str) -> None:
    """A link to the page may come from a chat; one to GraphQL may not."""
    server, headers = client(), {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
    assert server.get("/runs/1", headers=headers).status_code == 200
    assert server.get("/graphql", params={"query": ASK}, headers=headers).status_code == 403
    assert server.post("/graphql", headers={**headers, **JSON}).status_code == 403
    same = {"sec-fetch-site": "same-origin"}
    assert server.post("/graphql", headers={**same, **JSON}).status_code == 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/graphql", 200),
        ("text/plain", 415),
        ("text/plain; application/json", 415),  # Dagster looks for the words anywhere
        ("text/plain;x=application/graphql", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=application/json", 415),
        ("", 415),
        (None, 415),
    ],
)
def test_a_post_needs_a_content_type_that_triggers_a_preflight(kind: str | None, status: int) -> None:
    server = client()
    headers = {} if kind is None else {"content-type": kind}
    for path in ("/graphql", f"/graphql?query={quote(START)}", "/report_asset_materialization/a"):
        assert server.post(path, headers=headers, content=b"{}").status_code == status


def test_other_paths_may_have_a_query_of_their_own() -> None:
    assert client().get("/assets", params={"query": "mutation of {"}).status_code == 200


def test_no_other_page_can_show_it_in_a_frame() -> None:
    assert client().get("/").headers["x-frame-options"] == "SAMEORIGIN"


def test_names_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names() == frozenset()
    monkeypatch.setenv(HOSTS, "a.example, b.example:8443,")
    monkeypatch.setenv("FINEGRAIN_DAGSTER_URL", "https://dagster.shop.example/x")
    assert names() == {"a.example", "b.example:8443", "dagster.shop.example"}


def test_metrics_on_loopback_are_only_served_under_loopback_names() -> None:
    port = free_ports(1)[0]
    Watch("kafka:shop.events", port=port)

    def ask(host: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        status, text = ask(host)
        assert status == 200 and "shop.events" in text
    for host in ("evil.example", f"evil.example:{port}", f"localhost.evil.example:{port}"):
        status, text = ask(host)
        assert status == 403 and "shop.events" not in text


@contextlib.contextmanager
def started(part: str, *arguments: str, home: Path, shop: Path) -> Iterator[int]:
    """A real `finegrain dagster`; the port of its page."""
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "orchestration.cli", "dagster", part, "--shop", str(shop), "--port", str(port)]
    log = home.parent / f"{part}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, "FINEGRAIN_AUTOMATION": "off", "DAGSTER_HOME": str(home / "dagster")},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 240
        while ask(port, "GET", "/server_info")[0] != 200:
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(1)
        yield port
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """The status and text of an answer; 0 where nothing answers."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, given, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError:
        return 0, ""


@pytest.mark.long
def test_the_real_page_is_behind_the_guard(home: Settings, tmp_path: Path) -> None:
    """The page of `dev`, which runs the same webserver in a process of its own."""
    (tmp_path / "a.csv").write_text("t,at,u\nlogin,2024-01-01,u\n")
    fields = {"event_type": "t", "event_at": "at", "user_id": "u"}
    entry = {"files": str(tmp_path / "a.csv"), "available_at": "now", "fields": fields}
    shop = tmp_path / "shop.yml"
    shop.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entry}}))
    stop = 'mutation { stopRunningSchedule(id: "x") { __typename } }'
    with started("dev", "--allow-host", "dagster.shop.example", home=home.home, shop=shop) as port:
        page = f"http://127.0.0.1:{port}"
        assert ask(port, "GET", "/", Host="evil.example")[0] == 403
        assert ask(port, "GET", "/", Host="dagster.shop.example")[0] == 200
        assert ask(port, "GET", f"/graphql?query={quote(ASK)}")[0] == 200
        assert ask(port, "GET", f"/graphql?query={quote(stop)}")[0] == 405
        assert ask(port, "GET", f"/graphql?query={quote(stop)}", Host="evil.example")[0] == 403
        asked = {"query": ASK}
        assert ask(port, "POST", "/graphql", asked, Content_Type="text/plain; application/json")[0] == 415
        assert (
            ask(port, "POST", "/graphql", asked, Content_Type="application/json", Origin="http://evil.example")[0]
            == 403
        )
        status, text = ask(port, "POST", "/graphql", {"query": stop}, Content_Type="application/json", Origin=page)
        assert "stopRunningSchedule" in text or status == 500  # it ran: there is no such schedule
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import connect

        with pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{port}/graphql", origin="http://evil.example", subprotocols=["graphql-ws"])
        with connect(f"ws://127.0.0.1:{port}/graphql", origin=page, subprotocols=["graphql-ws"]) as socket:
            socket.send(json.dumps({"type": "connection_init"}))
            assert json.loads(socket.recv(10))["type"] == "connection_ack"


def test_the_report_is_served_to_those_who_may_see_the_page(home: Settings) -> None:
    answer = client().get(REPORT)
    assert answer.status_code == 404 and "finegrain publish" in answer.text
    version = home.published / "versions" / "1"
    version.mkdir(parents=True)
    (home.published / "current").symlink_to("versions/1")
    (version / FILE).write_text("<!doctype html><p>wie schön", "utf-8")
    answer = client().get(REPORT)
    assert (answer.status_code, answer.text) == (200, "<!doctype html><p>wie schön")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    # Nothing in it could run, or reach Dagster as this server's own page.
    assert answer.headers["content-security-policy"] == "sandbox; frame-ancestors 'self'"
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert client().get("/finegrain/reports").text == "yes"
    assert client().get(f"/prefix{REPORT}/").status_code == 200  # behind --path-prefix
    assert client().post(REPORT, json={}).status_code == 405
    assert client().get(REPORT, headers={"host": "evil.example"}).status_code == 403
    assert client().get(REPORT, headers={"origin": "http://evil.example"}).status_code == 403
