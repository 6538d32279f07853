"""user_brand_features, plainly."""

from __future__ import annotations

import functools

from plainly.taste import taste_features

features = functools.partial(taste_features, "brand")
