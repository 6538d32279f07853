"""The commands of `finegrain`, with their options."""

from __future__ import annotations

import math
import socket
import sys
import time
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestration import __version__
from orchestration.config import settings
from orchestration.errors import FinegrainError, Unavailable, console

if TYPE_CHECKING:
    from orchestration.ingest.load import FileReport


app = typer.Typer(
    help="From a shop's raw events to tested, point-in-time-correct personalization features.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench_app = typer.Typer(help="Measure how well and how fast.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench")
lake_app = typer.Typer(help="The lake's upkeep.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(lake_app, name="lake")
rates_app = typer.Typer(help="Exchange rates.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(rates_app, name="rates")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a text for people.")]
AsOf = Annotated[
    str | None,
    typer.Option("--as-of", metavar="TIME", help="The moment the features are of (ISO 8601, UTC without an offset)."),
]
Again = Annotated[
    bool,
    typer.Option(
        "--again", help="Map what was loaded again, and replace the rows that the mapping now makes otherwise."
    ),
]
Keep = Annotated[
    bool,
    typer.Option("--keep", help="Leave what was loaded by another mapping as it is; load what is new by this one."),
]
Largest = Annotated[int, typer.Option(min=1, help="Bytes beyond which a message is a dead letter.")]
MostKeys = Annotated[int, typer.Option(min=1, help="Keys of its own beyond which a message is a dead letter,")]
Deepest = Annotated[int, typer.Option(min=1, help="and levels of nesting.")]
FullRefresh = Annotated[bool, typer.Option("--full-refresh", help="Build every model from scratch.")]


class Part(StrEnum):
    """Which of Dagster's processes."""

    dev = "dev"
    webserver = "webserver"
    daemon = "daemon"


class DemoData(StrEnum):
    """What `finegrain demo` runs on."""

    simulated = "simulated"
    completejourney = "completejourney"


def _version(asked: bool) -> None:
    if asked:
        console.out().print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder for the files; made if it is not there.")] = Path("shop"),
    events: Annotated[int, typer.Option(help="Rows of behaviour, about.")] = 1_000_000,
    days: Annotated[int, typer.Option(help="Days of history.")] = 90,
    start: Annotated[str, typer.Option(metavar="DATE", help="The first day.")] = "2025-01-06",
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 7,
    as_json: Json = False,
) -> None:
    """Write the files of a simulated shop, and beside them the truth about their dirt."""
    from orchestration.simulation.simulate import simulate as run

    try:
        first = date.fromisoformat(start)
    except ValueError:
        raise FinegrainError(f"--start is '{start}', which is no date; write it like 2025-01-06") from None
    with console.progress("simulate", 1, quiet=as_json) as advance:
        before = 0.0

        def follow(done: int, total: int) -> None:
            nonlocal before
            advance(done / total - before, "")
            before = done / total

        summary = run(out, events=events, seed=seed, days=days, start=first, progress=follow)
    if as_json:
        console.show_json({"out": summary.out, "rows": summary.rows, "truth": summary.truth})
        return
    console.out().print(f"{summary.events:,} rows of behaviour over {days} days in {summary.out}")
    console.out().print(f"load them with: finegrain load examples/simulated_shop --data {summary.out}")


def _show_files(out: Console, files: list[FileReport]) -> None:
    for file in files:
        said = file.skipped or f"{file.rows:,} rows" + (
            f", {file.malformed:,} of them malformed" if file.malformed else ""
        )
        # Only of a delivery that came again is there more to say.
        if not file.skipped:
            said += f", {file.replaced:,} of them in place of former ones" * bool(file.replaced)
            said += f", {file.unchanged:,} unchanged" * bool(file.unchanged) + f", {file.gone:,} gone" * bool(file.gone)
        out.print(f"{file.source}.{file.table} {console.shown(file.file)}: {said}")
        for note in file.notes:
            out.print(f"  {note}")


