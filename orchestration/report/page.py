"""`finegrain report --html`: one page that needs nothing else. Its figures are from the published marts, its charts are SVG, it has no script,
and its content security policy allows no request."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import duckdb
import jinja2
import yaml
from markupsafe import Markup

from orchestration.config.project import roots
from orchestration.config.published import DATABASE, REPORT, current
from orchestration.config.settings import Environment, Settings, settings
from orchestration.errors import FinegrainError
from orchestration.features.catalog import Feature, catalog, percent
from orchestration.quality.account import ANOMALY_DAYS, Account, account, ledger
from orchestration.quality.alerts import poor_quality, read_rules, scrub
from orchestration.report import charts, figures
from orchestration.warehouse.publish import categorical_columns, point, published_at

#: Rows of a mart of which its features' figures are, and entries of the list of what to do.
SAMPLE: Final = 20_000
TO_DO: Final = 8
#: Series of a source that stand above each other.
IN_A_CHART: Final = 4
#: Below this share a column with values is mostly empty.
_SPARSE: Final = 0.01

_HERE: Final = Path(__file__).parent


def write_page(path: Path | None = None, where: Settings | None = None) -> Path:
    """Write the page of the published marts to `path`, by default `report.html` here, in one step. Raises FinegrainError if nothing is
    published or the file cannot be written."""
    path = path or Path(REPORT)
    text = page(where)
    try:
        _replace(path, text)
    except OSError as error:
        raise FinegrainError(f"{path}: the report cannot be written: {error.strerror}") from None
    return path


def publish_page(where: Settings | None = None) -> str | None:
    """Put the page beside the published marts. They are published without it, too, so what went wrong is no error, but a sentence that is
    returned."""
    where = where or settings()
    folder = current(where)
    if folder is None:
        return None
    try:
        if not (folder / REPORT).exists():  # a version does not change
            _replace(folder / REPORT, page(where))
        point(where.published / REPORT, Path("current") / REPORT)
    except Exception as error:
        why = f"{type(error).__name__}: {scrub(str(error))[:300]}"
        return f"the marts are published, but their report could not be written ({why}); run `finegrain report --html` to see more"
    return None


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=".report-", delete=False) as file:
        draft = Path(file.name)
        file.write(text)
    try:
        draft.chmod(0o666 & ~Environment.read().umask)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def page(where: Settings | None = None) -> str:
    """The page of the published marts, as HTML. Raises FinegrainError if nothing is published."""
    where = where or settings()
    found = account(where)
    folder = current(where)
    assert folder is not None
    with duckdb.connect(str(folder / DATABASE), read_only=True) as con:
        asked = {name: figures.ask(con, query) for name, query in figures.QUERIES.items()}
    about = json.loads((folder / "about.json").read_text("utf-8"))
    remedies = yaml.safe_load((_HERE / "remedies.yml").read_text("utf-8"))
    marts = _features(where, found.empty)
    problems = [scrub(each.text) for each in poor_quality(ledger(where), read_rules())]
    to_do = _to_do(found, asked, remedies, marts)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"share": charts.share, "number": number, "hours": hours, "code": code}
    style = Markup((_HERE / "page.css").read_text("utf-8"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        style=style,
        digest=digest,
        found=found,
        published_at=published_at(where),
        finegrain=about.get("finegrain"),
        is_well=not problems
        and not any(each["severity"] == "error" for each in found.anomalies)
        and not found.dead_letters,
        problems=problems,
        anomaly_days=ANOMALY_DAYS,
        recent=figures.RECENT,
        to_do=to_do[:TO_DO],
        to_do_left=len(to_do) - TO_DO,
        costs=asked["costs"][0] if asked["costs"] else None,
        raw_rows=sum(row["raw_rows"] for row in found.sources),
        duplicates=sum(row["duplicates"] for row in found.sources),
        quarantined=sum(row["quarantined"] for row in found.sources),
        imputed=sum(count for name, count in found.cleaned.items() if name.endswith("imputed")),
        flow=charts.flow(asked["flow"]) if asked["flow"] else None,
        reasons=asked["reasons"],
        remedies=remedies,
        rules=_rules(),
        trends=_trends(asked),
        series_left=max(0, asked["series_shown"][0]["left_out"]) if asked["series_shown"] else 0,
        gaps=_matrices(asked["gaps"], 1.0, "Share of rows without a value", "missing"),
        advice=asked["advice"],
        outliers=_outliers(asked),
        drift=_matrices(asked["drift"], 1.0, "Drift (PSI)", "PSI"),
        drift_now=asked["drift_now"],
        marts=marts,
        sample=SAMPLE,
        freshness=asked["freshness"],
        slowest=about.get("slowest") or [],
    )


def number(value: float | None) -> str:
    """A count, or an amount without cents from a hundred on."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def hours(value: float | None) -> str:
    """A span in the unit that a person would use."""
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 60:.0f} min"
    return f"{value:.1f} h" if value < 48 else f"{value / 24:.1f} days"


