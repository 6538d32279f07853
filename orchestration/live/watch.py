"""Progress of live features: lines, JSON lines, and Prometheus metrics."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from orchestration.errors import console, without_secrets
from orchestration.ingest.stream.watch import EVERY, Form, serve_metrics
from orchestration.live.engine import Answered

_SECONDS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
#: Latest delays of which percentiles are reported.
_RECENT: Final = 200


class LiveWatch:
    """Counts what is written, and reports it in one form. `registry` has the metrics; `port` serves them, on loopback unless `address` is given."""

    def __init__(self, form: Form = Form.none, port: int | None = None, address: str = "127.0.0.1") -> None:
        self.form, self.written = form, -1
        self.registry = CollectorRegistry()
        labels: dict[str, Any] = {"namespace": "finegrain", "subsystem": "live", "registry": self.registry}
        self._vectors = Counter("vectors", "Vectors written to the online store, by mart", ["mart"], **labels)
        self._rows = Counter("rows", "New rows of events that vectors were computed for", **labels)
        self._waiting = Gauge("waiting", "Identities with new rows and no vector of them yet", **labels)
        self._snapshot = Gauge("snapshot", "The lake snapshot that was read last", **labels)
        self._built = Gauge("built_from", "The lake snapshot of the build that features rest on", **labels)
        self._delay = Histogram(
            "delay_seconds", "From the arrival of the oldest row of a batch to its vectors", buckets=_SECONDS, **labels
        )
        self._compute = Histogram("compute_seconds", "Time to compute a batch", buckets=_SECONDS, **labels)
        self._write = Histogram("write_seconds", "Time to write a batch to the store", buckets=_SECONDS, **labels)
        self._up = Gauge("up", "1 while the lake and the store answer", **labels)
        self._totals = {"vectors": 0, "rows": 0, "batches": 0, "identities": 0}
        self._last: dict[str, Any] = {
            "waiting": 0,
            "snapshot": None,
            "built_from": None,
            "compute_seconds": 0.0,
            "write_seconds": 0.0,
            "trouble": None,
        }
        self._delays: deque[float] = deque(maxlen=_RECENT)
        self._began = self._reported = time.monotonic()
        if port is not None:
            serve_metrics(self.registry, port, address)

    def rests_on(self, built_from: int) -> None:
        """The build that features rest on from now on."""
        self._last["built_from"] = built_from
        self._built.set(built_from)

    def waits(self, identities: int, snapshot: int) -> None:
        """How many identities wait, and what was read."""
        self._last |= {"waiting": identities, "snapshot": snapshot}
        self._waiting.set(identities)
        self._snapshot.set(snapshot)
        self._report()

    def wrote(self, written: Mapping[str, int], answered: Answered, compute: float, write: float) -> None:
        """Count a batch that is written."""
        for mart, count in written.items():
            self._vectors.labels(mart).inc(count)
        self._rows.inc(answered.rows)
        self._compute.observe(compute)
        self._write.observe(write)
        if answered.since is not None:
            delay = (datetime.now(UTC).replace(tzinfo=None) - answered.since).total_seconds()
            self._delay.observe(delay)
            self._delays.append(delay)
        self._totals["vectors"] += sum(written.values())
        self._totals["rows"] += answered.rows
        self._totals["batches"] += 1
        self._totals["identities"] += answered.identities
        self._last |= {"compute_seconds": round(compute, 3), "write_seconds": round(write, 3)}
        self._report()

    def recovered(self) -> None:
        """The lake and the store answer."""
        self._up.set(1)
        self._last["trouble"] = None

    def trouble(self, text: str) -> None:
        """Report a temporary problem."""
        self._up.set(0)
        text = without_secrets(text)
        is_news, self._last["trouble"] = self._last["trouble"] is None, text
        if self.form is Form.json:
            self._report(at_once=True)
        elif is_news and self.form is not Form.none:
            console.say(f"live: {text}")

    def note(self, text: str) -> None:
        """Tell what happens."""
        if self.form in (Form.lines, Form.panel):
            console.say(f"live: {text}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        ordered = sorted(self._delays)

        def at(share: float) -> float | None:
            return round(ordered[int(share * (len(ordered) - 1))], 3) if ordered else None

        return {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(time.monotonic() - self._began, 3),
            **self._totals,
            **self._last,
            "delay_seconds": {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99)},
        }

    def close(self) -> None:
        """Print the last JSON line."""
        if self.form is Form.json:
            self._report(at_once=True)

    def _report(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if self.form is Form.none or (now - self._reported < EVERY and not at_once):
            return
        self._reported = now
        said = self.as_dict()
        if self.form is Form.json:
            console.show_json(said, indent=None)
            return
        delay = said["delay_seconds"]
        console.say(
            f"live: {said['vectors']:,} vectors for {said['rows']:,} rows, {said['waiting']:,} identities wait, "
            f"arrival to vector p50 {delay['p50'] or 0:.2f} s, p99 {delay['p99'] or 0:.2f} s"
        )
