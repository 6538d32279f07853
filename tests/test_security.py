"""Who may read what finegrain writes, which programs it runs, and that it prints no secret."""

from __future__ import annotations

import json
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

from orchestration import cli, errors
from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.stream.watch import Form, Watch
from orchestration.lake import lake
from orchestration.mapping.mapping import read_mapping
from orchestration.quality.doctor import examine
from orchestration.sources import apis
from orchestration.sources.streams import Unreachable

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


def test_no_connection_accepts_unsigned_extensions_or_downloads_any(home: Settings) -> None:
    from orchestration.warehouse.dbt_plugin import Plugin

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
    """A command in a process of its own, with a umask that lets everybody read, as far as the shell decides."""
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *arguments],
        env={**os.environ, **environment},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
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
    """Modes of a folder, and of all files and folders below it, that give others than the owner any access."""
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
def test_an_invalid_umask_is_reported(home: Settings, value: str) -> None:
    done = finegrain("report", FINEGRAIN_UMASK=value)
    assert done.returncode == 2 and done.stderr.startswith(f"error: FINEGRAIN_UMASK is '{value}'; write 077")


def test_the_doctor_reports_who_can_read_an_older_home(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def access() -> tuple[str, str]:
        [check] = [each for each in examine(where=home).checks if each.what == "access"]
        return check.level, check.said

    home.home.mkdir()
    home.home.chmod(0o755)
    assert access()[0] == "fine"  # pytest's own folder lets nobody in
    monkeypatch.setattr(Path, "parents", property(lambda self: [Path("/")]))
    assert access() == ("warning", f"all on this machine can read {home.home}; chmod -R o-rwx {home.home} ends that")
    monkeypatch.setenv("FINEGRAIN_UMASK", "022")
    assert access()[0] == "fine"
    monkeypatch.delenv("FINEGRAIN_UMASK")
    home.home.chmod(0o750)
    assert access()[0] == "fine"


# Secrets. Each is put where one may occur, an error is caused, and no output contains any part of it.

#: A plain one, and one with characters that make an address invalid.
SECRETS = ("zq9xkk7secret", "zq9xkk7/a@zq9xkk7:b", "zq9xkk7 %zq9xkk7?x=zq9xkk7#[zq9xkk7")
PART = "zq9xkk7"


def entry(**place: Any) -> dict[str, Any]:
    fields = {"event_type": "t", "event_at": "at", "user_id": "u"}
    keyed = {"key": "id"} if place.keys() & {"table", "http"} else {}
    return {**place, **keyed, "available_at": "now", "fields": fields}


KAFKA = {"kafka": "t", "settings": {"bootstrap.servers": "127.0.0.1:1"}}
KINESIS = {
    "kinesis": "t",
    "settings": {"endpoint_url": "http://127.0.0.1:1", "region_name": "x", "aws_access_key_id": "x"}
    | {"aws_secret_access_key": "y"},
}


def kafka(**settings: str) -> dict[str, Any]:
    return {"events": entry(stream={**KAFKA, "settings": {**KAFKA["settings"], **settings}})}  # type: ignore[dict-item]


def kinesis(**settings: str) -> dict[str, Any]:
    return {"events": entry(stream={**KINESIS, "settings": {**KINESIS["settings"], **settings}})}  # type: ignore[dict-item]


def http(url: str, **more: Any) -> dict[str, Any]:
    return {"events": entry(http={"url": url, **more})}


TABLE = {"events": entry(table="visits")}
FILES = {"events": entry(files="s3://bucket/a.csv")}

#: (where it is, keys of the mapping, environment); {s} is the secret.
PLACES: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    *(
        (f"database {number}", {"database": "${X}", "tables": TABLE}, {"X": url})
        for number, url in enumerate(
            (
                "postgresql://u:{s}@127.0.0.1:1/d",
                "mysql://u:{s}@127.0.0.1:1/d",
                "postgresql:/u:{s}@127.0.0.1:1/d",
                "u:{s}@127.0.0.1/d",
                "{s}:x@127.0.0.1/d",
                "{s}",
                "postgresql://u:{s}@127.0.0.1:port/d",
                "postgresql://u:{s}@[127.0.0.1/d",
                "oracle://u:{s}@127.0.0.1:1/d",
                "postgresql://127.0.0.1:1/d?password={s}",
                "postgresql://127.0.0.1:1/d?{s}=x",
                "postgresql://u:{s}@127.0.0.1:1",
            )
        )
    ),
    ("database, in the mapping itself", {"database": "postgresql://u:{s}@127.0.0.1:port/d", "tables": TABLE}, {}),
    ("database, as keys", {"database": {"url": "postgresql://u:{s}@127.0.0.1/d"}, "tables": TABLE}, {}),
    *(
        (f"http {number}", {"tables": http("${X}")}, {"X": url})
        for number, url in enumerate(
            (
                "http://u:{s}@127.0.0.1:1/x",
                "http://{s}@127.0.0.1:1/x",
                "https:/u:{s}@127.0.0.1/x",
                "{s}",
                "http://127.0.0.1:1/x?key={s}",
                "http://127.0.0.1:1/{s}/x",
                "http://127.0.0.1:{s}/x",
                "http://[127.0.0.1:{s}/x",
                "http://127.0.0.1:1/a b?token={s}",
            )
        )
    ),
    ("http, in the mapping itself", {"tables": http("http://u:{s}@127.0.0.1:1/x")}, {}),
    ("http, a key in the mapping itself", {"tables": http("http://127.0.0.1:1/x?api_key={s}")}, {}),
    (
        "http, a header",
        {"tables": http("http://127.0.0.1:1/x", headers={"X-Api-Key": "${X}", "Authorization": "Bearer ${X}"})},
        {"X": "{s}"},
    ),
    ("http, a broken header", {"tables": http("http://127.0.0.1:1/x", headers={"A": "${X}"})}, {"X": "{s}\n{s}"}),
    ("http, headers as a text", {"tables": http("http://127.0.0.1:1/x", headers="Bearer {s}")}, {}),
    ("http, a parameter", {"tables": http("http://127.0.0.1:1/x", parameters={"key": "${X}"})}, {"X": "{s}"}),
    (
        "registry",
        {"tables": {"events": entry(stream={**KAFKA, "registry": "${X}"})}},
        {"X": "http://u:{s}@[127.0.0.1:1"},
    ),
    ("registry, no address", {"tables": {"events": entry(stream={**KAFKA, "registry": "${X}"})}}, {"X": "{s}"}),
    ("registry, in the mapping itself", {"tables": {"events": entry(stream={**KAFKA, "registry": "u:{s}@h"})}}, {}),
    ("kafka, a password", {"tables": kafka(**{"sasl.password": "${X}", "security.protocol": "nothing"})}, {"X": "{s}"}),
    ("kafka, a password in a wrong place", {"tables": kafka(**{"fetch.wait.max.ms": "${X}"})}, {"X": "{s}"}),
    (
        "kafka, a password in a place that is open",
        {"tables": kafka(**{"security.protocol": "${SHOP_PASSWORD}"})},
        {"SHOP_PASSWORD": "{s}"},
    ),
    ("kafka, settings as a text", {"tables": {"events": entry(stream={**KAFKA, "settings": "sasl.password {s}"})}}, {}),
    ("kafka, settings as a list", {"tables": {"events": entry(stream={**KAFKA, "settings": [{"x": "{s}"}]})}}, {}),
    ("kinesis, an address", {"tables": kinesis(endpoint_url="${X}")}, {"X": "http://u:{s}@127.0.0.1:1"}),
    ("kinesis, no address", {"tables": kinesis(endpoint_url="${X}")}, {"X": "u:{s}@127.0.0.1"}),
    ("kinesis, in the mapping itself", {"tables": kinesis(endpoint_url="http://u:{s}@127.0.0.1:x")}, {}),
    ("kinesis, a key", {"tables": kinesis(aws_secret_access_key="${X}")}, {"X": "{s}"}),
    ("kinesis, an option that is none", {"tables": kinesis(verify="${X}", nothing="{s}")}, {"X": "{s}"}),
    *(
        (f"S3's address {number}", {"tables": FILES}, {"FINEGRAIN_S3_ENDPOINT": url})
        for number, url in enumerate(
            ("http://u:{s}@127.0.0.1:1", "{s}", "http://127.0.0.1:{s}", "http://[{s}", "http://127.0.0.1:1/?k={s}")
        )
    ),
    (
        "S3's key",
        {"tables": FILES},
        {
            "FINEGRAIN_S3_ENDPOINT": "http://127.0.0.1:1",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "{s}",
        },
    ),
    *(
        (f"{variable} {number}", {"tables": FILES}, {variable: url})
        for variable, urls in {
            "FINEGRAIN_LAKE_CATALOG": (
                "postgresql://u:{s}@127.0.0.1:1/d",
                "postgresql:/u:{s}@127.0.0.1/d",
                "postgres:u:{s}@127.0.0.1/d",
                "postgresql://127.0.0.1/d?password={s}",
                "postgresql://127.0.0.1/d?pass%77ord={s}",
                "postgres:host=127.0.0.1 passwd={s}",
                "u:{s}@127.0.0.1/d",
                "mysql://u:{s}@127.0.0.1/d",
            ),
            "FINEGRAIN_LAKE_DATA": ("s3://k:{s}@bucket/x", "s3:/k:{s}@bucket/x", "k:{s}@bucket/x", "gs://k:{s}@b"),
        }.items()
        for number, url in enumerate(urls)
    ),
    (
        "PGPASSWORD",
        {"tables": FILES},
        {"FINEGRAIN_LAKE_CATALOG": "postgresql://u@127.0.0.1:1/d", "PGPASSWORD": "{s}"},
    ),
]


