"""`finegrain stream`: creates the source and the loader for one entry of a mapping, and runs them."""

from __future__ import annotations

import gc
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
from prometheus_client import CollectorRegistry

from orchestration.config.settings import Environment, Settings, settings
from orchestration.errors import FinegrainError, Unavailable
from orchestration.ingest import personal
from orchestration.ingest.stream.loader import Limits, Loader
from orchestration.ingest.stream.messages import Messages
from orchestration.ingest.stream.watch import Form, Watch
from orchestration.lake import lake, shop
from orchestration.lake.positions import Position
from orchestration.mapping.mapping import Table, mapping_files, read_mapping
from orchestration.sources.bounds import Bounds, beyond
from orchestration.sources.registry import Registry, without_registry
from orchestration.sources.streams import MESSAGES, Chunk, Source, Unreachable

#: Seconds for a preview of a stream.
LOOK: Final = 10.0

#: Writer threads: one commits while the other validates.
WRITERS: Final = 2


def entry_of(mapping: str | Path, table: str | None) -> tuple[str, str, Table, str, str]:
    """(source, raw table, entry, time zone, name in errors) of a mapping's only stream, or of the stream of `table`."""
    streams = [
        (read.source, name, entry, zone, where)
        for path in mapping_files(mapping)
        for read in [read_mapping(path)]
        for name, _, entry, zone, where in read.entries(path)
        if entry.stream is not None
    ]
    _check_groups(streams)
    found = [each for each in streams if table in (None, each[1])]
    if not found:
        of_table = f" that fills {table}" if table else ""
        raise FinegrainError(
            f"{mapping}: no entry{of_table} has a stream; write stream: {{kafka: a topic}} in place of files (docs/how-to/connect-a-stream.md)"
        )
    if len(found) > 1:
        names = ", ".join(where for *_, where in found)
        raise FinegrainError(
            f"{mapping}: it has several streams ({names}), and a loader reads only one; name the file and the table"
        )
    return found[0]


def _check_groups(streams: Sequence[tuple[str, str, Table, str, str]]) -> None:
    """Reject one consumer group for two tables: Kafka would split the partitions between their loaders."""
    seen: dict[tuple[str, object], str] = {}
    for _, _, entry, _, where in streams:
        assert entry.stream is not None
        group = entry.stream.settings.get("group.id")
        if entry.stream.kafka is None or group is None:
            continue
        other = seen.setdefault((entry.stream.kafka, group), where)
        if other != where:
            raise FinegrainError(
                f"{where}.stream.settings.group.id: {other} reads '{entry.stream.kafka}' in the same group '{group}', so each would get "
                "some of its partitions only; leave group.id out, or name another group"
            )


def source_of(entry: Table, where: str, data: str | Path | None = None, *, group: str) -> Source:
    """The source for an entry's stream. `data` is the base of a relative folder; `group` is Kafka's consumer group, unless the mapping names one."""
    stream = entry.stream
    assert stream is not None
    if stream.kafka is not None:
        from orchestration.sources.kafka import Kafka

        return Kafka(stream, group, where)
    if stream.kinesis is not None:
        from orchestration.sources.kinesis import Kinesis

        return Kinesis(stream, where)
    from orchestration.sources.folder import Folder

    return Folder(Path(data or ".") / str(stream.folder), stream.stream_id, where)


