"""Puts finegrain's dbt project, the template of `finegrain init` and the examples into the wheel; pyproject.toml has the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
#: What goes to orchestration/dbt, where orchestration/config/project.py looks for it.
FILES = ("dbt_project.yml", "profiles.yml", "packages.yml", "LICENSE")
FOLDERS = ("models", "macros", "seeds", "snapshots", "tests/generic", "tests/singular", "fallback_packages", "examples")
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*")


class BuildWithProject(build_py):
    """build_py, which leaves out what is not Python; an editable installation reads the clone itself."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "orchestration"
        target = package / "dbt"
        shutil.rmtree(target, ignore_errors=True)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, target / name, ignore=LEFT_OUT)
        for name in FILES:
            shutil.copy2(ROOT / name, target / name)
        # A wheel's folder may be read-only, so the stand-in for dbt-expectations is in place already.
        expectations = Path("dbt_expectations")
        shutil.copytree(ROOT / "fallback_packages" / expectations, target / "dbt_packages" / expectations)
        template = Path("cli") / "template"
        shutil.copytree(ROOT / "orchestration" / template, package / template, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithProject})
