"""An HTTP API's paginated resource."""

from __future__ import annotations

from orchestration.mapping import Http


def place(http: Http) -> str:
    """What tells a resource from others: its address as the mapping has it, without what comes from the environment."""
    return http.url
