"""Python reads this file when it starts with this folder on PYTHONPATH, as the tests' child processes do (conftest.py): where the process imports
dbt, it is made quick first, as in the tests' own process. QUICK_DBT names the folder of shared parses; a test of what a newcomer gets unsets it."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class QuickDbt(MetaPathFinder):
    """Finds nothing: it only waits for the import of dbt, which takes seconds, so that other processes do not pay for it."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname == "dbt.cli.main":
            sys.meta_path.remove(self)
            tests = Path(__file__).parent.parent
            sys.path.append(str(tests))
            quick_dbt = importlib.import_module("quick_dbt")
            sys.path.remove(str(tests))
            quick_dbt.quicken()
            quick_dbt.share_parses(Path(os.environ["QUICK_DBT"]), tests.parent)


if os.environ.get("QUICK_DBT"):
    sys.meta_path.insert(0, QuickDbt())
