"""Who may read what finegrain writes, what it runs, and that it prints no secret."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from orchestration import lake
from orchestration.errors import FinegrainError
from orchestration.settings import Settings

# Extensions.


def test_an_extension_that_was_changed_does_not_load(home: Settings, tmp_path: Path) -> None:
    lake.connect(home).close()
    # Elsewhere, since a file that this process has loaded must not be written.
    where = replace(home, extensions=tmp_path / "changed")
    shutil.copytree(home.extensions, where.extensions)
    [file] = where.extensions.rglob("ducklake.duckdb_extension")
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    with pytest.raises(FinegrainError, match="signature"):
        lake.connect(where)


def test_no_connection_takes_unsigned_extensions_or_downloads_any(home: Settings) -> None:
    from orchestration.dbt_plugin import Plugin

    class Credentials:
        path = str(home.warehouse)

    config: dict[str, Any] = {}
    Plugin("lake", {}).update_connection_config(Credentials(), config)  # type: ignore[arg-type]
    for con in (lake.connect(home), duckdb.connect(config=config)):
        found = con.execute(
            "select current_setting('allow_unsigned_extensions'), current_setting('autoinstall_known_extensions')"
        ).fetchall()
        assert found == [(False, False)]
        con.close()
