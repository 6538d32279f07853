"""What tests of streams share: a mapping that streams into a home of its own, and waiting for what comes to pass."""

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
    """Ask the lake of a home."""
    con = lake.connect(where, read_only=True)
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def wait(until: Callable[[], Any], seconds: float = 60, pause: float = 0.05) -> Any:
    """What `until` gives, as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(pause)
    return found


class Streamed:
    """A mapping file with one stream, and a home."""

    mapping: Path
    where: Settings

    def drain(self, **given: Any) -> dict[str, Any]:
        """Load what is there."""
        return stream(self.mapping, where=self.where, drain=True, **given)

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        """The command, as a user starts it."""
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
    """One that streams a folder; `map` writes the mapping."""

    def __init__(self, folder: Path, extensions: Path) -> None:
        self.folder, self.where = folder / "in", Settings.below(folder / "home", extensions)
        self.mapping = folder / "shop.yml"
        self.folder.mkdir()
        self.map()

    def map(self, **entry: Any) -> None:
        raise NotImplementedError
