"""Settings from environment variables: paths (by default below `var/` in the project), memory, threads and file permissions."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from orchestration.config import project
from orchestration.errors import FinegrainError

PROJECT, PACKAGE, variable = project.PROJECT, project.PACKAGE, project.variable
#: The file that marks a folder as a simulated shop.
SIMULATION: Final = "simulation.json"
#: Default memory limits of DuckDB, by environment variable; profiles.yml repeats the first. The second is for a stream loader, whose client
#: queue and two batches come on top.
MEMORY: Final = {"FINEGRAIN_MEMORY": "3GB", "FINEGRAIN_STREAM_MEMORY": "192MB"}
#: DuckDB does not start with less.
LEAST_MEMORY: Final = 64 * 10**6
_UNITS: Final = {
    unit + suffix: factor**power
    for power, unit in enumerate("kmgt", 1)
    for suffix, factor in (("", 1000), ("b", 1000), ("ib", 1024))
}


@dataclass(frozen=True)
class Settings:
    """Resolved paths: `lake_catalog` (DuckLake's SQLite file), `lake_data` (its Parquet folder), `warehouse` (the build's private DuckDB
    file), `published` (what readers open), `extensions` (DuckDB extensions).

    The lake may be remote. Then its location is a string: `postgres:…` for the catalogue (a libpq connection string or URL, never with a
    password) and `s3://…` for the files."""

    home: Path
    lake_catalog: Path | str
    lake_data: Path | str
    warehouse: Path
    published: Path
    extensions: Path

    @classmethod
    def below(cls, home: Path, extensions: Path | None = None) -> Settings:
        """All paths below one folder, ignoring the environment."""
        return cls(
            home=home,
            lake_catalog=home / "lake" / "catalog.sqlite",
            lake_data=home / "lake" / "data",
            warehouse=home / "warehouse.duckdb",
            published=home / "published",
            extensions=extensions or home / "extensions",
        )

    def environment(self) -> dict[str, str]:
        """The environment variables from which `settings` would read these paths."""
        return {_variable(field.name): str(getattr(self, field.name)) for field in fields(self)}


def _variable(name: str) -> str:
    return f"FINEGRAIN_{name.upper()}"


#: What a variable may hold instead of a path.
_ELSEWHERE: Final = {"FINEGRAIN_LAKE_CATALOG": ", or postgres:…", "FINEGRAIN_LAKE_DATA": ", or s3://bucket/folder"}


def is_text(text: str) -> bool:
    """Whether text from the environment, or a file name, is valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _location(variable: str, text: str) -> Path | str:
    """A path, or a remote location as text. Raises FinegrainError for anything else."""
    if variable == "FINEGRAIN_LAKE_CATALOG" and re.match("postgres(ql)?:", text):
        # Locations are printed and passed to other processes, so they must not contain a password.
        if re.search(r"pass(word|wd|phrase)?\s*=|://[^@]*:[^@]*@", unquote(text), re.IGNORECASE):
            raise FinegrainError(
                f"{variable} contains a password; remove it, and set PGPASSWORD or use libpq's file ~/.pgpass"
            )
        words = re.sub("^postgres(ql)?:(?!//)", "", text)
        if not re.fullmatch(
            r"postgres(ql)?://[^\s:@]*@?[^\s@]*|\s*(\w+\s*=\s*('(?:[^'\\]|\\.)*'|[^\s'@]*)(\s+|$))*", words
        ):
            raise FinegrainError(
                f"{variable} is not a PostgreSQL address; write postgresql://user@host:5432/database, or postgres:dbname=… host=… user=…"
            )
        return re.sub("^postgres(ql)?://", "postgres:postgresql://", text)
    if variable == "FINEGRAIN_LAKE_DATA" and text.startswith("s3://"):
        # A secret key may contain a slash, so check only the text before the first one, which should be the bucket.
        if re.search("[@:]", text.removeprefix("s3://").partition("/")[0]):
            raise FinegrainError(
                f"{variable} contains credentials; write s3://bucket/folder, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if "?" in text:
            raise FinegrainError(
                f"{variable} contains a '?'; write s3://bucket/folder, and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
                "AWS_REGION and FINEGRAIN_S3_ENDPOINT for the rest"
            )
        return text.rstrip("/")
    if "://" in text or (variable in _ELSEWHERE and re.search(":[^/]*@|@.*:", text)):
        raise FinegrainError(f"{variable} is not a supported location; write a path{_ELSEWHERE.get(variable, '')}")
    return Path(text).resolve()


def settings() -> Settings:
    """Read the settings from the environment. They are not cached, so that one process can work on several homes in turn. An empty variable
    counts as unset. Raises FinegrainError for an invalid value."""
    for variable in ("FINEGRAIN_HOME", "TMPDIR", *map(_variable, (field.name for field in fields(Settings)))):
        if not is_text(os.environ.get(variable, "")):
            raise FinegrainError(f"{variable} is not UTF-8 text, so DuckDB cannot open that path; use another path")
    default = Settings.below(Path(os.environ.get("FINEGRAIN_HOME") or project.default_home()).resolve())
    overrides = {
        field.name: _location(variable, os.environ[variable])
        for field in fields(Settings)
        if os.environ.get(variable := _variable(field.name))
    }
    found = replace(default, **overrides)  # type: ignore[arg-type]  # only the lake's locations may be str
    _check_paths(found)
    for variable in MEMORY:
        memory(variable)
    threads()
    return found


def _check_paths(found: Settings) -> None:
    """Reject a folder where a file is expected, and a file where a folder is. Otherwise it would fail much later with an OS error."""
    for field in fields(Settings):
        path, variable = getattr(found, field.name), _variable(field.name)
        if not isinstance(path, Path):
            continue
        variable = variable if os.environ.get(variable) else "FINEGRAIN_HOME"
        wanted = "file" if field.name in ("lake_catalog", "warehouse") else "folder"
        try:
            existing = next(each for each in (path, *path.parents) if each.exists())
        except OSError as error:
            raise FinegrainError(f"{path}: {error.strerror}; set {variable} to another path") from None
        if existing == path and wanted == "file":
            if path.is_dir():
                raise FinegrainError(f"{path} is a folder, but a file is expected; set {variable} to another path")
        elif not existing.is_dir():
            raise FinegrainError(f"{existing} is a file, but a folder is expected; set {variable} to another path")
    project.check()


def memory(variable: str = "FINEGRAIN_MEMORY") -> str:
    """The memory limit set by one of the variables in `MEMORY`, in DuckDB's notation. Raises FinegrainError."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return MEMORY[variable]
    if memory_bytes(text) < LEAST_MEMORY:
        raise FinegrainError(
            f"{variable} is '{text}', which is not a usable amount of memory; "
            "write a number with a unit, as in 3GB, 500MB or 2GiB (64MB or more)"
        )
    return text


def memory_bytes(text: str) -> float:
    """`3GB`, `500MB` or `2GiB` in bytes; 0 if the text is not such an amount, or is absurdly large."""
    found = re.fullmatch(r"([0-9]+(?:[.][0-9]+)?) *([kmgt](?:i?b)?)", text.strip().lower())
    size = float(found[1]) * _UNITS[found[2]] if found else 0.0
    return size if size < 2**60 else 0.0


def threads() -> int:
    """The number of models dbt builds at once: `FINEGRAIN_THREADS`, by default 1. Raises FinegrainError."""
    text = os.environ.get("FINEGRAIN_THREADS", "").strip() or "1"
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 256:
        raise FinegrainError(f"FINEGRAIN_THREADS is '{text}'; write a whole number from 1 to 256")
    return int(text)


def s3_endpoint() -> str | None:
    """The address of an S3-compatible store, `FINEGRAIN_S3_ENDPOINT`; None if it is not set. Raises FinegrainError."""
    text = os.environ.get("FINEGRAIN_S3_ENDPOINT", "").strip()
    if not text:
        return None
    if not is_server(text):
        raise FinegrainError("FINEGRAIN_S3_ENDPOINT is not a server address; write it like https://host:port")
    return text


def is_server(address: str) -> bool:
    """Whether this is a server address without credentials or a query: credentials have their own settings, and addresses are printed."""
    return re.fullmatch(r"https?://([^\s@:/?#\[\]]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[^\s@?#]*)?", address) is not None


def umask() -> int:
    """The umask for files that finegrain creates: `FINEGRAIN_UMASK`, by default 077 (only the owner has access). Raises FinegrainError."""
    text = os.environ.get("FINEGRAIN_UMASK", "").strip() or "077"
    if not re.fullmatch("0?0?[0-7]{2}", text):
        raise FinegrainError(
            f"FINEGRAIN_UMASK is '{text}'; write 077 (only the owner), 027 (the group can read) or 022 (everyone can read)"
        )
    return int(text, 8)


def private() -> None:
    """Set the umask for this process and its children, by default so that only the owner can read new files. Raises FinegrainError."""
    os.umask(umask())
