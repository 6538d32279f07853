"""The key of keyed hashes of personal data (orchestration/config/privacy_key.py)."""

import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from orchestration.config.privacy_key import privacy_key
from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError


@pytest.fixture(autouse=True)
def _without_variable(monkeypatch):
    monkeypatch.delenv("FINEGRAIN_PRIVACY_KEY")


def test_it_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    where = Settings.below(tmp_path / "home")
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: privacy_key(where), range(32)))
    assert len(keys) == 1
    assert len(bytes.fromhex(keys.pop().decode())) == 32
    assert stat.S_IMODE((where.home / "privacy.key").stat().st_mode) == 0o600
    assert [path.name for path in where.home.iterdir()] == ["privacy.key"]
    assert privacy_key(Settings.below(tmp_path / "other")) != privacy_key(where)


def test_the_variable_replaces_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEGRAIN_PRIVACY_KEY", "0123456789abcdef" * 2)
    where = Settings.below(tmp_path / "home")
    assert privacy_key(where) == b"0123456789abcdef" * 2
    assert not where.home.exists()


def test_a_shared_lake_needs_the_variable(tmp_path):
    shared = replace(Settings.below(tmp_path / "home"), lake_catalog="postgres:dbname=lake")
    with pytest.raises(FinegrainError, match="FINEGRAIN_PRIVACY_KEY is not set: all machines"):
        privacy_key(shared)


def test_a_short_key_is_refused_and_not_shown(tmp_path, monkeypatch):
    where = Settings.below(tmp_path)
    (tmp_path / "privacy.key").write_text("hunter2\n")
    with pytest.raises(FinegrainError, match=r"privacy\.key: a key of 7 characters is too short") as error:
        privacy_key(where)
    assert "hunter2" not in str(error.value)
    monkeypatch.setenv("FINEGRAIN_PRIVACY_KEY", "hunter3")
    with pytest.raises(FinegrainError, match="FINEGRAIN_PRIVACY_KEY: a key of 7 characters is too short") as error:
        privacy_key(where)
    assert "hunter3" not in str(error.value)
