"""The dbt packages of the root project: finegrain itself (in a shop's project), and dbt-expectations.

They come from `dbt deps` or, where dbt's hub cannot be reached, are links to folders of finegrain, whose fallback_packages/ has a stand-in for
dbt-expectations. FINEGRAIN_OFFLINE=1 does not ask the hub.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Final

import yaml

from orchestration.config.project import NAME, PACKAGE_FILES, PROJECT, package_of
from orchestration.config.settings import Environment
from orchestration.errors import FinegrainError, console

EXPECTATIONS: Final = "dbt_expectations"
#: Where packages.yml of a shop's project finds finegrain's dbt project; `finegrain` sets it to its own.
VARIABLE: Final = "FINEGRAIN_PACKAGE"
#: Seconds to wait for the hub; dbt itself would try for minutes.
PATIENCE: Final = 5


def ensure(project: Path = PROJECT) -> None:
    """Put the packages in place if they are not. Raises FinegrainError with the command to run where that is not possible."""
    package = package_of(project)
    os.environ[VARIABLE] = str(package)
    if _are_there(project, package):
        return
    if _hub_answers() and _deps(project) and _are_there(project, package):
        return
    if project != package and not _can_be_linked(project):
        raise FinegrainError(f"the dbt packages of {project} are not installed; in that folder, run: dbt deps")
    _link(project, package)
    console.say(f"dbt's package hub cannot be reached; fallback_packages/{EXPECTATIONS} stands in for dbt-expectations")


def _are_there(project: Path, package: Path) -> bool:
    """Whether all packages are there, finegrain in the version of this code. A link to another finegrain is corrected."""
    folder = project / "dbt_packages"
    if not (folder / EXPECTATIONS / "dbt_project.yml").is_file():
        return False
    if project == package:
        return True
    own = folder / NAME
    if own.is_symlink() and own.resolve() != package.resolve() and _can_be_linked(project):
        _point(own, package)
    if not (own / "dbt_project.yml").is_file():
        return False
    there, wanted = _version(own), _version(package)
    if there != wanted:
        raise FinegrainError(
            f"{own} is finegrain {there}, but the installed finegrain is {wanted}; write the revision of {wanted} into packages.yml and run "
            "dbt deps, or install finegrain " + there
        )
    return all((folder / name).exists() for name in _locked(project))


def _version(project: Path) -> str:
    return str((yaml.safe_load((project / "dbt_project.yml").read_text("utf-8")) or {}).get("version", ""))


def _locked(project: Path) -> list[str]:
    """The folders of the packages that package-lock.yml lists."""
    lock = project / "package-lock.yml"
    try:
        found = yaml.safe_load(lock.read_text("utf-8")) if lock.is_file() else None
    except (ValueError, yaml.YAMLError) as error:
        raise FinegrainError(f"{lock}: this is not YAML; remove the file, and run dbt deps: {error}") from None
    listed = found.get("packages") if isinstance(found, dict) else None
    return [str(each["name"]) for each in listed or [] if isinstance(each, dict) and each.get("name")]


def _can_be_linked(project: Path) -> bool:
    """Whether the project's only package is finegrain, in a local folder."""
    entries: list[Any] = []
    for file in (project / name for name in PACKAGE_FILES):
        if file.is_file():
            try:
                entries += (yaml.safe_load(file.read_text("utf-8")) or {}).get("packages") or []
            except (ValueError, AttributeError, yaml.YAMLError) as error:
                raise FinegrainError(f"{file}: dbt cannot read this: {error}") from None
    return len(entries) == 1 and isinstance(entries[0], dict) and "local" in entries[0]


def _hub_answers() -> bool:
    """Whether dbt's package hub can be reached from here."""
    if Environment.read().offline:
        return False
    from dbt.clients.registry import DEFAULT_REGISTRY_BASE_URL

    try:
        with urllib.request.urlopen(f"{DEFAULT_REGISTRY_BASE_URL}api/v1/index.json", timeout=PATIENCE):
            return True
    except OSError:
        return False


def _deps(project: Path) -> bool:
    """Run `dbt deps`; whether it succeeded."""
    command = [sys.executable, "-c", "from dbt.cli.main import cli; cli()", "--quiet", "deps"]
    return subprocess.run(command, cwd=project, check=False).returncode == 0


def _link(project: Path, package: Path) -> None:
    """Link the packages, and list them in package-lock.yml, by which dbt counts them. Without a hash there, `dbt deps` asks the hub again."""
    folder = project / "dbt_packages"
    folder.mkdir(exist_ok=True)
    stand_in = package / "fallback_packages" / EXPECTATIONS
    _point(folder / EXPECTATIONS, Path(os.path.relpath(stand_in, folder)) if project == package else stand_in)
    if project == package:
        return
    _point(folder / NAME, package)
    locked = [{"local": str(package), "name": NAME}, {"local": str(stand_in), "name": EXPECTATIONS}]
    (project / "package-lock.yml").write_text(yaml.safe_dump({"packages": locked}, sort_keys=False), "utf-8")


def _point(link: Path, target: Path) -> None:
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
