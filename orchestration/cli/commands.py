"""The commands of `finegrain`, with their options."""

from __future__ import annotations

import math
import socket
import sys
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from importlib import import_module
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
    from orchestration.features.exports import Export, Wanted
    from orchestration.ingest.load import FileReport
    from orchestration.store.forget import Forgotten


app = typer.Typer(
    help="From a shop's raw events to tested, point-in-time-correct personalization features.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench_app = typer.Typer(help="Measure how well and how fast.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench")
export_app = typer.Typer(
    help="Write what recommenders are trained with: interactions, RecBole's files, sequences.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(export_app, name="export")
lake_app = typer.Typer(help="Maintain the lake.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(lake_app, name="lake")
rates_app = typer.Typer(help="Exchange rates.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(rates_app, name="rates")
store_app = typer.Typer(help="Serve the newest features by key.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")
features_app = typer.Typer(help="Look at features.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(features_app, name="features")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="TIME",
        help="The time for which features are computed (ISO 8601, UTC unless it has an offset).",
    ),
]
Remap = Annotated[
    bool,
    typer.Option("--remap", help="Apply the current mapping to loaded rows again, and replace those that change."),
]
Keep = Annotated[
    bool,
    typer.Option("--keep", help="Leave rows that were loaded with an earlier mapping as they are; load only new rows."),
]
Largest = Annotated[int, typer.Option(min=1, help="A message with more bytes becomes a dead letter.")]
MostKeys = Annotated[int, typer.Option(min=1, help="A message with more top-level keys becomes a dead letter.")]
Deepest = Annotated[int, typer.Option(min=1, help="A message with more levels of nesting becomes a dead letter.")]
FullRefresh = Annotated[bool, typer.Option("--full-refresh", help="Build every model from scratch.")]


Events = Annotated[
    list[str] | None,
    typer.Option(metavar="TYPES", help="Event types, with commas between, such as view_item,purchase."),
]
Vocabulary = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="An earlier export: its ids keep their codes, and new ids get the next ones."),
]
TrustEventTime = Annotated[
    bool,
    typer.Option(
        "--trust-event-time",
        help="Count each event from when it happened, however late it arrived. For history that was imported at once.",
    ),
]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Only events of this time and later.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only events before this time. Default: --as-of.")]
KnownAsOf = Annotated[
    str | None,
    typer.Option("--as-of", metavar="TIME", help="Only what was known at this time. Default: that of the last build."),
]


class Process(StrEnum):
    """Dagster's processes."""

    dev = "dev"
    webserver = "webserver"
    daemon = "daemon"


class DemoData(StrEnum):
    """The data sets of `finegrain demo`."""

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
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the project.")],
    name: Annotated[
        str | None, typer.Option(help="The name of the dbt project. Default: the name of the folder.")
    ] = None,
    git: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Take finegrain's dbt project from this git repository, not from this installation."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="With --git: the tag or commit to take.")] = None,
) -> None:
    """Write a dbt project for a shop, which takes finegrain as a package."""
    from orchestration.cli.init import init as run

    run(folder, name=name, git=git, revision=revision)
    out = console.out()
    out.print(
        f"{console.shown(folder)} is a dbt project of its own; its README.md says what each file is for. Next:",
        markup=False,
    )
    out.print(f"  cd {console.shown(folder)}\n  finegrain load mappings\n  finegrain build", markup=False)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder for the files; created if needed.")] = Path("shop"),
    events: Annotated[int, typer.Option(help="Approximate number of events.")] = 1_000_000,
    days: Annotated[int, typer.Option(help="Days of history.")] = 90,
    start: Annotated[str, typer.Option(metavar="DATE", help="The first day.")] = "2025-01-06",
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 7,
    incidents: Annotated[
        bool,
        typer.Option(
            "--incidents",
            help="Plant incidents: a source stops, a currency is wrong, and others, each on a day of its own.",
        ),
    ] = False,
    wholesale: Annotated[
        bool,
        typer.Option(
            "--wholesale",
            help="Resellers buy in boxes on weekday mornings, and outliers are such quantities at other hours.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the files of a simulated shop, with a list of the errors planted in them."""
    from orchestration.simulation.simulate import simulate as run

    try:
        first = date.fromisoformat(start)
    except ValueError:
        raise FinegrainError(f"--start is '{start}', which is not a date; write it like 2025-01-06") from None
    with console.progress("simulate", 1, quiet=as_json) as advance:
        before = 0.0

        def follow(done: int, total: int) -> None:
            nonlocal before
            advance(done / total - before, "")
            before = done / total

        summary = run(
            out,
            events=events,
            seed=seed,
            days=days,
            start=first,
            incidents=incidents,
            wholesale=wholesale,
            progress=follow,
        )
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
        # These are zero unless a delivery was loaded again.
        if not file.skipped:
            said += f", {file.replaced:,} of them replaced former rows" * bool(file.replaced)
            said += f", {file.unchanged:,} unchanged" * bool(file.unchanged)
            said += f", {file.gone:,} deleted" * bool(file.gone)
        out.print(f"{file.source}.{file.table} {console.shown(file.file)}: {said}")
        for note in file.notes:
            out.print(f"  {note}")


@app.command()
def load(
    mapping: Annotated[str, typer.Argument(help="A mapping file, or a folder of them (docs/reference/mapping.md).")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files or globs to use instead of the mapping's; table=path if it fills several tables."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Base folder of the mapping's relative paths.")] = None,
    remap: Remap = False,
    keep: Keep = False,
    as_json: Json = False,
) -> None:
    """Load files into the lake by a mapping."""
    from orchestration.ingest.load import load as run

    report = run(mapping, paths, data, remap, keep, quiet=as_json)
    if as_json:
        console.show_json(report.as_dict())
        return
    out = console.out()
    _show_files(out, report.files)
    out.print(f"{report.rows:,} rows landed in {report.seconds:.1f} s; the lake is at snapshot {report.snapshot}")


@app.command()
def ingest(
    mapping: Annotated[str, typer.Argument(help="A mapping file, or a folder of them (docs/reference/mapping.md).")],
    data: Annotated[str | None, typer.Option(help="Base folder of the mapping's relative paths.")] = None,
    from_beginning: Annotated[
        bool,
        typer.Option(
            "--from-beginning",
            help="Read tables and APIs from their beginning; rows already in the lake do not land twice.",
        ),
    ] = False,
    remap: Remap = False,
    keep: Keep = False,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows per transaction.")] = 500_000,
    as_json: Json = False,
) -> None:
    """Load new rows of databases, APIs and files into the lake by a mapping."""
    from orchestration.ingest.ingest import ingest as run

    report = run(mapping, data, from_beginning, remap, keep, batch_rows=batch_rows, quiet=as_json)
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
        said += [f"{each.taken_back:,} removed"] * bool(each.taken_back)
        out.print(f"{each.source}.{each.table} {each.place}: {', '.join(said)}", markup=False)
        for note in each.notes:
            out.print(f"  {note}", markup=False)
    _show_files(out, report.files)
    out.print(f"{report.rows:,} rows landed in {report.seconds:.1f} s; the lake is at snapshot {report.snapshot}")


@app.command()
def unload(
    what: Annotated[str, typer.Argument(metavar="SOURCE[.TABLE]", help="A source, or one of its raw tables.")],
    file: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Unload only this file, named as the load reported it; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove the rows of a source, a table or a file; they can be loaded again."""
    from orchestration.ingest.unload import unload as run

    report = run(what, file or ())
    if as_json:
        console.show_json(report.as_dict())
        return
    out = console.out()
    for part in report.parts:
        name = console.shown(part.file or f"(by {part.came_by})")
        out.print(f"{report.source}.{part.table} {name}: {part.rows:,} rows removed", markup=False)
    for note in report.notes:
        out.print(f"  {note}", markup=False)
    out.print(f"{report.rows:,} rows removed in {report.seconds:.1f} s; the lake is at snapshot {report.snapshot}")


@app.command()
def forget(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Login ids, as the source writes them.")
    ] = None,
    visitor: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="An anonymous visitor's id; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show whose rows would be removed, and how many.")
    ] = False,
    allow: Annotated[
        bool,
        typer.Option(
            "--allow", help="Take these ids off the list of forgotten people: new rows of theirs are loaded again."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove people from everywhere, and search all files for what is left (docs/how-to/forget-a-person.md)."""
    from orchestration.store import forget as run

    out = console.out()
    if allow:
        allowed = run.allow(ids or (), visitor or ())
        if as_json:
            console.show_json({"allowed": allowed})
        else:
            out.print(f"{allowed:,} ids taken off the list")
        return
    done = run.forget(
        ids or (),
        visitor or (),
        dry_run=dry_run,
        quiet=as_json,
        follow=None if as_json else lambda each: _show_person(out, each),
    )
    if as_json:
        console.show_json(done.as_dict())
    elif done.proof is not None:
        proof = done.proof
        for place, count in done.elsewhere.items():
            out.print(f"  {place}: {count:,} rows removed", markup=False)
        out.print(
            f"searched {proof.files:,} files ({proof.bytes / 2**20:,.1f} MiB) and {proof.rows:,} rows for {proof.values:,} ids: "
            f"{sum(proof.found.values()):,} found, in {done.seconds:.1f} s"
        )
        for place, count in proof.found.items():
            out.print(f"  left in {console.shown(place)}: {count:,}", markup=False)
        if done.is_complete:
            out.print(
                "Backups, the sources themselves, and files that you wrote elsewhere (training sets, exports) are yours to clean."
            )
    if not done.is_complete:
        raise typer.Exit(1)


def _show_person(out: Console, done: Forgotten) -> None:
    person = done.person
    for name, found in (
        ("logins", person.logins),
        ("visitors", person.visitors),
        ("customers", person.customers),
        ("orders", person.orders),
    ):
        more = f" and {len(found) - 5:,} more" if len(found) > 5 else ""
        out.print(f"{name}: {console.shown(', '.join(found[:5])) or 'none'}{more}", markup=False)
    for table, rows in done.rows.items():
        out.print(f"  lake {table}: {rows:,} rows", markup=False)
    for note in done.notes:
        out.print(f"  {console.shown(note)}", markup=False)


@app.command()
def stream(
    mapping: Annotated[str, typer.Argument(help="A mapping file with a stream (docs/how-to/connect-a-stream.md).")],
    table: Annotated[str | None, typer.Argument(help="The raw table, if the mapping has several streams.")] = None,
    data: Annotated[str | None, typer.Option(help="Base folder of a folder stream's relative path.")] = None,
    drain: Annotated[bool, typer.Option("--drain", help="Exit when all available messages have landed.")] = False,
    from_beginning: Annotated[
        bool,
        typer.Option(
            "--from-beginning",
            help="Read the stream from its beginning again, ignoring stored positions. Run only one loader.",
        ),
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="Close a batch at this many messages.")] = 10_000,
    mebibytes: Annotated[float, typer.Option(min=0.001, help="Close a batch at this many MiB of payload.")] = 4,
    age: Annotated[
        float, typer.Option(min=0.01, help="Close a batch this many seconds after its first message.")
    ] = 1.0,
    largest: Largest = 2**20,
    most_keys: MostKeys = 1_000,
    deepest: Deepest = 100,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus metrics; off by default.")] = None,
    metrics_address: Annotated[str, typer.Option(help="The address that serves the metrics.")] = "127.0.0.1",
    as_json: Annotated[
        bool, typer.Option("--json", help="Report progress as JSON lines, one every five seconds.")
    ] = False,
) -> None:
    """Load a stream (Kafka, Kinesis, a folder of growing files) into the lake, each message exactly once, until stopped."""
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
        from_beginning=from_beginning,
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
def streams(
    minutes: Annotated[
        int, typer.Option(min=1, max=60, help="Of so many closed minutes, list what is out of the ordinary.")
    ] = 3,
    as_json: Json = False,
) -> None:
    """Report what came by streams in the newest closed minute, and what is out of the ordinary in it (docs/explanation/metrics.md)."""
    from orchestration.quality.streams import streams as look

    found = look(minutes, datetime.now(UTC).replace(tzinfo=None))
    if as_json:
        console.show_json(found.as_dict())
    else:
        found.show(console.out())


@app.command()
def live(
    mapping: Annotated[
        str | None,
        typer.Argument(
            help="A mapping file with a stream, to load it in this process; without one, loaders run elsewhere."
        ),
    ] = None,
    table: Annotated[str | None, typer.Argument(help="The raw table, if the mapping has several streams.")] = None,
    data: Annotated[str | None, typer.Option(help="Base folder of a folder stream's relative path.")] = None,
    drain: Annotated[bool, typer.Option("--drain", help="Exit when all that came is written to the store.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="If there is no build that has passed, wait for one instead of exiting.")
    ] = False,
    age: Annotated[
        float, typer.Option(min=0.01, help="Land a batch of the stream this many seconds after its first message.")
    ] = 0.1,
    batch: Annotated[int, typer.Option(min=1, help="Identities to compute at once.")] = 2_000,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus metrics; off by default.")] = None,
    metrics_address: Annotated[str, typer.Option(help="The address that serves the metrics.")] = "127.0.0.1",
    as_json: Annotated[
        bool, typer.Option("--json", help="Report progress as JSON lines, one every five seconds.")
    ] = False,
) -> None:
    """Write the features of customers to the online store as their events come, until stopped (docs/how-to/serve-live.md)."""
    from orchestration.ingest.stream.watch import Form
    from orchestration.live.live import LIMITS
    from orchestration.live.live import live as run

    form = Form.json if as_json else Form.lines
    done = run(
        mapping,
        table,
        data,
        drain=drain,
        wait=wait,
        limits=replace(LIMITS, age=age),
        form=form,
        port=metrics_port,
        address=metrics_address,
        batch=batch,
    )
    if not as_json:
        console.out().print(
            f"{done['vectors']:,} vectors for {done['rows']:,} rows of {done['identities']:,} identities in {done['seconds']:.1f} s"
        )


@app.command()
def parity(
    sample: Annotated[int, typer.Option(min=1, help="How many vectors of each mart to compare.")] = 1_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare vectors of the online store with the same features computed from the warehouse as of the same moments."""
    from orchestration.live.parity import parity as run

    found = run(sample=sample)
    if as_json:
        console.show_json(found.as_dict())
    else:
        for mart, each in found.marts.items():
            console.out().print(
                f"{mart}: {each.compared:,} vectors compared, {each.different:,} differ, {each.missing:,} missing, {each.extra:,} extra, "
                f"{each.later:,} later than the last build"
            )
            for example in each.examples:
                console.out().print(f"  {console.shown(example)}")
    if not found.is_equal:
        raise typer.Exit(1)


@app.command()
def replay(
    mapping: Annotated[str, typer.Argument(help="The mapping of the stream.")],
    table: Annotated[str | None, typer.Argument(help="The raw table, if the mapping has several streams.")] = None,
    quarantined: Annotated[
        bool,
        typer.Option(
            "--quarantined", help="Replay rows that the last published build quarantined, instead of dead letters."
        ),
    ] = False,
    rule: Annotated[str | None, typer.Option(help="Only those that broke this rule.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only those that arrived at or after this time.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Only those that arrived before this time.")] = None,
    position: Annotated[str | None, typer.Option(help="Only the one at this position of the stream.")] = None,
    largest: Largest = 2**20,
    most_keys: MostKeys = 1_000,
    deepest: Deepest = 100,
    as_json: Json = False,
) -> None:
    """Reprocess dead letters or quarantined rows after a fix; each lands once."""
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
    what = "quarantined rows reprocessed" if quarantined else "dead letters reprocessed"
    same = f", {done.unchanged:,} unchanged" if quarantined else ""
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
            f"{option} is '{text}', which is not an ISO 8601 time; write it like 2025-03-02T10:00:00Z"
        ) from None
    return given.astimezone(UTC).replace(tzinfo=None) if given.tzinfo else given


@app.command()
def doctor(
    mapping: Annotated[
        str | None, typer.Argument(help="A mapping file, or a folder of them; without one, check this machine.")
    ] = None,
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files or globs to use instead of the mapping's; table=path if it fills several tables."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Base folder of the mapping's relative paths.")] = None,
    as_json: Json = False,
) -> None:
    """Check a mapping against its data before loading, and report problems by field."""
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
        bool,
        typer.Option(
            "--full-audit", help="Run every test on all rows, also on those that passed before and have not changed."
        ),
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
        console.out().print(done.summary)
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
        bool, typer.Option("--past", help="Also publish a build of an earlier time (--as-of) than the published one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish the audited marts to readers, in one atomic step."""
    from orchestration.config.published import published_report
    from orchestration.quality.alerts import read_rules
    from orchestration.report.page import publish_page
    from orchestration.warehouse.publish import publish as run

    done = run(past=past, renewed_within=read_rules().freshness.published)
    note = publish_page()
    if as_json:
        console.show_json({**done.as_dict(), "report": published_report(), "notes": [note] if note else []})
        return
    table = Table("mart", "rows", "columns", box=None, pad_edge=False)
    for mart, (rows, columns) in done.marts.items():
        table.add_row(mart, f"{rows:,}", str(columns))
    console.out().print(table)
    what = f"published in {done.seconds:.1f} s" if done.is_new else "this build is published already"
    console.out().print(f"{what}: {done.folder.parent.parent / 'finegrain.duckdb'} (lake snapshot {done.built_from})")
    if note:
        console.say(f"warning: {note}")
    else:
        console.out().print(f"report: {done.folder.parent.parent / 'report.html'}")


@app.command()
def contracts(
    mapping: Annotated[
        str | None, typer.Argument(help="A mapping file, or a folder of them; without one, only the marts' contracts.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where they are written; created if needed.")] = Path(
        "contracts"
    ),
    as_json: Json = False,
) -> None:
    """Write the contracts of the marts and of mappings as Open Data Contracts (ODCS 3.1)."""
    from orchestration.quality.data_contracts import data_contracts as run

    written = run(out, mapping)
    if as_json:
        console.show_json({kind: [str(path) for path in paths] for kind, paths in written.items()})
        return
    for kind, paths in written.items():
        if paths:
            console.out().print(f"contracts of {kind}: {len(paths)}, in {console.shown(out / kind)}", markup=False)


@app.command()
def report(
    html: Annotated[
        bool, typer.Option("--html", help="Write one page with charts instead, which needs no network and no server.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where --html writes the page.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Report what was loaded, what became of it, and what the marts contain."""
    from orchestration.quality.account import account

    if html:
        from orchestration.report.page import write_page

        written = write_page(out)
        if as_json:
            console.show_json({"report": written})
        else:
            console.out().print(f"wrote {console.shown(written)}", markup=False)
        return
    found = account()
    if as_json:
        console.show_json(found.as_dict())
    else:
        found.show(console.out())


@app.command()
def catalog(
    mart: Annotated[str | None, typer.Argument(help="Show one mart in full; without it, one line per mart.")] = None,
    like: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only features with this text in their name or meaning.")
    ] = None,
    warehouse: Annotated[
        bool, typer.Option("--warehouse", help="Use the warehouse instead of the published marts.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the catalogue as a page (docs/reference/features.md).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what each feature means, where it comes from and what its values look like."""
    from orchestration.features.catalog import catalog as run
    from orchestration.features.catalog import page, show

    in_full = mart is not None or like is not None
    found = run(
        mart=mart,
        like=like,
        of_warehouse=warehouse,
        lineage=in_full or as_json or write is not None,
        quiet=as_json,
    )
    if write is not None:
        write.write_text(page(found), "utf-8")
    if as_json:
        console.show_json(found.as_dict())
    elif write is not None:
        console.out().print(f"wrote {write}: {sum(len(each.features) for each in found.marts)} features")
    else:
        show(found, console.out(), in_full=in_full)


@app.command("suggest-tests")
def suggest_tests(
    tables: Annotated[
        list[str],
        typer.Argument(metavar="TABLE", help="Models of the warehouse, or raw tables of the lake: raw.events."),
    ],
    published: Annotated[
        bool, typer.Option("--published", help="Look at the published marts instead of the warehouse.")
    ] = False,
    sample: Annotated[
        int, typer.Option(min=1_000, metavar="ROWS", help="Rows in which patterns and compound keys are looked for.")
    ] = 100_000,
    confidence: Annotated[
        float,
        typer.Option(min=0.5, max=0.9999, help="How sure to be that at most 1 in 20 rows breaks a suggested rule."),
    ] = 0.95,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to a new file instead of printing.")] = None,
) -> None:
    """Suggest dbt tests for tables from what is in them, as YAML to read, change and keep."""
    from orchestration.quality.suggestions import suggest as run
    from orchestration.quality.suggestions import write as save

    text = run(tables, published=published, sample=sample, confidence=confidence)
    if write is None:
        console.plain(sys.stdout, soft_wrap=True).print(text, end="")  # whole lines, also on a narrow terminal
    else:
        save(text, write)
        console.out().print(f"wrote {console.shown(write)}", markup=False)


@app.command("training-set")
def training_set(
    spine: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SPINE]",
            help="A CSV or Parquet file (key columns, as_of, and any others, such as labels), or a ready-made spine, such as customer_outcomes.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="A new folder for the training set.")] = Path("training"),
    query: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Instead of a file: a query on the published marts that gives the spine."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Only rows that have this label, and none of the spine's other labels."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="For ranking: rows alike in these columns, with commas between, are candidates for one choice. They stand together and have the same "
            "group_id. Default: those of a ready-made spine.",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Features, with commas between: user_features.views_30d, user_features.views_*, a whole mart, or a feature set of dbt_project.yml. "
            "Default: user_features.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="TIME,TIME", help="Write train, valid and test rows: where valid begins, and where test does."
        ),
    ] = None,
    gap: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="DAYS",
            help="With --split: days that labels look ahead. Rows so close before a split are left out. Default: the window of a ready-made spine's label.",
        ),
    ] = None,
    period: Annotated[
        float,
        typer.Option(
            min=1 / 1440,
            metavar="DAYS",
            help="Features of products and categories are as of the last begin of a period before as_of.",
        ),
    ] = 1,
    trust_event_time: TrustEventTime = False,
    as_json: Json = False,
) -> None:
    """Write features as they were known at the moment of each row of a spine."""
    from orchestration.features.training import training_set as run

    if (spine is None) == (query is None):
        raise FinegrainError("name a file with the spine or a ready-made one, or give one as --query, and not both")
    names = _names(features or ["user_features"])
    done = run(
        out,
        spine=spine,
        query=query,
        label=label,
        group=_names([group or ""]),
        features=names,
        splits=_splits(split),
        gap=None if gap is None else timedelta(days=gap),
        period=timedelta(days=period),
        trust_event_time=trust_event_time,
        sets=settings.variable("feature_sets", {}),
        quiet=as_json,
    )
    if as_json:
        console.show_json(done.as_dict())
        return
    for file, rows in done.files.values():
        console.out().print(f"{done.out / file}: {rows:,} rows, {len(done.features)} features")
    if trust_event_time:
        console.out().print("events count from when they happened: what arrived late is seen before anybody knew it")
    if done.left_out:
        console.out().print(f"{done.left_out:,} rows are in no file: their labels would look beyond a split")
    for mart, rows in done.unknown.items():
        if rows:
            console.out().print(
                f"{rows:,} rows have no {mart}: nothing was known of their keys by their as_of; these features are null"
            )
    console.out().print(
        f"in {done.seconds:.1f} s, of lake snapshot {done.built_from}; {done.out / 'training_set.yml'} has what it was made from"
    )


def _names(given: list[str] | None) -> list[str]:
    """Names of an option that takes several, with commas between or by being repeated."""
    return [name.strip() for each in given or [] for name in each.split(",") if name.strip()]


def _splits(given: str | None) -> list[datetime]:
    return [moment for each in _names([given or ""]) if (moment := _moment("--split", each))]


Counts = Annotated[
    bool,
    typer.Option(
        "--counts",
        help="Each event weighs 1, so that sums are counts. Default: what it adds to an affinity (seeds/event_weights.csv).",
    ),
]


def _wanted(
    events: list[str] | None,
    counts: bool,
    since: str | None,
    until: str | None,
    as_of: str | None,
    split: str | None,
) -> Wanted:
    from orchestration.features import exports

    return exports.Wanted(
        _names(events),
        counts,
        _moment("--since", since),
        _moment("--until", until),
        _moment("--as-of", as_of),
        _splits(split),
    )


def _show_export(done: Export, as_json: bool, trust_event_time: bool) -> None:
    if as_json:
        console.show_json(done.as_dict())
        return
    for file, rows in done.files.items():
        console.out().print(f"{done.out / file}: {rows:,} rows")
    if trust_event_time:
        console.out().print("events count from when they happened: what arrived late is seen before anybody knew it")
    for why, rows in done.notes.items():
        console.out().print(f"{rows:,} {why}")
    sizes = ", ".join(f"{size:,} {name}" for name, size in done.sizes.items())
    console.out().print(
        f"{sizes}; in {done.seconds:.1f} s, of lake snapshot {done.built_from}; {done.out / 'made_from.yml'} has what it was made from"
    )


@export_app.command("interactions")
def export_interactions(
    out: Annotated[Path, typer.Option(help="A new folder for the files.")] = Path("interactions"),
    events: Events = None,
    counts: Counts = False,
    since: Since = None,
    until: Until = None,
    as_of: KnownAsOf = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="TIME[,TIME]",
            help="Write train and test rows, or train, valid and test: where test begins, or valid and test. Each file has what was known at its end.",
        ),
    ] = None,
    vocabulary: Vocabulary = None,
    trust_event_time: TrustEventTime = False,
    as_json: Json = False,
) -> None:
    """Write events about products as user_id, item_id, weight and datetime, for RecTools and implicit."""
    from orchestration.features.exports import interactions as run

    wanted = _wanted(events, counts, since, until, as_of, split)
    _show_export(run(out, wanted, earlier=vocabulary, trust_event_time=trust_event_time), as_json, trust_event_time)


@export_app.command("recbole")
def export_recbole(
    out: Annotated[Path, typer.Option(help="A new folder; its name is that of the data set.")] = Path("shop"),
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Features of user_features and item_features, with commas between, as in training-set. They are as of the first --split, or as of the export.",
        ),
    ] = None,
    events: Events = None,
    counts: Counts = False,
    since: Since = None,
    until: Until = None,
    as_of: KnownAsOf = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="TIME,TIME",
            help="Write train, valid and test rows: where valid begins, and where test does. Each file has what was known at its end.",
        ),
    ] = None,
    trust_event_time: TrustEventTime = False,
    as_json: Json = False,
) -> None:
    """Write events about products, and features of customers and products, as RecBole's atomic files."""
    from orchestration.features.exports import recbole as run

    done = run(
        out,
        _wanted(events, counts, since, until, as_of, split),
        features=_names(features),
        sets=settings.variable("feature_sets", {}),
        trust_event_time=trust_event_time,
    )
    _show_export(done, as_json, trust_event_time)


