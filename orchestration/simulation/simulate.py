"""A simulated shop: files as real systems deliver them, and the truth about the errors planted in them.

Everything is determined by a seed. Events are generated in blocks of whole hours, about half a million rows each, so memory use
hardly grows with the number of events.
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
from orchestration.simulation.behaviour import Counters, assistants, bots, stealthy_bots, visit
from orchestration.simulation.dirt import plant
from orchestration.simulation.files import Files
from orchestration.simulation.incidents import INCIDENTS, NEEDED_DAYS
from orchestration.simulation.numbers import Array
from orchestration.simulation.words import DAY, HOUR
from orchestration.simulation.world import World

#: Visits per block: about half a million rows.
BLOCK: Final = 55_000
FOLDERS: Final = ("stream", "ga4", "store", "database", "truth")

#: Called with the number of event rows written so far, and the approximate total.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Summary:
    """What was written: the folder, rows by source, and planted errors by kind."""

    out: Path
    rows: dict[str, int]
    truth: dict[str, int]

    @property
    def events(self) -> int:
        """Event rows: stream lines, GA4 item rows and store rows."""
        return self.rows["stream"] + self.rows["ga4_items"] + self.rows["store"]


def simulate(
    out: Path,
    *,
    events: int = 1_000_000,
    seed: int = 7,
    days: int = 90,
    start: date = date(2025, 1, 6),
    incidents: bool = False,
    wholesale: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Write a simulated shop of about `events` event rows over `days` days from `start` (UTC) into `out`.

    The same arguments write the same bytes. `incidents`: days on which a source delivers something else than usual (incidents.py). `wholesale`:
    hours of the week in which resellers buy in boxes, and such quantities at other hours. `progress(done, total)` is called with numbers of event rows. Raises FinegrainError if an
    argument is out of range, or `out` contains other files.
    """
    if events < 1000:
        raise FinegrainError(f"events is {events}; a simulated shop needs 1000 or more: give --events 1000")
    if not 2 <= days <= 1000:
        raise FinegrainError(f"days is {days}; give --days between 2 and 1000")
    if seed < 0:
        raise FinegrainError(f"seed is {seed}; give --seed 0 or more")
    if incidents and days < NEEDED_DAYS:
        raise FinegrainError(
            f"days is {days}; incidents need a history of {NEEDED_DAYS} days: give --days {NEEDED_DAYS}"
        )
    _prepare_folder(out)
    world = World.make(events, seed, days, start, wholesale)
    files = Files(out, world, INCIDENTS if incidents else ())
    try:
        _generate(world, files, progress)
        files.finish()
    finally:
        files.close()
    rows, truth = dict(sorted(files.rows.items())), dict(sorted(files.truth.counts.items()))
    about = {"events": events, "seed": seed, "days": days, "start": start.isoformat(), "rows": rows, "truth": truth}
    if wholesale:
        about["wholesale"] = True
    if incidents:
        about["incidents"] = [incident.name for incident in INCIDENTS]
    (out / SIMULATION).write_text(json.dumps(about, indent=2) + "\n")
    return Summary(out, rows, truth)


def _prepare_folder(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / SIMULATION).exists():
        raise FinegrainError(f"{out} contains files that are not from a simulation; give --out a new or empty folder")
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
    # Written first, so that an interrupted simulation can be overwritten.
    (out / SIMULATION).write_text("{}\n")


def _generate(world: World, files: Files, progress: Progress | None) -> None:
    """Generate the shop's history block by block, and write it."""
    rng = np.random.default_rng([world.seed, 1])
    visits = rng.multinomial(world.visits, world.demand.ravel()).reshape(world.demand.shape)
    counters = Counters(last_end=np.full(world.people, world.start - DAY))
    files.accept(bots(world, np.random.default_rng([world.seed, 2]), counters))
    for seed, generate in ((4, stealthy_bots), (5, assistants)):
        rows = generate(world, np.random.default_rng([world.seed, seed]))
        if rows is not None:
            files.accept(rows)
    for number, (low, high) in enumerate(_blocks(visits.sum(axis=1))):
        rng = np.random.default_rng([world.seed, 3, number])
        rows, purchases = visit(world, rng, visits[low:high], low, counters)
        files.accept(plant(world, rng, rows, counters), purchases)
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
