"""Finds the messages of a batch that cannot be processed, by trying them in a separate process that may run out of memory or crash. That process
writes to an in-memory lake; the real lake is not touched.

The process splits a failing span in halves and continues. If it crashes, another process continues with the halves of the span it was working on.
A single message is blamed only if a process that did nothing else crashed on it, too. So killing the loader never costs a message.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from orchestration.errors import FinegrainError, Unavailable
from orchestration.ingest.stream.messages import Messages
from orchestration.lake import lake
from orchestration.sources.bounds import Bounds
from orchestration.sources.streams import Chunk, Unreachable

#: The rule for messages that cannot be processed.
RULE: Final = "unprocessable"

Span = tuple[int, int]


@dataclass
class Piece:
    """Messages of a batch that can land together; or one message that cannot be processed, with the reason `why` (the rule and a sentence)."""

    messages: Chunk
    why: str | None = None

    def halves(self) -> list[Piece]:
        """The same messages in two pieces, if they can be processed and split."""
        count = len(self.messages)
        if self.why is not None or count < 2:
            return [self]
        return [Piece(_part(self.messages.table, span)) for span in _halves((0, count))]


def pieces(writer: Messages, batch: Chunk, scratch: Path, memory: str) -> list[Piece]:
    """Split a batch into pieces, in order. `scratch` is a folder for temporary files, `memory` DuckDB's memory limit.

    Raises Unreachable and FinegrainError as validation does, and Unavailable if no process can be started.
    """
    table = batch.table
    found: dict[Span, str | None] = {}
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="isolation-") as folder:
        path = Path(folder) / "messages.arrow"
        with pa.ipc.new_file(path, table.schema) as out:
            out.write_table(table)
        todo: list[Span] = [(0, table.num_rows)]
        died: set[Span] = set()
        while todo:
            tried, end = _run(writer, path, todo, memory)
            found |= tried
            if end is None:
                break
            span, how = end
            rest = _after(todo, span)
            if span in tried:
                pass  # the span was finished, so something else ended the process
            elif span[1] - span[0] > 1:
                rest[:0] = _halves(span)
            elif span in died:
                found[span] = f"{RULE}: {how}"
            else:
                died.add(span)
                rest[:0] = [span]
            todo = rest
    spans = sorted(found)
    # Otherwise a message would be lost, or land twice.
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])] and spans[-1][1] == table.num_rows
    return [Piece(_part(table, span), found[span]) for span in spans if span[1] > span[0]]


def _after(todo: list[Span], span: Span) -> list[Span]:
    """What is left of `todo` after a span."""
    return [(max(begin, span[1]), end) for begin, end in todo if end > span[1]]


def _halves(span: Span) -> list[Span]:
    middle = (span[0] + span[1]) // 2
    return [(span[0], middle), (middle, span[1])]


def _part(table: pa.Table, span: Span) -> Chunk:
    part = table.slice(span[0], span[1] - span[0])
    return Chunk(part.to_batches(), rows=part.num_rows)


def _run(
    writer: Messages, path: Path, todo: list[Span], memory: str
) -> tuple[dict[Span, str | None], tuple[Span, str] | None]:
    """Try spans in a process. Returns the result of each and, if the process crashed, where and how."""
    tried: dict[Span, str | None] = {}
    last: Span | None = None
    why: str | None = None
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # signals are handled by the parent
    )
    said, complaint = process.communicate(pickle.dumps((writer.given, writer.bounds, path, todo, memory)))
    for line in said.splitlines():
        with suppress(ValueError):  # a line that was cut off
            event: dict[str, Any] = json.loads(line)
            if "unreachable" in event:
                raise Unreachable(event["unreachable"])
            if "error" in event:
                raise FinegrainError(event["error"])
            span = (int(event["span"][0]), int(event["span"][1]))
            last, why = span, event["why"]
            if event["is_over"]:
                tried[span] = why
    if process.returncode == 0:
        return tried, None
    code = process.returncode
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if last is None:
        words = complaint.decode(errors="replace").strip().splitlines()
        raise Unavailable(
            "a batch cannot be processed, and the process that would try its messages one by one does not start "
            f"({words[-1][:200] if words else how})"
        )
    return tried, (last, why or f"a process that read nothing else crashed on it ({how})")


def main() -> None:
    """The entry point of the process: try spans of messages, and print the result of each as a line of JSON."""
    given, bounds, path, todo, memory = pickle.load(sys.stdin.buffer)  # from the parent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are expected: no core dumps
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, kill this process first
    try:
        with (
            duckdb.connect(config={"temp_directory": str(path.parent / "spilled")}) as con,
            pa.memory_map(str(path)) as file,
        ):
            table = pa.ipc.open_file(file).read_all()
            writer = _writer(con, given, bounds, memory)
            for span, is_over, why in _tries(writer, table, todo):
                _say(span=span, is_over=is_over, why=why)
    except Unreachable as error:
        _say(unreachable=str(error))
    except FinegrainError as error:
        _say(error=str(error))
    os._exit(0)


def _say(**event: Any) -> None:
    os.write(sys.stdout.fileno(), json.dumps(event).encode() + b"\n")


def _writer(con: duckdb.DuckDBPyConnection, given: tuple[Any, ...], bounds: Bounds, memory: str) -> Messages:
    """A writer into an in-memory lake, tested with one message."""
    con.execute(f"set memory_limit = '{memory}'")
    con.execute("set threads = 1")
    con.execute("set preserve_insertion_order = false")
    con.execute("set timezone = 'UTC'")
    con.execute("attach ':memory:' as lake")
    con.execute("create schema lake.raw")
    writer = Messages(con, *given, bounds=bounds)
    for table in (writer.table, "dead_letters"):
        shape = ", ".join(f'"{name}" {kind}' for name, kind in lake.table_columns(table).items())
        con.execute(f"create table lake.raw.{table} ({shape})")
    _land(writer, Chunk.of([["0"], ["0"], [b"{}"], [-1], [None], [None]], {}, {}, 2))
    return writer


def _tries(writer: Messages, table: pa.Table, todo: list[Span]) -> Iterator[tuple[Span, bool, str | None]]:
    """Yields each span before and after it is tried, and continues with the halves of a failed one."""
    stack = todo[::-1]
    while stack:
        span = stack.pop()
        yield span, False, None
        why = None
        try:
            _land(writer, _part(table, span))
        except (FinegrainError, Unreachable):
            raise
        except Exception as error:  # anything that parsing a message may raise
            if isinstance(error, (duckdb.FatalException, duckdb.InternalException)):
                _say(span=span, is_over=False, why=_first_line(error))
                os._exit(1)  # DuckDB is unusable after this error; another process continues
            if span[1] - span[0] > 1:
                stack += _halves(span)[::-1]
                continue
            why = f"{RULE}: {_first_line(error)}"
        yield span, True, why


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _land(writer: Messages, chunk: Chunk) -> None:
    writer.validate(chunk)
    with lake.transaction(writer.con):
        writer.land(chunk, datetime.now(UTC).replace(tzinfo=None))
    writer.con.execute(f"truncate lake.raw.{writer.table}")
    writer.con.execute("truncate lake.raw.dead_letters")


if __name__ == "__main__":
    main()
