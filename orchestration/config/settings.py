"""Where things are. Every place comes from the environment, with a default under `var/` in the project."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import yaml

from orchestration.errors import FinegrainError

PROJECT = Path(os.environ.get("FINEGRAIN_PROJECT") or Path(__file__).resolve().parents[2])
#: The file that marks a folder as one of a simulated shop.
SIMULATION: Final = "simulation.json"
#: What DuckDB may use, by variable, unless the environment says otherwise; profiles.yml repeats the first. The second is what the loader
#: of a stream takes; the client's queue and two batches come on top.
MEMORY: Final = {"FINEGRAIN_MEMORY": "3GB", "FINEGRAIN_STREAM_MEMORY": "192MB"}
#: Less is not enough for DuckDB to begin with.
LEAST_MEMORY: Final = 64 * 10**6
_UNITS: Final = {
    unit + suffix: factor**power
    for power, unit in enumerate("kmgt", 1)
    for suffix, factor in (("", 1000), ("b", 1000), ("ib", 1024))
}


@cache
def variable(name: str, default: Any = None) -> Any:
    """A variable of dbt_project.yml, or `default` where it has none of that name."""
    return yaml.safe_load((PROJECT / "dbt_project.yml").read_text("utf-8")).get("vars", {}).get(name, default)


@dataclass(frozen=True)
class Settings:
    """Resolved paths: `lake_catalog` (DuckLake's SQLite file), `lake_data` (its Parquet folder), `warehouse`
    (the build's private DuckDB file), `published` (what readers open), `extensions` (DuckDB's own).

    The lake may be elsewhere, and its place is then text: a catalogue `postgres:…` (libpq's words or address, never a
    password), files below `s3://…`."""

    home: Path
    lake_catalog: Path | str
    lake_data: Path | str
    warehouse: Path
    published: Path
    extensions: Path

    @classmethod
    def below(cls, home: Path, extensions: Path | None = None) -> Settings:
        """Everything below one folder, whatever the environment says."""
        return cls(
            home=home,
            lake_catalog=home / "lake" / "catalog.sqlite",
            lake_data=home / "lake" / "data",
            warehouse=home / "warehouse.duckdb",
            published=home / "published",
            extensions=extensions or home / "extensions",
        )

    def environment(self) -> dict[str, str]:
        """The variables from which `settings` reads these very paths."""
        return {_variable(field.name): str(getattr(self, field.name)) for field in fields(self)}


def _variable(name: str) -> str:
    return f"FINEGRAIN_{name.upper()}"


#: What else than a path a variable may hold.
_ELSEWHERE: Final = {"FINEGRAIN_LAKE_CATALOG": ", or postgres:…", "FINEGRAIN_LAKE_DATA": ", or s3://bucket/folder"}


def is_text(text: str) -> bool:
    """Whether a text from the environment or a file's name is UTF-8, and not any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _place(variable: str, text: str) -> Path | str:
    """A path, or the text of a place that is elsewhere. Raises FinegrainError for what is neither."""
    if variable == "FINEGRAIN_LAKE_CATALOG" and re.match("postgres(ql)?:", text):
        # Places are printed and passed on; what holds no password cannot tell one.
        if re.search(r"pass(word|wd|phrase)?\s*=|://[^@]*:[^@]*@", unquote(text), re.IGNORECASE):
            raise FinegrainError(
                f"{variable} holds a password; leave it out, and set it in PGPASSWORD or in libpq's file ~/.pgpass"
            )
        words = re.sub("^postgres(ql)?:(?!//)", "", text)
        if not re.fullmatch(
            r"postgres(ql)?://[^\s:@]*@?[^\s@]*|\s*(\w+\s*=\s*('(?:[^'\\]|\\.)*'|[^\s'@]*)(\s+|$))*", words
        ):
            raise FinegrainError(
                f"{variable} is no address of PostgreSQL; write postgresql://user@host:5432/database, or postgres:dbname=… host=… user=…"
            )
        return re.sub("^postgres(ql)?://", "postgres:postgresql://", text)
    if variable == "FINEGRAIN_LAKE_DATA" and text.startswith("s3://"):
        # A secret may hold a slash, so that what stands before the first one is no bucket's name.
        if re.search("[@:]", text.removeprefix("s3://").partition("/")[0]):
            raise FinegrainError(
                f"{variable} holds credentials; write s3://bucket/folder, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if "?" in text:
            raise FinegrainError(
                f"{variable} holds a '?'; write s3://bucket/folder, and set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
                "AWS_REGION and FINEGRAIN_S3_ENDPOINT for the rest"
            )
        return text.rstrip("/")
    if "://" in text or (variable in _ELSEWHERE and re.search(":[^/]*@|@.*:", text)):
        raise FinegrainError(f"{variable} is no place finegrain knows; write a path{_ELSEWHERE.get(variable, '')}")
    return Path(text).resolve()


def settings() -> Settings:
    """Read the environment now, so that one process can work on several homes in turn. A variable that is set to nothing counts as
    not set. Raises FinegrainError for any variable that holds what it cannot."""
    for variable in ("FINEGRAIN_HOME", "TMPDIR", *map(_variable, (field.name for field in fields(Settings)))):
        if not is_text(os.environ.get(variable, "")):
            raise FinegrainError(
                f"{variable} is not UTF-8 text, so DuckDB cannot open what is there; name another place"
            )
    default = Settings.below(Path(os.environ.get("FINEGRAIN_HOME") or PROJECT / "var").resolve())
    told = {
        field.name: _place(variable, os.environ[variable])
        for field in fields(Settings)
        if os.environ.get(variable := _variable(field.name))
    }
    found = replace(default, **told)  # type: ignore[arg-type]  # only the lake's places are ever text
    _check_places(found)
    for variable in MEMORY:
        memory(variable)
    threads()
    return found


def _check_places(found: Settings) -> None:
    """A folder where a file is meant, or a file where a folder is, would else be an error of the operating system much later."""
    for field in fields(Settings):
        place, variable = getattr(found, field.name), _variable(field.name)
        if not isinstance(place, Path):
            continue
        variable = variable if os.environ.get(variable) else "FINEGRAIN_HOME"
        wanted = "file" if field.name in ("lake_catalog", "warehouse") else "folder"
        try:
            there = next(each for each in (place, *place.parents) if each.exists())
        except OSError as error:
            raise FinegrainError(f"{place}: {error.strerror}; {variable} says where it is") from None
        if there == place and wanted == "file":
            if place.is_dir():
                raise FinegrainError(f"{place} is a folder, where a file is meant; {variable} says where it is")
        elif not there.is_dir():
            raise FinegrainError(f"{there} is a file, where a folder is meant; {variable} says where it is")
    if os.environ.get("FINEGRAIN_PROJECT") and not (PROJECT / "dbt_project.yml").is_file():
        raise FinegrainError(
            f"FINEGRAIN_PROJECT is {PROJECT}, which holds no dbt_project.yml; name finegrain's own folder"
        )


def memory(variable: str = "FINEGRAIN_MEMORY") -> str:
    """How much memory DuckDB may use by one of the variables of `MEMORY`, as DuckDB reads it. Raises FinegrainError."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return MEMORY[variable]
    if memory_bytes(text) < LEAST_MEMORY:
        raise FinegrainError(
            f"{variable} is '{text}', which is no amount of memory that finegrain can work with; "
            "write a number with a unit, as in 3GB, 500MB or 2GiB (64MB or more)"
        )
    return text


def memory_bytes(text: str) -> float:
    """`3GB`, `500MB` or `2GiB` in bytes; 0 for what is no such amount, or more than any machine has."""
    found = re.fullmatch(r"([0-9]+(?:[.][0-9]+)?) *([kmgt](?:i?b)?)", text.strip().lower())
    size = float(found[1]) * _UNITS[found[2]] if found else 0.0
    return size if size < 2**60 else 0.0


def threads() -> int:
    """How many models dbt builds at once: `FINEGRAIN_THREADS`, by default 1. Raises FinegrainError."""
    text = os.environ.get("FINEGRAIN_THREADS", "").strip() or "1"
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 256:
        raise FinegrainError(f"FINEGRAIN_THREADS is '{text}'; write a whole number from 1 to 256")
    return int(text)


def s3_endpoint() -> str | None:
    """The address of an S3-compatible store, `FINEGRAIN_S3_ENDPOINT`; None where it is not set. Raises FinegrainError."""
    text = os.environ.get("FINEGRAIN_S3_ENDPOINT", "").strip()
    if not text:
        return None
    if not is_server(text):
        raise FinegrainError("FINEGRAIN_S3_ENDPOINT is no address of a server; write it like https://host:port")
    return text


def is_server(address: str) -> bool:
    """Whether this is the address of a server and nothing else: credentials have settings of their own, and would be shown with it."""
    return re.fullmatch(r"https?://([^\s@:/?#\[\]]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[^\s@?#]*)?", address) is not None


def umask() -> int:
    """What others may not do with files that finegrain makes: `FINEGRAIN_UMASK`, by default 077, all that is not their owner's.
    Raises FinegrainError."""
    text = os.environ.get("FINEGRAIN_UMASK", "").strip() or "077"
    if not re.fullmatch("0?0?[0-7]{2}", text):
        raise FinegrainError(
            f"FINEGRAIN_UMASK is '{text}'; write 077 (the owner alone), 027 (their group reads) or 022 (all read)"
        )
    return int(text, 8)


def private() -> None:
    """Let this process, and those that it starts, make files that nobody else can read. Raises FinegrainError."""
    os.umask(umask())
