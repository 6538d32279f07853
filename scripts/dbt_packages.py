"""Install the dbt packages of packages.yml from dbt's hub or, if it cannot be reached, from fallback_packages/.

With FINEGRAIN_OFFLINE=1, the hub is not used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = ROOT / "dbt_packages" / "dbt_expectations"
FALLBACK = ROOT / "fallback_packages" / "dbt_expectations"
#: Seconds to wait for the hub; dbt itself would try for minutes.
PATIENCE = 5


def hub_answers() -> bool:
    """Whether dbt's package hub can be reached from here."""
    if os.environ.get("FINEGRAIN_OFFLINE"):
        return False
    from dbt.clients.registry import DEFAULT_REGISTRY_BASE_URL

    try:
        with urllib.request.urlopen(f"{DEFAULT_REGISTRY_BASE_URL}api/v1/index.json", timeout=PATIENCE):
            return True
    except OSError:
        return False


def main() -> int:
    if (INSTALLED / "dbt_project.yml").is_file():
        return 0
    if hub_answers():
        done = subprocess.run(
            [sys.executable, "-c", "from dbt.cli.main import cli; cli()", "--quiet", "deps"], cwd=ROOT, check=False
        )
        if done.returncode == 0:
            return 0
        shutil.rmtree(ROOT / "dbt_packages", ignore_errors=True)
    INSTALLED.parent.mkdir(exist_ok=True)
    INSTALLED.unlink(missing_ok=True)
    INSTALLED.symlink_to(os.path.relpath(FALLBACK, INSTALLED.parent))
    print("dbt's package hub cannot be reached; fallback_packages/dbt_expectations is used instead of dbt-expectations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
