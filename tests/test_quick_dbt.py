"""The shortcuts of quick_dbt.py give what dbt gives, and the tests' child processes have them, unless a test wants dbt as it is."""

from __future__ import annotations

import subprocess
import sys

import dbt.clients.jinja
import pytest
from dbt.adapters.events.types import SQLQuery
from dbt_common.clients.jinja import get_template, render_template

#: Arguments of tests: lists come as their items.
TEXTS = (
    "",
    "1",
    "1.0",
    "'a'",
    '"a"',
    "[1, 2]",
    "true",
    "none",
    "a > 1",
    "a\n",
    "a\n\n",
    "\r\na\rb\r\n",
    " a ",
    "{ a }",
    "100 %",
    "# a",
)


@pytest.mark.parametrize(
    "text", [*TEXTS, "{{ 1 + 1 }}", "{{ [1, '2'] }}", "{{ 'a' }}b", "{# a #}", "{{ '1' | as_native }}"]
)
def test_an_argument_of_a_test_is_what_jinja_makes_of_it(text: str) -> None:
    jinja = render_template(get_template(text, {}, native=True), {})
    quick = dbt.clients.jinja.get_rendered(text, {}, native=True)
    assert (quick, type(quick)) == (jinja, type(jinja))


def child(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


KEEPS = "import dbt.cli.main, dbt.clients.jinja; print(type(dbt.clients.jinja._render_cache).__module__)"


def test_a_child_process_is_quick() -> None:
    assert child(KEEPS) == "quick_dbt"


@pytest.mark.usefixtures("plain_dbt")
def test_a_child_process_of_a_test_of_dbt_itself_is_not() -> None:
    assert child(KEEPS) == "builtins"


def test_a_child_process_that_does_not_need_dbt_does_not_import_it() -> None:
    assert (
        child("import sys, orchestration.cli; print(sorted({'dbt', 'agate', 'quick_dbt'} & sys.modules.keys()))")
        == "[]"
    )


def test_a_debug_event_that_is_read_is_whole() -> None:
    event = SQLQuery(conn_name="main", sql="select 1", node_info={"node_name": "x"})
    assert event.message() == "On main: select 1"
    assert (event.sql, event.node_info.node_name) == ("select 1", "x")
    assert event.to_dict()["conn_name"] == SQLQuery(conn_name="main", sql="").to_dict()["conn_name"] == "main"
