"""One object holds what the environment says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from orchestration.config.settings import PROJECT, Environment, Settings, described, settings
from orchestration.errors import HIDDEN, FinegrainError

#: What else reads or writes the environment: values that mappings name, secrets to hide in errors, what dbt, Dagster and subprocesses get.
OTHERS = {
    "config/settings.py",
    "config/packages.py",
    "config/project.py",
    "mapping/environment.py",
    "errors/__init__.py",
    "warehouse/build.py",
    "dagster/instance.py",
    "ingest/stream/isolation.py",
}


def test_code_takes_values_from_the_settings() -> None:
    package = PROJECT / "orchestration"
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text("utf-8"))
    }
    assert found - OTHERS == set()


def test_values_are_read_each_time(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEGRAIN_THREADS", " 4 ")
    monkeypatch.setenv("FINEGRAIN_AS_OF", "2024-03-31T02:00:00+02:00")
    monkeypatch.setenv("FINEGRAIN_LOADERS", "http://a:1/metrics, http://b:1/metrics,")
    monkeypatch.setenv("FINEGRAIN_AUTOMATION", "off")
    given = Environment.read()
    assert (given.threads, given.as_of, given.automation) == (4, datetime(2024, 3, 31), False)
    assert given.loaders == ("http://a:1/metrics", "http://b:1/metrics")
    monkeypatch.setenv("FINEGRAIN_THREADS", "5")
    assert Environment.read().threads == 5
    for name in ("THREADS", "AS_OF", "LOADERS", "AUTOMATION"):
        monkeypatch.setenv(f"FINEGRAIN_{name}", " ")
    given = Environment.read()
    assert (given.threads, given.as_of, given.loaders, given.automation) == (1, None, (), True)
    assert given.history_start == date(2025, 1, 1)


def test_a_relative_folder_is_of_the_current_one(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINEGRAIN_HOME", "here")
    for folder in (tmp_path, home.extensions):
        monkeypatch.chdir(folder)
        assert settings().home == folder.resolve() / "here"


def test_the_regions_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert Environment.read().aws_region == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert Environment.read().aws_region == "eu-north-1"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("FINEGRAIN_AS_OF", "yesterday", "FINEGRAIN_AS_OF (--as-of) is 'yesterday'"),
        ("FINEGRAIN_AS_OF", "0001-01-01T00:00:00+14:00", "FINEGRAIN_AS_OF (--as-of) is '0001"),
        ("FINEGRAIN_FULL_AUDIT", "yes", "FINEGRAIN_FULL_AUDIT is 'yes'; write 1 or 0"),
        ("FINEGRAIN_AUTOMATION", "false", "FINEGRAIN_AUTOMATION is 'false'; write on or off"),
        ("FINEGRAIN_BUILD_MINUTES", "nan", "FINEGRAIN_BUILD_MINUTES is 'nan'; write a number that is not negative"),
        ("FINEGRAIN_HISTORY_START", "2025", "FINEGRAIN_HISTORY_START is '2025'; write a day like 2025-01-01"),
        ("FINEGRAIN_DAGSTER_URL", "dagster", "FINEGRAIN_DAGSTER_URL is not an address; write it like https://"),
        ("FINEGRAIN_HOME", os.fsdecode(b"/\xff"), "FINEGRAIN_HOME is not UTF-8 text, so DuckDB cannot open that path"),
        ("TMPDIR", os.fsdecode(b"/\xff"), "TMPDIR is not UTF-8 text, so DuckDB cannot open that path"),
        ("FINEGRAIN_SHOP", os.fsdecode(b"\xff"), "FINEGRAIN_SHOP is not UTF-8 text; set it again"),
    ],
)
def test_an_invalid_value_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(FinegrainError) as refused:
        settings()
    assert str(refused.value).startswith(says) and "\n" not in str(refused.value)


def test_each_invalid_variable_has_a_line(home: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "build"],
        env={**os.environ, "FINEGRAIN_MEMORY": "200", "FINEGRAIN_THREADS": "x", "FINEGRAIN_UMASK": "9"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [re.match(r"error: (\w+) is '", line) for line in done.stderr.splitlines()]
    assert done.returncode == 2 and not done.stdout
    assert {each[1] for each in said if each} == {"FINEGRAIN_MEMORY", "FINEGRAIN_THREADS", "FINEGRAIN_UMASK"}
    assert all(said)


def test_the_doctor_prints_every_setting_and_no_secret(home: Settings) -> None:
    secrets = {name: each for name, each in Environment.model_fields.items() if "SecretStr" in str(each.annotation)}
    given = {str(each.validation_alias): f"postgresql://u:s3cretpart@h/{name}" for name, each in secrets.items()}
    given["FINEGRAIN_ALERT_WEBHOOK"] = "https://chat/s3cretpart"
    given["FINEGRAIN_LOADERS"] = "http://u:s3cretpart@loader:9109/metrics"
    assert "AWS_SECRET_ACCESS_KEY" in given
    for arguments in ((), ("--json",)):
        done = subprocess.run(
            [sys.executable, "-m", "orchestration.cli", "doctor", *arguments],
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "s3cretpart" not in done.stdout + done.stderr
    found = {each["name"]: each for each in json.loads(done.stdout)["settings"]}
    assert len(found) == len(Environment.model_fields) and all(each["purpose"] for each in found.values())
    assert {name for name in given if found[name]["source"] != "environment"} == set()
    assert found["AWS_SECRET_ACCESS_KEY"]["value"] == HIDDEN
    assert (found["FINEGRAIN_HOME"]["value"], found["FINEGRAIN_HOME"]["source"]) == (str(home.home), "environment")
    assert (found["FINEGRAIN_WAREHOUSE"]["value"], found["FINEGRAIN_WAREHOUSE"]["source"]) == (
        str(home.warehouse),
        "default",
    )


def test_the_object_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "s3cretpart")
    given = Environment.read()
    assert given.aws_session_token == SecretStr("s3cretpart") and "s3cretpart" not in repr(given)
    assert described()[-1].group == "Dagster and alerts"


def test_dbts_profile_has_the_same_defaults() -> None:
    text = (PROJECT / "profiles.yml").read_text("utf-8")
    output = yaml.safe_load(text)["finegrain"]["outputs"]["dev"]
    fields = Environment.model_fields
    assert f"env_var('FINEGRAIN_THREADS', '') or '{fields['threads'].default}'" in output["threads"]
    assert f"env_var('FINEGRAIN_MEMORY', '') or '{fields['memory'].default}'" in output["settings"]["memory_limit"]
