"""What finegrain sets of Superset's settings; bi/server.py says in the environment where its home is, and its key."""

from __future__ import annotations

import copy
from typing import Any

from superset.config import TALISMAN_CONFIG as THEIRS

APP_NAME = "finegrain"
LOG_LEVEL = "WARNING"

# A page loads from this server alone: what Superset's pages would tell others (a telemetry's pixel) or fetch from them
# (map tiles, fonts, videos), the browser refuses.
TALISMAN_CONFIG: dict[str, Any] = copy.deepcopy(THEIRS)
for _sources in TALISMAN_CONFIG["content_security_policy"].values():
    if isinstance(_sources, list):
        _sources[:] = [source for source in _sources if source.startswith("'") or source in ("blob:", "data:")]
