"""Helpers for tests of streams: a mapping that streams into a home, and waiting for a condition."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestration.config.settings import Settings
from orchestration.ingest.stream.run import stream
from orchestration.lake import lake


def ask(where: Settings, sql: str) -> list[tuple[Any, ...]]:
    """Query the lake of a home."""
    con = lake.connect(where, read_only=True)
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def wait(until: Callable[[], Any], seconds: float = 60, pause: float = 0.05) -> Any:
    """Wait until `until` returns a true value, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(pause)
    return found


class Streamed:
    """A mapping file with one stream, and a home."""

    mapping: Path
    where: Settings

    def drain(self, **given: Any) -> dict[str, Any]:
        """Load all available messages."""
        return stream(self.mapping, where=self.where, drain=True, **given)

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command in a separate process."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestration.cli", "stream", str(self.mapping), *arguments],
            env={**os.environ, **self.where.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the lake."""
        return ask(self.where, sql)


class StreamedFolder(Streamed):
    """A mapping that streams a folder; `map` writes the mapping."""

    def __init__(self, folder: Path, extensions: Path) -> None:
        self.folder, self.where = folder / "in", Settings.below(folder / "home", extensions)
        self.mapping = folder / "shop.yml"
        self.folder.mkdir()
        self.map()

    def map(self, **entry: Any) -> None:
        raise NotImplementedError
