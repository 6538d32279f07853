"""The page's charts: Vega-Lite, drawn once as SVG, so that the page needs no script. Colours are variables of the page's style sheet, so that
they follow its light and its dark theme. docs/decisions/0024-the-report-is-drawn-once.md says why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final

import vl_convert
from markupsafe import Markup

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

#: A chart is as wide as a phone, in pixels; on a wide screen several stand side by side.
WIDTH: Final = 300
#: Vega's own name for a mark that says something is also what a mouse shows of it.
_NAMED: Final = re.compile(r'<path aria-label="([^"]*)"([^>]*?)(?:/>|></path>)')
_CONFIG: Final[Spec] = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
    },
    "headerRow": {"labelOrient": "top", "labelAngle": 0, "labelPadding": 3},
    "header": {
        "labelColor": "var(--text)",
        "labelFontSize": 12,
        "labelAnchor": "start",
        "title": None,
        "labelLimit": WIDTH,
    },
    "legend": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "labelFontSize": 11,
        "orient": "top",
        "title": None,
    },
    "text": {"color": "var(--text)", "fontSize": 12},
}


def draw(spec: Spec, rows: Rows, *, about: str) -> Markup:
    """The SVG of a Vega-Lite chart of some rows; `about` says in words what it shows."""
    values = [{name: str(value) if isinstance(value, date) else value for name, value in row.items()} for row in rows]
    svg = vl_convert.vegalite_to_svg({"config": _CONFIG, "data": {"values": values}, **spec})
    svg = _NAMED.sub(r'<path aria-label="\1"\2><title>\1</title></path>', svg)
    label = Markup('<svg role="img" aria-label="{}"').format(about)
    return Markup(svg.replace("<svg", label, 1))


#: Between the bands of two sources or verdicts, as a share of the height; so are labels of thin bands apart.
_GAP: Final = 0.09


def flow(rows: Rows) -> Markup:
    """Bands from sources to verdicts (figures.FLOW)."""
    groups = max(row["left_gap"] for row in rows)
    ends = [
        {
            "x": x,
            "low": row[f"{side}_low"] + shift,
            "high": row[f"{side}_high"] + shift,
            "band": number,
            "verdict": row["verdict"],
        }
        for number, row in enumerate(rows)
        for side, xs, shift in (
            ("left", (0, 0.35), row["left_gap"] * _GAP),
            # Both sides are centred.
            ("right", (0.65, 1), row["right_gap"] * _GAP + (groups - 2) * _GAP / 2),
        )
        for x in xs
    ]
    total = rows[0]["total"]
    lefts = {row["source"]: row for row in rows}
    rights = {row["verdict"]: row for row in rows}
    labels = [
        *(
            {
                "x": 0,
                "side": "left",
                "y": _label_at([each for each in ends if each["x"] == 0 and rows[each["band"]]["source"] == name]),
                "text": f"{name} {row['source_rows']:,}",
            }
            for name, row in lefts.items()
        ),
        *(
            {
                "x": 1,
                "side": "right",
                "y": _label_at([each for each in ends if each["x"] == 1 and each["verdict"] == name]),
                "text": f"{name} {row['verdict_rows']:,} ({share(row['verdict_rows'] / total)})",
            }
            for name, row in rights.items()
        ),
    ]
    x: Spec = {"field": "x", "type": "quantitative", "axis": None, "scale": {"domain": [0, 1], "nice": False}}
    y: Spec = {"type": "quantitative", "axis": None, "scale": {"zero": False, "nice": False}}
    text: Spec = {"x": x, "y": {"field": "y", **y}, "text": {"field": "text"}}
    spec: Spec = {
        "width": WIDTH + 40,
        "height": 60 + 40 * max(groups + 1, 3),
        "layer": [
            {
                "mark": {"type": "area", "interpolate": "monotone", "opacity": 0.45, "aria": False},
                "encoding": {
                    "x": x,
                    "y": {"field": "low", **y},
                    "y2": {"field": "high"},
                    "detail": {"field": "band"},
                    "color": {"field": "verdict", "legend": None, "scale": _VERDICTS},
                },
            },
            *(
                {
                    "transform": [{"filter": {"field": "side", "equal": side}}],
                    "data": {"values": labels},
                    "mark": {"type": "text", "align": side, "dx": dx, "limit": WIDTH / 2 + 15, "aria": False},
                    "encoding": text,
                }
                for side, dx in (("left", 4), ("right", -4))
            ),
        ],
    }
    return draw(
        spec,
        ends,
        about="Raw rows by source, at the left, and what became of them, at the right. The table below has the figures.",
    )


def _label_at(ends: Sequence[Mapping[str, float]]) -> float:
    """In the middle of a thick band, and just above a thin one."""
    low, high = min(end["low"] for end in ends), max(end["high"] for end in ends)
    return (low + high) / 2 if high - low > _GAP / 2 else high + _GAP / 3


def share(value: float | None) -> str:
    """A share in per cent, with as many places as it needs to differ from nothing and from everything."""
    if value is None:
        return "–"
    for places in (1, 2, 3):
        text = f"{100 * value:.{places}f}"
        if 0 < value < 1 and float(text) in (0, 100):
            continue
        return f"{text.rstrip('0').rstrip('.')} %"
    return "< 0.001 %" if value < 0.5 else "> 99.999 %"


_VERDICTS: Final[Spec] = {
    "domain": ["kept", "duplicates", "quarantined"],
    "range": ["var(--kept)", "var(--duplicates)", "var(--quarantined)"],
}
#: A number of an axis: 2.5k and 0.25, not 250m.
_SHORT: Final = "datum.value >= 1000 ? format(datum.value, '~s') : format(datum.value, '~g')"
_DAYS: Final[Spec] = {
    "field": "day",
    "type": "temporal",
    "scale": {"type": "utc"},
    "axis": {"title": None, "grid": False, "tickCount": 4, "format": "%d %b %y", "labelOverlap": True},
}


def trends(rows: Rows, source: str) -> Markup:
    """The series of one source, one above the other (figures.POINTS, each row with the name of its series as `series`)."""
    value: Spec = {
        "field": "value",
        "type": "quantitative",
        "axis": {"title": None, "tickCount": 3, "labelExpr": _SHORT},
        "scale": {"zero": True},
    }
    order = list(dict.fromkeys(row["series"] for row in rows))
    spec: Spec = {
        "facet": {"row": {"field": "series", "type": "nominal", "sort": order}},
        "spacing": 14,
        "resolve": {"scale": {"y": "independent"}},
        "spec": {
            "width": WIDTH,
            "height": 70,
            "layer": [
                {
                    "mark": {"type": "line", "color": "var(--accent)", "strokeWidth": 1.5, "aria": False},
                    "encoding": {"x": _DAYS, "y": value},
                },
                {
                    "transform": [{"filter": "datum.severity != null && datum.expected != null"}],
                    "mark": {"type": "tick", "color": "var(--soft)", "thickness": 2, "width": 10, "aria": False},
                    "encoding": {"x": _DAYS, "y": {**value, "field": "expected"}},
                },
                {
                    "transform": [{"filter": "datum.severity != null"}],
                    "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                    "encoding": {
                        "x": _DAYS,
                        "y": value,
                        "color": {
                            "field": "severity",
                            "legend": None,
                            "scale": {
                                "domain": ["error", "warn"],
                                "range": ["var(--quarantined)", "var(--duplicates)"],
                            },
                        },
                        "shape": {
                            "field": "severity",
                            "legend": None,
                            "scale": {"domain": ["error", "warn"], "range": ["diamond", "circle"]},
                        },
                        "description": {"field": "about"},
                    },
                },
            ],
        },
    }
    return draw(spec, rows, about=f"Metrics of {source} by day; anomalous days are marked, with what was expected.")


def matrix(rows: Rows, *, full: float, about: str) -> Markup:
    """A value by column and period as shades; `full` is the darkest one. Each row says what it is as `said`."""
    columns = len({row["column_name"] for row in rows})
    spec: Spec = {
        "width": WIDTH - 90,
        "height": {"step": 16},
        "mark": {"type": "rect", "color": "var(--quarantined)"},
        "encoding": {
            "x": {
                "field": "period",
                "type": "ordinal",
                "axis": {
                    "title": None,
                    "labelAngle": 0,
                    "labelExpr": "utcFormat(toDate(datum.label), '%d %b %y')",
                    "labelOverlap": "greedy",
                    "labelSeparation": 16,
                    "domain": False,
                    "ticks": False,
                },
                "scale": {"paddingInner": 0.08},
            },
            "y": {
                "field": "column_name",
                "type": "nominal",
                "sort": {"field": "value", "op": "mean", "order": "descending"},
                "axis": {
                    "title": None,
                    "domain": False,
                    "ticks": False,
                    "labelLimit": 105,
                    "minExtent": 112,
                    "labelColor": "var(--text)",
                },
                "scale": {"paddingInner": 0.12},
            },
            "fillOpacity": {
                "field": "value",
                "type": "quantitative",
                "legend": None,
                "scale": {"domain": [0, full], "range": [0.06, 1], "clamp": True},
            },
            "description": {"field": "said"},
        },
    }
    return draw(spec, rows, about=f"{about} {columns} columns by period.")


def before_and_after(rows: Rows, column: str) -> Markup:
    """The treated values of a column before and after, by size (figures.OUTLIER_BUCKETS)."""
    spec: Spec = {
        "width": WIDTH,
        "height": 110,
        "mark": {"type": "bar", "opacity": 0.6},
        "encoding": {
            "x": {
                "field": "low",
                "type": "quantitative",
                "scale": {"type": "log"},
                "axis": {
                    "title": None,
                    "labelExpr": _SHORT,
                    "tickCount": 4,
                    "labelOverlap": True,
                    "labelSeparation": 6,
                    "grid": False,
                },
            },
            "x2": {"field": "high"},
            "y": {
                "field": "n",
                "type": "quantitative",
                "stack": None,
                "axis": {"title": "rows", "tickCount": 3, "format": "~s"},
            },
            "y2": {"datum": 0},
            "color": {
                "field": "stage",
                "scale": {"domain": ["before", "after"], "range": ["var(--quarantined)", "var(--kept)"]},
            },
            "description": {"field": "said"},
        },
    }
    return draw(spec, rows, about=f"How large the treated values of {column} were, before and after.")
