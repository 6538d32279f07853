"""Write the columns of the feature marts' YAML from one declaration of measures x windows.

    python scripts/describe_features.py           # write
    python scripts/describe_features.py --check   # exit with 1 if a file is out of date

A feature mart has hundreds of columns that differ only in measure and window; scripts/features/ declares each measure once.
Everything else reads the YAML: dbt's contract, which fails a build whose SELECT has other columns or types, its documentation, the
range tests, the catalogue and the feature store. What stands above and below this list of columns
(descriptions, tests, unit tests) is written by hand and kept. A column's owner is that of its folder, in dbt_project.yml.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import yaml
from features import CATEGORICAL_KEYS, Feature, Project

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = Path("models") / "marts" / "features"
#: The first and the last line of the generated part of a file.
START: Final = "    columns:  # Written by scripts/describe_features.py.\n"
END: Final = "    # End of what scripts/describe_features.py writes.\n"


def declarations() -> dict[str, ModuleType]:
    """The module that declares each mart, by the mart's name."""
    names = sorted(path.stem for path in (Path(__file__).parent / "features").glob("[!_]*.py"))
    return {f"{name}_features": importlib.import_module(f"features.{name}") for name in names}


def columns(declared: ModuleType, project: Project) -> str:
    """The `columns:` of one mart, as YAML."""
    keys = {
        **{name: ("varchar", meaning) for name, meaning in declared.KEYS.items()},
        "as_of": ("timestamp", "The moment of which the features are true, UTC."),
        "built_from": ("bigint", "The lake snapshot that the build read."),
    }
    lines = [
        START,
        *(
            f"      - {{name: {name}, data_type: {data_type}, description: {json.dumps(what)}, "
            f"constraints: [{{type: not_null, warn_unsupported: false}}]{_category(name)}}}\n"
            for name, (data_type, what) in keys.items()
        ),
        *map(line, declared.features(project)),
        END,
    ]
    return "".join(lines)


def line(feature: Feature) -> str:
    """One column as YAML."""
    meta: dict[str, Any] = {"unit": feature.unit, "window": feature.window, "null_means": feature.null_means}
    if feature.range:
        meta["range"] = list(feature.range)
    if feature.categorical:
        meta["categorical"] = True
    described = json.dumps(feature.meaning.format(_in_words(feature.window)) + ".", ensure_ascii=False)
    return (
        f"      - {{name: {feature.name}, data_type: {_scalar(feature.data_type)}, description: {described}, "
        f"config: {{meta: {_flow(meta)}}}}}\n"
    )


def _category(key: str) -> str:
    return ", config: {meta: {categorical: true}}" if key in CATEGORICAL_KEYS else ""


def _in_words(window: str) -> str:
    words = {"none": "", "lifetime": " so far", "1h": " in the last hour", "24h": " in the last 24 hours"}
    return words[window] if window in words else f" in the last {window.removesuffix('d')} days"


def _scalar(value: Any) -> str:
    """A value in YAML's flow style; quoted if YAML would read it as another type."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",[]{}:#'\"") else value
    return json.dumps(value)


def _flow(value: dict[str, Any]) -> str:
    parts = (f"{key}: {_scalar(each)}" for key, each in value.items())
    return "{" + ", ".join(parts) + "}"


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write, or check, the YAML of every declared mart."""
    project = Project(yaml.safe_load((root / "dbt_project.yml").read_text(encoding="utf-8"))["vars"])
    stale = []
    for mart, declared in declarations().items():
        path = root / FOLDER / f"{mart}.yml"
        text = path.read_text(encoding="utf-8")
        head, start, rest = text.partition(START)
        _, end, tail = rest.partition(END)
        if not (start and end):
            print(
                f"{path.relative_to(root)}: the lines '{START.strip()}' and '{END.strip()}' enclose its columns; restore them"
            )
            return 1
        wanted = head + columns(declared, project) + tail
        if text == wanted:
            continue
        stale.append(path.relative_to(root))
        if "--check" not in arguments:
            path.write_text(wanted, encoding="utf-8")
    if "--check" in arguments:
        for path in stale:
            print(f"{path}: its columns are not what is declared: run scripts/describe_features.py")
        return 1 if stale else 0
    print("\n".join(f"wrote {path}" for path in stale) or "all as declared")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
