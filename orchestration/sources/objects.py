"""Files in S3 or an S3-compatible object store. New and changed objects are downloaded and then read like local files.

Credentials are found as AWS's own tools do (AWS_ACCESS_KEY_ID, AWS_PROFILE, a role, …); FINEGRAIN_S3_ENDPOINT sets another store. Downloads are
cached by ETag below FINEGRAIN_HOME/objects, which may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

from orchestration.config.settings import Environment, settings
from orchestration.errors import FinegrainError, Unavailable
from orchestration.lake.locks import scratch
from orchestration.mapping.mapping import Format, format_of, from_environment
from orchestration.sources.patterns import as_regex


def fetch(pattern: str, form: Format | None) -> Iterator[tuple[Path, str]]:
    """(local copy, `s3://bucket/key`) of each object that matches `pattern`: a key, a glob (`*`, `?`, `**`), or a prefix that ends with a slash.
    Raises FinegrainError if nothing matches or the store cannot be read."""
    bucket, _, wanted = from_environment(pattern, pattern).removeprefix("s3://").partition("/")
    if not bucket or not wanted:
        raise FinegrainError(f"{pattern}: write s3://bucket/key, as in s3://exports/visits/*.parquet")
    try:
        store = _store()
        found = list(_list(store, bucket, wanted, form))
        if not found:
            raise FinegrainError(f"{pattern}: no object of the bucket matches this")
        for key, etag in found:
            yield _copy(store, bucket, key, etag), f"s3://{bucket}/{key}"
    except ClientError as error:
        is_passing = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) in (429, *range(500, 600))
        raise (Unavailable if is_passing else FinegrainError)(f"{pattern}: {_reason(bucket, error)}") from None
    except BotoCoreError as error:
        fix = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if "credentials" in str(error).lower() else ""
        fix = fix or ("; is FINEGRAIN_S3_ENDPOINT right?" if "connect" in str(error).lower() else "")
        is_passing = isinstance(error, (HTTPClientError, ConnectionError))
        raise (Unavailable if is_passing else FinegrainError)(
            f"{pattern}: the store cannot be read: {' '.join(str(error).split())}{fix}"
        ) from None


def _store() -> Any:
    given = Environment.read()
    style = {"addressing_style": "path"} if given.s3_endpoint else {}
    region = given.aws_region or "us-east-1"
    config = Config(s3=style, retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10, read_timeout=60)
    return boto3.client("s3", endpoint_url=given.s3_endpoint, region_name=region, config=config)


def _list(store: Any, bucket: str, wanted: str, form: Format | None) -> Iterator[tuple[str, str]]:
    """(key, ETag) of what matches, in order of keys."""
    fixed = re.split(r"[*?]", wanted, maxsplit=1)[0]
    folder = fixed == wanted and wanted.endswith("/")
    matches = re.compile(as_regex(wanted) + (".*" if folder else ""), re.S).fullmatch
    for page in store.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=fixed):
        for each in page.get("Contents", []):
            key, name = each["Key"], each["Key"].rpartition("/")[2]
            inside = format_of(name) and format_of(name) == (form or format_of(name)) and name[0] not in "._"
            if matches(key) and name and (not folder or inside):
                yield key, each["ETag"]


def _copy(store: Any, bucket: str, key: str, etag: str) -> Path:
    """The local copy of an object, downloaded unless there is one with this ETag. Copies are named by key and ETag and put in place by a rename."""
    home = settings().home
    kept = home / "objects" / bucket
    kept.mkdir(parents=True, exist_ok=True)
    stem = hashlib.sha256(key.encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", key.rpartition("/")[2])
    path = kept / f"{stem}-{hashlib.sha256(etag.encode()).hexdigest()[:8]}-{name}"
    if path.exists():
        return path
    body = store.get_object(Bucket=bucket, Key=key, IfMatch=etag)["Body"]
    with scratch(home / "tmp", "object-") as folder:
        with (folder / name).open("wb") as file:
            shutil.copyfileobj(body, file, 2**20)
        for old in kept.glob(f"{stem}-*"):
            if old != path:
                old.unlink(missing_ok=True)
        return (folder / name).rename(path)


def _reason(bucket: str, error: ClientError) -> str:
    code = str(error.response.get("Error", {}).get("Code", ""))
    return {
        "NoSuchBucket": f"there is no bucket '{bucket}'",
        "AccessDenied": f"the credentials may not read the bucket '{bucket}'",
        "403": f"the credentials may not read the bucket '{bucket}'",
        "InvalidAccessKeyId": "the store does not know the access key in AWS_ACCESS_KEY_ID",
        "SignatureDoesNotMatch": "the store rejects the secret in AWS_SECRET_ACCESS_KEY",
        "PreconditionFailed": "an object changed while it was downloaded; run this again",
    }.get(code, f"the store says {code}: {error.response.get('Error', {}).get('Message', '')}")
