"""Write the list of commands into docs/reference/commands.md, from the command line's own help.

    python scripts/commands_page.py [--check]

`--check` writes nothing, and exits with 1 if the page is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import typer
from generated import ROOT, Part, write_or_check

from orchestration.cli.commands import app

PAGE = ROOT / "docs" / "reference" / "commands.md"
START, END = "<!-- commands: scripts/commands_page.py -->\n", "<!-- end of commands -->"


def commands() -> str:
    """Every command as Markdown, with its arguments and options."""
    return "".join(f"{line}\n" for line in _lines(typer.main.get_command(app), "finegrain"))


def _lines(command: Any, name: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for part, each in command.commands.items():
            yield from _lines(each, f"{name} {part}")
        return
    shown = [each for each in command.params if each.name != "help" and not getattr(each, "hidden", False)]
    arguments = [_argument(each) for each in shown if each.param_type_name == "argument"]
    yield from (f"### {name}", "", f"`{' '.join([name, *arguments])}`", "", _text(command.help), "")
    if shown:
        yield from ("| argument or option | meaning | default |", "|---|---|---|")
        for each in shown:
            is_argument = each.param_type_name == "argument"
            label = f"`{_argument(each)}`" if is_argument else ", ".join(f"`{option}`" for option in each.opts)
            from_environment = f" Or `{each.envvar}`." if each.envvar else ""
            yield f"| {label} | {_text(each.help)}{from_environment} | {_default(each)} |"
        yield ""


def _argument(each: Any) -> str:
    text = each.metavar or each.name
    return (text if each.required else f"[{text}]") + ("..." if each.nargs == -1 else "")


def _default(each: Any) -> str:
    value = each.default() if callable(each.default) else each.default
    return (
        "" if value is None or value is False or value == () or each.required else f"`{getattr(value, 'value', value)}`"
    )


def _text(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip().replace("|", "\\|")


def main() -> int:
    return write_or_check("commands_page", [Part(PAGE, START, END, "\n" + commands())])


if __name__ == "__main__":
    sys.exit(main())
