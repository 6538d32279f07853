"""Checks of column names."""

from __future__ import annotations

from collections.abc import Iterable

from orchestration.errors import FinegrainError


def check_case(names: Iterable[str], where: str, hint: str = "read one of them") -> None:
    """Reject columns whose names differ only in case, which DuckDB treats as the same."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.lower(), name)
        if other != name:
            raise FinegrainError(
                f"{where}: '{other}' and '{name}' differ only in case, so they cannot be read together; {hint}"
            )
