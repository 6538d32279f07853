"""Which models run live, and on what. Their config says so (`meta: {live: …}`):

- `slice`: its rows of some customers follow from rows of the same customers, so it is run on those alone;
- `lookup`: it answers what rows of the slice ask, such as the bounds for their products and days;
- `reference`: its rows of a customer or product follow from the raw rows of the same, so those of whom such rows come are computed again;
- `fit`: it is learned from days that were closed long enough; the last build's is read;
- `past`: all of its rows have ended by now, so it is empty;
- `shop`: it is of the whole shop by the end of a day; it is computed once a day from what the last build knows.

All else that such a model reads must not depend on events: other reference data and seeds, as the last build left them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from orchestration.errors import FinegrainError
from orchestration.warehouse.compiled import BUILD, SPINES, Compiled, Model

#: What is computed for new raw rows, and the models of raw rows that it is computed from.
NORMALIZED: Final = "int_events__normalized"
RAW: Final = (
    "base_events__events",
    "base_ga4__events",
    "base_shop__orders",
    "base_shop__order_items",
    "base_shop__refunds",
    "base_shop__customers",
    "base_shop__products",
)
#: By model of raw rows of customers or products, the column that says of which one a row of a `reference` is.
REFERENCE_KEYS: Final = {"base_shop__customers": "user_id", "base_shop__products": "product_id"}
#: The names of categories that the raw rows bring.
CATEGORY_NAMES: Final = "stg_lake__category_names"
#: All rows of events, new and known, before they are validated; and after.
ROWS: Final = "int_events__new_rows"
VALIDATED: Final = "int_events__validated"
KINDS: Final = ("slice", "lookup", "reference", "fit", "past", "shop")
#: One of these columns says of which customers a row of a slice is.
KEYS: Final = frozenset({"row_id", "identity", "customer_id", "session_id"})


@dataclass(frozen=True)
class Plan:
    """The models to run, each list in the order in which they read each other. `normalize`: from raw rows to `NORMALIZED`, and to the models of
    `reference`, of which it has the key columns. `slice`: from `ROWS` to the feature marts `marts`. `shop`: those of the whole shop. `stored`: the
    tables that are read as the last build left them, of which `past` are empty. `whole`: tables that only `shop` reads."""

    normalize: list[Model]
    reference: dict[str, str]
    slice: list[Model]
    shop: list[Model]
    stored: list[str]
    past: list[str]
    whole: list[str]
    marts: list[str]


def plan(models: Compiled) -> Plan:
    """What to run for the feature marts that are marked. Raises FinegrainError for a model that cannot be marked as it is."""
    marts = [name for name in models.marts if models.models[name].live == "slice"]
    if not marts:
        raise FinegrainError("no feature mart is marked as live; set meta: {live: slice} in the config of one")
    given = {ROWS, BUILD, *SPINES.values()}
    found = _ordered(models, marts, lambda model: model.live in ("slice", "lookup"), given)
    for model in found:
        _check(models, model, given)
    reads = {name for model in found for name in model.reads} - given
    shop = [models.models[name] for name in sorted(reads) if _live(models, name) == "shop"]
    raw = {*RAW, CATEGORY_NAMES}
    of_raw = {name for name in models.models if _depends(models, name, raw)}
    reference = {name: _reference_key(models, name) for name in sorted(reads) if _live(models, name) == "reference"}
    normalize = _ordered(models, [NORMALIZED, *reference], lambda model: model.is_view or model.name in of_raw, raw)
    computed = {model.name for model in (*normalize, *found, *shop)} | given | raw
    stored = (reads | {name for model in normalize for name in model.reads}) - computed | reference.keys()
    whole = {name for model in shop for name in model.reads} - given
    past = [name for name in sorted(stored) if _live(models, name) == "past"]
    return Plan(normalize, reference, found, shop, sorted(stored), past, sorted(whole), marts)


def _live(models: Compiled, name: str) -> str | None:
    model = models.models.get(name)
    return model.live if model else None


def _check(models: Compiled, model: Model, given: Collection[str]) -> None:
    for name in model.reads:
        kind = _live(models, name)
        if name in given or kind in KINDS:
            continue
        if _depends(models, name, {VALIDATED}):
            raise FinegrainError(
                f"{model.name}: it is marked live: {model.live}, and reads {name}, which is computed from the events of all customers; take the mark "
                f"off, or mark {name}, too (orchestration/live/plan.py)"
            )


def _reference_key(models: Compiled, name: str) -> str:
    """The column that says of which customer or product a row is."""
    for raw, key in REFERENCE_KEYS.items():
        if _depends(models, name, {raw}) and not _depends(models, name, {*RAW} - {raw}):
            return key
    raise FinegrainError(
        f"{name}: it is marked live: reference, and is not computed from raw rows of customers or of products alone; take the mark off "
        "(orchestration/live/plan.py)"
    )


def _depends(models: Compiled, name: str, on: Collection[str]) -> bool:
    """Whether a model reads one of these, directly or not."""
    waiting, seen = [name], set()
    while waiting:
        each = waiting.pop()
        if each in on:
            return True
        if each not in seen and each in models.models:
            seen.add(each)
            waiting.extend(models.models[each].reads)
    return False


def _ordered(
    models: Compiled, names: Sequence[str], is_run: Callable[[Model], bool], given: Collection[str]
) -> list[Model]:
    """The models of these names and those above them that are run, each after those that it reads."""
    found: dict[str, Model] = {}

    def visit(name: str) -> None:
        model = models.models.get(name)
        if model is None or name in found or name in given or not is_run(model):
            return
        for each in model.reads:
            visit(each)
        found[name] = model

    for name in names:
        visit(name)
    return list(found.values())
