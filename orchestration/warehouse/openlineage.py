"""Sends the lineage of a build as OpenLineage events, to a file or a server (Marquez, DataHub and others): `FINEGRAIN_OPENLINEAGE`.

A build is a job (`build`). Each mart is a job below it (`build.<mart>`), which reads raw tables of the lake and writes the mart, with its columns down to
the raw fields; and its tests are one (`audit.<mart>`). The models between are private to the warehouse, where nobody else reads them, so they are no
datasets of their own.

No build fails because of this: a server that does not answer costs seconds, and becomes a note of the build. Events hold names and counts, and no values.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb

from orchestration import __version__
from orchestration.config.published import DATABASE
from orchestration.config.settings import Environment, Settings
from orchestration.errors import FinegrainError, without_secrets
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.warehouse import warehouse
from orchestration.warehouse.lineage import Lineage, Origin, lineage

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent
    from openlineage.client.transport.transport import Transport

    from orchestration.warehouse.build import Build, Node

#: Seconds that a server may take for one event, and that all events of a build may take.
PATIENCE: Final = 5.0
ALL_PATIENCE: Final = 30.0
#: The name of a build's job, which those of the marts begin with; and what the jobs of their tests begin with.
BUILD: Final = "build"
AUDIT: Final = "audit"
#: The schema of the warehouse that the marts are in.
MARTS: Final = "marts"
#: Tables of the lake that no mapping fills.
_OF_LAKE: Final = ("deletions", "exchange_rates")


@contextmanager
def recording(where: Settings) -> Iterator[Recording]:
    """Records one build: sends its start now, and its failure if the block raises. The caller says how it ended (`ended`)."""
    record = Recording(where, _transport())
    record.begin()
    try:
        yield record
    except BaseException as error:
        record.stopped(is_error=isinstance(error, Exception))
        raise


def _transport() -> Transport | None:
    """The way to the file or the server of the settings; None without one."""
    given = Environment.read()
    if given.openlineage is None:
        return None
    if not given.openlineage.startswith(("http://", "https://")):
        from openlineage.client.transport.file import FileConfig, FileTransport

        path = Path(given.openlineage).absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FinegrainError(
                f"{path}: cannot be written: {error.strerror}; set FINEGRAIN_OPENLINEAGE to another file"
            ) from None
        return FileTransport(FileConfig(log_file_path=str(path), append=True))
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider

    key = given.openlineage_api_key
    return HttpTransport(
        HttpConfig(
            url=given.openlineage.rstrip("/") + "/",
            endpoint=given.openlineage_endpoint.lstrip("/"),
            timeout=PATIENCE,
            auth=ApiKeyTokenProvider({"api_key": key.get_secret_value()}) if key else TokenProvider({}),
            retry={"total": 0},
        )
    )


class Recording:
    """The events of one build. Without a transport it does nothing. `notes`: sentences about what could not be sent."""

    def __init__(self, where: Settings, transport: Transport | None) -> None:
        self.notes: list[str] = []
        self._where, self._transport = where, transport
        self._namespace = Environment.read().openlineage_namespace
        self._lake = f"ducklake:{without_secrets(str(where.lake_catalog))}"
        self._began = datetime.now(UTC)
        self._starts: dict[str, datetime] = {}
        self._spent = 0.0
        if transport is not None:
            from openlineage.client.uuid import generate_new_uuid

            self._run = str(generate_new_uuid())

    def begin(self) -> None:
        """Send the start of the build."""
        self._send(lambda: [self._of_build("START", self._began)])

    def started(self, node: str) -> None:
        """Note when a model or test started."""
        if self._transport is not None:
            self._starts.setdefault(node, datetime.now(UTC))

    def stopped(self, *, is_error: bool) -> None:
        """Send that the build ended early, by an error or because it was stopped."""
        message = "dbt could not run" if is_error else "stopped"
        self._send(lambda: [self._of_build("FAIL" if is_error else "ABORT", datetime.now(UTC), message)])

    def ended(self, done: Build) -> None:
        """Send what became of each mart and its tests, and of the build."""

        def events() -> Iterator[RunEvent]:
            yield from self._of_marts(done.nodes)
            failed = ", ".join(node.name for node in done.failed)
            state = "COMPLETE" if done.passed else "FAIL"
            yield self._of_build(state, datetime.now(UTC), f"failed: {failed}" if not done.passed else None)

        self._send(events)

    def _send(self, events: Callable[[], Iterable[RunEvent]]) -> None:
        """Send events, which are made by a function, one after the other, until one does not arrive."""
        if self._transport is None or self.notes:
            return
        try:
            for event in events():
                if self._spent > ALL_PATIENCE:
                    raise TimeoutError(f"all events together take more than {ALL_PATIENCE:g} seconds")
                began = time.monotonic()
                self._transport.emit(event)
                self._spent += time.monotonic() - began
        except Exception as error:  # of whatever kind: a build does not fail because of its lineage
            why = without_secrets(str(error).splitlines()[0] if str(error) else type(error).__name__)
            self.notes.append(f"the build's lineage was not sent completely (FINEGRAIN_OPENLINEAGE): {why}")

    # ------------------------------------------------------------------------------------------------ events

    def _event(
        self,
        state: str,
        moment: datetime,
        run: str,
        job: str,
        kind: str,
        *,
        message: str | None = None,
        inputs: Sequence[InputDataset] = (),
        outputs: Sequence[OutputDataset] = (),
    ) -> RunEvent:
        from openlineage.client import facet_v2 as facets
        from openlineage.client.event_v2 import Job, Run, RunEvent, RunState, set_producer

        set_producer(f"urn:finegrain:{__version__}")
        of_run: dict[str, Any] = {
            "processing_engine": facets.processing_engine_run.ProcessingEngineRunFacet(
                duckdb.__version__, "DuckDB", __version__
            )
        }
        if job != BUILD:
            of_run["parent"] = facets.parent_run.ParentRunFacet(
                facets.parent_run.Run(self._run), facets.parent_run.Job(self._namespace, BUILD)
            )
        if message is not None:
            of_run["errorMessage"] = facets.error_message_run.ErrorMessageRunFacet(message, "SQL")
        return RunEvent(
            eventType=RunState[state],
            eventTime=moment.isoformat(),
            run=Run(run, of_run),
            job=Job(self._namespace, job, {"jobType": facets.job_type_job.JobTypeJobFacet("BATCH", "FINEGRAIN", kind)}),
            inputs=list(inputs),
            outputs=list(outputs),
            producer=f"urn:finegrain:{__version__}",
        )

    def _of_build(self, state: str, moment: datetime, message: str | None = None) -> RunEvent:
        return self._event(state, moment, self._run, BUILD, "BUILD", message=message)

    def _of_marts(self, nodes: Sequence[Node]) -> Iterator[RunEvent]:
        traced = lineage(self._where)
        layouts = self._layouts()
        models = {node.name: node for node in nodes if node.kind == "model" and node.name in traced}
        for name, node in models.items():
            if node.status == "skipped":
                continue
            is_built = node.status == "success"
            yield from self._pair(
                f"{BUILD}.{name}",
                "MODEL",
                [node],
                None if is_built else f"{name} could not be built; finegrain build says why",
                inputs=self._inputs(traced[name]),
                outputs=[self._mart(name, layouts, traced[name])] if is_built else [],
            )
        for name, tests in _by_mart(nodes, models).items():
            failed = [test.name for test in tests if test.failed]
            yield from self._pair(
                f"{AUDIT}.{name}",
                "TEST",
                tests,
                f"failed: {', '.join(failed)}" if failed else None,
                inputs=[self._audited(name, layouts, tests)],
            )

    def _pair(
        self,
        job: str,
        kind: str,
        nodes: Sequence[Node],
        message: str | None,
        *,
        inputs: Sequence[InputDataset],
        outputs: Sequence[OutputDataset] = (),
    ) -> Iterator[RunEvent]:
        """The start and the end of a job, which is one or more nodes of the build."""
        from openlineage.client.uuid import generate_new_uuid

        run = str(generate_new_uuid())
        spans = [(self._starts.get(node.name, self._began), timedelta(seconds=node.seconds)) for node in nodes]
        yield self._event("START", min(start for start, _ in spans), run, job, kind)
        end = max(start + length for start, length in spans)
        state = "FAIL" if message else "COMPLETE"
        yield self._event(state, end, run, job, kind, message=message, inputs=inputs, outputs=outputs)

    # ---------------------------------------------------------------------------------------------- datasets

    def _inputs(self, traced: Lineage) -> list[InputDataset]:
        from openlineage.client.event_v2 import InputDataset

        return [InputDataset(self._lake, f"raw.{table}") for table in traced.raw if table in (*RAW_TABLES, *_OF_LAKE)]

    def _layouts(self) -> dict[str, tuple[str | None, list[tuple[str, str, str | None]]]]:
        """The description of each mart, and its columns with types and descriptions, as the warehouse has them."""
        found: dict[str, tuple[str | None, list[tuple[str, str, str | None]]]] = {}
        with duckdb.connect() as con:
            warehouse.attach(con, self._where.warehouse)
            rows = con.execute(_LAYOUT, {"schema": MARTS}).fetchall()
        for table, about, column, kind, comment in rows:
            found.setdefault(table, (about, []))[1].append((column, kind, comment))
        return found

    def _place(self, mart: str) -> tuple[str, str]:
        """Namespace and name of a mart, as OpenLineage's own integration of dbt names tables of DuckDB."""
        return f"duckdb://{self._where.warehouse}", f"{self._where.warehouse.stem}.{MARTS}.{mart}"

    def _facets(self, mart: str, layouts: Mapping[str, Any]) -> dict[str, Any]:
        """What is said of a mart wherever it is named: its columns, what it means, and the name that its readers know."""
        from openlineage.client import facet_v2 as facets

        about, columns = layouts.get(mart, (None, []))
        published = facets.symlinks_dataset.Identifier(
            f"duckdb://{self._where.published / DATABASE}", f"{Path(DATABASE).stem}.main.{mart}", "TABLE"
        )
        said = {"documentation": facets.documentation_dataset.DocumentationDatasetFacet(about)} if about else {}
        return {
            "schema": facets.schema_dataset.SchemaDatasetFacet(
                [
                    facets.schema_dataset.SchemaDatasetFacetFields(name, kind, comment, place)
                    for place, (name, kind, comment) in enumerate(columns, 1)
                ]
            ),
            "symlinks": facets.symlinks_dataset.SymlinksDatasetFacet([published]),
            **said,
        }

    def _mart(self, mart: str, layouts: Mapping[str, Any], traced: Lineage) -> OutputDataset:
        from openlineage.client import facet_v2 as facets
        from openlineage.client.event_v2 import OutputDataset

        made_of = {}
        if traced.columns is not None:
            fields = {
                name: facets.column_lineage_dataset.Fields(list(self._fields(origin)))
                for name, origin in traced.columns.items()
            }
            made_of["columnLineage"] = facets.column_lineage_dataset.ColumnLineageDatasetFacet(fields)
        return OutputDataset(*self._place(mart), facets={**self._facets(mart, layouts), **made_of})

    def _fields(self, origin: Origin) -> Iterator[Any]:
        """The raw fields of a column: those whose values go into it, and those that only decide."""
        from openlineage.client.facet_v2 import column_lineage_dataset as facet

        for raw in sorted(origin.values | origin.conditions):
            table, _, name = raw.partition(".")
            kinds = (("DIRECT", origin.values), ("INDIRECT", origin.conditions))
            yield facet.InputField(
                self._lake, f"raw.{table}", name, [facet.Transformation(kind) for kind, those in kinds if raw in those]
            )

    def _audited(self, mart: str, layouts: Mapping[str, Any], tests: Iterable[Node]) -> InputDataset:
        from openlineage.client.event_v2 import InputDataset
        from openlineage.client.facet_v2 import data_quality_assertions_dataset as facet

        results = [
            facet.Assertion(
                assertion=test.test or test.name,
                success=test.status == "pass",
                column=test.asks.get("column_name"),
                severity="warn" if test.status == "warn" else "error",
                name=test.name,
                actual=f"{test.failures} rows",
            )
            for test in tests
        ]
        return InputDataset(
            *self._place(mart),
            facets=self._facets(mart, layouts),
            inputFacets={"dataQualityAssertions": facet.DataQualityAssertionsDatasetFacet(results)},
        )


_LAYOUT: Final = """
    select c.table_name, coalesce(t.comment, v.comment), c.column_name, c.data_type, c.comment
    from duckdb_columns() as c
    left join duckdb_tables() as t using (database_name, schema_name, table_name)
    left join duckdb_views() as v
        on v.database_name = c.database_name and v.schema_name = c.schema_name and v.view_name = c.table_name
    where c.database_name = 'warehouse' and c.schema_name = $schema order by c.table_name, c.column_index
"""


def _by_mart(nodes: Iterable[Node], marts: Iterable[str]) -> dict[str, list[Node]]:
    """The tests that ran, by the mart that each is of."""
    found: dict[str, list[Node]] = {name: [] for name in marts}
    for node in nodes:
        of = re.search(r"ref\('([^']+)'\)", str(node.asks.get("model", "")))
        if node.kind == "test" and node.status in ("pass", "warn", "fail") and of and of[1] in found:
            found[of[1]].append(node)
    return {name: tests for name, tests in found.items() if tests}
