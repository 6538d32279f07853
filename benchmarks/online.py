"""Online reads: finegrain's online store beside Feast's own stores, in one run, through Feast's SDK and its feature server.

    python benchmarks/online.py [--customers 10000] [--rounds 200]

Vectors of user_features are random. Each store has the same ones; each is read at 1, 10 and 100 keys x 20 features, in turns, so that a noisy machine is as
noisy for all. Prints JSON: milliseconds (p10, p50, p99), ratios to Feast's own store of the same kind, and what writing costs.
The ratios are of p10, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "scripts")]

from servers import HOST, Redis  # noqa: E402

from orchestration.config.settings import Settings  # noqa: E402
from orchestration.features.catalog import Mart  # noqa: E402
from orchestration.store.backends import backend  # noqa: E402
from orchestration.store.online import OnlineStore  # noqa: E402
from orchestration.store.repository import definitions  # noqa: E402

MART = "user_features"
SIZES = (1, 10, 100)
FEATURES = 20
SERVICE = "twenty"
#: Reads of one store before the next one's turn, and reads before these that are not counted.
BLOCK, WARM = 20, 3


def vectors(mart: Mart, count: int) -> pa.Table:
    """Random rows of the mart, of one moment."""

    def value(kind: str) -> str:
        if kind in ("bigint", "integer"):
            return f"cast(floor(random() * 20) as {kind})"
        if kind == "boolean":
            return "random() < 0.5"
        return "'loyal'" if kind == "varchar" else "if(random() < 0.2, null, round(random() * 1000, 4))"

    columns = ", ".join(f'{value(each.data_type)} as "{each.name}"' for each in mart.features)
    return duckdb.sql(
        f"select 'customer-' || i as customer_id, timestamp '2025-06-01' as as_of, {columns} from range({count}) as t (i)"
    ).to_arrow_table()


def feast_store(folder: Path, online: dict[str, Any], where: Settings, *, precomputed: bool = False) -> Any:
    """A Feast store with the mart and a service of its first features."""
    from feast import FeatureService, FeatureStore

    folder.mkdir(parents=True)
    config = {
        "project": folder.name, "provider": "local", "online_store": online,
        "registry": {"path": str(folder / "registry.db"), "cache_ttl_seconds": 60},
        "offline_store": {"type": "duckdb"}, "entity_key_serialization_version": 3,
    }  # fmt: skip
    (folder / "feature_store.yaml").write_text(json.dumps(config), "utf-8")
    store = FeatureStore(repo_path=str(folder))
    objects = [each for each in definitions(where) if each.name in ("customer", MART)]
    [view] = [each for each in objects if each.name == MART]
    names = [each.name for each in view.features[:FEATURES]]
    service = FeatureService(name=SERVICE, features=[view[names]], precompute_online=precomputed)
    store.apply([*objects, service])
    return store


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """Feast's feature server on a repository."""
    code = f"from feast import FeatureStore; FeatureStore(repo_path={str(folder)!r}).serve('{HOST}', {port}, max_requests=0, max_requests_jitter=0)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def post(port: int, keys: list[str]) -> Any:
    """One request to the feature server."""
    asked = json.dumps({"feature_service": SERVICE, "entities": {"customer_id": keys}}).encode()
    request = urllib.request.Request(
        f"http://{HOST}:{port}/get-online-features", asked, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def reader(folder: Path) -> Callable[[list[str]], Any]:
    """Reads the service through the SDK, as a process that only reads: one that has applied reads the registry's file each time. Feast reads what it
    has precomputed only by full names."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(folder))
    service = store.get_feature_service(SERVICE)
    return lambda keys: store.get_online_features(
        features=service, entity_rows=[{"customer_id": key} for key in keys], full_feature_names=True
    ).to_dict()


def timed(readers: dict[str, Callable[[list[str]], Any]], customers: int, rounds: int) -> dict[str, Any]:
    """Milliseconds by reader and number of keys. Readers take turns of BLOCK reads: Feast caches the parsed registry of the last store only, and a service has one."""
    found: dict[str, Any] = {name: {} for name in readers}
    for size in SIZES:
        taken: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(max(1, rounds // BLOCK)):
            for name, read in random.sample(sorted(readers.items()), len(readers)):
                for number in range(BLOCK + WARM):
                    keys = [f"customer-{each}" for each in random.sample(range(customers), size)]
                    started = time.perf_counter()
                    read(keys)
                    if number >= WARM:
                        taken[name].append((time.perf_counter() - started) * 1000)
        for name, each in taken.items():
            found[name][size] = {
                f"p{percent}": round(statistics.quantiles(each, n=100)[percent - 1], 3) for percent in (10, 50, 99)
            }
    return found


def measure(folder: Path, customers: int, rounds: int) -> dict[str, Any]:
    """Everything, with a Redis server of its own."""
    redis = Redis(folder / "services", any_port=True)
    redis.start()
    where = Settings.below(folder / "home")
    os.environ |= where.environment()
    try:
        locations = {"sqlite": str(folder / "online.sqlite"), "redis": f"redis://{HOST}:{redis.port}/0"}
        ours = {"type": "orchestration.store.feast_store.FinegrainOnlineStore"}
        theirs = {
            "sqlite": {"type": "sqlite", "path": str(folder / "theirs.db")},
            "redis": {"type": "redis", "connection_string": f"{HOST}:{redis.port},db=1"},
            "redis precomputed": {"type": "redis", "connection_string": f"{HOST}:{redis.port},db=2"},
        }
        stores, writing = {}, {}
        with OnlineStore(to=backend(locations["sqlite"])) as store:
            table = vectors(store.mart(MART), customers)
        for kind, location in locations.items():
            stores[f"finegrain, {kind}"] = feast_store(folder / f"ours_{kind}", {**ours, "location": location}, where)
            with OnlineStore(to=backend(location)) as store:
                started = time.perf_counter()
                store.write(MART, table)
                writing[f"finegrain, {kind}"] = time.perf_counter() - started
        frame = table.to_pandas()
        frame["as_of"] = frame["as_of"].dt.tz_localize(UTC)
        for kind, online in theirs.items():
            name, is_precomputed = f"Feast, {kind}", kind.endswith("precomputed")
            stores[name] = feast_store(
                folder / f"theirs_{kind.replace(' ', '_')}", online, where, precomputed=is_precomputed
            )
            started = time.perf_counter()
            for first in range(0, customers, 1000):
                stores[name].write_to_online_store(MART, frame.iloc[first : first + 1000])
            writing[name] = time.perf_counter() - started
            if is_precomputed:
                started = time.perf_counter()
                stores[name].precompute_feature_service(SERVICE)
                writing["Feast, redis, precomputed after that"] = time.perf_counter() - started
        readers = {name: reader(store.repo_path) for name, store in stores.items()}
        keys = [f"customer-{each}" for each in range(0, customers, max(1, customers // 50))]
        answers = {name: read(keys) for name, read in readers.items()}
        assert all(answer == answers["Feast, sqlite"] for answer in answers.values())
        sdk = timed(readers, customers, rounds)
        served = {}
        for number, kind in enumerate(locations):
            names = {f"finegrain, {kind}": folder / f"ours_{kind}", f"Feast, {kind}": folder / f"theirs_{kind}"}
            ports = {name: redis.port + 10 + 2 * number + place for place, name in enumerate(names)}
            with (
                server(names[f"finegrain, {kind}"], ports[f"finegrain, {kind}"]),
                server(names[f"Feast, {kind}"], ports[f"Feast, {kind}"]),
            ):
                served |= timed(
                    {name: lambda keys, port=port: post(port, keys) for name, port in ports.items()}, customers, rounds
                )
        size = {
            "finegrain, sqlite": (folder / "online.sqlite").stat().st_size / customers,
            "Feast, sqlite": (folder / "theirs.db").stat().st_size / customers,
        }
    finally:
        redis.kill()
    return {
        "customers": customers,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sdk": sdk,
        "server": served,
        "ratios of p10": {
            way: {
                kind: {
                    keys: round(found[f"finegrain, {kind}"][keys]["p10"] / found[f"Feast, {kind}"][keys]["p10"], 2)
                    for keys in SIZES
                }
                for kind in locations
            }
            for way, found in (("sdk", sdk), ("server", served))
        },
        "vectors written a second": {name: round(customers / seconds) for name, seconds in writing.items()},
        "bytes a vector": {name: round(each) for name, each in size.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--customers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(measure(Path(temporary), given.customers, given.rounds), indent=2))
