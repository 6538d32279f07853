"""Alerts are sent once, to their owners, on every channel that can be reached, and contain nothing personal or secret."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import json
import logging
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from servers import HOST, free_ports

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.stream.messages import BatchResult
from orchestration.ingest.stream.watch import Watch
from orchestration.quality import alerts
from orchestration.quality.alerts import (
    MASK,
    Channel,
    Kind,
    Line,
    Loader,
    Log,
    Mail,
    Message,
    Outcome,
    Problem,
    Rules,
    Undelivered,
    Webhook,
    anomalous,
    channels_from_environment,
    dead_letters,
    lagging,
    mask,
    notify,
    poor_quality,
    read_loader,
    read_rules,
    scrub,
    stale,
)

NOON = datetime(2025, 3, 2, 12)
KINDS: tuple[Kind, ...] = ("run", "check", "freshness", "quality", "anomaly", "stream", "dead_letters", "lag")
RULES = Rules(
    owners={"data-engineering": ("data@shop.com",), "personalization": ("ml@shop.com", "ml2@shop.com")},
    everyone_else=("all@shop.com",),
)
FAILED = Problem("run", "build", "data-engineering", "2 nodes failed", "http://dagster/runs/1", state="a,b")
ROWS = ({"source": "web", "user_id": "jane.doe", "n": 3, "price": 12.5, "birth_year": None},)
CHECK = Problem("check", "fct_events: not_null", "personalization", "3 rows failed", sample=ROWS)


@dataclass
class Sink:
    """A web server that keeps what is posted to it, and answers `status`."""

    port: int
    status: int = 200
    got: list[dict[str, Any]] = field(default_factory=list)
    page: str = ""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/services/s3cret"


@contextlib.contextmanager
def sink() -> Iterator[Sink]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/services/s3cret" and here.status == 200:
                here.got.append(json.loads(content))
            self.send_response(here.status)
            if here.status == 302:
                self.send_header("Location", f"http://{HOST}:{here.port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(here.page.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
    here = Sink(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield here
    server.shutdown()
    server.server_close()


@pytest.fixture
def web() -> Iterator[Sink]:
    with sink() as here:
        yield here


class Mailbox:
    """A mail server's handler: keeps what it is given; refuses addresses in `refused`."""

    def __init__(self) -> None:
        self.got: list[tuple[list[str], EmailMessage]] = []
        self.refused: set[str] = set()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address in self.refused:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.got.append((envelope.rcpt_tos, mail))
        return "250 OK"


@contextlib.contextmanager
def mail_server(**options: Any) -> Iterator[tuple[Mailbox, int]]:
    box = Mailbox()
    [port] = free_ports(1)
    server = Controller(box, hostname=HOST, port=port, **options)
    server.start()
    try:
        yield box, port
    finally:
        server.stop()


@pytest.fixture
def post() -> Iterator[tuple[Mailbox, Mail]]:
    with mail_server() as (box, port):
        yield box, Mail(HOST, port, "finegrain@shop.com")


@pytest.fixture(autouse=True)
def environment(home: Settings) -> None:
    """Every test has a home of its own."""


def look(*problems: Problem, channels: list[Channel], minutes: int = 0, **given: Any) -> Outcome:
    given = {"looked": KINDS, "rules": RULES, **given}
    return notify(problems, channels=channels, now=NOON + timedelta(minutes=minutes), **given)


def text_of(got: dict[str, Any]) -> str:
    return "\n".join(block["text"]["text"] for block in got["blocks"])


# What is sent, when, and to whom.


def test_each_channel_gets_new_changed_and_resolved_problems(
    web: Sink, post: tuple[Mailbox, Mail], caplog: pytest.LogCaptureFixture
) -> None:
    box, mail = post
    channels: list[Channel] = [Log(), Webhook(web.url), mail]
    caplog.set_level(logging.INFO, "finegrain.alerts")

    def news() -> tuple[list[str], list[str], list[str]]:
        texts = (
            [record.getMessage() for record in caplog.records],
            [text_of(got) for got in web.got],
            [f"{mail['Subject']}\n{mail.get_content()}" for _, mail in box.got],
        )
        levels = [record.levelname for record in caplog.records]
        for record, level in zip(caplog.records, levels, strict=True):
            assert level == ("INFO" if record.getMessage().startswith("recovered") else "WARNING")
        caplog.clear()
        web.got.clear()
        box.got.clear()
        return texts

    assert look(FAILED, channels=channels) == Outcome(["run:build"], [], [], 0, [])
    for each in news():
        [text] = each
        for part in ("new: run build", "2 nodes failed", "http://dagster/runs/1", "data-engineering"):
            assert part in text

    # The same problem with another text is not a change.
    again = replace(FAILED, text="2 nodes failed again")
    assert look(again, channels=channels, minutes=1) == Outcome([], [], [], 1, [])
    assert news() == ([], [], [])

    changed = replace(FAILED, text="3 nodes failed", state="a,b,c")
    assert look(changed, channels=channels, minutes=2) == Outcome([], ["run:build"], [], 1, [])
    for each in news():
        assert "changed: run build" in each[0] and "3 nodes failed" in each[0]

    assert look(channels=channels, minutes=65) == Outcome([], [], ["run:build"], 0, [])
    for each in news():
        assert "recovered: run build, after 1 hour 5 minutes" in each[0] and "It was: 3 nodes failed" in each[0]
    assert look(channels=channels, minutes=66) == Outcome([], [], [], 0, [])
    assert news() == ([], [], [])


