"""The two dbt projects: finegrain's own (`PACKAGE`: the clone, or a folder of the wheel) and the root project that dbt runs (`PROJECT`).

They are one in finegrain's clone. In a shop's project (`finegrain init`), the root takes finegrain as a dbt package.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from orchestration.errors import FinegrainError

#: The name of finegrain's dbt project.
NAME: Final = "finegrain"
#: Where dbt lists a project's packages, the first being the usual one.
PACKAGE_FILES: Final = ("packages.yml", "dependencies.yml")


def _own() -> Path:
    """finegrain's dbt project beside this code."""
    here = Path(__file__).resolve()
    in_wheel = here.parents[1] / "dbt"
    return in_wheel if (in_wheel / "dbt_project.yml").is_file() else here.parents[2]


def _root() -> Path:
    """`FINEGRAIN_PROJECT`, else the nearest dbt project from the current folder upwards, else finegrain's own."""
    if asked := os.environ.get("FINEGRAIN_PROJECT"):
        return Path(asked).absolute()
    try:
        here = Path.cwd()
    except OSError:  # the current folder was deleted
        return _own()
    return next((each for each in (here, *here.parents) if (each / "dbt_project.yml").is_file()), _own())


def _read(project: Path) -> Mapping[str, Any]:
    """dbt_project.yml. What is no YAML at all is empty here; dbt reports it."""
    file = project / "dbt_project.yml"
    try:
        status = file.stat()
    except OSError:
        return {}
    return _parsed(file, status.st_mtime_ns, status.st_size)


@cache
def _parsed(file: Path, changed: int, size: int) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def name_of(project: Path) -> str:
    """The name of a dbt project; empty if it cannot be read."""
    return str(_read(project).get("name", ""))


PROJECT: Final = _root()
#: finegrain's own dbt project, as far as files of it are read: models, macros, seeds, examples.
PACKAGE: Final = PROJECT if name_of(PROJECT) == NAME else _own()


def package_of(project: Path) -> Path:
    """finegrain's dbt project as `project` runs it: itself, or the package that it takes."""
    return project if project == PACKAGE or name_of(project) == NAME else PACKAGE


def roots(project: Path = PROJECT) -> list[Path]:
    """The folders whose models, macros and seeds `project` runs: finegrain's and, where it is another, its own."""
    return list(dict.fromkeys((package_of(project), project)))


def check() -> None:
    """Raises FinegrainError where `PROJECT` is no project that runs finegrain."""
    if not (PROJECT / "dbt_project.yml").is_file():
        if os.environ.get("FINEGRAIN_PROJECT"):
            raise FinegrainError(
                f"FINEGRAIN_PROJECT is {PROJECT}, which has no dbt_project.yml; set it to the folder of a shop's project "
                "(finegrain init), or of finegrain's own"
            )
        return
    if PROJECT != PACKAGE and not _takes_finegrain(PROJECT):
        raise FinegrainError(
            f"{PROJECT} is a dbt project that does not use finegrain: neither packages.yml nor dependencies.yml lists it; make a "
            "project that does with finegrain init, or set FINEGRAIN_PROJECT to the folder of one"
        )


def _takes_finegrain(project: Path) -> bool:
    if (project / "dbt_packages" / NAME).exists():
        return True
    texts = [(project / name).read_text("utf-8", "replace") for name in PACKAGE_FILES if (project / name).is_file()]
    folders = [
        folder for text in texts for folder in re.findall(r"^\s*-\s*local:\s*['\"]?([^'\"{}\n]+)", text, re.MULTILINE)
    ]
    return any(NAME in text.lower() for text in texts) or any(
        name_of(project / each.strip()) == NAME for each in folders
    )


def default_home() -> Path:
    """Where data is kept without FINEGRAIN_HOME: `var` in the project or, of a wheel without one, in the current folder."""
    return (Path("var") if is_installed(PROJECT) else PROJECT / "var").absolute()


def is_installed(project: Path) -> bool:
    """Whether this is the folder of finegrain's wheel, which is not written to."""
    return project == _own() and project.name == "dbt"


def owner_of_folder(project: Path, folder: str) -> str:
    """Who owns the models of a folder below models/, as dbt_project.yml says (`+meta: {owner: …}`); empty if it does not."""
    level, owner = _read(project).get("models") or {}, ""
    for name in (name_of(project), *folder.split("/")):
        level = level.get(name) or {}
        owner = (level.get("+meta") or {}).get("owner", owner)
    return str(owner)


# ------------------------------------------------------------------------------------------------- vars and seeds


def variables(project: Path = PROJECT) -> dict[str, Any]:
    """The vars of finegrain's models as dbt merges them: finegrain's, then the project's, then the project's below `finegrain:`."""
    found: dict[str, Any] = dict(_read(package_of(project)).get("vars") or {})
    if package_of(project) != project:
        own = dict(_read(project).get("vars") or {})
        scoped = own.pop(NAME, None)
        own.pop(name_of(project), None)
        found |= own
        found |= scoped if isinstance(scoped, dict) else {}
    return found


def variable(name: str, default: Any = None) -> Any:
    """A var of finegrain's models, or `default` if it is not set."""
    return variables(PROJECT).get(name, default)


@cache
def seed_keys(package: Path = PACKAGE) -> dict[str, tuple[str, ...]]:
    """By seed that a shop can add to, the columns that identify a row (`meta: {key}` in seeds/_seeds.yml)."""
    declared = yaml.safe_load((package / "seeds" / "_seeds.yml").read_text("utf-8"))["seeds"]
    keys = {each["name"]: each.get("config", {}).get("meta", {}).get("key") for each in declared}
    return {name: tuple(key) for name, key in keys.items() if key}


def check_seeds(project: Path = PROJECT) -> None:
    """Raises FinegrainError where the var `shop_seeds` and the files `seeds/shop_<seed>.csv` of the project differ: rows would have no
    effect, or dbt would find no file."""
    listed = variables(project).get("shop_seeds") or []
    keys = seed_keys(package_of(project))
    file = project / "dbt_project.yml"
    if not isinstance(listed, list) or [each for each in listed if each not in keys]:
        raise FinegrainError(f"{file}: shop_seeds lists {listed}; write a list of these: {', '.join(sorted(keys))}")
    there = {name for name in keys if (project / "seeds" / f"shop_{name}.csv").is_file()}
    for name in sorted(there - set(listed)):
        raise FinegrainError(
            f"{project / 'seeds' / f'shop_{name}.csv'} has no effect: add {name} to the var shop_seeds in {file}, or remove the file"
        )
    for name in listed:
        if name not in there:
            raise FinegrainError(
                f"{project / 'seeds' / f'shop_{name}.csv'} does not exist, but the var shop_seeds in {file} lists {name}: write the file, "
                "or remove it from the list"
            )


def seed(name: str) -> list[dict[str, str]]:
    """The rows of a seed: the shop's, then finegrain's whose key the shop does not give. (Spellings of one key are not compared here.)"""
    rows = _rows(PACKAGE / "seeds" / f"{name}.csv")
    if name not in (variable("shop_seeds") or ()):
        return rows
    own = _rows(PROJECT / "seeds" / f"shop_{name}.csv")
    given = {_key(name, row) for row in own}
    return own + [row for row in rows if _key(name, row) not in given]


def seed_file(name: str) -> str:
    """The file in which the user of this project adds rows to a seed."""
    return f"seeds/{name}.csv" if PROJECT == PACKAGE else f"seeds/shop_{name}.csv"


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FinegrainError(f"{file}: this seed cannot be read: {error}") from None


def _key(name: str, row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple((row.get(column) or "").lower() for column in seed_keys()[name])
