"""user_brand_features: one row per customer and brand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from features import Feature, Project, _affinity

KEYS: Final = {
    "customer_id": _affinity.CUSTOMER,
    "brand": "A brand of products that the customer had events about, by its name at the time.",
}


def features(project: Project) -> Iterator[Feature]:
    yield from _affinity.features("brand", project)
