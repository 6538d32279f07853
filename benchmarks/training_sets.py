"""Training sets: `finegrain training-set` beside a range join by hand in DuckDB SQL and Polars, and beside Feast's join over daily snapshots.

    python benchmarks/training_sets.py --home HOME [--rows 100000 1000000] [--days 3] [--keep FOLDER]

HOME has a built shop, which is only read. Each way is a process of its own. Spines are random: a customer, and a moment at which they were known. All values
of the same features are compared; one that differs by more than 1e-9 ends the benchmark.

Feast joins snapshots of `days` days, for a spine of these days: half of its rows ask for the moment of a snapshot, where all values have to be the same, the
others for a moment of the day after it. How many of these are out of date is counted. --days 0 leaves Feast out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import duckdb
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import pipeline  # noqa: E402
from by_hand import FEATURES, MART, export  # noqa: E402

from orchestration.config.settings import Settings, settings  # noqa: E402
from orchestration.features.catalog import declared  # noqa: E402
from orchestration.features.history import features_of  # noqa: E402
from orchestration.sql.text import identifier, quote  # noqa: E402

P, T = ParamSpec("P"), TypeVar("T")
#: Features that differ as soon as time has passed.
CLOCKS = {each for each in FEATURES if each.startswith(("hours_", "tenure_"))} | {"days_to_expected_order"}
#: Features of which the benchmark says how many rows are out of date.
SHOWN = ("views_24h", "views_7d", "views_lifetime", "orders_lifetime", "revenue_90d")
#: What is asked for: the features that are also computed by hand, and all features in the days of the snapshots.
HAND, IN_DAYS = f"{len(FEATURES)} by hand", "all, in these days"


def write_spine(where: Settings, rows: int, file: Path) -> None:
    """Random customers at random moments, of the time for which each was known. The same rows for the same shop."""
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        con.execute(
            f"""
            copy (
                with customers as (
                    select
                        l.customer_id,
                        l.known_from,
                        least(coalesce(l.known_to, b.as_of), b.as_of) as known_to,
                        row_number() over (order by l.identity, l.known_from) - 1 as number
                    from int_identity__links as l
                    cross join int_identity__build as b
                    where l.known_from < b.as_of
                ),

                drawn as (
                    select hash(i, 'who') % (select count(*) from customers) as number, hash(i, 'when') % 1000000 / 1e6 as part
                    from range({rows * 11 // 10}) as t (i)
                )

                select distinct
                    c.customer_id,
                    c.known_from + to_microseconds(cast(d.part * date_diff('microsecond', c.known_from, c.known_to) as bigint)) as as_of
                from drawn as d
                inner join customers as c on d.number = c.number
                order by hash(customer_id, as_of)
                limit {rows}
            ) to {quote(str(file))} (format parquet)
            """
        )


def write_spine_of_snapshots(where: Settings, rows: int, file: Path) -> None:
    """Random customers of the snapshots: at the moment of the snapshot, and as many at a moment of the day after it."""
    duckdb.sql(
        f"""
        copy (
            select
                customer_id,
                as_of + to_seconds(case when number % 2 = 0 then 0 else 1 + hash(customer_id, as_of) % 86399 end) as as_of,
                number % 2 = 0 as is_moment
            from (
                select customer_id, as_of, row_number() over (order by hash(customer_id, as_of)) as number
                from {quote(str(where.published / "history" / "day=*" / f"{MART}.parquet"))}
            )
            where number <= {rows}
        ) to {quote(str(file))} (format parquet)
        """
    )


def differences(ours: Path, others: Path, names: Sequence[str], rows: str = "true") -> dict[str, int]:
    """By feature, in how many rows two files differ: in numbers by more than 1e-9 of what they are. `ours` is a training set, whose features have the name of
    the mart before theirs. `any`: rows in which a value differs that is not one of `CLOCKS`; `rows`: how many were compared. `rows` is a condition on `ours`,
    which is called a. Raises ValueError if a row of one file is not in the other."""
    with duckdb.connect() as con:
        a, b = f"read_parquet({quote(str(ours))})", f"read_parquet({quote(str(others))})"
        kinds = {name: kind for name, kind, *_ in con.execute(f"describe from {a}").fetchall()}

        def differs(name: str) -> str:
            one, other = f"a.{identifier(f'{MART}__{name}')}", f"b.{identifier(name)}"
            if kinds[f"{MART}__{name}"].startswith(("VARCHAR", "ENUM")):
                return f"cast({one} as varchar) is distinct from cast({other} as varchar)"
            one, other = f"cast({one} as double)", f"cast({other} as double)"
            return f"({one} is null) <> ({other} is null) or coalesce(abs({one} - {other}) > 1e-9 * greatest(1, abs({one})), false)"

        some = " or ".join(f"({differs(name)})" for name in names if name not in CLOCKS)
        columns = {**{name: differs(name) for name in names}, "any": some, "rows": "true"}
        counts = ", ".join(f"count(*) filter ({condition})" for condition in columns.values())
        both = f"{a} as a inner join {b} as b on a.customer_id = b.customer_id and a.as_of = b.as_of"
        [sizes] = con.execute(
            f"select (select count(*) from {a}), (select count(*) from {b}), (select count(*) from {both})"
        ).fetchall()
        if len(set(sizes)) > 1:
            raise ValueError(f"{ours} has {sizes[0]:,} rows and {others} {sizes[1]:,}, and {sizes[2]:,} are in both")
        [found] = con.execute(f"select {counts} from {both} where {rows}").fetchall()
    return dict(zip(columns, found, strict=True))


def must_be_alike(found: dict[str, int], what: str) -> None:
    """End the benchmark unless rows were compared, and none differs."""
    wrong = {name: count for name, count in found.items() if count and name not in ("any", "rows")}
    if wrong or not found["rows"]:
        sys.exit(f"{what} has other values than finegrain, in so many of {found['rows']:,} rows: {wrong}")


def aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a process of its own: on Linux, the peak memory of a command is at least that of the process that starts it. What DuckDB prints
    there goes to standard error."""
    with ProcessPoolExecutor(1, get_context("spawn"), os.dup2, (2, 1)) as pool:
        return pool.submit(work, *args, **kwargs).result()


class Benchmark:
    """Runs each way in a process of its own, on the warehouse of a built shop and in a home of its own below `folder`. A way is ended after `seconds`."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.where = replace(settings(), home=folder / "home", published=folder / "published")
        os.environ |= self.where.environment()
        self.results: list[dict[str, Any]] = []

    def time(self, rows: int, way: str, features: str, command: Sequence[str]) -> bool:
        """Measure a command; whether it finished."""
        ran = pipeline.run(self.where.home, *command, at_most=self.seconds)
        measured = {"seconds": ran.seconds, "cpu_seconds": ran.cpu, "peak_mib": ran.peak, "finished": ran.finished}
        self.results.append({"rows": rows, "way": way, "features": features, **measured})
        return ran.finished

    def finegrain(
        self, spine: Path, out: Path, features: str, names: Sequence[str] = ("*",), way: str = "finegrain"
    ) -> Path:
        """Measure `finegrain training-set`; returns its file."""
        wanted = ",".join(f"{MART}.{name}" for name in names)
        command = [
            "-m",
            "orchestration.cli",
            "training-set",
            str(spine),
            "--out",
            str(out),
            "--features",
            wanted,
            "--json",
        ]
        [(rows,)] = duckdb.sql(f"select count(*) from {quote(str(spine))}").fetchall()
        if not self.time(rows, way, features, command):
            sys.exit("finegrain training-set failed, or took too long")
        return out / "all.parquet"

    def by(self, way: str, spine: Path, out: Path) -> list[str]:
        return ["benchmarks/by_hand.py", way, "--spine", str(spine), "--out", str(out)]

    def warm_up(self) -> None:
        """The first training set of a project compiles its models."""
        spine = self.folder / "few.parquet"
        aside(write_spine, self.where, 10, spine)
        self.finegrain(spine, self.folder / "few", "all", way="finegrain, the first time")

    def by_hand(self, rows: int) -> None:
        """finegrain, and the range join by hand."""
        spine = self.folder / f"spine-{rows}.parquet"
        aside(write_spine, self.where, rows, spine)
        self.finegrain(spine, self.folder / f"all-{rows}", "all")
        ours = self.finegrain(spine, self.folder / f"ours-{rows}", HAND, FEATURES)
        for way, name in (("sql", "DuckDB SQL by hand"), ("polars", "Polars by hand")):
            out = self.folder / f"{way}-{rows}.parquet"
            if self.time(rows, name, HAND, [*self.by(way, spine, out), "--events", str(self.folder / "events")]):
                must_be_alike(aside(differences, ours, out, FEATURES), name)

    def snapshots(self, days: int) -> float:
        """Features of the last whole days; returns seconds a day."""
        with duckdb.connect(str(self.where.warehouse), read_only=True) as con:
            [(last,)] = con.execute("select as_of_day from int_identity__build").fetchall()
        started = time.monotonic()
        aside(features_of, [last - timedelta(days=2 + each) for each in range(days)], self.where)
        return (time.monotonic() - started) / days

    def feast(self, rows: int) -> dict[str, dict[str, int]]:
        """finegrain, and Feast's join; returns the differences of rows within a day: of all, and of those whose customer did something since the snapshot."""
        spine, out = self.folder / f"days-{rows}.parquet", self.folder / f"feast-{rows}.parquet"
        aside(write_spine_of_snapshots, self.where, rows, spine)
        file = self.finegrain(spine, self.folder / f"ours-days-{rows}", IN_DAYS)
        if not self.time(rows, "Feast, daily snapshots", IN_DAYS, self.by("feast", spine, out)):
            return {}
        [mart] = [each for each in declared() if each.name == MART]
        names = [each.name for each in mart.features]
        must_be_alike(aside(differences, file, out, names, "a.is_moment"), "Feast, at the moment of a snapshot,")
        since = f"a.{MART}__hours_since_session * 3600 < epoch(a.as_of) - epoch(cast(a.as_of as date))"
        return {
            "all": aside(differences, file, out, names, "not a.is_moment"),
            "of customers seen since the snapshot": aside(
                differences, file, out, names, f"not a.is_moment and {since}"
            ),
        }


def main() -> None:
    """Run the ways and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path, required=True, help="the home of a built shop")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--days", type=int, default=3, help="daily snapshots for Feast")
    parser.add_argument("--seconds", type=float, default=600, help="a way that takes longer is ended")
    parser.add_argument("--keep", type=Path, help="folder to work in, kept afterwards")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    given = parser.parse_args()
    os.environ["FINEGRAIN_HOME"] = str(given.home.resolve())
    with nullcontext(given.keep) if given.keep else tempfile.TemporaryDirectory(prefix="finegrain-bench-") as folder:
        found = run(Benchmark(Path(folder).resolve(), given.seconds), given.rows, given.days)
    if given.json:
        print(json.dumps(found))
    else:
        show(found)


def run(bench: Benchmark, sizes: Sequence[int], days: int) -> dict[str, Any]:
    """Everything, for spines of these sizes."""
    bench.folder.mkdir(parents=True, exist_ok=True)
    aside(export, bench.where, bench.folder / "events")
    bench.warm_up()
    for rows in sizes:
        bench.by_hand(rows)
    found: dict[str, Any] = {"results": bench.results}
    if days:
        found["seconds_a_snapshot"] = bench.snapshots(days)
        pipeline.run(bench.where.home, "-m", "orchestration.cli", "store", "apply")
        found["out_of_date"] = [bench.feast(rows) for rows in sizes]
    return found


def show(found: dict[str, Any]) -> None:
    """Print what was found."""
    console = Console(width=120)
    table = Table("rows", "way", "features", "seconds", "CPU s", "peak MiB", "times finegrain's", box=None)
    ours = {(each["rows"], each["features"]): each for each in found["results"] if each["way"] == "finegrain"}
    for each in found["results"]:
        of_ours = ours.get((each["rows"], each["features"]))
        table.add_row(
            f"{each['rows']:,}", each["way"], each["features"], f"{each['seconds']:.1f}", f"{each['cpu_seconds']:.1f}", f"{each['peak_mib']:,.0f}",
            "unfinished" if not each["finished"] else f"{each['seconds'] / of_ours['seconds']:.2f}" if of_ours else "",
        )  # fmt: skip
    console.print(table)
    if "seconds_a_snapshot" in found:
        console.print(f"a snapshot of all feature marts took {found['seconds_a_snapshot']:.0f} s a day")
    for kinds in found.get("out_of_date", []):
        for kind, each in kinds.items():
            shown = ", ".join(f"{name} {each[name]:,}" for name in SHOWN)
            console.print(
                f"rows within a day, {kind}: {each['rows']:,}; in Feast out of date: {each['any']:,} ({shown})"
            )


if __name__ == "__main__":
    main()
