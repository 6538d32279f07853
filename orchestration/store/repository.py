"""The Feast repository: `store/` in the home, made from the YAML of the models.

    feature_store.yaml   where the registry, the online store and the offline store are
    features.py          for Feast's own commands: `feast -c <home>/store apply`
    registry.db          Feast's registry
    online.sqlite        the online store, unless it is Redis

An entity for each key column, a feature view for each feature mart, a feature service for each ready-made spine and each feature set.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from orchestration.config.project import PROJECT, variable
from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError
from orchestration.features.catalog import Feature, Mart, declared
from orchestration.features.spines import AS_OF, ready_made
from orchestration.features.training import chosen, keys_of
from orchestration.store.backends import FOLDER, location

if TYPE_CHECKING:
    from feast import FeatureStore

#: Feast's name for all of it.
NAME: Final = "finegrain"
CONFIG: Final = "feature_store.yaml"
_FEATURES: Final = '''"""Written by `finegrain store apply`, for Feast's own commands. The definitions come from the YAML of the models."""

from orchestration.store.repository import definitions

globals().update({f"{type(each).__name__}_{each.name}": each for each in definitions()})
'''


@dataclass(frozen=True)
class Applied:
    """What the registry has. `views`: by mart its number of features; `removed`: names of views and services that were there before."""

    folder: Path
    online_store: str
    entities: list[str]
    views: dict[str, int]
    services: list[str]
    removed: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def must_have_feast() -> None:
    """Raises FinegrainError where the extra is not installed."""
    if find_spec("feast") is None:
        raise FinegrainError(
            "finegrain store needs Feast, which comes with the extra 'store' and is not installed here; "
            f"in {PROJECT}, run: scripts/setup store, or: pip install --no-deps --require-hashes -r requirements-store.lock"
        )


def apply(where: Settings | None = None) -> Applied:
    """Write the repository and bring its registry up to date. What is no longer declared is removed, from the online store, too. Raises FinegrainError."""
    must_have_feast()
    where = where or settings()
    folder = where.home / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "project": NAME,
        "provider": "local",
        "registry": {"path": str(folder / "registry.db"), "cache_ttl_seconds": 60},
        "online_store": {
            "type": "orchestration.store.feast_store.FinegrainOnlineStore",
            "location": location(where),
        },
        "offline_store": {"type": "duckdb"},
        "entity_key_serialization_version": 3,
        "auth": {"type": "no_auth"},
    }
    (folder / CONFIG).write_text(
        "# Written by `finegrain store apply`.\n" + yaml.safe_dump(config, sort_keys=False), "utf-8"
    )
    (folder / "features.py").write_text(_FEATURES, "utf-8")
    with _quiet():
        store = opened(where)
        wanted = definitions(where)
        there: list[Any] = [
            *store.list_feature_views(),
            *store.list_feature_services(),
            *store.list_entities(),
            *store.list_data_sources(),
        ]
        names = {(type(each).__name__, each.name) for each in wanted}
        names |= {("FileSource", each.batch_source.name) for each in wanted if hasattr(each, "batch_source")}
        removed = [each for each in there if (type(each).__name__, each.name) not in names]
        store.apply(wanted, objects_to_delete=removed, partial=False)
    return Applied(
        folder,
        location(where),
        sorted(each.name for each in wanted if type(each).__name__ == "Entity"),
        {each.name: len(each.features) for each in wanted if type(each).__name__ == "FeatureView"},
        sorted(each.name for each in wanted if type(each).__name__ == "FeatureService"),
        sorted({each.name for each in removed}),
    )


def opened(where: Settings | None = None) -> FeatureStore:
    """Feast's store. Raises FinegrainError unless it was applied for the online store that the environment says."""
    must_have_feast()
    where = where or settings()
    file = where.home / FOLDER / CONFIG
    if not file.exists():
        raise FinegrainError(f"{file} does not exist; run `finegrain store apply`")
    there = yaml.safe_load(file.read_text("utf-8"))["online_store"]["location"]
    if there != location(where):
        raise FinegrainError(
            f"{file} is of another online store ({there}); run `finegrain store apply`, or set FINEGRAIN_ONLINE_STORE back"
        )
    from feast import FeatureStore

    return FeatureStore(repo_path=str(file.parent))


def definitions(where: Settings | None = None, project: Path = PROJECT) -> list[Any]:
    """Feast's objects: entities, feature views and feature services."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import String

    where = where or settings()
    marts = declared(project)
    meanings = {name: mart.keys[name] for mart in reversed(marts) for name in keys_of(mart)}
    entities = {
        name: Entity(name=_entity(name), join_keys=[name], value_type=ValueType.STRING, description=meaning)
        for name, meaning in meanings.items()
    }
    views = {
        mart.name: FeatureView(
            name=mart.name,
            entities=[entities[name] for name in keys_of(mart)],
            ttl=timedelta(days=mart.ttl_days),
            schema=[
                *(Field(name=name, dtype=String, description=mart.keys[name]) for name in keys_of(mart)),
                *(_field(mart, each) for each in mart.features),
            ],
            source=FileSource(name=mart.name, path=source_of(mart.name, where), timestamp_field=AS_OF),
            description=mart.description,
            owner=mart.features[0].owner if mart.features else "",
            tags={"grain": mart.grain},
        )
        for mart in marts
    }
    services = [
        FeatureService(name=name, features=[views[mart][names] for mart, names in features.items()], description=about)
        for name, (about, features) in _services(marts, variable("feature_sets", {}), project).items()
    ]
    return [*entities.values(), *views.values(), *services]


def source_of(mart: str, where: Settings) -> str:
    """The Parquet files that Feast's offline store reads of a mart: its history, as of the end of past days, or the current version if it has none."""
    history = where.published / "history"
    if next(history.glob(f"day=*/{mart}.parquet"), None):
        return str(history / "day=*" / f"{mart}.parquet")
    return str(where.published / "parquet" / mart / "*.parquet")


def _services(
    marts: Sequence[Mart], sets: Mapping[str, Sequence[str]], project: Path
) -> dict[str, tuple[str, dict[str, list[str]]]]:
    """By service, what it is for, and its features by mart: those of the keys that a ready-made spine has, and those of a feature set."""
    found: dict[str, tuple[str, dict[str, list[str]]]] = {}
    for name, spine in ready_made(project).items():
        features = {
            mart.name: [each.name for each in mart.features]
            for mart in marts
            if set(keys_of(mart)) <= set(spine.columns)
        }
        found[name] = (f"All features of the keys of {name}.", features)
    for name, patterns in sets.items():
        found[name] = (f"The feature set {name}.", chosen(patterns, marts, sets))
    return found


def _entity(key: str) -> str:
    """The entity of a key column: `customer` of customer_id."""
    return key.removesuffix("_id")


def _field(mart: Mart, feature: Feature) -> Any:
    from feast import Field

    kind = _type(feature.data_type)
    if kind is None:
        raise FinegrainError(
            f"{mart.name}.{feature.name}: Feast has no type for {feature.data_type}; cast it to a number, text or time, or to a list of numbers or texts"
        )
    return Field(
        name=feature.name,
        dtype=kind,
        description=feature.meaning,
        tags={
            "unit": feature.unit,
            "window": feature.window,
            "owner": feature.owner,
            "null_means": feature.null_means,
        },
    )


def _type(data_type: str) -> Any:
    """Feast's type of a column; None if it has none. Decimals are doubles, as in training sets; Feast's times are whole seconds."""
    from feast.types import Array, Bool, Float64, Int64, String, UnixTimestamp

    name = data_type.lower()
    if name.endswith("[]"):
        inner = _type(name.removesuffix("[]"))
        return Array(inner) if inner in (Bool, Float64, Int64, String) else None
    if name.startswith("timestamp"):
        return UnixTimestamp
    if name in ("tinyint", "smallint", "integer", "int", "bigint"):
        return Int64
    if name.startswith(("decimal", "numeric", "double", "float", "real")):
        return Float64
    return Bool if name == "boolean" else String if name in ("varchar", "text", "string", "uuid", "date") else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Feast's warnings about paths with a star in them, which only its checks do not understand."""
    logger = logging.getLogger("feast.infra.offline_stores.file_source")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
