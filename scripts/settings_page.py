"""Write the tables of settings into docs/reference/settings.md, from where they are declared: orchestration/config/settings.py.

    python scripts/settings_page.py [--check]

`--check` writes nothing, and exits with 1 when the page is out of date.
"""

from __future__ import annotations

import itertools
import sys

from generated import ROOT, Part, write_or_check

from orchestration.config.settings import Environment, documented

PAGE = ROOT / "docs" / "reference" / "settings.md"
START, END = "<!-- settings: scripts/settings_page.py -->\n", "<!-- end of settings -->"


def tables() -> str:
    """Every variable as Markdown, a table for each group."""
    parts = []
    found = [documented(name) for name in Environment.model_fields]
    for group, together in itertools.groupby(found, key=lambda each: each[0]):
        parts.append(f"## {group}\n\n| variable | default | what it is |\n|---|---|---|\n")
        for _, names, unset, purpose in together:
            parts.append(f"| {' or '.join(f'`{each}`' for each in names)} | {unset} | {purpose} |\n")
        parts.append("\n")
    return "".join(parts)


def main() -> int:
    return write_or_check("settings_page", [Part(PAGE, START, END, "\n" + tables())])


if __name__ == "__main__":
    sys.exit(main())