@export_app.command("sequences")
def export_sequences(
    spine: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SPINE]",
            help="A CSV or Parquet file (customer_id or session_id, as_of, and any others), or a ready-made spine, such as next_in_session.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="A new folder for the files.")] = Path("sequences"),
    query: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Instead of a file: a query on the published marts that gives the spine."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Only rows that have this label, and none of the spine's other labels."),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Whose events: customer_id or session_id. Default: the one that the spine has, or customer_id.",
        ),
    ] = None,
    last: Annotated[int, typer.Option(metavar="K", help="How many events before as_of.")] = 50,
    events: Events = None,
    vocabulary: Vocabulary = None,
    trust_event_time: TrustEventTime = False,
    as_json: Json = False,
) -> None:
    """Write the last products, categories, event types and times before each row of a spine, as lists."""
    from orchestration.features.sequences import sequences as run

    if (spine is None) == (query is None):
        raise FinegrainError("name a file with the spine or a ready-made one, or give one as --query, and not both")
    done = run(
        out,
        spine=spine,
        query=query,
        label=label,
        of=of,
        events=_names(events),
        last=last,
        earlier=vocabulary,
        trust_event_time=trust_event_time,
        quiet=as_json,
    )
    _show_export(done, as_json, trust_event_time)


@app.command("dagster")
def run_dagster(
    part: Annotated[
        Process, typer.Argument(help="All of Dagster on this machine, or one of its processes.")
    ] = Process.dev,
    shop: Annotated[
        str | None,
        typer.Option(
            envvar="FINEGRAIN_SHOP", help="A mapping file, or a folder of them; without one, a simulated shop."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(envvar="FINEGRAIN_DATA", help="Base folder of the mappings' relative paths.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address that serves Dagster's page.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 3000,
    allow_host: Annotated[
        str,
        typer.Option(
            envvar="FINEGRAIN_DAGSTER_HOSTS",
            metavar="NAMES",
            help="Further host names under which the page may be opened, separated by commas.",
        ),
    ] = "",
) -> None:
    """Run Dagster: its page, schedules, sensors and alerts, until stopped."""
    _must_have_dagster()
    if part is not Process.daemon:
        _must_be_free(host, port)
    from orchestration.dagster.instance import start

    where = None
    if shop is None and settings.PROJECT != settings.PACKAGE:
        shop, data = str(settings.PROJECT / "mappings"), data or str(settings.PROJECT)
    if shop is None:
        from orchestration.cli.demo import simulated_home, simulated_shop

        where = simulated_home()
        shop, data = str(settings.PACKAGE / "examples" / "simulated_shop"), str(simulated_shop(where))
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
    """Check the port first: Dagster would notice only after a minute, and its other processes would go on without the page."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise FinegrainError(
            f"cannot listen on port {port} of {host}: {(error.strerror or str(error)).lower()}; "
            f"is something running there? Choose another port, as in --port {port % 65535 + 1}"
        ) from None


@app.command()
def demo(
    data: Annotated[
        DemoData, typer.Option(help="A simulated shop, or the Dunnhumby Complete Journey.")
    ] = DemoData.simulated,
    events: Annotated[int, typer.Option(help="Size of the simulated shop.")] = 50_000,
) -> None:
    """Run everything once, from raw files to published features, and print a report."""
    from orchestration.cli.demo import demo as run

    if not run(data.value, events=events):
        raise typer.Exit(1)


@store_app.command("apply")
def store_apply(as_json: Json = False) -> None:
    """Write Feast's repository from the models' YAML, and bring its registry up to date."""
    from orchestration.store.repository import apply

    done = apply()
    if as_json:
        console.show_json(done.as_dict())
        return
    out = console.out()
    out.print(f"{len(done.entities)} entities: {', '.join(done.entities)}")
    out.print(
        f"{len(done.views)} feature views: {', '.join(f'{name} ({count})' for name, count in done.views.items())}"
    )
    out.print(f"{len(done.services)} feature services: {', '.join(done.services)}")
    if done.removed:
        out.print(f"removed, since they are declared no more: {', '.join(done.removed)}")
    out.print(f"Feast's repository is {done.folder}; the online store is {done.online_store}")


@store_app.command("materialize")
def store_materialize(
    marts: Annotated[list[str] | None, typer.Argument(help="Only these feature marts.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also marts that the store has as they were published.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the published feature marts into the online store; a vector that is newer there stays."""
    from orchestration.store.materialize import materialize

    done = materialize(marts=marts or (), everything=everything, quiet=as_json)
    if as_json:
        console.show_json(done.as_dict())
        return
    out = console.out()
    for name, mart in done.marts.items():
        said = [f"{mart.rows:,} rows, {mart.written:,} written"]
        said += [f"{mart.rows - mart.written:,} newer in the store"] * (mart.rows > mart.written)
        said += [f"{mart.removed:,} removed, whose keys are no more"] * bool(mart.removed)
        out.print(f"{name}: {', '.join(said)}")
    if done.unchanged:
        out.print(f"unchanged since they were last materialized: {', '.join(done.unchanged)}")
    out.print(f"{done.online_store} has lake snapshot {done.built_from}, in {done.seconds:.1f} s")


@store_app.command("serve")
def store_serve(
    host: Annotated[str, typer.Option(help="The address that serves features.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 6566,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer.")] = 1,
) -> None:
    """Run Feast's feature server, until stopped."""
    _must_be_free(host, port)
    from orchestration.store.serve import serve

    serve(host, port, workers)


@features_app.command("get")
def features_get(
    key: Annotated[
        list[str], typer.Argument(metavar="ENTITY ID...", help="customer 42, or customer 42 product 7, and so on.")
    ],
    like: Annotated[str, typer.Option(metavar="TEXT", help="Only features with this text in their name.")] = "",
    as_json: Json = False,
) -> None:
    """Show the features of a key in the online store, with their age."""
    from orchestration.store.lookup import get

    found = get(key)
    if as_json:
        console.show_json(found.as_dict())
    else:
        found.show(console.out(), like)


@rates_app.command("update")
def rates_update(
    origin: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE|URL", help="One of the ECB's files; without it, its whole history."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Load new and changed reference rates of the European Central Bank."""
    from orchestration.ingest.rates import update

    done = update(origin)
    if as_json:
        console.show_json(done.as_dict())
        return
    console.out().print(
        f"{done.new:,} new and {done.changed:,} changed rates landed, {done.unchanged:,} unchanged: {done.currencies} currencies, "
        f"{done.days:,} days up to {done.newest}, in {done.seconds:.1f} s; the lake is at snapshot {done.snapshot}"
    )


@bench_app.command("cleaning")
def bench_cleaning(
    shop: Annotated[Path, typer.Option(help="Folder of the simulated shop that was loaded.")] = Path("shop"),
    hour_of_week: Annotated[
        bool,
        typer.Option(
            "--hour-of-week", help="Also score outlier rules by hour of the week, on copies of the warehouse."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Score the cleaning against the truth of the simulated shop that the warehouse was built from."""
    from orchestration.config.settings import settings
    from orchestration.quality import seasonal_score
    from orchestration.quality.cleaning_score import score, table

    scores = score(settings().warehouse, shop)
    by_rules = seasonal_score.score(settings(), shop) if hour_of_week else []
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
                for row in [*scores, *by_rules]
            ]
        )
    else:
        console.out().print(table(scores))
        if by_rules:
            console.out().print(seasonal_score.table(by_rules))
    if any(row.fails for row in scores):
        raise typer.Exit(1)


@bench_app.command("imputation")
def bench_imputation(
    rows: Annotated[int, typer.Option(min=100, help="Rows of the matrix that is timed.")] = 50_000,
    columns: Annotated[int, typer.Option(min=2, max=200, help="Its columns.")] = 50,
    hits: Annotated[
        Path | None, typer.Option(help="The Merchandise Store's Parquet file, for the categories of its products.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hide known values, fill them in, and compare with the true ones, beside scikit-learn."""
    from orchestration.config.settings import settings
    from orchestration.quality.imputation_score import score, table

    scores = score(settings(), rows=rows, columns=columns, hits=hits)
    if as_json:
        console.show_json([each.as_dict() for each in scores])
    else:
        console.out().print(table(scores))


@bench_app.command("anomalies")
def bench_anomalies(
    events: Annotated[
        int, typer.Option(help="Events of the shop without incidents; the other has as many a day.")
    ] = 200_000,
    days: Annotated[int, typer.Option(help="Days of the shop without incidents.")] = 180,
    seed: Annotated[int, typer.Option(help="Of both shops. Rules were tuned on 7.")] = 11,
    as_json: Json = False,
) -> None:
    """Score the detection of anomalies: which planted incidents it finds, after how many builds, and how many false alarms it raises."""
    from orchestration.cli.anomalies import bench
    from orchestration.quality.anomaly_score import tables

    score = bench(events=events, days=days, seed=seed, quiet=as_json)
    if as_json:
        console.show_json(
            {
                "incidents": [vars(each) for each in score.incidents],
                "alarms": [{**vars(each), "is_false": each.is_false} for each in score.alarms],
                "tested_days": score.tested_days,
                "false_alarms": score.false_alarms,
                "false_alarms_per_month": score.false_alarms_per_month,
                "alarms_per_month": score.alarms_per_month,
                "fails": score.fails,
            }
        )
    else:
        for table in tables(score):
            console.out().print(table)
        console.out().print(
            f"{score.false_alarms} false alarms: {score.false_alarms_per_month:.2f} a month; "
            f"{len(score.alarms)} alarms in all: {score.alarms_per_month:.2f} a month"
        )
    if score.fails:
        raise typer.Exit(1)


@bench_app.command("features")
def bench_features(
    shop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="merchandise_store, completejourney or simulated; may be repeated. Default: the real ones whose data is here, or else the simulated one.",
        ),
    ] = None,
    hits: Annotated[
        Path | None, typer.Option(help="The Merchandise Store's Parquet file. Default: that of its mapping.")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(help="Keep what is built below this folder, and use it again. Default: a scratch folder."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for results.json and the charts.")] = Path("bench-features"),
    quick: Annotated[
        bool, typer.Option("--quick", help="On a sample: to see that it runs, not for its figures.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train models on raw, cleaned and leaking features of real shops, and compare them (examples/propensity)."""
    absent = [
        package
        for package, module in (
            ("lightgbm", "lightgbm"),
            ("catboost", "catboost"),
            ("scikit-learn", "sklearn"),
            ("matplotlib", "matplotlib"),
            ("pandas", "pandas"),
        )
        if find_spec(module) is None
    ]
    if absent:
        raise FinegrainError(
            f"finegrain bench features trains models, and {', '.join(absent)} is not installed here; run: pip install {' '.join(absent)}"
        )
    # Scripts to be copied, so they are no part of the package.
    sys.path.insert(0, str(settings.PACKAGE / "examples" / "propensity"))
    bench = import_module("bench")
    results = bench.run(shop or [], hits=hits, home=home, out=out, quick=quick, quiet=as_json)
    if as_json:
        console.show_json(results)
    else:
        console.out().print(f"{out}: results.json and charts", markup=False)


def _is_number(given: float | None) -> float | None:
    """Reject NaN, which the range checks let through."""
    if given is not None and math.isnan(given):
        raise typer.BadParameter("nan is not a number")
    return given


@lake_app.command("maintain")
def lake_maintain(
    keep_days: Annotated[
        float,
        typer.Option(
            min=0.05,
            max=36_500,
            callback=_is_number,
            help="Keep snapshots for this many days. Use more than the longest query takes, since it loses rows if its snapshot expires.",
        ),
    ] = 7.0,
    every: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=1e6, callback=_is_number, metavar="MINUTES", help="Repeat at this interval, until stopped."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge small files, expire old snapshots, and remove unreferenced files; safe while loaders and builds run."""
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
