"""Shared fixtures: the project, the real data, a home for each test, and dbt in a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import hypothesis
import pytest
from quick_dbt import quicken, share_parses
from small_shops import Homes

from orchestration.config.settings import Settings, settings
from orchestration.lake.locks import one_at_a_time

PROJECT = Path(__file__).resolve().parent.parent

pytest_plugins = ["services"]  # real servers, started when a test needs one

# Parallel workers must not share dbt's target folder.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["DBT_TARGET_PATH"] = tempfile.mkdtemp(prefix="finegrain-target-")

quicken()

# No deadline, because the machine is shared; in CI the examples are the same in every run.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


#: Files that take minutes, because they build. They start first; otherwise the last one would leave the other workers idle.
BUILDING = (
    "test_dagster",
    "test_as_of",
    "test_order_free",
    "test_nasty_values",
    "test_real_data",
    "test_conservation",
    "test_maintain",
    "test_build",
    "test_init",
    "test_tutorial",
    "test_trial_shop",
    "test_add_a_feature_page",
    "test_add_a_field_page",
    "test_propensity",
    "test_publish",
    "test_metrics",
    "test_identity_bridge",
    "test_store_history",
    "test_forget",
)
#: Files that take minutes, because they wait for servers and clocks, while others compute.
WAITING = (
    "test_lake",
    "test_store",
    "test_exclusive",
    "test_stream_kafka",
    "test_stream_kinesis",
    "test_ingest_databases",
)
#: The thousand kills of `make soak` take longer than all else together.
LONG = ("test_stream_kills", *BUILDING, *WAITING)
#: The key of personal data in tests: lakes with a catalogue in PostgreSQL need one.
os.environ["FINEGRAIN_PRIVACY_KEY"] = "of tests alone, and of nobody else"
#: Servers that start once per worker.
SERVERS = {"kafka", "postgres", "mariadb", "redis", "moto", "resharding"}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Reset the umask, which commands in this process and Dagster's definitions change: servers that tests start run as other users. Reset
    signals: Dagster handles SIGTERM like SIGINT, which a script's `&` ignores, and child processes would ignore it, too. Feast puts the metrics of all
    later processes into a folder."""
    os.umask(0o022)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)


def stays_with_its_file(item: pytest.Item) -> bool:
    """One worker runs a file; of a file that builds, only the tests that share a server or a fixture of the file. The others go anywhere."""
    fixtures = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
    shares = any(name in SERVERS or found[-1].scope == "module" for name, found in fixtures.items())
    return shares or item.path.stem not in BUILDING


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    for item in items:
        if stays_with_its_file(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_collection_finish(session: pytest.Session) -> None:
    """pytest-xdist does not say when its groups have no effect under a version of pytest that it does not know, and each worker starts all servers."""
    is_grouped = session.config.getoption("loadgroup", default=False)
    if is_grouped and any(item.get_closest_marker("xdist_group") and "@" not in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist does not group tests under this version of pytest")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Short ids: pytest puts the test's into the environment, where Linux allows no value above 128 KiB. And the same in all workers: a packed file
    holds the time, by which even its length differs."""
    if isinstance(val, bytes) and not val.isascii():
        return "bytes"
    if not isinstance(val, str | bytes) or len(val) < 200:
        return None
    begin = val[:60] if isinstance(val, str) else val[:60].decode("ascii")
    return f"{begin.encode('unicode_escape').decode()} and so on, {len(val)} long"


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of this project."""
    return PROJECT


@pytest.fixture(scope="session")
def shared_data(project: Path) -> Path:
    """The folder of real shops' data beside the project; without it, the test is skipped."""
    folder = project.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data (../shared/data beside the project) is not here")
    return folder


@pytest.fixture(scope="session")
def shared_by_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this pytest run that all workers share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def parsed_once(shared_by_workers: Path) -> None:
    """dbt's first, slow parse of the project serves all workers, and all processes that they start (child/sitecustomize.py)."""
    share_parses(shared_by_workers, PROJECT)
    os.environ["QUICK_DBT"] = str(shared_by_workers)
    found = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT / "tests" / "child"), *([found] if found else [])])


@pytest.fixture
def plain_dbt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that this test starts run dbt as it is."""
    monkeypatch.delenv("QUICK_DBT")


@pytest.fixture(scope="session")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of DuckDB extensions for all tests, because unpacking them takes seconds."""
    return tmp_path_factory.mktemp("extensions")


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory, extensions: Path, shared_by_workers: Path) -> Homes:
    """Creates homes of small shops and builds them; the slow first dbt run is shared by all tests."""
    return Homes(tmp_path_factory.mktemp("homes"), extensions, shared_by_workers)


@pytest.fixture
def home(tmp_path: Path, extensions: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A fresh FINEGRAIN_HOME, in the environment of this test and of the processes it starts."""
    for name in [name for name in os.environ if name.startswith("FINEGRAIN_") and name != "FINEGRAIN_PRIVACY_KEY"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FINEGRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FINEGRAIN_EXTENSIONS", str(extensions))
    return settings()


@pytest.fixture(scope="session")
def built_shop(shared_by_workers: Path, extensions: Path) -> Settings:
    """A simulated shop of 3,000 events over 20 days (including a clock change), loaded and built, for tests that only read it: copy what you
    change. Its files are in `home / "shop"`, and the lineage events of its build in `home / "openlineage.jsonl"`. The first worker that needs it creates it
    for all."""
    from orchestration.ingest.load import load
    from orchestration.simulation.simulate import simulate
    from orchestration.warehouse.build import build
    from orchestration.warehouse.lineage import lineage

    where = Settings.below(shared_by_workers / "home", extensions)
    with one_at_a_time(shared_by_workers / "built_shop.lock"):
        if not (where.home / "is-built").exists():
            simulate(where.home / "shop", events=3000, days=20, start=date(2025, 3, 20))
            load(PROJECT / "examples" / "simulated_shop", data=where.home / "shop", where=where)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("FINEGRAIN_OPENLINEAGE", str(where.home / "openlineage.jsonl"))
                done = build(where=where)
            assert done.passed, [(node.name, node.message) for node in done.failed]
            lineage(where)
            (where.home / "is-built").touch()
    return where


def run_dbt(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `dbt <arguments>` on the dbt project in `folder`, in a separate process with text output."""
    return subprocess.run(
        [sys.executable, "-c", "from dbt.cli.main import cli; cli()", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            **({} if folder == PROJECT else {"DBT_TARGET_PATH": str(folder / "target")}),
            **(env or {}),
        },
        capture_output=True,
        text=True,
        check=False,
    )
