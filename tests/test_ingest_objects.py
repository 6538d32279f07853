"""Files in an object store land as files do, under their own names, and are fetched only when they changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.ingest import ingest
from orchestration.ingest.load import load
from orchestration.lake import lake
from orchestration.sources import objects


@pytest.fixture
def store(s3: Any, bucket: str, home: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the store; the environment also configures it for finegrain."""
    for name, value in s3.environment().items():
        if not name.startswith("AWS_ENDPOINT"):
            monkeypatch.setenv(name, value)
    return boto3.client("s3", endpoint_url=s3.environment()["FINEGRAIN_S3_ENDPOINT"])


def mapping(folder: Path, files: Any) -> Path:
    fields = {"product_id": "sku", "title": "name"}
    path = folder / "shop.yml"
    entry = {"files": files, "available_at": "now", "fields": fields}
    path.write_text(yaml.safe_dump({"source": "shop", "tables": {"products": entry}}))
    return path


def test_objects_land_under_their_names(
    store: Any, bucket: str, home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(key: str, text: str) -> None:
        store.put_object(Bucket=bucket, Key=key, Body=text.encode())

    put("a/x.csv", "sku,name\n1,cup\n")
    put("a/é [1]/../y.csv", "sku,name\n2,plate\n")
    put("a/_hidden.csv", "sku,name\n3,no\n")
    put("a/notes.txt", "no")
    put("b/x.csv", "sku,name\n4,no\n")
    path = mapping(tmp_path, f"s3://{bucket}/a/")
    report = ingest(path)
    names = [f"s3://{bucket}/a/x.csv", f"s3://{bucket}/a/é [1]/../y.csv"]
    assert [(file.file, file.rows) for file in report.files] == [(name, 1) for name in names]
    con = lake.connect(home, read_only=True)
    assert sorted(con.execute("select _position, title from lake.raw.products").fetchall()) == [
        (names[0] + "#1", "cup"), (names[1] + "#1", "plate")
    ]  # fmt: skip
    con.close()
    # Nothing changed, so nothing is fetched; of a changed object the new bytes are fetched.
    fetched: list[str] = []
    real = objects._store

    def spy() -> Any:
        client = real()
        get = client.get_object
        client.get_object = lambda **given: (fetched.append(given["Key"]), get(**given))[1]
        return client

    monkeypatch.setattr(objects, "_store", spy)
    assert [file.skipped for file in load(path).files] == ["already loaded"] * 2 and fetched == []
    put("a/x.csv", "sku,name\n1,mug\n")
    assert (load(path).rows, fetched) == (1, ["a/x.csv"])
    assert len(list((home.home / "objects" / bucket).iterdir())) == 2
    assert load(mapping(tmp_path, f"s3://{bucket}/**/x.csv")).rows == 1  # b/x.csv
    assert load(mapping(tmp_path, f"s3://{bucket}/*.csv"[:-4] + "/x.csv")).rows == 0


def test_an_error_of_the_store_is_one_sentence(
    store: Any, bucket: str, home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_object(Bucket=bucket, Key="x", Body=b"sku,name\n1,cup\n")
    wrong = {
        "s3://no-such-bucket-here/x.csv": "there is no bucket 'no-such-bucket-here'",
        f"s3://{bucket}/y*.csv": "no object of the bucket matches this",
        f"s3://{bucket}": "write s3://bucket/key",
        f"s3://{bucket}/x": "the format is not clear from the name",
    }
    for files, said in wrong.items():
        with pytest.raises(FinegrainError, match=said) as caught:
            load(mapping(tmp_path, files))
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("FINEGRAIN_S3_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(FinegrainError, match="is FINEGRAIN_S3_ENDPOINT right"):
        load(mapping(tmp_path, f"s3://{bucket}/x.csv"))