@app.command()
def load(
    mapping: Annotated[str, typer.Argument(help="A mapping file, or a folder of them (docs/reference/mapping.md).")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files or globs in place of the mapping's own; table=path where it fills several."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder where the mapping's relative paths begin.")] = None,
    again: Again = False,
    keep: Keep = False,
    as_json: Json = False,
) -> None:
    """Land files in the lake by a mapping."""
    from orchestration.ingest.load import load as run

    report = run(mapping, paths, data, again, keep, quiet=as_json)
    if as_json:
        console.show_json(report.as_dict())
        return
    out = console.out()
    _show_files(out, report.files)
    out.print(f"{report.rows:,} rows landed in {report.seconds:.1f} s; the lake is at snapshot {report.snapshot}")


@app.command()
def ingest(
    mapping: Annotated[str, typer.Argument(help="A mapping file, or a folder of them (docs/reference/mapping.md).")],
    data: Annotated[str | None, typer.Option(help="Folder where the mapping's relative paths begin.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read tables from their beginning; what the lake has does not land twice.")
    ] = False,
    again: Again = False,
    keep: Keep = False,
    lot: Annotated[int, typer.Option(min=1, help="Rows that land in one transaction.")] = 500_000,
    as_json: Json = False,
) -> None:
    """Bring in what is new of databases, APIs and files by a mapping."""
    from orchestration.ingest.ingest import ingest as run

    report = run(mapping, data, full, again, keep, lot=lot, quiet=as_json)
    if as_json:
        console.show_json(report.as_dict())
        return
    out = console.out()
    for each in report.tables:
        said = [f"{each.read:,} rows read", f"{each.landed:,} landed", f"{each.unchanged:,} unchanged"]
        said += [f"{each.malformed:,} malformed"] * bool(each.malformed) + [f"{each.deleted:,} deleted"] * bool(
            each.deleted
        )
        said += [f"{each.replaced:,} replaced"] * bool(each.replaced)
        said += [f"{each.taken_back:,} taken back"] * bool(each.taken_back)
        out.print(f"{each.source}.{each.table} {each.place}: {', '.join(said)}", markup=False)
        for note in each.notes:
            out.print(f"  {note}", markup=False)
    _show_files(out, report.files)
    out.print(f"{report.rows:,} rows landed in {report.seconds:.1f} s; the lake is at snapshot {report.snapshot}")


@app.command()
def unload(
    what: Annotated[str, typer.Argument(metavar="SOURCE[.TABLE]", help="A source, or one of its raw tables.")],
    file: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this file, as the load named it; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take back what a source, a table or a file brought; loading it again brings it back."""
    from orchestration.ingest.unload import unload as run

    report = run(what, file or ())
    if as_json:
        console.show_json(report.as_dict())
        return
    out = console.out()
    for part in report.parts:
        place = console.shown(part.file or f"(by {part.came_by})")
        out.print(f"{report.source}.{part.table} {place}: {part.rows:,} rows taken back", markup=False)
    for note in report.notes:
        out.print(f"  {note}", markup=False)
    out.print(f"{report.rows:,} rows taken back in {report.seconds:.1f} s; the lake is at snapshot {report.snapshot}")


@app.command()
def stream(
    mapping: Annotated[str, typer.Argument(help="A mapping file with a stream (docs/how-to/connect-a-stream.md).")],
    table: Annotated[str | None, typer.Argument(help="The raw table, where the mapping names several streams.")] = None,
    data: Annotated[str | None, typer.Option(help="Where the path of a folder stream begins.")] = None,
    drain: Annotated[bool, typer.Option("--drain", help="End when all that is there has landed.")] = False,
    afresh: Annotated[
        bool,
        typer.Option("--afresh", help="Begin at the stream's beginning, whatever was read before. Run one loader."),
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="A batch is closed at so many messages,")] = 10_000,
    mebibytes: Annotated[float, typer.Option(min=0.001, help="at so many MiB of payload,")] = 4,
    age: Annotated[float, typer.Option(min=0.01, help="or so many seconds after its first message.")] = 1.0,
    largest: Largest = 2**20,
    most_keys: MostKeys = 1_000,
    deepest: Deepest = 100,
    metrics_port: Annotated[int | None, typer.Option(help="Where Prometheus may ask; nowhere if left out.")] = None,
    metrics_address: Annotated[str, typer.Option(help="The address it is told on.")] = "127.0.0.1",
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON lines, one every five seconds.")] = False,
) -> None:
    """Load a stream (Kafka, Kinesis, a growing folder) into the lake, each message once, until it is stopped."""
    from orchestration.ingest.stream.loader import Limits
    from orchestration.ingest.stream.run import stream as run
    from orchestration.ingest.stream.watch import Form
    from orchestration.sources.bounds import Bounds

    form = Form.json if as_json else Form.panel if sys.stderr.isatty() else Form.lines
    done = run(
        mapping,
        table,
        data,
        drain=drain,
        afresh=afresh,
        limits=Limits(rows, int(mebibytes * 2**20), age),
        bounds=Bounds(largest, most_keys, deepest),
        form=form,
        port=metrics_port,
        address=metrics_address,
    )
    if not as_json:
        dead = sum(done["dead_letters"].values())
        console.out().print(
            f"{done['rows']:,} rows landed in {done['batches']:,} batches, {dead:,} dead letters, in {done['seconds']:.1f} s"
        )
        for rule, count in done["dead_letters"].items():
            console.out().print(f"  {rule}: {count:,}")
        for key, count in done["unknown_fields"].items():
            console.out().print(f"  unknown field '{console.shown(key)}' in {count:,} messages; kept in properties")


@app.command()
def replay(
    mapping: Annotated[str, typer.Argument(help="The mapping of the stream.")],
    table: Annotated[str | None, typer.Argument(help="The raw table, where the mapping names several streams.")] = None,
    quarantined: Annotated[
        bool, typer.Option("--quarantined", help="Not letters, but rows that the last published build quarantined.")
    ] = False,
    rule: Annotated[str | None, typer.Option(help="Only those that broke this rule.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Only those that came at or after it.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Only those that came before it.")] = None,
    position: Annotated[str | None, typer.Option(help="Only the one at this position of the stream.")] = None,
    largest: Largest = 2**20,
    most_keys: MostKeys = 1_000,
    deepest: Deepest = 100,
    as_json: Json = False,
) -> None:
    """Run dead letters, or quarantined rows, again after a mend; each lands once."""
    from orchestration.ingest.stream.replay import replay as run
    from orchestration.sources.bounds import Bounds

    done = run(
        mapping,
        table,
        quarantined=quarantined,
        rule=rule,
        since=_moment("--since", since),
        until=_moment("--until", until),
        position=position,
        bounds=Bounds(largest, most_keys, deepest),
        quiet=as_json,
    )
    if as_json:
        console.show_json(done.as_dict())
        return
    what = "quarantined rows read again" if quarantined else "dead letters run again"
    same = f", {done.unchanged:,} would be as they are" if quarantined else ""
    console.out().print(f"{done.asked:,} {what}: {done.rows:,} rows landed{same}")
    for each, count in done.still_dead.items():
        console.out().print(f"  {'now' if quarantined else 'still'} {each}: {count:,}")


def _moment(option: str, text: str | None) -> datetime | None:
    """An option's time as naive UTC; one without an offset is UTC."""
    if text is None:
        return None
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise FinegrainError(
            f"{option} is '{text}', which is no ISO 8601 time; write it like 2025-03-02T10:00:00Z"
        ) from None
    return given.astimezone(UTC).replace(tzinfo=None) if given.tzinfo else given


@app.command()
def doctor(
    mapping: Annotated[
        str | None, typer.Argument(help="A mapping file, or a folder of them; without one, this machine is looked at.")
    ] = None,
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files or globs in place of the mapping's own; table=path where it fills several."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder where the mapping's relative paths begin.")] = None,
    as_json: Json = False,
) -> None:
    """Check a mapping against its data before anything is loaded, and say what is wrong, by field."""
    from orchestration.quality.doctor import examine

    report = examine(mapping, paths, data, quiet=as_json)
    if as_json:
        console.show_json(report.as_dict())
    else:
        console.out().print(report.render())
    if report.exit_code:
        raise typer.Exit(report.exit_code)


@app.command()
def build(
    full_refresh: FullRefresh = False,
    as_of: AsOf = None,
    full_audit: Annotated[
        bool, typer.Option("--full-audit", help="Ask every test of all rows, also what passed and did not change.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build the warehouse from the lake and audit it (`dbt build`)."""
    from orchestration.warehouse.build import build as run
    from orchestration.warehouse.build import stale_rates

    done = run(full_refresh=full_refresh, moment=as_of, full_audit=full_audit, quiet=as_json)
    if as_json:
        console.show_json(done.as_dict())
    else:
        console.out().print(
            f"{done.count('model', 'seed', 'snapshot')} models, seeds and snapshots and "
            f"{done.count('test', 'unit_test')} tests in {done.seconds:.1f} s"
        )
        for note in done.notes:
            console.err().print(f"note: {note}", style="yellow", markup=False)
        for node in done.failed:
            err = console.err()
            err.print(f"failed: {node.name}: {node.message}", style="red")
            for row in node.rows:
                err.print(
                    "  " + ", ".join(f"{name}={value}" for name, value in node.in_brief(row).items()), markup=False
                )
            if node.kept_in:
                err.print(f"  all rows: {node.kept_in} in the warehouse")
        if stale := stale_rates():
            console.say(f"warning: {stale}")
    if not done.passed:
        from orchestration.lake import lake

        is_outage = any(node.status == "error" and lake.says_outage(str(node.message)) for node in done.failed)
        raise typer.Exit(Unavailable.exit_code if is_outage else 1)


@app.command()
def publish(
    past: Annotated[
        bool, typer.Option("--past", help="Also a build of an earlier moment (--as-of) than what is published.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put the audited marts in place for readers, in one step."""
    from orchestration.warehouse.publish import publish as run

    done = run(past=past)
    if as_json:
        console.show_json(done.as_dict())
        return
    table = Table("mart", "rows", "columns", box=None, pad_edge=False)
    for mart, (rows, columns) in done.marts.items():
        table.add_row(mart, f"{rows:,}", str(columns))
    console.out().print(table)
    what = f"published in {done.seconds:.1f} s" if done.is_new else "this build is published already"
    console.out().print(f"{what}: {done.folder.parent.parent / 'finegrain.duckdb'} (lake snapshot {done.built_from})")


@app.command()
def report(as_json: Json = False) -> None:
    """Say what came in, what became of it, and what the marts hold."""
    from orchestration.quality.account import account

    told = account()
    if as_json:
        console.show_json(told.as_dict())
    else:
        told.show(console.out())


@app.command()
def catalog(
    mart: Annotated[str | None, typer.Argument(help="A mart to tell in full; without one, a line each.")] = None,
    like: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only features with this in their name or meaning.")
    ] = None,
    warehouse: Annotated[
        bool, typer.Option("--warehouse", help="Figures of the warehouse instead of what is published.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the catalogue as a page (docs/reference/features.md).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what each feature means, where it comes from and what its values look like."""
    from orchestration.features.catalog import catalog as run
    from orchestration.features.catalog import page, show

    in_full = mart is not None or like is not None
    told = run(
        mart=mart,
        like=like,
        of_warehouse=warehouse,
        lineage=in_full or as_json or write is not None,
        quiet=as_json,
    )
    if write is not None:
        write.write_text(page(told), "utf-8")
    if as_json:
        console.show_json(told.as_dict())
    elif write is not None:
        console.out().print(f"wrote {write}: {sum(len(each.features) for each in told.marts)} features")
    else:
        show(told, console.out(), in_full=in_full)


@app.command("dagster")
def run_dagster(
    part: Annotated[Part, typer.Argument(help="All of Dagster on this machine, or one of its processes.")] = Part.dev,
    shop: Annotated[
        str | None,
        typer.Option(
            envvar="FINEGRAIN_SHOP", help="A mapping file, or a folder of them; without one, a simulated shop."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(envvar="FINEGRAIN_DATA", help="Folder where the mappings' relative paths begin.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address that the page is served on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 3000,
    allow_host: Annotated[
        str,
        typer.Option(
            envvar="FINEGRAIN_DAGSTER_HOSTS",
            metavar="NAMES",
            help="Names by which the page may be asked for beside loopback's, with commas between.",
        ),
    ] = "",
) -> None:
    """Run it all by itself: Dagster's page, schedules, sensors and alerts, until stopped."""
    _must_have_dagster()
    if part is not Part.daemon:
        _must_be_free(host, port)
    from orchestration.dagster.instance import start

    where = None
    if shop is None:
        from orchestration.cli.demo import simulated_home, simulated_shop

        where = simulated_home()
        shop, data = str(settings.PROJECT / "examples" / "simulated_shop"), str(simulated_shop(where))
    start(part, shop, data, host, port, allow_host, where)


def _must_have_dagster() -> None:
    """Dagster is an extra."""
    packages = ("dagster", "dagster_dbt", "dagster_postgres", "dagster_webserver")
    absent = [name.replace("_", "-") for name in packages if find_spec(name) is None]
    if absent:
        raise FinegrainError(
            f"finegrain dagster needs the extra 'dagster', which is not installed here (without {', '.join(absent)}); "
            f"in {settings.PROJECT}, run: scripts/setup dagster, or: pip install --no-deps --require-hashes -r requirements-dagster.lock"
        )


def _must_be_free(host: str, port: int) -> None:
    """Dagster would notice only after a minute, and its other processes go on without the page."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise FinegrainError(
            f"port {port} of {host} cannot be listened on: {(error.strerror or str(error)).lower()}; "
            f"is something running there? Name another with --port, as in --port {port % 65535 + 1}"
        ) from None


@app.command()
def demo(
    data: Annotated[
        DemoData, typer.Option(help="A simulated shop, or the Dunnhumby Complete Journey.")
    ] = DemoData.simulated,
    events: Annotated[int, typer.Option(help="Size of the simulated shop.")] = 50_000,
) -> None:
    """The whole way, from raw files to published features, and an account of it."""
    from orchestration.cli.demo import demo as run

    if not run(data.value, events=events):
        raise typer.Exit(1)


@rates_app.command("update")
def rates_update(
    origin: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE|URL", help="One of the ECB's files; without it, its whole history."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring in the reference rates of the European Central Bank that are new or changed."""
    from orchestration.ingest.rates import update

    done = update(origin)
    if as_json:
        console.show_json(done.as_dict())
        return
    console.out().print(
        f"{done.new:,} new rates and {done.changed:,} changed ones landed, {done.unchanged:,} were there: {done.currencies} currencies "
        f"of {done.days:,} days up to {done.newest}, in {done.seconds:.1f} s; the lake is at snapshot {done.snapshot}"
    )


@bench_app.command("cleaning")
def bench_cleaning(
    shop: Annotated[Path, typer.Option(help="Folder of the simulated shop that was loaded.")] = Path("shop"),
    as_json: Json = False,
) -> None:
    """Score the cleaning against the truth of the simulated shop that the warehouse was built from."""
    from orchestration.config.settings import settings
    from orchestration.quality.cleaning_score import score, table

    scores = score(settings().warehouse, shop)
    if as_json:
        console.show_json(
            [
                {
                    **vars(row),
                    "precision": row.precision,
                    "recall": row.recall,
                    "false_alarms": row.false_alarms,
                    "fails": row.fails,
                }
                for row in scores
            ]
        )
    else:
        console.out().print(table(scores))
    if any(row.fails for row in scores):
        raise typer.Exit(1)


def _is_number(given: float | None) -> float | None:
    """Bounds let NaN through."""
    if given is not None and math.isnan(given):
        raise typer.BadParameter("nan is no number")
    return given


@lake_app.command("maintain")
def lake_maintain(
    keep_days: Annotated[
        float,
        typer.Option(
            min=0.05,
            max=36_500,
            callback=_is_number,
            help="Snapshots younger than so many days stay: longer than anybody reads, who would miss rows of one that expires.",
        ),
    ] = 7.0,
    every: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=1e6, callback=_is_number, metavar="MINUTES", help="Do it again and again, until stopped."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge small files, let old snapshots expire, remove files that nothing names; safe beside loaders and builds."""
    from orchestration.lake import lake
    from orchestration.warehouse.maintain import maintain

    while True:
        try:
            done = maintain(timedelta(days=keep_days))
        except Exception as error:
            if every is None or not lake.is_outage(error):
                raise
            said = error if isinstance(error, FinegrainError) else lake.failure(error, "what was done stays")
            console.say(f"{said}; trying again in {every:g} minutes")
            time.sleep(60 * every)
            continue
        if as_json:
            console.show_json(done.as_dict())
        else:
            console.out().print(
                f"{done.files_before:,} files became {done.files_after:,}, {done.snapshots_expired:,} snapshots expired, "
                f"{done.files_removed:,} files removed, in {done.seconds:.1f} s"
            )
            for note in done.notes:
                console.out().print(f"  {note}", markup=False)
        if every is None:
            return
        time.sleep(60 * every)
