"""Bare `dbt build`, as a dbt user types it, before anything was ever loaded: all of it builds, and every test runs."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import run_dbt

from orchestration.settings import Settings


def test_bare_dbt_build_passes_on_an_empty_lake(home: Settings, project: Path) -> None:
    # dbt runs an incremental model's unit tests before the model is there for the first time (dbt-core #10695).
    done = run_dbt(
        project,
        *("--no-use-colors", "--show-all-deprecations", "--log-path", str(home.home / "logs")),
        *("build", "--target-path", str(home.home / "target")),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "WARN=0 ERROR=0 SKIP=0" in done.stdout, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) unit tests", done.stdout)[-1]) > 40
    assert "deprecat" not in done.stdout.lower(), done.stdout[:3000]
