"""Count what finegrain reports about a stream in which nothing goes wrong: the simulated shop's web events, minute by minute.

    python benchmarks/stream_alarms.py --events 6000000 --days 15 --seed 21

The events are loaded by `finegrain stream`, dated as they arrived in the shop, and every closed minute after the warm-up is compared with those before it by the rules
of seeds/metric_rules.csv. Then the price is made null in one minute of each hour, to see in how many of them that is found.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import timedelta
from pathlib import Path

import duckdb
import yaml

from orchestration.config.settings import Settings
from orchestration.ingest.stream.loader import Limits
from orchestration.ingest.stream.run import stream
from orchestration.lake import lake
from orchestration.quality import streams
from orchestration.simulation.simulate import simulate

PROJECT = Path(__file__).resolve().parent.parent
SPAN = timedelta(hours=12)


def load(folder: Path, events: int, days: int, seed: int) -> duckdb.DuckDBPyConnection:
    """A database called `lake` with what the stream's loader wrote, dated by the shop. A dead letter has the time of the row before it."""
    simulate(folder / "shop", events=events, days=days, seed=seed)
    mapping = yaml.safe_load((PROJECT / "examples" / "simulated_shop" / "web.yml").read_text())
    entry = mapping["tables"]["events"]
    entry["stream"] = {"folder": Path(entry.pop("files")).parent.name}
    (folder / "web.yml").write_text(yaml.safe_dump(mapping))
    where = Settings.below(folder / "home")
    stream(folder / "web.yml", data=folder / "shop", drain=True, where=where, limits=Limits(50_000, 40 * 2**20))
    file, number = folder / "dated.duckdb", "regexp_extract(_position, '[^/]*$')::bigint"
    with lake.connect(where, read_only=True) as con:
        con.execute(f"attach '{file}' as dated")
        con.execute("create schema dated.raw")
        for table in ("positions", "replayed"):
            con.execute(f"create table dated.raw.{table} as from lake.raw.{table}")
        con.execute(
            "create table dated.raw.events as select * exclude (payload) replace (available_at as _ingested_at) from lake.raw.events"
        )
        con.execute(
            "create table dated.raw.dead_letters as select d.* exclude (number) replace (e.available_at as _ingested_at) "
            f"from (select *, {number} as number from lake.raw.dead_letters) as d "
            f"asof join (select available_at, {number} as number from lake.raw.events) as e on d.number >= e.number"
        )
    con = duckdb.connect()
    con.execute(f"attach '{file}' as lake (read_only)")
    return con


def report(con: duckdb.DuckDBPyConnection, only: str = "true") -> int:
    """What is anomalous, in all minutes: prints it, and returns the number of minutes. `only`: SQL, the minutes that are tested."""
    [(first, last)] = con.execute("select min(minute), max(minute) from states").fetchall()
    con.execute(f"create or replace temporary table found as {streams.anomalous(con, 'false')}")
    begin = first
    while begin <= last:  # the comparison of all minutes at once would not fit into memory
        tested = f"{only} and minute >= timestamp '{begin}' and minute < timestamp '{begin + SPAN}'"
        con.execute(f"insert into found {streams.anomalous(con, tested)}")
        begin += SPAN
    for row in con.execute(
        "select rule_id, count(distinct minute), min(minute) from found group by 1 order by 1"
    ).fetchall():
        print("  {}: {} minutes, the first at {}".format(*row))
    [(minutes,)] = con.execute("select count(distinct minute) from found").fetchall()
    return int(minutes)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=6_000_000)
    parser.add_argument("--days", type=int, default=15)
    parser.add_argument("--seed", type=int, default=21)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finegrain-bench-") as folder:
        con = load(Path(folder), given.events, given.days, given.seed)
        con.execute(f"set temp_directory = '{folder}'")
        [(first, last)] = con.execute(
            "select date_trunc('minute', min(_ingested_at)), date_trunc('minute', max(_ingested_at)) from lake.raw.events"
        ).fetchall()
        con.execute(f"create temporary table states as {streams.states(con, first, last)}")
        [(minutes, usual)] = con.execute("select count(*), median(n) from states where state = 'rows'").fetchall()
        print(f"{minutes:,} minutes, {usual:,.0f} rows in the median one; anomalous although nothing went wrong:")
        print(f"  in all {report(con)} minutes")
        broken = "extract(minute from minute) = 30"
        con.execute(
            "update states set n = r.n from (select minute, n from states where state = 'rows') as r "
            f"where states.minute = r.minute and state = 'nulls' and column_name = 'price' and {broken.replace('from minute', 'from states.minute')}"
        )
        [(planted,)] = con.execute(f"select count(*) from states where state = 'rows' and {broken}").fetchall()
        print(f"{planted:,} minutes without a price; anomalous among them:")
        print(f"  in all {report(con, broken)} minutes")


if __name__ == "__main__":
    main()
