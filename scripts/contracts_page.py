"""From the raw contracts in models/staging/_sources.yml, write the page docs/reference/raw-tables.md and, in
models/marts/core/fct_events.yml, the fields that pass through all models unchanged.

    python scripts/contracts_page.py [--check]

`--check` writes nothing, and exits with 1 if a file is out of date.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import yaml
from generated import ROOT, Part, write_or_check
from jinja2 import Environment

from orchestration.mapping.contracts import EVENT_TIME, META_COLUMNS, RAW_TABLES, declared_columns, pass_through_fields
from orchestration.mapping.mapping import REQUIRED

PAGE = ROOT / "docs" / "reference" / "raw-tables.md"
START, END = "<!-- contracts: scripts/contracts_page.py -->\n", "<!-- end of contracts -->"
MART = ROOT / "models" / "marts" / "core" / "fct_events.yml"
MART_START = "      # Fields of _sources.yml that pass through, written by scripts/contracts_page.py.\n"
MART_END = "      # End of these fields.\n"


def descriptions() -> dict[str, dict[str, str]]:
    """The description of each column of each raw table, on one line."""
    blocks = dict(
        re.findall(r"{% docs (\w+) %}\s*(.*?)\s*{% enddocs %}", (ROOT / "models" / "_docs.md").read_text("utf-8"), re.S)
    )
    environment = Environment()

    def text(column: Any) -> str:
        return " ".join(environment.from_string(column.get("description", "")).render(doc=blocks.__getitem__).split())

    return {
        table: {name: text(column) for name, column in columns.items()}
        for table, columns in declared_columns(ROOT).items()
    }


def contracts() -> str:
    """The contracts as Markdown, a table of fields for each raw table."""
    meanings_of = descriptions()
    parts = []
    for table, fields in RAW_TABLES.items():
        needed = "; ".join(" or ".join(f"`{name}`" for name in names) for names in REQUIRED[table])
        facts = f"Must be mapped: {needed}. " if needed else "Nothing is mapped: the columns keep their names. "
        parts.append(
            f"## {table}\n\n{facts}`available_at: event_time` reads `{EVENT_TIME[table]}`.\n\n| field | meaning |\n|---|---|\n"
        )
        parts.append("".join(f"| `{name}` | {meanings_of[table][name]} |\n" for name in fields) + "\n")
    parts.append("## Columns of every table\n\n| column | meaning |\n|---|---|\n")
    every = [*META_COLUMNS, "payload"]
    parts.append("".join(f"| `{name}` | {meanings_of['events'][name]} |\n" for name in every) + "\n")
    return "".join(parts)


def mart_columns() -> str:
    """The fields that pass through, as columns of fct_events in YAML."""
    columns = declared_columns(ROOT)["events"]
    lines = []
    for name, kind in pass_through_fields(ROOT).items():
        meta = {key: value for key, value in columns[name]["config"]["meta"].items() if key != "pass_through"}
        config = f", config: {{meta: {yaml.safe_dump(meta, default_flow_style=True).strip()}}}" if meta else ""
        described = json.dumps(columns[name]["description"], ensure_ascii=False)
        lines.append(f"      - {{name: {name}, data_type: {kind}, description: {described}{config}}}\n")
    return "".join(lines)


def main() -> int:
    parts = [Part(PAGE, START, END, "\n" + contracts()), Part(MART, MART_START, MART_END, mart_columns())]
    return write_or_check("contracts_page", parts)


if __name__ == "__main__":
    sys.exit(main())
