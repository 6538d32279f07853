"""The meaning of the columns of feature marts: one module per mart, which declares each measure once.

`scripts/describe_features.py` writes their YAML from here. A module has KEYS, the columns of the mart's grain, and
`features(project)`. Measures that are plain counts and sums by window are declared in dbt_project.yml (`vars.measures`), and
so are windows and half-lives, since the SQL reads them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

MONEY: Final = "reporting currency"
AMOUNT: Final = "decimal(38,4)"
PRICE: Final = "decimal(18,4)"
NEVER: Final = "never null"
#: The meaning of null for sums of money.
UNPRICED: Final = "there is something to add up, and none of it has a price"

Range: TypeAlias = tuple[float | None, float | None] | None
AT_LEAST_0: Final[Range] = (0, None)
SHARE: Final[Range] = (0, 1)
#: The key columns with few values.
CATEGORICAL_KEYS: Final = ("category", "brand")

#: The windows of shares, means and rates of a customer, and of rare events, as in macros/as_of.sql.
SHARE_WINDOWS: Final = ("90d", "lifetime")
COUNT_WINDOWS: Final = ("30d", *SHARE_WINDOWS)

#: type, meaning and unit of measures that are not sums, and so are not declared in dbt_project.yml.
Measures: TypeAlias = Mapping[str, tuple[str, str, str]]
ORDERS: Final[Measures] = {"orders": ("bigint", "Distinct orders{}", "orders")}


@dataclass(frozen=True)
class Feature:
    """One column. The {} in `meaning` is replaced by the window in words; `range` holds for every value that is not null. A text with few
    values is `categorical`, as in published Parquet files. Ids and URLs are not."""

    name: str
    data_type: str
    meaning: str
    unit: str
    window: str = "none"
    null_means: str = NEVER
    range: Range = AT_LEAST_0
    categorical: bool = False


def step_rates(towards: str) -> Iterator[Feature]:
    """The funnel rates, smoothed towards those of others."""
    for window in ("30d", "lifetime"):
        for name, meaning in (
            ("view_to_cart", "Additions to the cart per view"),
            ("cart_to_order", "Orders per addition to the cart"),
            ("view_to_order", "Orders per view"),
        ):
            smoothed = f"{meaning}{{}}, smoothed towards {towards}"
            yield Feature(f"{name}_rate_{window}", "double", smoothed, "share", window, range=SHARE)


def moving_averages() -> Iterator[Feature]:
    """The simple moving averages of views and units."""
    for measure in ("views", "units"):
        for window in ("7d", "30d"):
            yield Feature(
                f"{measure}_sma_{window}",
                "double",
                f"Simple moving average: {measure} a day{{}}, whole days before today alone",
                f"{'events' if measure == 'views' else 'units'} per day",
                window,
            )


def trends() -> Iterator[Feature]:
    """The averages of a week compared with those of a month."""
    for measure in ("views", "units"):
        yield Feature(
            f"{measure}_trend_7d_30d",
            "double",
            f"Trend of {measure}: the mean day of 7 days over that of 30, one a month added to both",
            "ratio",
            "30d",
        )


class Project:
    """The windows, half-lives, measures, devices and day parts in the vars of a project."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self.day_windows = [f"{days}d" for days in variables["day_windows"]]
        self.windows = ["1h", "24h", *self.day_windows, "lifetime"]
        self.half_lives: list[int] = variables["half_lives"]
        self.devices: list[str] = variables["devices"]
        self.rfm_days: int = variables["rfm_days"]
        self._day_parts: dict[str, int] = variables["day_parts"]
        self._measures: list[dict[str, Any]] = variables["measures"]
        self._distinct_counts: list[dict[str, str]] = variables["distinct_counts"]

    @property
    def day_parts(self) -> dict[str, tuple[int, int]]:
        """The day parts by name, with their first and last hours."""
        ends = [*list(self._day_parts.values())[1:], 24]
        return {name: (first, end) for (name, first), end in zip(self._day_parts.items(), ends, strict=True)}

    @property
    def distinct_counts(self) -> Measures:
        """The columns whose distinct values are counted for users."""
        return {each["name"]: ("bigint", each["meaning"] + "{}", each["unit"]) for each in self._distinct_counts}

    def measures(self, entity: str) -> Measures:
        """The declared measures of an entity."""
        return {
            each["name"]: (
                AMOUNT if "sum" in each else "bigint",
                each["meaning"] if "{}" in each["meaning"] else each["meaning"] + "{}",
                each["unit"],
            )
            for each in self._measures
            if entity in each["of"]
        }

    def by_window(self, measures: Measures, windows: Sequence[str] | None = None) -> Iterator[Feature]:
        """A feature for each measure and window (all windows by default)."""
        for window in windows or self.windows:
            for name, (data_type, meaning, unit) in measures.items():
                yield Feature(
                    f"{name}_{window}", data_type, meaning, unit, window, UNPRICED if unit == MONEY else NEVER
                )
