"""Progress reports of a stream loader: a live panel on a terminal, plain lines elsewhere, JSON lines for programs, and Prometheus metrics."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, make_wsgi_app, start_http_server
from rich.live import Live
from rich.table import Table

from orchestration.config.hosts import LOOPBACK, on_loopback_only
from orchestration.errors import FinegrainError, console, without_secrets
from orchestration.ingest.stream.messages import BatchResult

#: Seconds between reports.
EVERY: Final = 5.0
#: Seconds over which rates are averaged.
RECENT: Final = 10.0
#: At most so many event types have a counter of their own; the rest are counted as `(other)`.
TYPES: Final = 50
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS: Final = (1, 10, 100, 1_000, 10_000, 50_000, 100_000, 500_000)


def serve_metrics(registry: CollectorRegistry, port: int, address: str) -> WSGIServer:
    """Serve Prometheus metrics in a thread, until the server is shut down. Raises FinegrainError if the port is taken."""
    try:
        server, _ = start_http_server(port, address, registry=registry)
    except OSError as error:
        raise FinegrainError(
            f"--metrics-port {port}: cannot listen on {address}: {error.strerror}; choose another port"
        ) from None
    if address in LOOPBACK:
        server.set_app(on_loopback_only(make_wsgi_app(registry)))
    return server


class Form(StrEnum):
    """The form of the reports."""

    panel = "panel"
    lines = "lines"
    json = "json"
    none = "none"


@dataclass
class Totals:
    """Totals since the loader started. Messages `taken` from the stream and `rows` landed differ by dead letters, by messages the mapping filters
    out, and by the open batch. `commit_seconds` and `wait_seconds` (first message of a batch to its commit) are those of the last batch."""

    taken: int = 0
    bytes: int = 0
    messages: int = 0
    rows: int = 0
    batches: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)
    unknown_fields: dict[str, int] = field(default_factory=dict)
    lag: dict[str, int] = field(default_factory=dict)
    batch_rows: int = 0
    commit_seconds: float = 0.0
    wait_seconds: float = 0.0
    event_delay_seconds: float | None = None
    trouble: str | None = None


class Watch:
    """Counts what a loader does and reports it in one form. `port` serves Prometheus metrics, on loopback unless `address` is given."""

    def __init__(
        self,
        stream_id: str,
        form: Form = Form.none,
        port: int | None = None,
        address: str = "127.0.0.1",
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.stream_id, self.form = stream_id, form
        self.totals = Totals()
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, int, int]] = deque()
        self._reported = self._looked = self._began = time.monotonic()
        self._live: Live | None = None
        if form is Form.panel:
            self._live = Live(console=console.err(), transient=True, refresh_per_second=4, get_renderable=self._panel)
            self._live.start()
        self._registry = registry or CollectorRegistry()
        labels: dict[str, Any] = {"namespace": "finegrain", "subsystem": "stream", "registry": self._registry}
        Info("stream", "What is loaded", namespace="finegrain", registry=self._registry).info(
            {"place": console.shown(stream_id)}
        )
        self._rows = Counter("rows", "Rows landed in the lake", **labels)
        self._bytes = Counter("bytes", "Bytes of payload landed", **labels)
        self._dead = Counter("dead_letters", "Messages that could not land, by rule", ["rule"], **labels)
        self._unknown = Counter("unknown_fields", "Messages with a field that the mapping does not know", **labels)
        self._types = Counter("rows_by_type", "Rows landed in the lake, by event type", ["event_type"], **labels)
        self._nulls = Counter("nulls", "Rows without a value, by field", ["field"], **labels)
        self._named: set[str] = set()
        self._lag = Gauge("lag", "Messages (bytes of a folder, ms of Kinesis) before the reader", ["part"], **labels)
        self._delay = Gauge("event_delay_seconds", "From the median event of the last batch to its landing", **labels)
        self._commit = Histogram("commit_seconds", "Time to land a batch", buckets=_SECONDS, **labels)
        self._wait = Histogram("wait_seconds", "From a batch's first message to its commit", buckets=_SECONDS, **labels)
        self._size = Histogram("batch_rows", "Messages of a batch", buckets=_ROWS, **labels)
        self._up = Gauge("up", "1 while the stream answers", **labels)
        if port is not None:
            self._server = serve_metrics(self._registry, port, address)

    def took(self, rows: int, size: int) -> None:
        """Count messages taken from the stream."""
        with self._lock:
            self.totals.taken += rows
            if rows:
                self.totals.trouble = None
        self._up.set(1)
        self._report()

    def landed(self, messages: int, size: int, done: BatchResult, commit: float, wait: float) -> None:
        """Count a batch that has landed."""
        now = time.monotonic()
        with self._lock:
            totals = self.totals
            totals.messages += messages
            totals.bytes += size
            totals.rows += done.rows
            totals.batches += 1
            for rule, count in done.dead.items():
                totals.dead_letters[rule] = totals.dead_letters.get(rule, 0) + count
            for key, count in done.unknown.items():
                totals.unknown_fields[key] = totals.unknown_fields.get(key, 0) + count
            totals.batch_rows, totals.commit_seconds, totals.wait_seconds = messages, commit, wait
            if done.delay is not None:
                totals.event_delay_seconds = done.delay
            self._recent.append((now, messages, size))
        self._rows.inc(done.rows)
        self._bytes.inc(size)
        for rule, count in done.dead.items():
            self._dead.labels(rule).inc(count)
        for kind, count in done.types.items():
            if len(self._named) < TYPES:
                self._named.add(kind)
            self._types.labels(console.shown(kind) if kind in self._named else "(other)").inc(count)
        for name, count in done.nulls.items():
            self._nulls.labels(name).inc(count)
        self._unknown.inc(sum(done.unknown.values()))
        self._commit.observe(commit)
        self._wait.observe(wait)
        self._size.observe(messages)
        if done.delay is not None:
            self._delay.set(done.delay)

    def lag(self, ask: Callable[[], dict[str, int]]) -> None:
        """Update the lag, at most once a second."""
        now = time.monotonic()
        if now - self._looked >= 1:
            self._looked = now
            found = ask()
            with self._lock:
                self.totals.lag = found
            self._lag.clear()  # partitions that another loader took over are reported by that one
            for part, count in found.items():
                self._lag.labels(console.shown(part)).set(count)
        self._report()

    def trouble(self, text: str) -> None:
        """Report a temporary problem that stops the loader."""
        self._up.set(0)
        text = without_secrets(text)
        with self._lock:
            news = self.totals.trouble is None
            self.totals.trouble = text
        if self.form is Form.json:
            self._report(at_once=True)
        elif self.form is Form.lines or (self.form is Form.panel and news):
            console.say(f"stream {self.stream_id}: {text}")

    def note(self, text: str) -> None:
        """Report something the user should know that does not stop the loader."""
        console.say(f"stream {self.stream_id}: {text}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: totals, and recent rates."""
        rows, size = self._rates()
        with self._lock:
            totals = {
                name: dict(value) if isinstance(value, dict) else value for name, value in vars(self.totals).items()
            }
        return {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "stream": self.stream_id,
            "seconds": round(time.monotonic() - self._began, 3),
            "messages_per_second": round(rows),
            "bytes_per_second": round(size),
            **totals,
        }

    def close(self) -> None:
        """Stop the panel, or print the last JSON line."""
        if self._live is not None:
            self._live.stop()
        if self.form is Form.json:
            self._report(at_once=True)

    def _rates(self) -> tuple[float, float]:
        now = time.monotonic()
        with self._lock:
            while self._recent and now - self._recent[0][0] > RECENT:
                self._recent.popleft()
            span = min(RECENT, max(now - self._began, 0.001))
            return sum(r for _, r, _ in self._recent) / span, sum(b for _, _, b in self._recent) / span

    def _report(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if self.form not in (Form.lines, Form.json) or (now - self._reported < EVERY and not at_once):
            return
        self._reported = now
        if self.form is Form.json:
            console.show_json(self.as_dict(), indent=None)
            return
        said = self.as_dict()
        dead = sum(said["dead_letters"].values())
        console.say(
            f"stream {self.stream_id}: {said['rows']:,} rows, {dead:,} dead letters, {said['messages_per_second']:,}/s, "
            f"lag {sum(said['lag'].values()):,}, commit {1000 * said['commit_seconds']:.0f} ms"
        )

    def _panel(self) -> Table:
        said = self.as_dict()
        table = Table(title=console.shown(f"stream {self.stream_id}"), show_header=False, title_justify="left")
        table.add_row(
            "landed", f"{said['rows']:,} rows in {said['batches']:,} batches, {said['bytes'] / 2**20:,.1f} MiB"
        )
        table.add_row(
            "rate", f"{said['messages_per_second']:,} messages/s, {said['bytes_per_second'] / 2**20:,.1f} MiB/s"
        )
        table.add_row(
            "last batch", f"{said['batch_rows']:,} messages, committed in {1000 * said['commit_seconds']:.0f} ms"
        )
        lag = ", ".join(f"{console.shown(part)}: {count:,}" for part, count in sorted(said["lag"].items())[:16])
        table.add_row("lag by partition", lag or "–")
        delay = said["event_delay_seconds"]
        table.add_row("event delay", "–" if delay is None else f"{delay:,.1f} s")
        for name in ("dead_letters", "unknown_fields"):
            counts = ", ".join(f"{console.shown(key)}: {count:,}" for key, count in list(said[name].items())[:8])
            table.add_row(name.replace("_", " "), counts or "none")
        if said["trouble"]:
            table.add_row("trouble", said["trouble"])
        return table
