"""Install the dbt packages of packages.yml (orchestration/config/packages.py). With FINEGRAIN_OFFLINE=1, dbt's hub is not used."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestration.config.packages import ensure
from orchestration.errors import FinegrainError


def main() -> int:
    try:
        ensure(Path(__file__).resolve().parent.parent)
    except FinegrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
