"""Text from outside cannot control a terminal, is not taken for markup, and does not break JSON."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestration import cli
from orchestration.errors import FinegrainError, console
from orchestration.ingest.stream.messages import BatchResult
from orchestration.ingest.stream.watch import Watch

#: Markup that is closed but never opened, and terminal control sequences: colours, title, cleared screen, C1, right-to-left text.
NASTY = "[/x][b]\x1b[31mred\x1b]0;title\x07\x1b[2J\x9b31m\u202eabc\r\b\x7f"
SHOWN = r"[/x][b]\x1b[31mred\x1b]0;title\x07\x1b[2J\x9b31m\u202eabc\r\x08\x7f"
#: Sequences from rich itself: styles and cursor positions.
STYLES = re.compile(r"\x1b\[[0-9;?]*[mhlAKGJ]|\r")


def test_text_from_outside_is_shown_without_control_characters() -> None:
    """As a line, a cell, a title, a styled text, and in a live display."""
    table = Table("column " + NASTY, title=NASTY, caption=NASTY)
    table.add_row(NASTY, Text(NASTY, style="red"))
    watch = Watch(f"kafka:{NASTY}")
    watch.landed(1, 1, BatchResult(1, {NASTY: 1}, {NASTY: 1}), 0.1, 0.1)
    watch.totals.lag, watch.totals.trouble = {NASTY: 1}, NASTY
    for options in ({}, {"force_terminal": True, "color_system": "truecolor"}):
        file = io.StringIO()
        out = console.plain(file, width=400, **options)
        out.print(NASTY)
        out.print(f"  {NASTY}", style="red")
        out.print(table)
        out.print(watch._panel())
        with Live(console=out, get_renderable=watch._panel, auto_refresh=False) as live:
            live.refresh()
        text = STYLES.sub("", file.getvalue()) if options else file.getvalue()
        assert {each for each in text if not each.isprintable()} == {"\n"}
        assert text.count(SHOWN) >= 15


def test_names_of_prometheus_figures_are_shown() -> None:
    from prometheus_client import generate_latest

    watch = Watch("folder:caf\udce9")
    watch._looked -= 10
    watch.lag(lambda: {"caf\udce9\n.jsonl": 3})
    text = generate_latest(watch._registry).decode()
    assert r'finegrain_stream_lag{part="caf\\xe9\\n.jsonl"} 3.0' in text


@given(st.text(st.characters(codec=None)))
def test_what_is_shown_is_one_printable_line(text: str) -> None:
    assert console.shown(text).isprintable()
    assert console.shown(text) == text or not text.isprintable()


@examples(max_examples=40)
@given(
    st.recursive(
        st.text(st.characters(codec=None)) | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    )
)
def test_json_is_always_valid(value: Any) -> None:
    """Half a surrogate pair is escaped; everything else round-trips."""
    text = console.as_json(value)
    assert text.isascii() and "\n" not in text
    read = json.loads(text)
    json.dumps(read, ensure_ascii=False).encode()
    if "\\ud" not in json.dumps(value):
        assert read == value


def test_a_byte_that_is_no_text_is_spelled_in_json() -> None:
    given = {"caf\udce9": "\U0001f600 \udce9 \\udce9 \ud83d"}
    assert json.loads(console.as_json(given)) == {r"caf\xe9": "\U0001f600 \\xe9 \\udce9 \\ud83d"}


@pytest.mark.parametrize(
    ("asked", "code"), [(["load", "no\x1b[31m\udce9.yml"], 2), (["load", "--\x1b[31m\udce9"], 2), (["\x1b[31m"], 2)]
)
def test_errors_are_shown_in_one_place(
    asked: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also errors of the command line, which quote arguments that a shell pattern may have expanded."""
    monkeypatch.setattr(sys, "argv", ["finegrain", *asked])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr().err
    assert left.value.code == code and r"\x1b[31m" in said
    assert all(line.isprintable() for line in said.splitlines())


def test_an_error_of_several_lines_keeps_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> None:
        raise FinegrainError("a: wrong\x1b[2J\n  and more\nb: wrong")

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "error: a: wrong\\x1b[2J\n  and more\nerror: b: wrong\n"


def test_all_printing_goes_through_the_console(project: Path) -> None:
    found = []
    for path in sorted((project / "orchestration").rglob("*.py")):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in (
                "print",
                "Console",
                "typer.echo",
                "typer.secho",
                "rich.print",
                "sys.stdout.write",
                "sys.stderr.write",
            ):
                found.append(f"{path.name}:{node.lineno}: {name}")
    assert found == []
