"""Who may read what finegrain writes, what it runs, and that it prints no secret."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from orchestration import lake
from orchestration.doctor import examine
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


# Files.


def finegrain(*arguments: str, umask: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which others on the machine may read all of, as far as it goes by the shell."""
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *arguments],
        env={**os.environ, **environment},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def a_shop(folder: Path) -> Path:
    """A mapping of one file, and of a folder of messages."""
    (folder / "inbox").mkdir()
    (folder / "a.csv").write_text("t,at,u\n" + "login,2024-01-01,u\n" * 500)
    (folder / "inbox" / "a.jsonl").write_text('{"t": "login", "at": "2024-01-01T00:00:00Z", "u": "u"}\n')
    fields = {"event_type": "t", "event_at": "at", "user_id": "u"}
    where = ({"files": str(folder / "a.csv")}, {"stream": {"folder": str(folder / "inbox")}})
    entries = [{**each, "available_at": "event_time", "fields": fields} for each in where]
    path = folder / "shop.yml"
    path.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entries}}))
    return path


def modes(folder: Path) -> dict[str, str]:
    """Modes of a folder, and of all files and folders below it, that others than the owner may use in any way."""
    found = [folder, *folder.rglob("*")]
    return {str(each): oct(each.stat().st_mode & 0o777) for each in found if each.stat().st_mode & 0o077}


def test_nobody_else_reads_what_a_load_and_a_stream_write(home: Settings, tmp_path: Path) -> None:
    shop = a_shop(tmp_path)
    own = {"FINEGRAIN_EXTENSIONS": str(home.home / "extensions")}
    for arguments in (("load", str(shop)), ("stream", str(shop), "--drain"), ("lake", "maintain")):
        done = finegrain(*arguments, **own)
        assert done.returncode == 0, done.stderr
    assert list(home.home.rglob("*.parquet")) and list(home.home.rglob("*.duckdb_extension"))
    assert modes(home.home) == {}


@pytest.mark.long
def test_nobody_else_reads_what_a_build_and_a_publish_write(home: Settings, tmp_path: Path) -> None:
    shop = a_shop(tmp_path)
    for arguments in (("load", str(shop)), ("build",), ("publish",)):
        done = finegrain(*arguments)
        assert done.returncode == 0, done.stderr
    assert home.warehouse.exists() and (home.published / "finegrain.duckdb").exists()
    assert modes(home.home) == {}


def test_a_group_reads_where_the_environment_says(home: Settings, tmp_path: Path) -> None:
    assert finegrain("load", str(a_shop(tmp_path)), umask=0o077, FINEGRAIN_UMASK="027").returncode == 0
    found = [each.stat().st_mode & 0o777 for each in (home.home, *home.home.rglob("*"))]
    assert {0o750, 0o640} <= set(found) and not any(mode & 0o027 for mode in found)


@pytest.mark.parametrize("value", ["7", "777", "rwx", "0o77", "0877", "-1"])
def test_what_is_no_umask_is_said(home: Settings, value: str) -> None:
    done = finegrain("report", FINEGRAIN_UMASK=value)
    assert done.returncode == 2 and done.stderr.startswith(f"error: FINEGRAIN_UMASK is '{value}'; write 077")


def test_the_doctor_says_who_can_read_a_home_of_before(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def access() -> tuple[str, str]:
        [check] = [each for each in examine(where=home).checks if each.what == "access"]
        return check.level, check.said

    home.home.mkdir(mode=0o755)
    assert access()[0] == "fine"  # pytest's own folder lets nobody in
    monkeypatch.setattr(Path, "parents", property(lambda self: [Path("/")]))
    assert access() == ("warning", f"all on this machine can read {home.home}; chmod -R o-rwx {home.home} ends that")
    monkeypatch.setenv("FINEGRAIN_UMASK", "022")
    assert access()[0] == "fine"
    monkeypatch.delenv("FINEGRAIN_UMASK")
    home.home.chmod(0o750)
    assert access()[0] == "fine"
