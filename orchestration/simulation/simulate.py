"""A simulated shop: files as real systems would deliver them, and beside them the truth about what is wrong with each.

Everything follows from a seed. Behaviour is made in blocks of whole hours, about half a million rows each, so memory
hardly grows with the number of events. The parts are in orchestration/simulation/.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from orchestration.config.settings import SIMULATION
from orchestration.errors import FinegrainError
from orchestration.simulation.behaviour import Counters, bots, visit
from orchestration.simulation.dirt import soil
from orchestration.simulation.files import Files
from orchestration.simulation.numbers import Array
from orchestration.simulation.words import DAY, HOUR
from orchestration.simulation.world import World

#: Visits made at a time: about half a million rows.
BLOCK: Final = 55_000
FOLDERS: Final = ("stream", "ga4", "store", "database", "truth")

#: Called with the rows of behaviour written so far, and about how many there will be.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Summary:
    """What was written: rows by source, rows of planted dirt by kind, and the folder."""

    out: Path
    rows: dict[str, int]
    truth: dict[str, int]

    @property
    def events(self) -> int:
        """Rows of behaviour: stream lines, GA4 item rows and store visits."""
        return self.rows["stream"] + self.rows["ga4_items"] + self.rows["store"]


def simulate(
    out: Path,
    *,
    events: int = 1_000_000,
    seed: int = 7,
    days: int = 90,
    start: date = date(2025, 1, 6),
    progress: Progress | None = None,
) -> Summary:
    """Write a simulated shop of about `events` rows of behaviour over `days` days from `start` (UTC) into `out`.

    The same arguments write the same bytes. `progress(done, total)` is called with rows of behaviour.
    Raises FinegrainError when an argument is out of range or `out` holds something else than a simulation.
    """
    if events < 1000:
        raise FinegrainError(f"events is {events}; a simulated shop needs 1000 or more: give --events 1000")
    if not 2 <= days <= 1000:
        raise FinegrainError(f"days is {days}; give --days between 2 and 1000")
    if seed < 0:
        raise FinegrainError(f"seed is {seed}; give --seed 0 or more")
    _make_room(out)
    world = World.make(events, seed, days, start)
    files = Files(out, world)
    try:
        _live_through(world, files, progress)
        files.finish()
    finally:
        files.close()
    rows, truth = dict(sorted(files.rows.items())), dict(sorted(files.truth.counts.items()))
    about = {"events": events, "seed": seed, "days": days, "start": start.isoformat(), "rows": rows, "truth": truth}
    (out / SIMULATION).write_text(json.dumps(about, indent=2) + "\n")
    return Summary(out, rows, truth)


def _make_room(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / SIMULATION).exists():
        raise FinegrainError(f"{out} contains files that are not from a simulation; give --out a new or empty folder")
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
    # Set first, so that a simulation that was interrupted can be written over.
    (out / SIMULATION).write_text("{}\n")


def _live_through(world: World, files: Files, progress: Progress | None) -> None:
    """Make the shop's whole history, block by block, and hand each block to the files."""
    rng = np.random.default_rng([world.seed, 1])
    visits = rng.multinomial(world.visits, world.demand.ravel()).reshape(world.demand.shape)
    counters = Counters(last_end=np.full(world.people, world.start - DAY))
    files.accept(bots(world, np.random.default_rng([world.seed, 2]), counters))
    for number, (low, high) in enumerate(_blocks(visits.sum(axis=1))):
        rng = np.random.default_rng([world.seed, 3, number])
        rows, purchases = visit(world, rng, visits[low:high], low, counters)
        files.accept(soil(world, rng, rows, counters), purchases)
        files.flush(world.start + high * HOUR)
        if progress:
            progress(files.written, max(world.events, files.written))
    files.flush(None)
    if progress:
        progress(files.written, files.written)


def _blocks(visits_by_hour: Array) -> Iterator[tuple[int, int]]:
    """Ranges of hours with about BLOCK visits each."""
    block = np.cumsum(visits_by_hour) // BLOCK
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(block)]
    return pairwise(edges)