def test_an_owner_gets_one_message(web: Sink, post: tuple[Mailbox, Mail]) -> None:
    box, mail = post
    gone = Problem("freshness", "events", "data-engineering", "30 hours")
    letters = Problem("dead_letters", "not_json", "someone\r\nBcc: x", "5 wait")
    look(gone, channels=[Webhook(web.url), mail])
    box.got.clear()
    web.got.clear()
    look(FAILED, replace(FAILED, subject="publish"), CHECK, letters, channels=[Webhook(web.url), mail], minutes=1)
    titles = {
        "finegrain: 2 new problems, 1 recovered (data-engineering)": ["data@shop.com"],
        "finegrain: 1 new problem (personalization)": ["ml@shop.com", "ml2@shop.com"],
        "finegrain: 1 new problem (someone Bcc: x)": ["all@shop.com"],
    }
    assert {mail["Subject"]: to for to, mail in box.got} == titles
    assert {mail["Bcc"] for _, mail in box.got} == {None}
    assert sorted(got["blocks"][0]["text"]["text"] for got in web.got) == sorted(titles)
    [first, second] = [mail for _, mail in box.got][:2]
    body = first.get_content()
    assert body.index("new: run build") < body.index("new: run publish") < body.index("recovered: freshness events")
    assert f"source=web, user_id={MASK}, n=3, price={MASK}, birth_year=null" in second.get_content()
    assert (first["From"], first["Auto-Submitted"]) == ("finegrain@shop.com", "auto-generated")


def test_a_channel_that_was_down_later_gets_the_current_state(web: Sink, post: tuple[Mailbox, Mail]) -> None:
    box, mail = post
    channels: list[Channel] = [Webhook(web.url), mail]
    stays, ends = FAILED, replace(FAILED, subject="publish")
    look(ends, channels=channels)
    web.status = 503
    down = [f"webhook: {HOST}:{web.port} answers 503"]
    assert look(stays, CHECK, channels=channels, minutes=10).undelivered == down
    assert look(replace(stays, text="now 5"), channels=channels, minutes=20).undelivered == down
    sent = len(box.got)
    assert look(replace(stays, text="now 6"), channels=channels, minutes=30) == Outcome([], [], [], 1, down)
    web.status = 200
    assert look(replace(stays, text="now 7"), channels=channels, minutes=40) == Outcome([], [], [], 1, [])
    assert len(box.got) == sent  # the other channel gets nothing twice
    text = "\n".join(text_of(got) for got in web.got[1:])
    assert "new: run build" in text and "now 7" in text
    assert "recovered: run publish, after 10 minutes" in text  # it was over then
    assert "not_null" not in text  # it was opened and resolved meanwhile
    web.got.clear()
    look(channels=channels, minutes=50)
    assert "recovered: run build, after 40 minutes" in text_of(web.got[0])


def test_a_problem_that_returns_before_its_end_was_reported_is_not_new(web: Sink) -> None:
    channels: list[Channel] = [Webhook(web.url)]
    look(FAILED, channels=channels)
    web.status = 500
    look(channels=channels, minutes=1)
    web.status = 200
    look(FAILED, channels=channels, minutes=2)
    assert len(web.got) == 1
    look(channels=channels, minutes=5)
    assert "after 5 minutes" in text_of(web.got[1])


def test_problems_of_other_kinds_stay_as_they_are(web: Sink) -> None:
    channels: list[Channel] = [Webhook(web.url)]
    look(FAILED, CHECK, channels=channels)
    web.got.clear()
    assert look(CHECK, channels=channels, minutes=1, looked=["check"]) == Outcome([], [], [], 2, [])
    assert look(FAILED, channels=channels, minutes=2, looked=["run"]) == Outcome([], [], [], 2, [])
    assert web.got == []
    assert look(FAILED, channels=channels, minutes=3).recovered == ["check:fct_events: not_null"]
    # A channel gets what it missed, even if the kind of problem is no longer checked.
    web.status = 500
    look(FAILED, CHECK, channels=channels, minutes=4)
    web.status = 200
    web.got.clear()
    look(channels=channels, minutes=5, looked=[])
    assert ["new: check" in text_of(got) for got in web.got] == [True]


def test_a_problem_that_must_last_is_reported_later(web: Sink) -> None:
    channels: list[Channel] = [Webhook(web.url)]
    silent = Problem("lag", "shop", "data-engineering", "does not answer", after=60)
    assert look(silent, channels=channels).opened == []
    assert look(channels=channels, minutes=1).recovered == []
    assert look(silent, channels=channels, minutes=2).opened == []
    assert look(silent, channels=channels, minutes=3).opened == ["lag:shop"]
    look(channels=channels, minutes=4)
    assert ["after 2 minutes" in text_of(got) for got in web.got] == [False, True]


def test_the_record_of_sent_alerts_outlives_the_process(home: Settings, web: Sink) -> None:
    program = (
        "import sys; from datetime import datetime; from orchestration.quality.alerts import *\n"
        "print(notify([Problem('run', 'build', 'me', 'failed')], looked=['run'], rules=Rules(),"
        f" channels=[Webhook({web.url!r})], now=datetime.now()))"
    )
    for opened in ("opened=['run:build']", "opened=[]"):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert opened in done.stdout
    assert len(web.got) == 1


