"""user_brand_features: one row a customer and brand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from features import Feature, Project, _taste

KEYS: Final = {
    "customer_id": _taste.CUSTOMER,
    "brand": "A brand of products that the customer met, by its name when they did.",
}


def features(project: Project) -> Iterator[Feature]:
    yield from _taste.features("brand", project)