def planted(value: Any, secret: str) -> Any:
    if isinstance(value, dict):
        return {key: planted(each, secret) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [planted(each, secret) for each in value]
    return value.replace("{s}", secret) if isinstance(value, str) else value


@pytest.mark.long
@pytest.mark.parametrize("where", [pytest.param(place, id=place[0]) for place in PLACES])
def test_no_secret_is_printed(
    home: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    where: tuple[str, dict[str, Any], dict[str, str]],
) -> None:
    _, given, environment = where
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setattr(apis, "PAUSE", 0.001)
    before = os.umask(0o022)
    try:
        for secret in SECRETS:
            path = tmp_path / "shop.yml"
            path.write_text(yaml.safe_dump({"source": "shop", **planted(given, secret)}))
            with monkeypatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value.replace("{s}", secret))
                command = "ingest" if any("_LAKE_" in name for name in environment) else "doctor"
                form = ["--json"] if secret == SECRETS[0] else []
                patch.setattr(sys, "argv", ["finegrain", command, str(path), *form])
                patch.setattr(errors, "_known", set())
                with pytest.raises(SystemExit) as ended:
                    cli.main()
                out, err = capfd.readouterr()
                assert ended.value.code in (1, 2, 75), (out, err)
                assert (out or err) and PART not in out + err, out + err
                assert "Traceback" not in err, err
    finally:
        os.umask(before)


