"""Write the raw contracts into docs/reference/raw-tables.md, from their descriptions in models/staging/_sources.yml.

    python scripts/contracts_page.py [--check]

`--check` writes nothing, and exits with 1 if the page is out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment

from orchestration.mapping.contracts import EVENT_TIME, META_COLUMNS, RAW_TABLES
from orchestration.mapping.mapping import REQUIRED

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "raw-tables.md"
START, END = "<!-- contracts: scripts/contracts_page.py -->\n", "<!-- end of contracts -->"


def descriptions() -> dict[str, dict[str, str]]:
    """The description of each column of each raw table, on one line."""
    blocks = dict(
        re.findall(r"{% docs (\w+) %}\s*(.*?)\s*{% enddocs %}", (ROOT / "models" / "_docs.md").read_text("utf-8"), re.S)
    )
    sources = yaml.safe_load((ROOT / "models" / "staging" / "_sources.yml").read_text("utf-8"))
    environment = Environment()

    def text(column: Any) -> str:
        return " ".join(environment.from_string(column.get("description", "")).render(doc=blocks.__getitem__).split())

    return {
        table["name"]: {column["name"]: text(column) for column in table.get("columns", [])}
        for table in sources["sources"][0]["tables"]
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


def main() -> int:
    page = PAGE.read_text("utf-8")
    before, rest = page.split(START)
    wanted = before + START + "\n" + contracts() + END + rest.split(END)[1]
    if "--check" in sys.argv[1:]:
        if page != wanted:
            print("docs/reference/raw-tables.md is out of date; run python scripts/contracts_page.py")
        return int(page != wanted)
    PAGE.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
