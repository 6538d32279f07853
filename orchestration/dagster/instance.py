"""Writes Dagster's configuration and starts its processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

import yaml
from dagster import DagsterInstance, RunsFilter
from dagster import DagsterRunStatus as Status
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from orchestration.config.settings import PROJECT, Environment, Settings, settings
from orchestration.dagster.home import dagster_home
from orchestration.dagster.project import dbt_project
from orchestration.dagster.shop import DATA, SHOP, connections
from orchestration.errors import FinegrainError, keep_secrets_of
from orchestration.errors.stopping import release_semaphores
from orchestration.lake.locks import scratch
from orchestration.quality.alerts import read_rules

#: The module of the code location.
DEFINITIONS: Final = "orchestration.dagster.definitions"
#: The variable that holds the address of a PostgreSQL database for Dagster's runs and events.
STORAGE: Final = "FINEGRAIN_DAGSTER_STORAGE"


def write_settings(home: Path) -> Path:
    """Write `dagster.yaml` into `home`. Raises FinegrainError if Dagster does not support the storage."""
    config = yaml.safe_load((Path(__file__).parent / "dagster.yaml").read_text("utf-8"))
    given = Environment.read().dagster_storage
    if given is not None:
        storage = given.get_secret_value()
        try:
            fine = make_url(storage).get_backend_name() in ("postgresql", "postgres")
        except (ArgumentError, ValueError):  # whose text holds it
            fine = False
        if not fine:
            raise FinegrainError(
                f"{STORAGE} is not a PostgreSQL address (is @, / or : in the password written as %40, %2F or %3A?); "
                "write postgresql://user:password@host:5432/database"
            )
        keep_secrets_of(storage)
        # By name: the address holds a password.
        config["storage"] = {"postgres": {"postgres_url": {"env": STORAGE}}}
    try:
        home.mkdir(parents=True, exist_ok=True)
        path = home / "dagster.yaml"
        with scratch(home, ".draft-") as folder:
            draft = folder / path.name
            draft.write_text(
                "# Written by `finegrain dagster` from orchestration/dagster/dagster.yaml.\n" + yaml.safe_dump(config)
            )
            draft.replace(path)
    except OSError as error:
        raise FinegrainError(
            f"{error.filename}: cannot write here: {error.strerror}; set DAGSTER_HOME to a folder that can be written"
        ) from None
    return path


def end_what_was_left(instance: DagsterInstance) -> list[str]:
    """Mark runs as failed whose process died with an earlier daemon (a power cut, `kill -9`), and free their pool slots. Returns their ids. Runs are
    children of the daemon's own process, so none can be running when it starts."""
    left = instance.get_runs(RunsFilter(statuses=[Status.STARTING, Status.STARTED, Status.CANCELING]))
    for run in left:
        instance.report_run_failed(run, "the process of this run died with the Dagster daemon")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in left]


def command(part: str, host: str, port: int) -> list[str]:
    """What starts `dev`, `webserver` or `daemon`."""
    if part == "daemon":
        return [str(Path(sys.executable).with_name("dagster-daemon")), "run", "-m", DEFINITIONS]
    guarded = [sys.executable, "-P", "-m", "orchestration.dagster.page", part]
    return [*guarded, "-h", host, "-p", str(port), "-m", DEFINITIONS]


def start(
    part: str, shop: str, data: str | None, host: str, port: int, allowed: str = "", where: Settings | None = None
) -> None:
    """Become Dagster's process `dev`, `webserver` or `daemon`, for the shop of these mappings; it ends by SIGTERM or SIGINT. The page
    may be asked for by the names `allowed`, too (orchestration/dagster/page.py). Raises FinegrainError before anything starts."""
    where = where or settings()
    os.environ.update(where.environment())
    os.environ.update({SHOP: str(Path(shop).resolve()), **({DATA: str(Path(data).resolve())} if data else {})})
    home = dagster_home()
    os.environ.update(
        {
            "DAGSTER_HOME": str(home),
            "FINEGRAIN_DAGSTER_HOSTS": allowed,
            "FINEGRAIN_PROJECT": str(PROJECT),
            "FINEGRAIN_DAGSTER_URL": Environment.read().dagster_url or f"http://{host}:{port}",
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            # `dagster dev` says at each start that it will be called `dg dev` some day.
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore:::click.core"),
        }
    )
    write_settings(home)
    # A project or a mapping that cannot be read is reported here, not as a page without assets.
    read_rules()
    connections()
    dbt_project()
    if part != "webserver":
        try:
            with DagsterInstance.get() as instance:
                end_what_was_left(instance)
        except SQLAlchemyError as error:
            said = " ".join(str(getattr(error, "orig", None) or error).split())
            where_from = STORAGE if Environment.read().dagster_storage else "DAGSTER_HOME"
            raise FinegrainError(f"Dagster's storage ({where_from}) cannot be opened: {said}") from None
    arguments = command(part, host, port)
    # Started by a script's `&`, with SIGINT ignored, its processes would outlive it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    release_semaphores()
    os.execv(arguments[0], arguments)
