"""Any mapping, argument or environment gives at most one clear error that names the file, the line or the field."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from typer.testing import CliRunner

from orchestration import cli
from orchestration.config import settings
from orchestration.config.settings import Settings
from orchestration.config.yaml_file import DEEPEST, LARGEST
from orchestration.errors import FinegrainError
from orchestration.ingest.load import load
from orchestration.mapping import mapping, models
from orchestration.mapping.contracts import RAW_TABLES
from orchestration.mapping.mapping import mapping_files, read_mapping
from orchestration.quality.doctor import examine
from orchestration.sources.files import find

ENTRY: dict[str, Any] = {
    "files": "a.csv",
    "available_at": "event_time",
    "fields": {"event_type": "t", "event_at": "at", "user_id": "u"},
}
WHOLE: dict[str, Any] = {"source": "shop", "tables": {"events": ENTRY}}


def events(more: str) -> str:
    """A mapping in YAML with more in its only entry."""
    return f"source: shop\ntables:\n  events:\n    files: a.csv\n    available_at: now\n    {more}\n"


def fields(more: str) -> str:
    return events(f"fields: {{event_at: at, user_id: u, {more}}}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source: shop\n? [a, b]\n: c\n", "line 2: a key must be text, not a list or a mapping"),
        ("source: shop\n{a: b}: c\n", "line 2: a key must be text, not a list or a mapping"),
        ("source: shop\n? !!set {a, b}\n: c\n", "line 2: a key must be text, not a list or a mapping"),
        ("source: shop\ntables: " + "[" * 100_000, f"line 2: lists and keys are nested more than {DEEPEST} levels deep"),
        ("tables: " + "{a: " * 500 + "1" + "}" * 500, f"line 1: lists and keys are nested more than {DEEPEST} levels deep"),
        (fields("event_type: {value: " + "1" * 5000 + "}"), f"line 6: '{'1' * 39}…' looks like a number and is none that can be read"),
        ("? " + "1" * 5000 + "\n: x", f"line 1: '{'1' * 39}…' looks like a number"),
        ("source: 0b_\n", "line 1: '0b_' looks like a number and is none that can be read; if a text is meant, put it in quotes"),
        ("source: shop\ntime_zone: 2024-02-30\n", "line 2: '2024-02-30' looks like a date and is none that can be read"),
        ("source: shop\ntime_zone: 2024-01-01 25:00:00\n", "line 2: '2024-01-01 25:00:00' looks like a date"),
        ("source: 2024-01-01\ntables: {}\n", "source: input should be a valid string"),
        ("source: shop\ntables: {2024-01-01: {files: a}}", 'tables.2024-01-01: YAML reads this key as a date: put it in quotes, "2024-01-01"'),
        ("source: shop\ntables: {7: {files: a}}", 'tables.7: YAML reads this key as a number: put it in quotes, "7"'),
        ("source: shop\nnull: 1\n", 'null: YAML reads this key as nothing: put it in quotes, "null"'),
        ("source: shop\non: 1\n", 'line 2: YAML reads the key on as true or false (also yes, no, on and off): put it in quotes, "on"'),
        (fields("yes: t"), 'line 6: YAML reads the key yes as true or false (also yes, no, on and off): put it in quotes, "yes"'),
        ("source: a\0b\n", "line 1: this is not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("source: shop\ntime_zone: a\x07b\n", "line 2: this is not valid YAML: unacceptable character #x0007"),
        ('source: shop\ntime_zone: "a\\0b"\n', "line 2: a text contains a NUL character"),
        ('source: "\\ud83d"\n', "line 1: a text contains half a surrogate pair"),
        ("a: &a [*a]\n", "line 1: an alias refers to a value that contains it"),
        ("a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)),
         "line 6: there are more than 200,000 values, with aliases expanded"),
        ("source: shop\n\ttables: 1\n", "line 2: this is not valid YAML: found character '\\t' that cannot start any token"),
        ("source: a\nsource: b\n", "line 2: this is not valid YAML: the key 'source' is given twice"),
        ("source: !!python/object/apply:os.system [ls]\n", "line 1: this is not valid YAML: put a text that begins with * or ! in quotes"),
        ("source: !!binary a\n", "line 1: this is not valid YAML: failed to decode base64 data"),
        ("source: shop\n<<: 5\n", "line 2: this is not valid YAML: expected a mapping or list of mappings for merging"),
        ("", "a mapping has the keys source, time_zone and tables"),
        ("- source\n", "a mapping has the keys source, time_zone and tables"),
        ("5\n", "a mapping has the keys source, time_zone and tables"),
        ("x" * (LARGEST + 1), "the mapping file has more than 1 MB; is this the data?"),
        (fields("event_type: {sql: '" + "lower(" * 900 + "t" + ")" * 900 + "'}"), "is too long or nested too deeply to be read"),
        (events("replaces: '" + "(" * 3000 + ")" * 3000 + "'"), "is not a regular expression: maximum recursion depth exceeded"),
        (events("replaces: '(a{99999999999999})'"), "is not a regular expression: the repetition number is too large"),
        (events("ids: {product_ids: [x]}"), "tables.events.ids.product_ids: no such key"),
        (events("origin: {a: [1]}"), "is not one of its values; known are: web, database"),
        (fields("event_type: ''"), "tables.events.fields.event_type: a column has a name"),
    ],
)  # fmt: skip
def test_an_invalid_mapping_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "shop.yml"
    path.write_bytes(text.encode())
    with pytest.raises(FinegrainError) as error:
        read_mapping(path)
    assert str(error.value).startswith(str(path)) and said in str(error.value)
    assert len(str(error.value)) < 3000


def test_a_path_that_is_not_a_mapping_file(tmp_path: Path) -> None:
    (tmp_path / "folder.yml").mkdir()
    (tmp_path / "bytes.yml").write_bytes(bytes(range(256)))
    for name, said in (
        ("folder.yml", "the folder holds no mapping"),
        ("bytes.yml", "the mapping file is not UTF-8 text; is this the data?"),
        ("/dev/zero", "the mapping file has more than 1 MB"),
        ("no.yml", "no such mapping file"),
        ("a" * 300 + ".yml", "the mapping cannot be read: File name too long"),
        (os.fsdecode(b"caf\xe9.yml"), r"caf\xe9.yml: no such mapping file"),
    ):
        with pytest.raises(FinegrainError) as error:
            [read_mapping(path) for path in mapping_files(tmp_path / name)]
        assert said in str(error.value)
        str(error.value).encode()
    (tmp_path / "bytes.yml").unlink()
    # A folder that is named like a mapping.
    with pytest.raises(FinegrainError, match=r"folder\.yml: the mapping file cannot be read: Is a directory"):
        [read_mapping(path) for path in mapping_files(tmp_path)]


def test_unusual_but_valid_mappings_are_read(tmp_path: Path) -> None:
    """Aliases, merged keys, numbers as values of a column, JSON escapes, and a long text."""
    path = tmp_path / "shop.yml"
    path.write_text(
        'source: shop\ntables:\n  events:\n  - &first\n    files: "\\ud83d\\ude00.csv"\n    available_at: now\n'
        "    csv: {null: N}\n    fields: &f {event_type: {column: t, map: {1: view, 2: null}}, event_at: at, user_id: u}\n"
        f'  - <<: *first\n    files: b.csv\n    fields: {{<<: *f, query: {{value: "{"1" * 5000}"}}}}\n'
    )
    one, two = read_mapping(path).tables["events"]
    assert one.files == ("\U0001f600.csv",) and one.csv is not None and one.csv.null == "N"
    assert one.fields["event_type"].map == {"1": "view", "2": None}
    assert two.fields["query"].value == "1" * 5000 and two.fields["event_at"] == one.fields["event_at"]


WORDS = sorted({*models.Mapping.model_fields, *models.Table.model_fields, *models.Field.model_fields, *models.Stream.model_fields,
                *models.Http.model_fields, *models.Next.model_fields, *models.Csv.model_fields, *models.Incremental.model_fields,
                *models.Carry.model_fields, *RAW_TABLES, *RAW_TABLES["events"], "now", "event_time", "compare", "case_insensitive"})  # fmt: skip
TEXT = st.text(max_size=8)
SCALARS = st.one_of(
    st.sampled_from([*WORDS, "${X}", "t", "", "a.csv", "[", "%d", "lower(t)", "s3://b/k", "package://x/y", "https://x", "~no/x"]),
    *(TEXT, st.none(), st.booleans(), st.integers(), st.just("HUGE"), st.floats(), st.dates(), st.datetimes(), st.binary(max_size=4)),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(WORDS), TEXT, st.integers(), st.booleans(), st.none(), st.dates()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def changed(whole: Any, steps: list[int], key: Any, value: Any) -> Any:
    """A copy of a structure in which a value along the path `steps` is changed or added."""
    if isinstance(whole, dict) and whole and steps:
        name = list(whole)[steps[0] % len(whole)]
        return {**whole, name: changed(whole[name], steps[1:], key, value)}
    return {**whole, key: value} if isinstance(whole, dict) else value


def spelled(value: Any) -> str:
    """In YAML; HUGE is a number of 5,000 digits."""
    return yaml.safe_dump(value, allow_unicode=True).replace("HUGE", "1" * 5000)


MAPPINGS = st.one_of(
    st.builds(spelled, VALUES).map(str.encode),
    st.builds(lambda *parts: spelled(changed(WHOLE, *parts)).encode(), st.lists(st.integers(0, 9), max_size=4), KEYS, VALUES),
    st.binary(max_size=200),
    st.text("{}[]:,&*!?|>-'\"\n\t #%@a1~<", max_size=60).map(str.encode),
)  # fmt: skip


@examples(max_examples=300, suppress_health_check=list(HealthCheck))
@given(MAPPINGS)
def test_any_file_is_a_mapping_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yml"
    path.write_bytes(content)
    try:
        read_mapping(path)
    except FinegrainError as error:
        assert all(line.startswith(str(path)) for line in str(error).splitlines())


@pytest.fixture(scope="module")
def anywhere(tmp_path_factory: pytest.TempPathFactory, extensions: Path) -> Iterator[tuple[Path, Settings]]:
    folder = tmp_path_factory.mktemp("anywhere")
    (folder / "a.csv").write_text("t,at,u\nview_item,2024-01-01T10:00:00Z,ann\n")
    yield folder, Settings.below(folder / "home", extensions)


@pytest.mark.long
@examples(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 9), max_size=4), KEYS, VALUES)
def test_doctor_and_load_have_one_error_for_any_mapping(
    anywhere: tuple[Path, Settings], steps: list[int], key: Any, value: Any
) -> None:
    folder, where = anywhere
    path = folder / "shop.yml"
    path.write_bytes(spelled(changed(WHOLE, steps, key, value)).encode())
    for run in (examine, load):
        try:
            run(path, data=folder, where=where)
        except FinegrainError as error:
            str(error).encode()


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("a" * 300 + ".csv", "File name too long"), ("~nobody-of-this-name/a.csv", "Could not determine home directory"), ("a\n.csv", r"a\n.csv: no such file")],
)  # fmt: skip
def test_a_path_that_can_be_none(tmp_path: Path, pattern: str, said: str) -> None:
    with pytest.raises(FinegrainError) as error:
        find([pattern], None, tmp_path)
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


def test_names_and_variables_that_are_no_text(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of a mapping, its folder and the data folder may be any bytes; files that DuckDB opens may not."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "a.csv").write_text("t,at,u\nview_item,2024-01-01T10:00:00Z,ann\n")
    path = folder / os.fsdecode(b"\xff.yml")
    path.write_text(yaml.safe_dump(WHOLE))
    assert not [
        each
        for entry in examine(path, data=folder, where=home).entries
        for each in entry.findings
        if each.level == "error"
    ]
    assert load(path, data=folder).rows == 1
    assert load(path, [str(folder / "a.csv")]).rows == 0
    with pytest.raises(FinegrainError, match="the environment's SHOP is not UTF-8 text"):
        monkeypatch.setenv("SHOP", "caf\udce9")
        mapping.from_environment("${SHOP}", "m.yml: database")
    for variable in ("FINEGRAIN_HOME", "FINEGRAIN_LAKE_DATA", "TMPDIR"):
        with monkeypatch.context() as changed_environment:
            changed_environment.setenv(variable, str(folder))
            with pytest.raises(FinegrainError, match=f"{variable} is not UTF-8 text"):
                settings.settings()


# --- the last resort ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("no such thing\nas this"), 70, "error: this is a bug in finegrain: RuntimeError: no such thing; please report it with the log "),
        (RecursionError(), 70, "error: this is a bug in finegrain: RecursionError; please report it with the log "),
        (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), 70, "error: this is a bug in finegrain: UnicodeEncodeError: "),
        (MemoryError(), 2, "error: there is not enough memory; FINEGRAIN_MEMORY limits what DuckDB may use; details are in "),
        (OSError(28, "No space left on device", "/x\x1b[2J"), 2, "error: /x\\x1b[2J: No space left on device; "),
    ],
)  # fmt: skip
def test_a_bug_is_a_sentence_and_a_log(
    home: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    said: str,
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    assert (left.value.code, out, len(err.splitlines())) == (code, "", 1)
    assert err.startswith(said) and "Traceback" not in err
    [log] = (home.home / "logs").iterdir()
    assert str(log) in err and log.stat().st_mode & 0o777 == 0o600
    text = log.read_text("utf-8")
    assert "Traceback (most recent call last)" in text and type(error).__name__ in text and "in fail" in text


def test_a_log_that_cannot_be_below_the_home(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.home.write_text("a file")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(cli, "app", lambda **_: 1 / 0)
    with pytest.raises(SystemExit):
        cli.main()
    assert f"please report it with the log {tmp_path}/error-" in capsys.readouterr().err


def test_tests_see_what_went_wrong(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("seen")

    monkeypatch.setattr("orchestration.ingest.load.load", fail)
    assert str(CliRunner().invoke(cli.app, ["load", "shop.yml"]).exception) == "seen"
