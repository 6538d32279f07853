"""Write docs/reference/mapping.schema.json, which editors use to complete and check a mapping, from the models that read mappings.
Descriptions of keys and fields come from the tables in docs/ and from models/staging/_sources.yml.

    python scripts/mapping_schema.py [--check]

`--check` writes nothing, and exits with 1 if the file is out of date.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from contracts_page import descriptions

from orchestration.mapping.contracts import RAW_TABLES
from orchestration.mapping.mapping import REQUIRED, Mapping

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "docs" / "reference" / "mapping.schema.json"


#: For each model, a key by which its table in the documentation is found. The first table with a key counts.
TABLES = (
    ("Mapping", "source"),
    ("Table", "files"),
    ("Table", "incremental"),
    ("Table", "source"),
    ("Csv", "delimiter"),
    ("Stream", "kafka"),
)


def meanings() -> list[dict[str, str]]:
    """The meanings of keys in the documentation's tables."""
    pages = [page.read_text("utf-8") for page in sorted((ROOT / "docs").rglob("*.md"))]
    tables = [table for page in pages for table in re.findall(r"^\| key \| meaning \|\n(.*?)\n\n", page, re.S | re.M)]
    said = [
        {
            name: re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", meaning)
            for names, meaning in re.findall(r"^\| (`.*?) \| (.*) \|$", table, re.M)
            for name in re.findall(r"\w+", names)
        }
        for table in tables
    ]
    return [{name: re.sub("[:;] see [^:;]*$", "", meaning) for name, meaning in table.items()} for table in said]


def plain(part: Any) -> Any:
    """A schema without titles and defaults, and without null for optional keys. Older JSON Schema versions ignore keys beside $ref."""
    if isinstance(part, list):
        return [plain(each) for each in part]
    if not isinstance(part, dict):
        return part
    kept = {key: plain(each) for key, each in part.items() if key not in ("title", "default")}
    if "default" in part and {"type": "null"} in kept.get("anyOf", ()):
        kept["anyOf"].remove({"type": "null"})
        if len(kept["anyOf"]) == 1:
            kept.update(kept.pop("anyOf")[0])
    if "description" in kept:
        kept["description"] = kept["description"].replace("\n", " ")
    return kept


def described(part: dict[str, Any], meaning: str) -> dict[str, Any]:
    return {"allOf": [part], "description": meaning} if "$ref" in part else {**part, "description": meaning}


def entry(table: str, column_meanings: dict[str, str]) -> dict[str, Any]:
    """The part of the schema for entries of one raw table: its fields, and its required fields."""
    field = {"$ref": "#/$defs/Field"}
    fields: dict[str, Any] = {
        "properties": {name: described(field, column_meanings[name]) for name in RAW_TABLES[table]},
        "additionalProperties": False,
        "allOf": [{"anyOf": [{"required": [name]} for name in names]} for names in REQUIRED[table]],
    }
    if table == "ga4_events":
        return {"allOf": [{"$ref": "#/$defs/Table"}, {"properties": {"fields": {"maxProperties": 0}}}]}
    # A stream's messages may have keys with the names of the fields.
    needed = {"anyOf": [{"required": ["fields"]}, {"required": ["stream"]}]}
    return {"allOf": [{"$ref": "#/$defs/Table"}, {"properties": {"fields": fields}}, needed]}


def schema() -> dict[str, Any]:
    """The JSON Schema of a mapping."""
    found = plain(Mapping.model_json_schema())
    parts, said, column_meanings = found["$defs"], meanings(), descriptions()
    for model, known in TABLES:
        [table] = [each for each in said if known in each]
        properties = (found if model == "Mapping" else parts[model])["properties"]
        for key in properties.keys() & table.keys():
            if "description" not in properties[key]:
                properties[key] = described(properties[key], table[key])
    parts["Field"] = {"anyOf": [{"type": "string", "minLength": 1}, parts["Field"]]}
    for name in RAW_TABLES:
        parts[name] = entry(name, column_meanings[name])
        either = [{"$ref": f"#/$defs/{name}"}, {"type": "array", "items": {"$ref": f"#/$defs/{name}"}}]
        found["properties"]["tables"].setdefault("properties", {})[name] = {"anyOf": either}
    found["properties"]["tables"] |= {"additionalProperties": False, "minProperties": 1}
    found["description"] = "A mapping: how a shop's data becomes finegrain's raw tables (docs/reference/mapping.md)"
    return {"$schema": "http://json-schema.org/draft-07/schema#", **found}


def main() -> int:
    wanted = json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
    if "--check" in sys.argv[1:]:
        is_current = SCHEMA.exists() and SCHEMA.read_text("utf-8") == wanted
        if not is_current:
            print("docs/reference/mapping.schema.json is out of date; run python scripts/mapping_schema.py")
        return int(not is_current)
    SCHEMA.parent.mkdir(exist_ok=True)
    SCHEMA.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
