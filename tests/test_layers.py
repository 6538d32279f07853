"""scripts/check_layers.py: a valid project has no findings; breaking a rule gives exactly one finding."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from check_layers import Project, main

META = {"grain": "one row a thing", "owner": "data"}


def said(name: str, **more: object) -> str:
    """The YAML of a valid model, with keys replaced by `more`; None removes a key."""
    entry = {
        "name": name,
        "description": "what it is",
        "config": {"meta": META},
        "columns": [{"name": "id", "data_tests": ["not_null"]}],
        **more,
    }
    return yaml.safe_dump({"models": [{key: value for key, value in entry.items() if value is not None}]})


ORDERLY = {
    "dbt_project.yml": "name: shop\nmodels:\n  shop:\n    marts:\n      +contract: {enforced: true}\n",
    "seeds/rates.csv": "day,rate\n",
    "macros/engine/lists.sql": (
        "{# How many there are. #}\n"
        "{% macro size(x) %}{{ return(adapter.dispatch('size', 'shop')(x)) }}{% endmacro %}\n"
        "{% macro duckdb__size(x) %}list_count({{ x }}){% endmacro %}\n"
    ),
    ".sqlfluff": "[sqlfluff]\nmax_line_length = 100\n",
    "macros/tiles.sql": "{# A tile. #}\n{% macro tile(grain) %}select * from {{ ref('int_tiles__' ~ grain) }}{% endmacro %}\n",
    "models/staging/web/base_web__hits.sql": "select * from {{ source('lake', 'hits') }}\n",
    "models/staging/web/base_web__hits.yml": said("base_web__hits"),
    "models/staging/web/stg_web__hits.sql": "select id from {{ ref('base_web__hits') }}\n",
    "models/staging/web/stg_web__hits.yml": said("stg_web__hits"),
    "models/intermediate/tiles/int_tiles__day.sql": (
        "{# ref('fct_hits') in a comment is not read #}\n-- nor is ref('fct_hits') here\n"
        "select id, '::' as mark, list_views, {{ size('id') }} as n\n"
        "from {{ ref('stg_web__hits') }} join {{ ref('rates') }} using (id)\n"
    ),
    "models/intermediate/tiles/int_tiles__day.yml": said("int_tiles__day", columns=None)
    + "unit_tests: [{name: t, model: int_tiles__day}]\n",
    "models/marts/core/fct_hits.sql": "{{ tile('day') }}\n",
    "models/marts/core/fct_hits.yml": said("fct_hits"),
    "models/marts/core/fct_visits.sql": "select id from {{ ref('fct_hits') }}\n",
    "models/marts/core/fct_visits.yml": said("fct_visits"),
    "snapshots/old_hits.yml": "snapshots:\n  - name: old_hits\n    relation: ref('fct_hits')\n",
    "tests/singular/few_hits.sql": "select {{ size('id') }} from ({{ tile('day') }}) as t\n",
    "tests/singular/no_hits.sql": "select 1 from {{ ref('stg_web__hits') }} where false\n",
}

STAGING, TILES, MART = (
    "models/staging/web/stg_web__hits",
    "models/intermediate/tiles/int_tiles__day",
    "models/marts/core/fct_hits",
)

NAMED = {"name": "id", "description": "The hit's id.", "data_tests": ["not_null"]}

#: Changes of the valid project, and the one finding that each causes.
BROKEN = {
    "staging reads up": (
        {f"{STAGING}.sql": "select 1\nfrom {{ ref('int_tiles__day') }}"},
        f"{STAGING}.sql:2: reads int_tiles__day of intermediate: staging reads staging only",
    ),
    "staging reads a seed": (
        {f"{STAGING}.sql": "select 1 from {{ ref('rates') }}"},
        f"{STAGING}.sql:1: reads rates of seeds: staging reads staging only",
    ),
    "staging reads another source's folder": (
        {
            "models/staging/app/stg_app__taps.sql": "select 1 from {{ ref('stg_web__hits') }}",
            "models/staging/app/stg_app__taps.yml": said("stg_app__taps"),
        },
        "models/staging/app/stg_app__taps.sql:1: reads stg_web__hits: staging reads its own folder; join in intermediate",
    ),
    "intermediate reads a source": (
        {f"{TILES}.sql": "select 1\n\nfrom {{ source( 'lake' , \"hits\" ) }}"},
        f"{TILES}.sql:3: reads the source lake.hits: only staging does; ref() a staging model",
    ),
    "intermediate reads a mart": (
        {f"{TILES}.sql": "select 1 from {{ ref('shop', 'fct_hits') }}"},
        f"{TILES}.sql:1: reads fct_hits of marts: intermediate reads intermediate and seeds and staging only",
    ),
    "a mart reads staging": (
        {f"{MART}.sql": 'select 1 from {{ ref("stg_web__hits") }}'},
        f"{MART}.sql:1: reads stg_web__hits of staging: marts reads intermediate and marts and seeds only",
    ),
    "a folder reads a later one": (
        {
            "models/intermediate/events/int_events__hits.sql": "select 1\nfrom {{ ref('int_tiles__day') }}",
            "models/intermediate/events/int_events__hits.yml": said("int_events__hits"),
        },
        "models/intermediate/events/int_events__hits.sql:2: reads int_tiles__day of tiles: events comes before it "
        "(the order is reference, events, cleaning, metrics, changes, identity, tiles, features, current)",
    ),
    "a folder that the layer does not have": (
        {
            "models/marts/attic/fct_old.sql": "select 1 from {{ ref('fct_hits') }}",
            "models/marts/attic/fct_old.yml": said("fct_old"),
        },
        "models/marts/attic/fct_old.sql:1: marts has no folder attic: "
        "move the model to one of core, features, training, quality",
    ),
    "a mart reads staging through a macro of a macro": (
        {
            "macros/tiles.sql": "{# A tile. #}\n{% macro tile(x) %}{{ deeper() }}{% endmacro %}\n"
            "{# What it reads. #}\n{% macro deeper() %}select 1 from {{ ref('stg_web__hits') }}{% endmacro %}"
        },
        f"{MART}.sql:1: reads stg_web__hits (through the macro deeper) of staging: marts reads intermediate and marts and seeds only",
    ),
    "a mart reads staging through a dispatched macro": (
        {
            "macros/engine/lists.sql": ORDERLY["macros/engine/lists.sql"].replace(
                "list_count", "{{ ref('base_web__hits') }}"
            ),
            f"{MART}.sql": "select {{ size('id') }}",
        },
        f"{MART}.sql:1: reads base_web__hits (through the macro duckdb__size) of staging: "
        "marts reads intermediate and marts and seeds only",
    ),
    "a name that nothing has": (
        {f"{MART}.sql": "select 1 from {{ ref('int_tiles__dy') }}"},
        f"{MART}.sql:1: reads int_tiles__dy, which is no model, seed or snapshot: did you mean int_tiles__day?",
    ),
    "a snapshot reads staging": (
        {"snapshots/old_hits.yml": "snapshots:\n  - name: old_hits\n    relation: ref('stg_web__hits')\n"},
        "snapshots/old_hits.yml:3: reads stg_web__hits of staging: snapshots reads intermediate and marts only",
    ),
    "no YAML beside it": (
        {f"{STAGING}.yml": None},
        f"{STAGING}.sql:1: this model has no description: describe it in stg_web__hits.yml beside it",
    ),
    "YAML in another folder": (
        {f"{STAGING}.yml": None, "models/staging/hits.yml": said("stg_web__hits")},
        f"{STAGING}.sql:1: this model has no description: describe it in stg_web__hits.yml beside it",
    ),
    "a unit test in another file": (
        {"models/staging/web/_tests.yml": "unit_tests: [{name: t, model: stg_web__hits}]\n"},
        "models/staging/web/_tests.yml:1: the unit test t is of stg_web__hits: move it to stg_web__hits.yml",
    ),
    "a column described again": (
        {
            "models/staging/web/base_web__hits.yml": said("base_web__hits", columns=[NAMED]),
            f"{STAGING}.yml": said("stg_web__hits", columns=[NAMED]),
        },
        f"{STAGING}.sql:1: its YAML describes id in the words of a model or source that it reads: leave that out",
    ),
    "a column of the lake described again": (
        {
            "models/staging/_sources.yml": yaml.safe_dump(
                {"sources": [{"name": "lake", "tables": [{"name": "hits", "columns": [{**NAMED, "name": "_id"}]}]}]}
            ),
            f"{STAGING}.yml": said("stg_web__hits", columns=[NAMED]),
        },
        f"{STAGING}.sql:1: its YAML describes id in the words of a model or source that it reads: leave that out",
    ),
    "no description, grain, owner or test": (
        {f"{STAGING}.yml": said("stg_web__hits", description=" ", config=None, columns=None)},
        f"{STAGING}.sql:1: its YAML lacks a description, config.meta.grain, config.meta.owner, a test: "
        "add it in stg_web__hits.yml beside it",
    ),
    "no contract": (
        {f"{MART}.yml": said("fct_hits", config={"meta": META, "contract": {"enforced": False}})},
        f"{MART}.sql:1: a mart without a contract: set config.contract.enforced to true in its YAML",
    ),
    "no layer": (
        {"models/extra/thing.sql": "select 1"},
        "models/extra/thing.sql:1: a model lives in models/staging, models/intermediate or models/marts: move it to one",
    ),
    "a name of another folder": (
        {
            "models/intermediate/cleaning/int_tiles__week.sql": "select 1",
            "models/intermediate/cleaning/int_tiles__week.yml": said("int_tiles__week"),
        },
        "models/intermediate/cleaning/int_tiles__week.sql:1: a model of intermediate/cleaning is called int_cleaning__…: "
        "rename it, or move it to its folder",
    ),
    "a hook that computes": (
        {
            f"{TILES}.sql": '{{ config(pre_hook="{{ find_rows(this) }}", post_hook="{{ move_watermark() }}") }}\n'
            "select 1 as id from {{ ref('stg_web__hits') }}"
        },
        f"{TILES}.sql:1: a pre-hook calls find_rows: a hook only does bookkeeping (move_watermark, record_state, set_since, "
        "watermark); put what it computes into a model, and ref() that",
    ),
    "a cast of one engine": (
        {f"{MART}.sql": "{{ tile('day') }}\nwhere id::int > 0"},
        f"{MART}.sql:2: :: is not the same on DuckDB and Spark: write cast(… as …)",
    ),
    "a function of one engine": (
        {f"{STAGING}.sql": "select\n    List_Sum (x) as n\nfrom {{ ref('base_web__hits') }}"},
        f"{STAGING}.sql:2: List_Sum is not the same on DuckDB and Spark: put it behind a macro in macros/engine",
    ),
    "a function of one engine, handed to a macro": (
        {f"{STAGING}.sql": "select {{ size('list_sort(x)') }}\nfrom {{ ref('base_web__hits') }}"},
        f"{STAGING}.sql:1: list_sort is not the same on DuckDB and Spark: put it behind a macro in macros/engine",
    ),
    "a variable of one engine in a test": (
        {"tests/singular/no_hits.sql": "select getvariable('pinned')"},
        "tests/singular/no_hits.sql:1: getvariable is not the same on DuckDB and Spark: "
        "put it behind a macro in macros/engine",
    ),
    "a function of one engine in a macro outside of the engine's folder": (
        {
            "macros/more.sql": "{# More. #}\n{% macro more(x) %}read_parquet({{ x }}){% endmacro %}",
            "tests/singular/more.sql": "select {{ more('x') }}",
        },
        "macros/more.sql:2: read_parquet is not the same on DuckDB and Spark: put it behind a macro in macros/engine",
    ),
    "a macro's line that is too long": (
        {"macros/tiles.sql": f"{{# {'x' * 100} #}}\n{{% macro tile(grain) %}}select 1{{% endmacro %}}\n"},
        "macros/tiles.sql:1: 106 characters: break the line after 100",
    ),
    "a tab in a macro": (
        {"macros/tiles.sql": "{# A tile. #}\n{% macro tile(grain) %}\n\tselect 1\n{% endmacro %}\n"},
        "macros/tiles.sql:3: a tab, or space at the end of the line: use spaces, and none at the end",
    ),
    "space at the end of a macro's line": (
        {"macros/tiles.sql": "{# A tile. #} \n{% macro tile(grain) %}select 1{% endmacro %}\n"},
        "macros/tiles.sql:1: a tab, or space at the end of the line: use spaces, and none at the end",
    ),
    "a word that is not ours": (
        {"macros/tiles.sql": "{# A tile, made anew. #}\n{% macro tile(grain) %}select 1{% endmacro %}\n"},
        "macros/tiles.sql:1: 'anew' is not our word: docs/contributing/words.md has others",
    ),
    "a macro without a comment": (
        {"macros/tiles.sql": "{# All. #}\n\nselect 1\n{% macro tile(grain) %}select 1{% endmacro %}\n"},
        "macros/tiles.sql:4: nothing is said of the macro tile: describe it in a comment above it",
    ),
    "a macro that nothing calls": (
        {
            "macros/more.sql": "{# More. #}\n"
            "{% macro more(x) %}{{ return(adapter.dispatch('more', 'shop')(x)) }}{% endmacro %}\n"
            "{% macro duckdb__more(x) %}{{ x }} {# more() in a comment is no call #}{% endmacro %}\n"
        },
        "macros/more.sql:2: nothing calls the macro more: remove it",
    ),
}


def grow(root: Path, *changes: dict[str, str | None]) -> Path:
    """Write the valid project with changes; None removes a file."""
    for name, text in {key: value for each in (ORDERLY, *changes) for key, value in each.items()}.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


def test_a_valid_project_has_no_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(grow(tmp_path)) == 0
    assert capsys.readouterr().out == "layers: 5 models, all in order\n"


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_rule_is_found_once(tmp_path: Path, name: str) -> None:
    changes, finding = BROKEN[name]
    assert Project(grow(tmp_path, changes)).check() == [finding]


def test_findings_end_in_a_status_of_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(grow(tmp_path, *(changes for changes, _ in BROKEN.values()))) == 1
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_yaml_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    findings = Project(grow(tmp_path, {f"{STAGING}.yml": "models:\n  - name: [\n"})).check()
    assert findings[0].startswith(f"{STAGING}.yml:3: this is not YAML: ")
