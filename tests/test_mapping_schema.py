"""docs/reference/mapping.schema.json matches the models: it accepts the same mappings, and marks misspelt keys."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mapping_schema
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from test_any_mapping import ENTRY, KEYS, VALUES, WHOLE, changed, spelled

from orchestration.config.yaml_file import read_yaml
from orchestration.errors import FinegrainError
from orchestration.mapping.mapping import read_mapping

SCHEMA = Draft7Validator(json.loads(mapping_schema.SCHEMA.read_text("utf-8")))
EXAMPLES = sorted((mapping_schema.ROOT / "examples").glob("*.yml"))
# add-a-field.md maps a field that only its changes to the contract declare.
PAGES = "\n".join(
    page.read_text("utf-8")
    for page in sorted((mapping_schema.ROOT / "docs").rglob("*.md"))
    if page.stem != "add-a-field"
)
SHOWN = [text for text in re.findall(r"^```yaml [\w.]+\n(.*?)^```", PAGES, re.S | re.M) if "tables:" in text]


def mistakes(mapping: Any) -> list[str]:
    """The errors that an editor marks, which reads a mapping as JSON would represent it."""
    return [
        str(error.json_path) for error in SCHEMA.iter_errors(json.loads(json.dumps(without_null(mapping), default=str)))
    ]


def without_null(part: Any, key: Any = None) -> Any:
    """A key that is null equals one that is left out, except for the values that `map` empties and a constant that is
    null."""
    if isinstance(part, dict):
        keeps = key == "map"
        return {
            str(name).replace("None", "null"): without_null(each, name)
            for name, each in part.items()
            if keeps or each is not None
        }
    return [without_null(each) for each in part] if isinstance(part, list | tuple) else part


def test_the_file_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mapping_schema.py", "--check"])
    assert mapping_schema.main() == 0, "run python scripts/mapping_schema.py"
    Draft7Validator.check_schema(SCHEMA.schema)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_the_schema_and_name_it(path: Path) -> None:
    assert mistakes(yaml.safe_load(path.read_text("utf-8"))) == []
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text("utf-8"))
    assert named and (path.parent / named[1]).resolve() == mapping_schema.SCHEMA


def test_mappings_of_the_documentation_fit_the_schema() -> None:
    assert len(SHOWN) > 3 and mistakes(WHOLE) == []
    assert [mistakes(yaml.safe_load(text)) for text in SHOWN] == [[] for _ in SHOWN]


def wrong() -> Iterator[tuple[dict[str, Any], str]]:
    """Mappings with one error each, and the place that is marked."""
    yield {**WHOLE, "tabels": {}}, "$"
    yield {"tables": WHOLE["tables"]}, "$"
    yield {**WHOLE, "source": "My Shop"}, "$.source"
    yield {**WHOLE, "tables": {"event": ENTRY}}, "$.tables"
    fields, entry = ENTRY["fields"], "$.tables.events"
    for more in (
        {"fields": {**fields, "prise": "p"}}, {"fields": {"event_type": "t", "event_at": "at"}}, {"available_at": "event_tme"},
        {"available_at": {"column": "c", "formt": "%d"}}, {"stream": {"folder": "x"}}, {"origin": "webb"}, {"format": "xml"},
        {"expects": ["product"]}, {"ids": {"case_insensitive": ["produkt_id"]}}, {"files": []}, {"key": []}, {"explode": "a[]"},
        {"csv": {"delimiter": ";;"}}, {"distinct": "perhaps"}, {"fields": {**fields, "price": {"value": 1, "sql": "p"}}},
        {"fields": {**fields, "consent": {"column": "c", "map": {"no": False}}}},
    ):  # fmt: skip
        yield {**WHOLE, "tables": {"events": {**ENTRY, **more}}}, entry
    yield {**WHOLE, "tables": {"events": {key: ENTRY[key] for key in ("files", "fields")}}}, entry
    yield {**WHOLE, "tables": {"ga4_events": ENTRY}}, "$.tables.ga4_events"


@pytest.mark.parametrize(("mapping", "place"), list(wrong()))
def test_both_refuse_what_is_misspelt(tmp_path: Path, mapping: dict[str, Any], place: str) -> None:
    (tmp_path / "m.yml").write_text(yaml.safe_dump(mapping))
    with pytest.raises(FinegrainError):
        read_mapping(tmp_path / "m.yml")
    assert place in mistakes(mapping)


WHOLES = [yaml.safe_load(text) for text in [*SHOWN, *(path.read_text("utf-8") for path in EXAMPLES)]]


@examples(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.sampled_from([WHOLE, *WHOLES]), st.lists(st.integers(0, 9), max_size=6), KEYS, VALUES)
def test_valid_mappings_are_not_marked(
    tmp_path_factory: pytest.TempPathFactory, whole: Any, steps: list[int], key: Any, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "read.yml"
    path.write_bytes(spelled(changed(whole, steps, key, value)).encode())
    try:
        read_mapping(path)
    except FinegrainError:
        return
    assert mistakes(read_yaml(path, "mapping")) == [], path.read_text("utf-8")
