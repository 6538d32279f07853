"""user_brand_features in plain Python."""

from __future__ import annotations

import functools

from plainly.affinity import affinity_features

features = functools.partial(affinity_features, "brand")