def stream(
    mapping: str | Path,
    table: str | None = None,
    data: str | Path | None = None,
    *,
    drain: bool = False,
    from_beginning: bool = False,
    limits: Limits | None = None,
    bounds: Bounds | None = None,
    form: Form = Form.none,
    port: int | None = None,
    address: str = "127.0.0.1",
    where: Settings | None = None,
    started: Callable[[Loader], None] | None = None,
    registry: CollectorRegistry | None = None,
) -> dict[str, Any]:
    """Load a stream until it is drained (`drain`), or until SIGTERM or SIGINT; the open batch lands first. Returns the totals. `started` is called with the
    loader, which another thread may stop; the metrics are put into a `registry`.

    Raises FinegrainError; messages that have not landed are still in the stream.
    """
    where = where or settings()
    source, name, entry, zone, said = entry_of(mapping, table)
    client = source_of(entry, said, data, group=f"finegrain-{source}-{name}")
    home = where

    def connect() -> duckdb.DuckDBPyConnection:
        con = lake.connect(home)
        personal.register(con, home)
        con.execute(f"set memory_limit = '{Environment.read().stream_memory}'")
        con.execute("set preserve_insertion_order = false")
        # One thread per writer keeps memory small; run more loaders for more throughput.
        con.execute("set threads = 1")
        return con

    with duckdb.connect() as con:  # only for binding the mapping; batches land in the lake
        writers = [Messages(con, source, name, entry, zone, said, bounds=bounds) for _ in range(WRITERS)]
    watch = Watch(client.stream_id, form, port, address, registry)
    # Arrow's own pool returns memory to the system and requests it again for every batch, which costs more than filling it.
    pa.set_memory_pool(pa.system_memory_pool())
    # There are many short-lived messages, and reference counting frees them; garbage collection would take longer than reading them.
    before = gc.get_threshold()
    gc.set_threshold(100_000)
    try:
        loader = Loader(client, writers, connect, where, watch, limits, from_beginning=from_beginning)
        if started is not None:
            started(loader)
        with suppress(Unavailable):
            _ = loader.con  # if the lake is unavailable, `run` waits for it
        _record_shop(loader, where, mapping)
        with lake.held_open(where), _signals(loader):
            loader.run(drain=drain)
    finally:
        gc.set_threshold(*before)
        watch.close()
    return watch.as_dict()


def _record_shop(loader: Loader, where: Settings, mapping: str | Path) -> None:
    """Store the mapping's shop settings. If the lake is unavailable, the next loader does it."""
    try:
        shop.record(loader.con, where, shop.mappings_at(mapping))
    except (duckdb.Error, FinegrainError) as error:
        if not lake.is_outage(error):
            raise


class PreviewOwner:
    """An owner that claims nothing: every partition is read from its beginning, without disturbing its loader."""

    def known(self) -> dict[str, Position]:
        return {}

    def claim(self, parts: Mapping[str, Callable[[], str]], topic_id: str | None) -> dict[str, Position]:
        return {part: Position(part, beginning(), topic_id) for part, beginning in parts.items()}

    def settle(self) -> None:
        """Nothing is kept."""

    def drop(self) -> None:
        """Nothing is kept."""


def look(
    entry: Table, where: str, data: str | Path | None = None, rows: int = 10_000, seconds: float = LOOK
) -> pa.Table:
    """The first messages of a stream: the columns `MESSAGES`, their `text`, and the reason if a message is `undecoded`. Reads at most `rows`
    messages for at most `seconds`. Nothing is written, and loaders are not disturbed. Raises FinegrainError."""
    assert entry.stream is not None
    registry = Registry(entry.stream, where) if entry.stream.registry is not None else None
    client = source_of(_in_a_group_of_its_own(entry), where, data, group="")
    taken = Chunk()
    deadline = time.monotonic() + seconds
    try:
        client.open(PreviewOwner())
        while len(taken) < rows and time.monotonic() < deadline and not client.is_drained():
            taken.add(client.poll(rows - len(taken), 0.1))
        table = taken.table if registry is None else registry.decode(taken.table, Bounds().size)
    except Unreachable as trouble:
        raise Unavailable(f"{where}.stream: {trouble}") from None
    finally:
        client.close()
    text, undecoded = (
        ("try(decode(payload))", without_registry("payload")) if registry is None else ("text", "undecoded")
    )
    read = table["payload" if registry is None else "text"]
    with duckdb.connect() as con:
        con.register("messages", table.append_column("beyond", beyond(read, Bounds())))
        return con.execute(
            f"select {', '.join(MESSAGES.names)}, case when beyond is null then {text} end as text, "
            f"coalesce(beyond, {undecoded}) as undecoded from messages"
        ).to_arrow_table()


def _in_a_group_of_its_own(entry: Table) -> Table:
    """A copy of an entry with a new consumer group: in the loaders' group, a preview would take partitions from them."""
    assert entry.stream is not None
    if entry.stream.kafka is None:
        return entry
    settings = {**entry.stream.settings, "group.id": f"finegrain-look-{uuid.uuid4()}"}
    return entry.model_copy(update={"stream": entry.stream.model_copy(update={"settings": settings})})


@contextmanager
def _signals(loader: Loader) -> Iterator[None]:
    """SIGTERM and SIGINT stop the loader gracefully; a second signal at once."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        loader.stop()

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, stop)
    except ValueError:  # not in the main thread: the caller handles signals
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