def test_alerts_do_without_dagster() -> None:
    program = "import sys, orchestration.quality.alerts; sys.exit('dagster' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"open": 3}', '{"open": {"run:a": {}}}', "\udcff"])
def test_a_damaged_record_is_one_sentence(home: Settings, web: Sink, content: str) -> None:
    home.home.mkdir(parents=True, exist_ok=True)
    path = home.home / "alerts.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(
        FinegrainError, match=rf"^{path}: this is not finegrain's record of alerts; remove the file"
    ) as raised:
        look(FAILED, channels=[Webhook(web.url)])
    assert "\n" not in str(raised.value)
    path.unlink()
    look(FAILED, channels=[Webhook(web.url)])
    assert len(web.got) == 1


def test_where_nothing_can_be_written_nothing_is_sent(home: Settings, web: Sink) -> None:
    (home.home / "alerts.draft").mkdir(parents=True)
    with pytest.raises(FinegrainError, match=r"alerts\.json: the record of alerts cannot be written"):
        look(FAILED, channels=[Webhook(web.url)])
    assert web.got == []


SUBJECTS = ("a", "b", "c")


class Flaky:
    """A channel that fails on demand, and keeps the messages it gets."""

    def __init__(self, name: str) -> None:
        self.name, self.up = name, True
        self.known: dict[str, str] = {}

    def send(self, message: Message) -> None:
        if not self.up:
            raise Undelivered("down")
        for line in message.lines:
            if line.what == "recovered":
                del self.known[line.about]  # it was reported before
            else:
                assert (line.about in self.known) == (line.what == "changed")
                assert self.known.get(line.about) != line.text  # no state is reported twice in a row
                self.known[line.about] = line.text


@examples(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.tuples(st.sampled_from(("run", "check")), st.sampled_from(SUBJECTS)), st.integers(0, 1)),
            st.sets(st.sampled_from(("run", "check")), min_size=1),
            st.booleans(),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_a_channel_that_is_reached_knows_the_current_problems(
    steps: list[tuple[dict[tuple[Kind, str], int], set[Kind], bool, bool]],
) -> None:
    """Whatever happens, and whenever a channel fails: after a delivery it knows the current problems."""
    channels = [Flaky("one"), Flaky("two")]
    now: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for minute, (given_now, looked, *up) in enumerate(steps):
            seen = {key: state for key, state in given_now.items() if key[0] in looked}
            now = {about: state for about, state in now.items() if about.split()[0] not in looked}
            now.update({f"{kind} {subject}": f"state {state}" for (kind, subject), state in seen.items()})
            for channel, is_up in zip(channels, up, strict=True):
                channel.up = is_up
            outcome = notify(
                [
                    Problem(kind, subject, f"owner of {subject}", f"state {state}", state=str(state))
                    for (kind, subject), state in seen.items()
                ],
                looked=looked,
                rules=RULES,
                channels=channels,
                now=NOON + timedelta(minutes=minute),
                where=Settings.below(Path(folder)),
            )
            assert len(outcome.opened) + outcome.still_open == len(now)
            for channel in channels:
                if f"{channel.name}: down" not in outcome.undelivered:
                    assert channel.known == now


# No personal data is sent.

NAMES = st.sampled_from(
    ("user_id", "email", "price", "birth_year", "income", "value_field", "n", "source", "reasons", "is_old")
)
VALUES = st.one_of(
    st.text("ÄßxyzXYZ0123456789@.:<>&`'\n ", max_size=30), st.integers(), st.floats(), st.booleans(), st.dates(), st.none(),
    st.lists(st.text("xyz", min_size=4), max_size=2), st.dictionaries(st.just("k"), st.text("xyz", min_size=4)),
)  # fmt: skip


def bodies(rows: list[dict[str, Any]]) -> list[str]:
    """All texts that are sent for a problem with these rows, on every channel."""
    line = alerts._line("new", alerts._known(replace(CHECK, sample=tuple(rows)), NOON.replace(tzinfo=UTC)), rows)
    message = Message("me", (), (line,))
    return [message.body, json.dumps(alerts._slack(message), ensure_ascii=False)]


@given(st.lists(st.dictionaries(NAMES, VALUES), max_size=7))
def test_values_of_columns_that_may_be_personal_are_never_sent(rows: list[dict[str, Any]]) -> None:
    hidden = ("user_id", "email", "price", "birth_year", "income", "value_field", "is_old")
    # The texts are the same, whatever the hidden values are.
    others = [
        {name: "other" if name in hidden and value is not None else value for name, value in row.items()}
        for row in rows
    ]
    assert bodies(rows) == bodies(others)
    rest = "".join(bodies([{name: value for name, value in row.items() if name not in hidden} for row in rows]))
    for row in rows:
        for name in set(hidden) & row.keys():
            value = str(row[name])
            if row[name] is not None and len(value.strip()) >= 4:
                assume(value not in rest)
                assert not any(value in body for body in bodies(rows))


