"""user_category_features: one row a customer and category."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from features import Feature, Project, _taste

KEYS: Final = {
    "customer_id": _taste.CUSTOMER,
    "category": "A category of products that the customer met, by its name when they did.",
}


def features(project: Project) -> Iterator[Feature]:
    yield from _taste.features("category", project)
