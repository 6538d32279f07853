"""Feast's own feature server, on the repository in the home."""

from __future__ import annotations

from orchestration.config.settings import Settings
from orchestration.store.repository import opened


def serve(host: str, port: int, workers: int, where: Settings | None = None) -> None:
    """Serve until stopped. Raises FinegrainError unless the repository was applied for the online store that the environment says."""
    # Workers are not renewed: each would read the registry and open the store again.
    opened(where).serve(host, port, workers=workers, max_requests=0, max_requests_jitter=0, no_access_log=True)