def test_no_secret_is_in_what_a_loader_reports(capfd: pytest.CaptureFixture[str]) -> None:
    for form in (Form.json, Form.lines):
        watch = Watch("kafka:t", form)
        watch.trouble(str(Unreachable(f"kafka at u:x@h, http://u:{PART}@h/ and sasl.password={PART} do not answer")))
        watch.trouble(f"http://u:{PART}@h/ does not answer")
        watch.close()
        assert PART not in json.dumps(watch.as_dict())
    out, err = capfd.readouterr()
    assert "h/" in out + err and PART not in out + err


def test_no_secret_is_in_an_unexpected_trace(home: Settings) -> None:
    code = (
        "import sys; from orchestration import cli; from orchestration.config import settings\n"
        f"def broken(): raise RuntimeError('postgresql://u:{PART}@h/d password={PART}')\n"
        "settings.private = broken; sys.argv = ['finegrain', 'report']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 70 and "postgresql://…@h/d" in done.stderr and PART not in done.stderr
    # The log has no line of this code, because the code is not in a file.
    [log] = (home.home / "logs").glob("error-*.log")
    assert "postgresql://…@h/d" in log.read_text() and PART not in log.read_text()


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("address", ["postgresql://u:{s}@h:5432/d", "postgresql://u:{s}@127.0.0.1:1/d", "x://u:{s}@h"])
def test_dagsters_storage_is_not_printed(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str, address: str
) -> None:
    from orchestration.dagster.instance import STORAGE, write_settings

    monkeypatch.setenv(STORAGE, address.replace("{s}", secret))
    try:
        write_settings(tmp_path)
    except FinegrainError as error:
        assert PART not in str(error)
    assert not (tmp_path / "dagster.yaml").exists() or PART not in (tmp_path / "dagster.yaml").read_text()


@pytest.mark.parametrize(
    "line",
    ["database: *zq9xkk7", "database: !zq9xkk7 x", "database: @zq9xkk7", "database: `zq9xkk7", "database: %zq9xkk7"],
)
def test_invalid_yaml_is_not_quoted(tmp_path: Path, line: str) -> None:
    (tmp_path / "shop.yml").write_text(f"source: shop\n{line}\n")
    with pytest.raises(FinegrainError, match="not valid YAML") as refused:
        read_mapping(tmp_path / "shop.yml")
    assert PART not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:password@host:5432/shop", "postgresql://user:password@host:5432/shop"),  # as hints have it
        ("postgres:postgresql://me@h/db: no", "postgres:postgresql://me@h/db: no"),
        ("http://token@h/x", "http://…@h/x"),
        ("http://u:a/b@h/x", "http://…@h/x"),
        ("https://h/x/@me", "https://h/x/@me"),
        ("s3://bucket/a@b.csv", "s3://bucket/a@b.csv"),
        ("https://h/x?page=1&key=abc", "https://h/x?page=…&key=…"),
        ("host=h password='it''s' dbname=d", "host=h password=… dbname=d"),
        ("set it in PGPASSWORD or in ~/.pgpass", "set it in PGPASSWORD or in ~/.pgpass"),
        ("a.csv has no column 'token'; did you mean 'x'?", "a.csv has no column 'token'; did you mean 'x'?"),
        ("/home/me/a.csv: no such file", "/home/me/a.csv: no such file"),
        ("column 'password': 3 values", "column 'password': 3 values"),
        ('{"sasl.password": "abc"}', '{"sasl.password": …}'),
        ("Authorization: Bearer abcdef", "Authorization: Bearer …"),
    ],
)
def test_what_is_hidden_and_what_is_not(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/me/a.csv")  # where there is one, and it is not a password
    monkeypatch.setattr(errors, "_known", set())
    assert errors.without_secrets(text) == shown
