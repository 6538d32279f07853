"""Check the rules of the dbt project: which layers may read which, what each model must declare, and no engine-specific SQL.

    python scripts/check_layers.py [PROJECT]

Prints one line per finding, `file:line: problem: fix`, and exits with 1 if there is any.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml

#: The layers that a layer may read; `source` is a raw table of the lake.
MAY_READ: Final = {
    "staging": {"source", "staging"},
    "intermediate": {"staging", "seeds", "intermediate"},
    "marts": {"intermediate", "marts", "seeds"},
    "snapshots": {"intermediate", "marts"},
}

#: The folders of a layer in the order in which data flows: a model reads its own folder and those before it.
ROOMS: Final = {
    "intermediate": [
        "reference",
        "events",
        "cleaning",
        "metrics",
        "changes",
        "identity",
        "tiles",
        "features",
        "current",
    ],
    "marts": ["core", "features", "training", "quality"],
}

#: Folders that may read more than the rest of their layer: the ledger counts the rows of the lake, of sales alone.
ALSO_READS: Final = {("marts", "quality"): {"staging"}, ("staging", "lake"): {"seeds"}}

#: The macros that a hook of a model may call: a model is its SQL, and hooks only do bookkeeping.
HOOKS: Final = {"set_since", "watermark", "move_watermark", "record_state"}

#: Macros that dbt itself calls.
DBT_CALLS: Final = {"generate_schema_name", "get_incremental_changes_sql", "get_where_subquery"}

#: Words that docs/contributing/words.md replaces with others.
UNWANTED: Final = re.compile(
    r"\b(told|gone|astray|met|mend\w*|taste\w*|anew|afresh|takes up(?! to)|taken up|landers?|bur(?:y|ied)|judge\w*|incarnations?)\b",
    re.IGNORECASE,
)

#: Bookkeeping tables of builds; any model may read them.
BOOKKEEPING: Final = "bookkeeping."

#: The layers whose YAML describes a column where its meaning begins, and not again in each model that passes it on. In marts, all are described.
DESCRIBED_ONCE: Final = {"staging", "intermediate"}

#: The prefix of model names, by folder.
NAMES: Final = {"staging": r"(stg|base)_{folder}__\w+", "intermediate": r"int_{folder}__\w+"}

#: SQL that differs between engines, and belongs into a macro in macros/engine.
ENGINE_WORDS: Final = re.compile(
    r"""
      :: | \b qualify \b | \b asof \s+ (left \s+)? join \b
    | \b (
        getvariable | table_insertions | struct_pack | unnest | explode | posexplode | from_json | get_json_object
      | arg_max | arg_min | epoch | strptime | strftime | date_format | to_timestamp | md5_number | damerau_levenshtein
      | regexp_matches | regexp_full_match | collect_list | collect_set | named_struct
      | (ducklake | read | list | epoch) _ \w+
      ) \s* (?= \( )
    """,
    re.VERBOSE | re.IGNORECASE,
)

_JINJA_COMMENT: Final = re.compile(r"{#.*?#}", re.DOTALL)
_SQL_COMMENT: Final = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_JINJA: Final = re.compile(r"{{.*?}}|{%.*?%}", re.DOTALL)
_QUOTED: Final = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_SQL_TEXT: Final = re.compile(r"'[^']*'")
_REFERENCE: Final = re.compile(r"\b(ref|source|seed)\s*\(\s*((?:['\"][\w.]+['\"]\s*,?\s*)+)(~?)")
#: Seeds of a shop's project, which the macro seed() adds to finegrain's.
_OF_SHOP: Final = "shop_*"
_RAW_ROWS: Final = re.compile(r"\blake_(?:rows|table)\w*\(\s*'(\w+)'")
_MACRO: Final = re.compile(r"{%-?\s*macro\s+(\w+)(.*?){%-?\s*endmacro", re.DOTALL)


@dataclass(frozen=True)
class Reference:
    """A ref(), seed() or source() found in a file, with its line from 1; `via` is the macro that contains it, if any.

    A name that Jinja composes, as in `ref('int_tiles__' ~ grain)`, is given as its known prefix and `*`.
    """

    kind: str
    name: str
    line: int
    via: str = ""


def blank(text: str, *patterns: re.Pattern[str]) -> str:
    """`text` with all matches replaced by spaces, so that lines keep their numbers."""
    for pattern in patterns:
        text = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def references(text: str) -> Iterator[Reference]:
    """The ref(), seed() and source() calls of a file without comments. A seed is read as by ref()."""
    for match in _REFERENCE.finditer(text):
        names = re.findall(r"[\w.]+", match[2])
        name = ".".join(names[:2]) if match[1] == "source" else names[-1] + "*" * bool(match[3])
        if name == _OF_SHOP:
            continue
        yield Reference("ref" if match[1] == "seed" else match[1], name, line_of(text, match.start()))


def sql_outside_of_calls(text: str) -> str:
    """The SQL of a file: macro calls are blanked, but SQL texts within them are not."""

    def keep_texts(match: re.Match[str]) -> str:
        kept = [" "] * len(match[0])
        for quoted in _QUOTED.finditer(match[0]):
            kept[quoted.start() + 1 : quoted.end() - 1] = quoted[0][1:-1]
        return "".join("\n" if old == "\n" else new for old, new in zip(match[0], kept, strict=True))

    # A quoted SQL text is data, not SQL: blank it before texts within Jinja, which are SQL.
    masked = _JINJA.sub(lambda match: re.sub(r"[^\n]", "\0", match[0]), text)
    masked = blank(masked, _SQL_TEXT)
    jinja = _JINJA.finditer(text)
    pieces, end = [], 0
    for match in jinja:
        pieces += [masked[end : match.start()], keep_texts(match)]
        end = match.end()
    return "".join([*pieces, masked[end:]])


class Project:
    """A dbt project as files: its models by name, their properties, and what its macros read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = sorted((root / "models").rglob("*.sql"))
        self.findings: list[str] = []

    def find(self, path: Path, line: int, problem: str) -> None:
        self.findings.append(f"{path.relative_to(self.root)}:{line}: {problem}")

    def text(self, path: Path) -> str:
        """A file without its comments."""
        return blank(path.read_text(encoding="utf-8"), _JINJA_COMMENT, _SQL_COMMENT)

    def layer(self, path: Path) -> str:
        """staging, intermediate or marts for a model; snapshots, seeds or macros for other files."""
        parts = path.relative_to(self.root).parts
        return parts[1] if parts[0] == "models" and len(parts) > 2 else parts[0]

    def yaml(self, path: Path) -> dict[str, Any]:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            self.find(path, mark.line + 1 if mark else 1, "this is not YAML: " + str(getattr(error, "problem", error)))
            content = None
        return content if isinstance(content, dict) else {}

    @cached_property
    def files(self) -> dict[str, Path]:
        """All nodes that ref() can name."""
        named = {path.stem: path for path in [*self.models, *(self.root / "seeds").rglob("*.csv")]}
        for path in (self.root / "snapshots").rglob("*.*"):
            if path.suffix == ".sql":
                blocks = re.findall(r"{%-?\s*snapshot\s+(\w+)", self.text(path))
                named |= dict.fromkeys(blocks, path)
            elif path.suffix in {".yml", ".yaml"}:
                named |= {entry["name"]: path for entry in self.yaml(path).get("snapshots", [])}
        return named

    @cached_property
    def properties(self) -> dict[Path, dict[str, dict[str, Any]]]:
        """The properties of models and their unit tests, by folder and model, from the folder's YAML files."""
        said: dict[Path, dict[str, dict[str, Any]]] = {}
        for path in sorted([*(self.root / "models").rglob("*.yml"), *(self.root / "models").rglob("*.yaml")]):
            content = self.yaml(path)
            folder = said.setdefault(path.parent, {})
            for entry in content.get("models") or []:
                folder.setdefault(entry["name"], {}).update(entry)
            for unit_test in content.get("unit_tests") or []:
                model = unit_test["model"]
                folder.setdefault(model, {})["unit_tests"] = True
                if path.stem != model:
                    self.find(
                        path,
                        1,
                        f"the unit test {unit_test['name']} is of {model}: move it to {model}.yml",
                    )
        return said

    @cached_property
    def sources(self) -> dict[str, dict[str, str]]:
        """By table of the lake: the description of each of its columns."""
        return {
            table["name"]: _descriptions(table)
            for path in sorted((self.root / "models" / "staging").rglob("*.yml"))
            for source in self.yaml(path).get("sources") or []
            for table in source["tables"]
        }

    def inherited(self, path: Path) -> dict[str, set[str]]:
        """What is said of columns, by name, in all that a model reads, directly or through other models."""
        found: dict[str, set[str]] = {}
        seen, waiting = {path}, [path]
        while waiting:
            text = self.text(waiting.pop())
            read = list(references(text))
            tables = [*_RAW_ROWS.findall(text), *(each.name.split(".")[-1] for each in read if each.kind == "source")]
            said = [self.sources.get(table, {}) for table in tables]
            parents = {self.files[each.name] for each in read if each.kind == "ref" and each.name in self.files} - seen
            for parent in parents & set(self.models):
                said.append(_descriptions(self.properties.get(parent.parent, {}).get(parent.stem, {})))
                seen.add(parent)
                waiting.append(parent)
            for columns in said:
                for name, description in columns.items():
                    # Staging takes the underscore off a column of the lake.
                    for each_name in {name, name.removeprefix("_")}:
                        found.setdefault(each_name, set()).add(description)
        return found

    @cached_property
    def folder_configs(self) -> dict[str, Any]:
        """The `models:` part of dbt_project.yml, below the project's own name."""
        content = self.yaml(self.root / "dbt_project.yml")
        configs: dict[str, Any] = (content.get("models") or {}).get(content.get("name")) or {}
        return configs

    def config(self, path: Path, said: dict[str, Any], key: str) -> Any:
        """A model's config `key`: from its YAML, or else from the nearest folder in dbt_project.yml."""
        if key in (config := said.get("config") or {}):
            return config[key]
        found, level = None, self.folder_configs
        for part in ("", *path.relative_to(self.root / "models").with_suffix("").parts):
            level = level.get(part, {}) if part else level
            found = level.get(f"+{key}", level.get(key, found))
        return found

    @cached_property
    def macros(self) -> dict[str, tuple[list[Reference], str]]:
        """The references and the text of each macro."""
        found = {}
        for path in (self.root / "macros").rglob("*.sql"):
            for name, body in _MACRO.findall(self.text(path)):
                found[name] = (list(references(body)), body)
        return found

    def reads(self, path: Path) -> Iterator[Reference]:
        """The references of a file, itself or through the macros that it calls."""
        text = self.text(path)
        yield from references(text)
        seen: set[str] = set()
        waiting = [(name, line_of(text, match.start())) for name, match in self.calls(text)]
        while waiting:
            name, line = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            found, body = self.macros[name]
            yield from (Reference(each.kind, each.name, line, name) for each in found)
            waiting += [(called, line) for called, _ in self.calls(body)]

    def calls(self, text: str) -> Iterator[tuple[str, re.Match[str]]]:
        """The project's macros that a text calls; a dispatched macro means all its implementations."""
        for tag in _JINJA.finditer(text):
            for match in re.finditer(r"\b(\w+)\s*\(|dispatch\(\s*['\"](\w+)", tag[0]):
                called = match[1] or match[2]
                for name in (called, f"duckdb__{called}", f"spark__{called}", f"default__{called}"):
                    if name in self.macros:
                        yield name, tag

    def check(self) -> list[str]:
        """All findings, in the order of files and lines."""
        for path in self.models:
            self.check_place(path)
            if self.layer(path) in MAY_READ:
                self.check_reads(path)
                self.check_properties(path)
                self.check_hooks(path)
            self.check_engine(path)
        for path in sorted((self.root / "snapshots").rglob("*.*")):
            self.check_reads(path)
        for folder in ("snapshots", "macros", "tests"):
            for path in sorted((self.root / folder).rglob("*.sql")):
                if path.relative_to(self.root).parts[:2] != ("macros", "engine"):
                    self.check_engine(path)
        self.check_macros("macros")
        return self.findings

    @cached_property
    def longest_line(self) -> int:
        """`max_line_length` of .sqlfluff, by default sqlfluff's own."""
        path = self.root / ".sqlfluff"
        found = (
            re.search(r"^max_line_length *= *(\d+)", path.read_text("utf-8"), re.MULTILINE) if path.exists() else None
        )
        return int(found[1]) if found else 80

    def check_macros(self, folder: str) -> None:
        """The rules of layout, words and comments that sqlfluff cannot hold for macros: a file of macros renders to nothing."""
        defined: dict[str, list[tuple[Path, int, bool]]] = {}
        for path in sorted((self.root / folder).rglob("*.sql")):
            text = path.read_text("utf-8")
            for number, content in enumerate(text.splitlines(), 1):
                if len(content) > self.longest_line:
                    self.find(path, number, f"{len(content)} characters: break the line after {self.longest_line}")
                if "\t" in content or content != content.rstrip():
                    self.find(path, number, "a tab, or space at the end of the line: use spaces, and none at the end")
                if word := UNWANTED.search(content):
                    self.find(path, number, f"'{word[0]}' is not our word: docs/contributing/words.md has others")
            for match in re.finditer(r"{%-?\s*macro\s+(\w+)", blank(text, _JINJA_COMMENT)):
                name = re.sub("^(duckdb|spark|default)__", "", match[1])
                is_described = text[: match.start()].rstrip().endswith("#}")
                defined.setdefault(name, []).append((path, line_of(text, match.start()), is_described))
        for macro, places in defined.items():
            first, at, _ = places[0]
            if not any(is_described for *_, is_described in places):
                self.find(first, at, f"nothing is said of the macro {macro}: describe it in a comment above it")
            spelled = [macro, *(f"{engine}__{macro}" for engine in ("duckdb", "spark", "default"))]
            if macro not in DBT_CALLS and sum(self.mentions[each] for each in spelled) <= len(places):
                self.find(first, at, f"nothing calls the macro {macro}: remove it")

    @cached_property
    def mentions(self) -> Counter[str]:
        """How often each word occurs in SQL and YAML, without comments, and in Python."""
        found: Counter[str] = Counter()
        for folder in ("models", "macros", "snapshots", "tests"):
            for path in (self.root / folder).rglob("*.*"):
                if path.suffix in (".sql", ".yml", ".yaml"):
                    # Of `dispatch('name')` in a macro of that name, the name is no call.
                    text = re.sub(r"dispatch\(\s*'\w+'", "", self.text(path))
                    found.update(re.findall(r"\w+", text))
        for path in [self.root / "dbt_project.yml", *(self.root / "orchestration").rglob("*.py")]:
            found.update(re.findall(r"\w+", path.read_text("utf-8")))
        return found

    def check_place(self, path: Path) -> None:
        layer, folder = self.layer(path), path.parent.name
        if layer not in MAY_READ:
            self.find(path, 1, "a model lives in models/staging, models/intermediate or models/marts: move it to one")
        elif layer in ROOMS and folder not in ROOMS[layer]:
            self.find(path, 1, f"{layer} has no folder {folder}: move the model to one of {', '.join(ROOMS[layer])}")
        elif layer in NAMES:
            pattern = NAMES[layer].format(folder=folder)
            if not re.fullmatch(pattern, path.stem):
                wanted = re.sub(r"\((\w+)\|.*?\)", r"\1", pattern).replace(r"\w+", "…")
                self.find(
                    path, 1, f"a model of {layer}/{folder} is called {wanted}: rename it, or move it to its folder"
                )

    def check_reads(self, path: Path) -> None:
        layer = self.layer(path)
        rooms, room = ROOMS.get(layer, []), path.parent.name
        allowed = MAY_READ[layer] | ALSO_READS.get((layer, room), set())
        for each in self.reads(path):
            by = f" (through the macro {each.via})" if each.via else ""
            if each.kind == "source":
                if "source" not in allowed and not each.name.startswith(BOOKKEEPING):
                    self.find(
                        path, each.line, f"reads the source {each.name}{by}: only staging does; ref() a staging model"
                    )
                continue
            targets = fnmatch.filter(self.files, each.name)
            if not targets:
                near = get_close_matches(each.name, self.files, n=1)
                hint = f"did you mean {near[0]}?" if near else "add it, or correct the name"
                self.find(path, each.line, f"reads {each.name}{by}, which is no model, seed or snapshot: {hint}")
            for name in targets:
                target = self.files[name]
                read = self.layer(target)
                if read not in allowed:
                    may = " and ".join(sorted(allowed - {"source"}))
                    self.find(path, each.line, f"reads {name}{by} of {read}: {layer} reads {may} only")
                elif (
                    layer == read
                    and {room, target.parent.name} <= set(rooms)
                    and rooms.index(target.parent.name) > rooms.index(room)
                ):
                    self.find(
                        path,
                        each.line,
                        f"reads {name}{by} of {target.parent.name}: {room} comes before it "
                        f"(the order is {', '.join(rooms)})",
                    )
                elif layer == read == "staging" and target.parent != path.parent:
                    self.find(path, each.line, f"reads {name}{by}: staging reads its own folder; join in intermediate")

    def check_properties(self, path: Path) -> None:
        said = self.properties.get(path.parent, {}).get(path.stem, {})
        if not set(said) - {"unit_tests"}:
            self.find(path, 1, f"this model has no description: describe it in {path.stem}.yml beside it")
            return
        meta = {**(self.config(path, {}, "meta") or {}), **(said.get("meta") or {})}
        meta |= (said.get("config") or {}).get("meta") or {}
        tested = [*_tests(said), *(test for column in said.get("columns") or [] for test in _tests(column))]
        missing = [
            *(["a description"] if not str(said.get("description") or "").strip() else []),
            *(f"config.meta.{key}" for key in ("grain", "owner") if not meta.get(key)),
            *(["a test"] if not tested and not said.get("unit_tests") else []),
        ]
        if missing:
            self.find(path, 1, f"its YAML lacks {', '.join(missing)}: add it in {path.stem}.yml beside it")
        if self.layer(path) in DESCRIBED_ONCE:
            inherited = self.inherited(path)
            again = [name for name, what in _descriptions(said).items() if what in inherited.get(name, ())]
            if again:
                self.find(
                    path,
                    1,
                    f"its YAML describes {', '.join(again)} in the words of a model or source that it reads: leave that out",
                )
        if self.layer(path) == "marts" and not (self.config(path, said, "contract") or {}).get("enforced"):
            self.find(path, 1, "a mart without a contract: set config.contract.enforced to true in its YAML")

    def check_hooks(self, path: Path) -> None:
        text = self.text(path)
        for hook in re.finditer(r"\b(pre|post)[_-]hook\s*=\s*(\"[^\"]*\"|\[[^\]]*\])", text):
            for called in sorted(set(re.findall(r"(\w+)\s*\(", hook[2])) - HOOKS):
                self.find(
                    path,
                    line_of(text, hook.start()),
                    f"a {hook[1]}-hook calls {called}: a hook only does bookkeeping ({', '.join(sorted(HOOKS))}); "
                    "put what it computes into a model, and ref() that",
                )

    def check_engine(self, path: Path) -> None:
        text = sql_outside_of_calls(self.text(path))
        for match in ENGINE_WORDS.finditer(text):
            self.find(
                path,
                line_of(text, match.start()),
                f"{' '.join(match[0].split())} is not the same on DuckDB and Spark: "
                + ("write cast(… as …)" if match[0] == "::" else "put it behind a macro in macros/engine"),
            )


def _tests(entry: dict[str, Any]) -> list[Any]:
    return [*(entry.get("data_tests") or []), *(entry.get("tests") or [])]


def _descriptions(entry: dict[str, Any]) -> dict[str, str]:
    """The descriptions of the columns of a model or table, those that have one."""
    columns = {
        column["name"]: " ".join(str(column.get("description") or "").split()) for column in entry.get("columns") or []
    }
    return {name: description for name, description in columns.items() if description}


def main(root: Path) -> int:
    project = Project(root)
    findings = project.check()
    print("\n".join(findings) if findings else f"layers: {len(project.models)} models, all in order")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()))
