"""`finegrain init`: writes a shop's dbt project, which takes finegrain as a dbt package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from orchestration import __version__
from orchestration.config import packages
from orchestration.config.project import NAME, PACKAGE
from orchestration.errors import FinegrainError, console

TEMPLATE: Final = Path(__file__).with_name("template")
#: Names of projects that dbt or finegrain brings along.
TAKEN: Final = frozenset({NAME, "dbt", "dbt_duckdb", "dbt_expectations", "dbt_date"})


def init(folder: Path, *, name: str | None = None, git: str | None = None, revision: str | None = None) -> None:
    """Write the project into `folder`, which is created, and install its dbt packages. finegrain's dbt project is taken from the folder of this
    installation or, with `git`, from a revision of a repository. Raises FinegrainError, and then has written nothing."""
    name = _checked_name(folder, name)
    if (git is None) != (revision is None):
        raise FinegrainError(
            "--git and --revision go together: the address of finegrain's repository, and a tag or commit in it"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise FinegrainError(f"{folder} is not empty; choose a new folder")
    for parent in (folder, *folder.parents):
        if parent.exists():
            if not parent.is_dir():
                raise FinegrainError(f"{parent} is a file; choose another folder")
            break
    for path, text in _files(name, git, revision).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    try:
        packages.ensure(folder.resolve())
    except FinegrainError as error:  # the project is whole; what is absent can be installed later
        console.say(f"note: {error}")


def _checked_name(folder: Path, name: str | None) -> str:
    """The name of the dbt project: as given, or that of the folder."""
    found = name if name is not None else folder.resolve().name.replace("-", "_")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", found) or len(found) > 60:
        raise FinegrainError(
            f"'{console.shown(found)}' cannot be the name of a dbt project: letters, digits and underscores, and no digit first; "
            "choose another folder, or give --name"
        )
    if found.lower() in TAKEN:
        raise FinegrainError(
            f"'{found}' is the name of a dbt package that the project uses; choose another folder, or give --name"
        )
    return found


def _files(name: str, git: str | None, revision: str | None) -> dict[str, str]:
    """The project's files by path."""
    if git is None:
        package = f"""  - local: "{{{{ env_var('{packages.VARIABLE}', '{PACKAGE.resolve()}') }}}}\""""
        requirement = f"{NAME}=={__version__}"
    else:
        package = f'  - git: "{git}"\n    revision: "{revision}"'
        requirement = f"{NAME} @ git+{git}@{revision}"
    values = {"__NAME__": name, "__PACKAGE__": package, "__REQUIREMENT__": requirement}
    found = {
        path.relative_to(TEMPLATE).as_posix(): path.read_text("utf-8")
        for path in sorted(TEMPLATE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    # The plugin and the paths of finegrain's own profile.
    profile = (PACKAGE / "profiles.yml").read_text("utf-8")
    found["profiles.yml"] = re.sub(rf"^{NAME}:$", f"{name}:", profile, flags=re.MULTILINE)
    for placeholder, value in values.items():
        found = {path: text.replace(placeholder, value) for path, text in found.items()}
    return found