def test_harmless_values_are_shown() -> None:
    row = {
        "source": "web", "Event_Type": "view", "reasons": ["bad_price", "bad\nuser a@b.com"], "product_id": "5449000000996",
        "raw_rows": 7, "arrival_day": date(2025, 3, 2), "price_is_outlier": True, "rule": None, "category": "x" * 200,
    }  # fmt: skip
    assert mask(row) == {
        **row,
        "reasons": ["bad_price", f"bad user {MASK}"],
        "category": "x" * 79 + "…",
    }
    masked = {
        "customer_id": 1, "n": "jane", "price": 1.5, "price_is_outlier": "jane", "is_pregnant": True, "source": {"name": "jane"},
        "properties": ["jane"], "event_at": NOON, "unique_field": "jane",
    }  # fmt: skip
    assert mask(masked) == dict.fromkeys(masked, MASK)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("mail jane.doe+x@shop.co.uk now", f"mail {MASK} now"),
        ("'o'brien@shop.com', \"jörg@müller.de\"", f'{MASK}, "{MASK}"'),
        ("u=jane%40shop.com&x=1", f"u={MASK}=1"),
        ("from 10.0.0.1:9092 to 192.168.1.255.", f"from {MASK}:9092 to {MASK}."),
        ("[2001:db8::1]:80, fe80::1%eth0 and ::ffff:10.0.0.1:", f"[{MASK}]:80, {MASK}%eth0 and {MASK}:{MASK}:"),
        ("postgresql://shop:pa/s@s@db.shop.com:5432/x", f"postgresql://{MASK}@db.shop.com:5432/x"),
        ("({@shop.com) @here", f"({{{MASK}) @here"),
        ("https://token@github.com/x", f"https://{MASK}/x"),
        ("password=hunter2 host=db Token = abc", f"password={MASK} host=db Token = {MASK}"),
        ("card 4111 1111 1111 1111, 4111111111111111; 4111-1111-1111-1111", f"card {MASK}, {MASK}; {MASK}"),
        ("call +44 (0)20 7946 0958 or 555-1234 or (555) 123 4567", f"call {MASK} or {MASK} or {MASK}"),
        ("tel5551234567", f"tel{MASK}"),
        # Texts about tables are unchanged.
        *(
            (text, text)
            for text in (
                "1,234,567 of 9,999,999 rows at 2025-03-02 10:00:00.123456, since 2025-03-01T23:59",
                "run 1c0b2f3e-1234-5678-9012-123456789012 of dbt_unique_0123456789abcdef0123456789abcdef",
                "price::decimal(10, 2) = 12.50; a: b; x @ y; version 1.13.27; 10:00:00",
                "not_null_fct_events_event_id: 100000 rows",
            )
        ),
    ],
)
def test_texts_are_scrubbed(text: str, left: str) -> None:
    assert scrub(text) == left


WRAPS = st.sampled_from((" ", "", "(", "'", '"', ", ", "=", ": ", "\n", "<"))
ADDRESSES = st.one_of(
    st.emails().filter(lambda address: len(address) < 200 and '"' not in address),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).filter(lambda ip: ip != ipaddress.ip_address("::")).map(str),
    st.from_regex(r"\A\+?[0-9]{3}[ .-]?[0-9]{3}[ .-]?[0-9]{4,9}\Z"),
)


@given(
    st.sampled_from(("", "by ", "of user")), WRAPS, ADDRESSES, st.sampled_from((" ", "", ")", "'", ", ", ".", ": no"))
)
def test_no_address_or_number_of_a_person_is_left(before: str, open_: str, address: str, after: str) -> None:
    assume(not (before.endswith("user") and not open_))
    cleaned = scrub(before + open_ + address + after)
    assert address not in cleaned
    assert scrub(cleaned) == cleaned


def test_texts_subjects_and_links_are_scrubbed_on_the_way_out(
    web: Sink, post: tuple[Mailbox, Mail], caplog: Any
) -> None:
    box, mail = post
    problem = Problem(
        "check",
        "a@b.com",
        "c@d.com",
        "no row of\nj@k.com \udcff <x> &",
        "http://me:pw@dagster/runs/12345678?q=1&r=2",
        state="e@f.com",
    )
    loader = Problem("lag", f"http://{HOST}:9400/metrics", "me", "does not answer")
    look(problem, loader, channels=[Log(), Webhook(web.url), mail])
    body = box.got[0][1].get_content()
    assert f"no row of {MASK} ? <x> &" in body and "http://dagster/runs/12345678?q=1&r=2" in body
    text = text_of(web.got[0])
    assert "&lt;x&gt; &amp;" in text and "<http://dagster/runs/12345678?q=1&amp;r=2|Open in Dagster>" in text
    assert f"{HOST}:9400" in box.got[1][1].get_content()
    everything = caplog.text + json.dumps(web.got) + "".join(mail.as_string() for _, mail in box.got)
    for secret in ("a@b", "c@d", "j@k", "e@f", "pw@"):
        assert secret not in everything
    for link in ("javascript:alert(1)", "http://x/<!channel>", "http://[", "http://x/" + "y" * 500):
        look(replace(FAILED, subject=str(len(link)), link=link), channels=[Log()])
        assert link not in caplog.text


# Channels.


def test_slack_takes_what_many_problems_make(web: Sink) -> None:
    many = [
        Problem(
            "check",
            f"table {number} {'&' * 400}",
            "me",
            "<&>" * 600,
            "http://x/" + "&" * 390,
            ({"source": "&" * 90, "rule": "é" * 90},) * 9,
        )
        for number in range(200)
    ]
    look(*many, channels=[Webhook(web.url)])
    [got] = web.got
    assert got["blocks"][0]["text"] == {"type": "plain_text", "text": "finegrain: 200 new problems (me)"}
    assert len(got["blocks"]) == 50
    for block in got["blocks"][1:]:
        text = block["text"]["text"]
        assert 0 < len(text) <= 3000
        assert text.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "").count("&") == 0
    assert got["blocks"][-1]["text"]["text"] == "… and 152 more"
    assert len(got["text"]) <= 3000 and got["text"].endswith("more")
    web.got.clear()
    look(*many[:49], channels=[Webhook(web.url, name="second")])
    assert len(web.got[0]["blocks"]) == 50 and "more" not in web.got[0]["blocks"][-1]["text"]["text"][:10]