def code(text: str) -> Markup:
    """A sentence with its `commands` as code; all else is escaped."""
    parts = text.split("`")
    return Markup().join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )


def _rules() -> dict[str, str]:
    """What each validation rule says, by id: finegrain's and the shop's own."""
    found: dict[str, str] = {}
    for root in roots():
        for path in sorted((root / "seeds").glob("*validation_rules.csv")):
            with path.open(encoding="utf-8", newline="") as file:
                found |= {row["rule_id"]: row.get("description") or "" for row in csv.DictReader(file)}
    return found


def _to_do(
    found: Account,
    asked: Mapping[str, figures.Rows],
    remedies: Mapping[str, Mapping[str, str]],
    marts: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What is ill, the worst first: what, where, since when, what it costs, what to do, and the part of the page that has more."""
    entries: list[dict[str, Any]] = []

    def add(
        part: str, what: str, source: str, do: str, *, severity: str = "warn", since: date | None = None, cost: str = ""
    ) -> None:
        entries.append(
            {
                "part": part,
                "what": scrub(what),
                "source": source,
                "do": do,
                "severity": severity,
                "since": since,
                "cost": cost,
            }
        )

    currency = found.reporting_currency or ""
    for rule, count in found.dead_letters.items():
        add(
            "rows",
            f"{count:,} messages wait as dead letters by rule {rule}",
            "streams",
            "Correct the mapping, then run `finegrain replay`.",
            severity="error",
        )
    if found.stale_rates:
        add(
            "outliers",
            found.stale_rates,
            "exchange rates",
            "Run `finegrain rates update`, then `finegrain build`.",
            severity="error",
        )
    for each in asked["incidents"]:
        days = "1 day" if each["days"] == 1 else f"{each['days']} days"
        do = remedies["metrics"].get(each["clearest"]["metric"], "See the trends below.")
        clearest = each["clearest"]
        what = f"{_named(clearest)}: {_valued(clearest['metric'], clearest['value'], clearest['expected'])}"
        add(
            "trends",
            what,
            each["source"],
            do,
            severity=each["severity"],
            since=each["since"],
            cost=f"anomalous on {days}",
        )
    for each in asked["reasons"]:
        do = remedies["rules"].get(each["reason"], "See quarantined_events.")
        if do.startswith("Nothing") or not (each["recent"] or each["worth"]):
            continue
        cost = f"{each['n']:,} rows" + (f", {number(each['worth'])} {currency} of purchases" if each["worth"] else "")
        add("rows", f"quarantined: {each['reason']}", each["sources"], do, since=each["since"], cost=cost)
    never = [each for each in asked["advice"] if each["advice"] == "drop"]
    for source, columns in groupby(
        sorted(never, key=lambda each: (each["source"], each["column_name"])), key=lambda each: each["source"]
    ):
        names = ", ".join(each["column_name"] for each in columns)
        add(
            "missing",
            f"missing in all or nearly all rows: {names}",
            source,
            "Map these columns, or leave them out of what you build on them.",
            severity="note",
        )
    empty = {
        mart["name"]: [each["name"] for each in mart["features"] if each["flag"] == "always null"] for mart in marts
    }
    if any(empty.values()):
        count = sum(len(names) for names in empty.values())
        what = f"{count} feature{'' if count == 1 else 's'} without any value"
        where = ", ".join(f"{name} ({len(names)})" for name, names in empty.items() if names)
        add("features", what, where, "Leave them out of training, or map the fields that they need.", severity="note")
    return sorted(entries, key=lambda each: ("error", "warn", "note").index(each["severity"]))


_IN_WORDS: Final = {
    "volume": "rows a day",
    "freshness": "hours since the last row",
    "completeness": "share of rows with {column}",
    "distinctness": "distinct {column} per row",
    "top_share": "share of the most frequent {column}",
    "quarantined_share": "share of rows quarantined",
    "duplicate_share": "share of duplicates",
    "bot_share": "share of rows of bots",
    "bot_identity_share": "share of identities that are bots",
    "psi": "drift of {column} (PSI)",
    "ks": "drift of {column} (KS)",
}
_SHARES: Final = frozenset(
    {"completeness", "top_share", "quarantined_share", "duplicate_share", "bot_share", "bot_identity_share"}
)


def _named(series: Mapping[str, Any]) -> str:
    """A metric of a column and segment in words."""
    name = _IN_WORDS.get(series["metric"], f"{series['metric']} of {{column}}").replace(
        "{column}", series["column_name"]
    )
    return name if series["segment"] in ("all", "source") else f"{name}, {series['segment']} {series['segment_value']}"


def _valued(metric: str, value: float, expected: float | None) -> str:
    """A value and what was expected."""
    said = charts.share if metric in _SHARES else number
    return said(value) + (f", expected {said(expected)}" if expected is not None else "")


def _trends(asked: Mapping[str, figures.Rows]) -> list[dict[str, Any]]:
    """The charts of each source; those of sources with recent anomalies come first, and are open."""
    points = {key: list(rows) for key, rows in groupby(asked["points"], key=lambda row: row["number"])}
    found = []
    for source, rows in groupby(asked["series_shown"], key=lambda row: row["source"]):
        series = list(rows)
        recent, days = (max(each[name] for each in series) for name in ("recent_days", "days"))
        drawn = []
        for first in range(0, len(series), IN_A_CHART):
            some = series[first : first + IN_A_CHART]
            values = [
                {
                    **point,
                    "series": f"{each['table_name']}: {_named(each)}",
                    "about": f"{point['day']}: {_valued(each['metric'], point['value'], point['expected'])}",
                }
                for each in some
                for point in points.get(each["number"], [])
            ]
            drawn.append(charts.trends(values, source))
        found.append({"source": source, "recent": recent, "days": days, "charts": drawn})
    return sorted(found, key=lambda each: (not each["recent"], not each["days"], each["source"]))


def _cell(cell: Mapping[str, Any], word: str) -> str:
    """A cell of a matrix in words."""
    value = charts.share(cell["value"]) if word == "missing" else number(cell["value"])
    return f"{cell['column_name']}, from {cell['period']}: {value} {word}"


def _matrices(rows: figures.Rows, full: float, about: str, word: str) -> list[dict[str, Any]]:
    found = []
    for (source, table), cells in groupby(rows, key=lambda row: (row["source"], row["table_name"])):
        shown = [{**cell, "said": _cell(cell, word)} for cell in cells]
        found.append(
            {
                "source": source,
                "table": table,
                "days": shown[0]["days"],
                "chart": charts.matrix(shown, full=full, about=f"{about} in {table} of {source}."),
            }
        )
    return found


def _outliers(asked: Mapping[str, figures.Rows]) -> list[dict[str, Any]]:
    buckets = {
        column: list(rows) for column, rows in groupby(asked["outlier_buckets"], key=lambda row: row["column_name"])
    }
    return [
        {
            **each,
            "chart": charts.before_and_after(
                [
                    {**row, "said": f"{row['stage']}: {row['n']:,} from {number(row['low'])} to {number(row['high'])}"}
                    for row in buckets[each["column_name"]]
                ],
                each["column_name"],
            )
            if each["column_name"] in buckets
            else None,
        }
        for each in asked["outliers"]
    ]


def _features(where: Settings, empty: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """By mart, its features with what is wrong with each; the ill ones first."""
    categorical = categorical_columns()
    found = []
    for mart in catalog(where, lineage=False, sample=SAMPLE).marts:
        if not mart.rows:
            continue
        features = [
            {
                "name": each.name,
                "meaning": each.meaning,
                "flag": _flag(each, each.name in empty.get(mart.name, ())),
                "nulls": percent(each.figures.nulls),
                "picture": each.figures.drawn(),
                # Texts are shown where they are known to be a few words, such as segments.
                "spread": scrub(each.figures.spread())
                if not each.figures.labels or each.name in categorical.get(mart.name, set())
                else "",
            }
            for each in mart.features
            if each.figures
        ]
        features.sort(key=lambda each: _FLAGS.index(str(each["flag"])))
        found.append(
            {
                "name": mart.name,
                "rows": mart.rows,
                "features": features,
                "ill": sum(each["flag"] != "" for each in features),
            }
        )
    return found


_FLAGS: Final = ("always null", "constant", "nearly always null", "")


def _flag(feature: Feature, is_empty: bool) -> str:
    """What is wrong with a feature's values; empty for nothing. `is_empty`: it has none in the whole mart, not only in a sample."""
    assert feature.figures is not None
    each = feature.figures
    if is_empty:
        return _FLAGS[0]
    is_constant = (
        (each.numbers is not None and each.numbers["min"] == each.numbers["max"])
        or each.true in (0, 1)
        or (each.labels is not None and len(each.labels) == 1)
    )
    if is_constant and each.nulls == 0:
        return _FLAGS[1]
    return _FLAGS[2] if each.nulls > 1 - _SPARSE else _FLAGS[3]