@pytest.mark.parametrize("status", [302, 400, 404, 429, 500])
def test_a_rejecting_webhook_reveals_no_secret(
    web: Sink, status: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.status = status
    monkeypatch.setenv("FINEGRAIN_ALERT_WEBHOOK", web.url)
    channels = channels_from_environment()
    outcome = look(FAILED, channels=channels)
    assert outcome.undelivered == [f"webhook: {HOST}:{web.port} answers {status}"]
    assert f"not delivered: finegrain: 1 new problem (data-engineering) (webhook: {HOST}" in caplog.text
    assert "s3cret" not in caplog.text + repr(channels)


def test_an_unreachable_channel_reveals_no_secret(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        name = "broken"

        def send(self, message: Message) -> None:
            raise RuntimeError("s3cret")

    [port] = free_ports(1)
    monkeypatch.setattr(alerts, "PATIENCE", 0.1)
    with socket.create_server((HOST, 0)) as mute:
        silent = mute.getsockname()[1]
        channels: list[Channel] = [
            Broken(),
            Webhook(f"http://{HOST}:{port}/s3cret"),
            Webhook(f"http://{HOST}:{silent}/s3cret", "mute"),
            Webhook(f"http://{HOST}:{port}/s3cret with spaces", "odd"),
            Mail(HOST, port, "finegrain@shop.com", "me", "s3cret"),
            Log(),
        ]
        outcome = look(FAILED, channels=channels)
    assert outcome.undelivered == [
        "broken: RuntimeError",
        f"webhook: {HOST}:{port} is not reached: Connection refused",
        f"mute: {HOST}:{silent} is not reached: it takes too long",
        f"odd: {HOST}:{port} is not reached: InvalidURL",
        f"mail: {HOST}:{port} is not reached: Connection refused",
    ]
    assert "new: run build" in caplog.text
    assert "s3cret" not in caplog.text + repr(channels)


def authenticator(server: Any, session: Any, envelope: Any, mechanism: str, auth: Any) -> AuthResult:
    return AuthResult(success=auth.login == b"me@shop.com" and auth.password == b"right", handled=False)


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_mail_logs_in(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEGRAIN_ALERT_FROM", "finegrain@shop.com")
    monkeypatch.setenv("FINEGRAIN_ALERT_SMTP_PASSWORD", "s3cret")
    with mail_server(authenticator=authenticator, auth_required=True, auth_require_tls=False) as (box, port):
        monkeypatch.setenv("FINEGRAIN_ALERT_SMTP", f"smtp://me@shop.com@{HOST}:{port}")
        [_, mail] = channels_from_environment()
        assert look(FAILED, channels=[mail]).undelivered == [
            f"mail: {HOST}:{port} refuses the login of {MASK} (535); is FINEGRAIN_ALERT_SMTP_PASSWORD right?"
        ]
        monkeypatch.setenv("FINEGRAIN_ALERT_SMTP_PASSWORD", "s3crét")
        assert "not reached: UnicodeEncodeError" in look(FAILED, channels=channels_from_environment()).undelivered[0]
        assert "s3cr" not in caplog.text + repr(mail)
        monkeypatch.setenv("FINEGRAIN_ALERT_SMTP_PASSWORD", "right")
        assert look(FAILED, channels=channels_from_environment()).undelivered == []
        assert len(box.got) == 1
        nobody = look(FAILED, CHECK, channels=[Mail(HOST, port, "finegrain@shop.com")])
        assert nobody.undelivered == [f"mail: {HOST}:{port} answers 530"]
    with mail_server() as (_, port):
        outcome = look(replace(FAILED, subject="x"), channels=[Mail(HOST, port, "finegrain@shop.com", "me", "s3cret")])
        assert "takes no login" in outcome.undelivered[0]


def test_mail_to_nobody_and_to_some(post: tuple[Mailbox, Mail], caplog: pytest.LogCaptureFixture) -> None:
    box, mail = post
    outcome = look(FAILED, channels=[mail], rules=Rules())
    assert (
        "nobody to write to; name an address under owners.data-engineering or everyone_else" in outcome.undelivered[0]
    )
    box.refused = {"data@shop.com", "ml@shop.com"}
    outcome = look(FAILED, CHECK, channels=[mail])
    assert outcome.undelivered == [f"mail: {HOST}:{mail.port} refuses the addresses of data-engineering (550)"]
    assert [to for to, _ in box.got] == [["ml2@shop.com"]]
    assert "refuses 1 of the addresses" in caplog.text
    box.refused = set()
    assert look(FAILED, CHECK, channels=[mail]).undelivered == []
    assert [to for to, _ in box.got] == [["ml2@shop.com"], ["data@shop.com"]]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of localhost, that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_mail_goes_over_tls_and_trusts_no_stranger(
    scheme: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    options: dict[str, Any] = {
        "smtp": {"tls_context": context, "require_starttls": True},
        "smtps": {"ssl_context": context},
    }[scheme]
    monkeypatch.setenv("FINEGRAIN_ALERT_FROM", "finegrain@shop.com")
    with mail_server(**options) as (box, port):
        monkeypatch.setenv("FINEGRAIN_ALERT_SMTP", f"{scheme}://localhost:{port}")
        [_, mail] = channels_from_environment()
        assert "TLS: CERTIFICATE_VERIFY_FAILED" in look(FAILED, channels=[mail]).undelivered[0]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert look(FAILED, channels=[mail]).undelivered == []
        assert len(box.got) == 1


def test_no_password_is_sent_in_the_clear(post: tuple[Mailbox, Mail], monkeypatch: pytest.MonkeyPatch) -> None:
    _, mail = post
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **named: real(HOST, *rest, **named))
    outcome = look(FAILED, channels=[Mail("mail.shop.com", mail.port, "finegrain@shop.com", "me", "s3cret")])
    assert outcome.undelivered == [f"mail: mail.shop.com:{mail.port} offers no TLS for the password; write smtps://"]


def test_without_a_variable_there_is_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEGRAIN_ALERT_WEBHOOK", "")  # as compose sets what is not set
    assert [channel.name for channel in channels_from_environment()] == ["log"]
    monkeypatch.setenv("FINEGRAIN_ALERT_WEBHOOK", "https://hooks.slack.com/x")
    monkeypatch.setenv("FINEGRAIN_ALERT_SMTP", "smtps://me%40shop.com@mail.shop.com")
    monkeypatch.setenv("FINEGRAIN_ALERT_SMTP_PASSWORD", "pw")
    monkeypatch.setenv("FINEGRAIN_ALERT_FROM", "finegrain@shop.com")
    mail = Mail("mail.shop.com", 465, "finegrain@shop.com", "me@shop.com", "pw", secure=True)
    assert channels_from_environment() == [Log(), Webhook("https://hooks.slack.com/x"), mail]


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        *(
            ({"WEBHOOK": url}, "FINEGRAIN_ALERT_WEBHOOK is not a webhook URL")
            for url in ("s3cret", "ftp://host/s3cret", "https:///s3cret", "https://a:s3cret@host/", "http://[s3cret", "http://h/s3cret x",
                        "http://h:s3cret/")
        ),
        *(
            ({"SMTP": url}, "FINEGRAIN_ALERT_SMTP holds a password; .* FINEGRAIN_ALERT_SMTP_PASSWORD")
            for url in ("smtp://me:s3cret@host", "smtps://me:s3/cret@host:25", "smtp://me:25/s3cret@host", "smtp:me:s3cret@host",
                        "smtp://me:s3 cret@host")
        ),
        *(
            ({"SMTP": url}, "FINEGRAIN_ALERT_SMTP is not a mail server; write smtp://")
            for url in ("s3cret", "host:25", "http://s3cret", "smtp://h:s3cret", "smtp://h/s3cret", "smtp://h?s3cret")
        ),
        ({"SMTP": "smtp://h"}, "FINEGRAIN_ALERT_FROM is missing"),
        ({"SMTP": "smtp://h", "FROM": "a@b\nBcc: s3cret@x"}, "FINEGRAIN_ALERT_FROM is not a mail address"),
        ({"SMTP": "smtp://me@h", "FROM": "a@b.com"}, "set FINEGRAIN_ALERT_SMTP_PASSWORD, too"),
        ({"SMTP": "smtp://h", "FROM": "a@b.com", "SMTP_PASSWORD": "s3cret"}, "FINEGRAIN_ALERT_SMTP names no user"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named_and_its_secret_is_not(
    given_: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given_.items():
        monkeypatch.setenv(f"FINEGRAIN_ALERT_{name}", value)
    with pytest.raises(FinegrainError, match=said) as raised:
        channels_from_environment()
    assert "s3cret" not in str(raised.value) and raised.value.__cause__ is None


# The rules.


def test_the_packaged_rules_write_to_nobody() -> None:
    rules = read_rules()
    assert (rules.addresses("data-engineering"), rules.addresses("x")) == ((), ())
    assert rules.freshness.lake == {"events": 24} and rules.freshness.published == 26
    assert rules.quality.kept_share == alerts.Bounds(at_least=0.8)
    assert (rules.dead_letters.at_most, rules.loader.lag_at_most, rules.loader.silent_seconds) == (0, 100_000, 60)


def test_a_section_that_is_left_out_is_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("quality: {}\nowners: {personalization: [a@b.com]}\neveryone_else: [c@d.com]\n")
    monkeypatch.setenv("FINEGRAIN_ALERTS", str(path))
    rules = read_rules()
    assert rules.quality == alerts.Quality() and rules.freshness == read_rules(alerts.RULES).freshness
    assert [rules.addresses(owner) for owner in ("personalization", "x")] == [("a@b.com",), ("c@d.com",)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "write one or more of the keys owners, everyone_else, freshness"),
        ("[1]", "write one or more of the keys"),
        ("a: [", "line 1: this is not valid YAML"),
        ("loader: {}\nloader: {}", "line 2: this is not valid YAML: the key 'loader' is given twice"),
        ("owner: {}", "owner: no such key; did you mean 'owners'?"),
        ("owners: [a@b.com]", "owners: write owners and their addresses"),
        ("owners: {me: a@b.com}", "owners: me: write a list of mail addresses"),
        ("owners: {me: [nobody]}", "owners: me: 'nobody' is not a mail address"),
        ('everyone_else: ["a@b.com\\nBcc: c@d.com"]', "is not a mail address"),
        ("everyone_else: [3]", "everyone_else: 3 is not a mail address"),
        ("freshness: 24", "freshness: write keys and values here, not 24"),
        ("freshness: {lake: {event: 24}}", "freshness.lake: no such raw table 'event'; did you mean 'events'?"),
        ("freshness: {lake: {events: 0}}", "freshness.lake.events: input should be greater than 0"),
        ("freshness: {published: .inf}", "freshness.published: input should be a finite number"),
        ("freshness: {publish: 3}", "freshness.publish: no such key; did you mean 'published'?"),
        ("quality: {keptshare: {at_least: 1}}", "quality.keptshare: no such key; did you mean 'kept_share'?"),
        ("quality: {missing_share: {at_most: 1}}", "quality.missing_share: no such key; known are: kept_share, quar"),
        ("quality: {kept_share: {at_leest: 1}}", "quality.kept_share.at_leest: no such key; did you mean 'at_least'?"),
        (
            "quality: {kept_share: {at_least: 80}}",
            "quality.kept_share.at_least: input should be less than or equal to 1",
        ),
        ("quality: {kept_share: {at_least: yes}}", "quality.kept_share.at_least: input should be a valid number"),
        ("quality: {kept_share: {}}", "quality.kept_share: give at_least, at_most, or both"),
        ("quality: {kept_share: {at_least: 0.5, at_most: 0.4}}", "quality.kept_share: at_least is over at_most"),
        ("dead_letters: {at_most: -1}", "dead_letters.at_most: input should be greater than or equal to 0"),
        ("dead_letters: {at_most: 1.5}", "dead_letters.at_most: input should be a valid integer"),
        ("loader: {lag: 3}", "loader.lag: no such key; known are: lag_at_most, silent_seconds"),
        ("loader: {silent_seconds: '60'}", "loader.silent_seconds: input should be a valid number"),
        ("loader: null", "loader: write keys and values here, not null"),
    ],
)
def test_wrong_rules_are_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(content)
    with pytest.raises(FinegrainError) as raised:
        read_rules(path)
    assert str(raised.value).startswith(str(path)) and said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_rules_that_are_not_there_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEGRAIN_ALERTS", str(tmp_path / "no.yml"))
    with pytest.raises(FinegrainError, match=r"no\.yml: no such alerts file"):
        read_rules()


# From figures to problems.


def fields_of(problems: list[Problem]) -> list[tuple[str, str, str, str]]:
    assert all((problem.owner, problem.link) == ("data-engineering", "http://x") for problem in problems)
    return [(problem.kind, problem.subject, problem.text, problem.state) for problem in problems]


@pytest.mark.parametrize(
    ("arrivals", "published", "said"),
    [
        ({}, None, []),
        ({"events": None, "orders": NOON - timedelta(days=900)}, None, []),  # orders are in no rule
        ({"events": NOON - timedelta(hours=24)}, NOON - timedelta(hours=26), []),
        (
            {"events": NOON - timedelta(hours=24, seconds=1)},
            (NOON - timedelta(days=2, hours=3)).replace(tzinfo=UTC),
            [
                ("freshness", "events", "the newest row of events came 1 day ago; 24 hours are allowed", ""),
                ("freshness", "published marts", "the marts were last published 2 days 3 hours ago; 26 hours are allowed", ""),
            ],
        ),
        ({"events": NOON + timedelta(hours=1)}, None, []),
    ],
)  # fmt: skip
def test_what_is_stale(
    arrivals: Mapping[str, datetime | None], published: datetime | None, said: list[tuple[str, ...]]
) -> None:
    assert fields_of(stale(arrivals, published, NOON, read_rules(), "http://x")) == said
    assert stale(arrivals, published, NOON, Rules()) == []


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((0, 0, 0, 0), []),
        ((10, 8, 1, 1), []),  # at the bounds
        ((1000, 799, 201, 0), [
            ("quality", "kept_share", "79.90% of 1,000 raw rows are kept; it should be at least 80%", "at least"),
            ("quality", "duplicate_share", "20.10% of 1,000 raw rows are duplicates; it should be at most 20%", "at most"),
        ]),
        ((100, 80, 0, 20), [
            ("quality", "quarantined_share", "20.00% of 100 raw rows are quarantined; it should be at most 10%", "at most"),
        ]),
    ],
)  # fmt: skip
def test_what_is_of_poor_quality(counts: tuple[int, ...], said: list[tuple[str, ...]]) -> None:
    ledger = dict(zip(("raw_rows", "kept", "duplicates", "quarantined"), counts, strict=True))
    assert fields_of(poor_quality(ledger, read_rules(), "http://x")) == said
    assert poor_quality(ledger, Rules()) == []


def test_an_incident_of_many_metrics_is_one_problem_for_each_owner() -> None:
    stops = {
        "metric": "volume",
        "segment": "source",
        "segment_value": "web",
        "column_name": "row",
        "value": 0.0,
        "expected": 812.25,
        "low": 90.0,
        "high": None,
    }
    empty = {
        "metric": "completeness", "segment": "device", "segment_value": "mobile", "column_name": "price", "value": 0.5,
        "expected": None, "low": 0.6, "high": 0.9,
    }  # fmt: skip
    newest = {
        "day": date(2025, 3, 2),
        "source": "web",
        "owner": "data-engineering",
        "severity": "error",
        "rules": ["by_device", "volume"],
    }
    found = [
        newest | {"clearest": [stops, empty]},
        newest | {"owner": "personalization", "severity": "warn", "rules": ["by_device"], "clearest": [empty]},
        newest | {"day": date(2025, 3, 1), "clearest": [stops]},  # the day before says nothing more
    ]
    [ours, theirs] = anomalous(found, "http://x")
    assert fields_of([ours]) == [
        (
            "anomaly",
            "web (data-engineering)",
            "error: on 2025-03-02 web is anomalous by by_device, volume: volume is 0, expected 812.2; "
            "completeness of price (device mobile) is 0.5, allowed 0.6 to 0.9",
            "error: by_device, volume",
        )
    ]
    assert (theirs.owner, theirs.state) == ("personalization", "warn: by_device")
    assert anomalous([]) == []


def test_an_anomaly_is_reported_once_until_it_changes_or_is_over(web: Sink) -> None:
    def problems(rules: list[str]) -> list[Problem]:
        of_day = {
            "day": date(2025, 3, 2),
            "source": "web",
            "owner": "data-engineering",
            "severity": "error",
            "rules": rules,
            "clearest": [],
        }
        return anomalous([of_day] if rules else [])

    outcomes = [
        look(*problems(rules), channels=[Webhook(web.url)])
        for rules in (["volume"], ["volume"], ["top_id", "volume"], [])
    ]
    key = "anomaly:web (data-engineering)"
    assert [(each.opened, each.changed, each.recovered) for each in outcomes] == [
        ([key], [], []),
        ([], [], []),
        ([], [key], []),
        ([], [], [key]),
    ]
    assert len(web.got) == 3


@pytest.mark.parametrize(
    ("waiting", "at_most", "said"),
    [
        ({}, 0, []),
        ({"not_json": 5}, None, []),
        ({"not_json": 5, "no_key": 6}, 5, [("dead_letters", "no_key", "6 dead letters wait by rule no_key; 5 may", "")]),
        ({"a": 1, "b": 0}, 0, [("dead_letters", "a", "1 dead letter waits by rule a; 0 may", "")]),
    ],
)  # fmt: skip
def test_which_dead_letters_are_too_many(
    waiting: dict[str, int], at_most: int | None, said: list[tuple[str, ...]]
) -> None:
    rules = Rules(dead_letters=alerts.DeadLetters(at_most=at_most))
    assert fields_of(dead_letters(waiting, rules, "http://x")) == said


@pytest.mark.parametrize(
    ("loader", "said", "after"),
    [
        (Loader("kafka:t", True, {}), [], 0),
        (Loader("kafka:t", True, {"0": 60_000, "1": 40_000}), [], 0),
        (Loader("kafka:t", True, {"0": 60_000, "1": 40_001}, 7300), [
            ("lag", "shop", "the loader is 100,001 messages behind; 100,000 are allowed; events of its last batch landed after "
             "2 hours 1 minute (kafka:t)", "lag")], 0),
        (Loader("", False, {}), [("lag", "shop", "the stream does not answer", "down")], 60),
        (None, [("lag", "shop", "the loader does not answer", "silent")], 60),
    ],
)  # fmt: skip
def test_which_loaders_lag(loader: Loader | None, said: list[tuple[str, ...]], after: float) -> None:
    found = lagging({"shop": loader}, read_rules(), "http://x")
    assert fields_of(found) == said
    assert all(problem.after == after for problem in found)
    assert lagging({"shop": loader}, Rules()) == []


def test_the_metrics_of_a_loader_are_read(web: Sink) -> None:
    [port] = free_ports(1)
    url = f"http://{HOST}:{port}/metrics"
    assert read_loader(url) is None
    watch = Watch("kafka:shop.events", port=port)
    try:
        began = read_loader(url)
        assert began is not None and (began.up, began.lag, began.delay_seconds) == (False, {}, None)
        watch.took(5, 100)
        watch.landed(5, 100, BatchResult(rows=5, dead={}, unknown={}, delay=2.5), 0.1, 0.2)
        watch._looked -= 2
        watch.lag(lambda: {"0": 70, "1": 5})
        found = read_loader(url)
        assert found is not None and (found.up, found.lag, found.delay_seconds) == (True, {"0": 70, "1": 5}, 2.5)
    finally:
        watch._server.shutdown()
        watch._server.server_close()
    for page in ("", "hello", "up 1.0\n", "finegrain_stream_up one\n"):
        web.page = page
        assert read_loader(web.url) is None
    web.page = 'finegrain_stream_up 0.0\nfinegrain_stream_info{place="folder:in"} 1.0\n'
    assert read_loader(web.url) == Loader("folder:in", False, {})
    for wrong in ("", "file:///etc/passwd", "host:80", "http://"):
        with pytest.raises(FinegrainError, match="is not the URL of a loader's metrics"):
            read_loader(wrong)


def test_a_line_says_how_long() -> None:
    spans = {0: "less than a minute", 60: "1 minute", 3600: "1 hour", 90_000: "1 day 1 hour", 86_460: "1 day"}
    assert {seconds: alerts._span(timedelta(seconds=seconds)) for seconds in spans} == spans
    assert Line("recovered", "run build", "x", lasted="1 minute").head == "recovered: run build, after 1 minute"
