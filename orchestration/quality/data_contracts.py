"""All contracts of a shop as files: those of its marts and of its mappings."""

from __future__ import annotations

from pathlib import Path

from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError
from orchestration.errors.console import shown
from orchestration.mapping.data_contracts import of_mapping, write
from orchestration.mapping.mapping import mapping_files
from orchestration.quality.alerts import read_rules
from orchestration.warehouse.data_contracts import of_marts


def data_contracts(
    out: Path, mappings: str | Path | None = None, where: Settings | None = None
) -> dict[str, list[Path]]:
    """Write the contract of each mart to `out / "marts"`, and of each mapping file to `out / "mappings"`, under the name of that; files of the same
    names are replaced. Service levels are those of alerts.yml. Returns the files, by folder. Raises FinegrainError if a mapping or alerts.yml is not
    valid, or if nothing can be written there."""
    freshness = read_rules().freshness
    marts = of_marts(where or settings(), freshness.published)
    sources = {path.stem: of_mapping(path, freshness.lake) for path in (mapping_files(mappings) if mappings else [])}
    try:
        return {
            kind: [write(contract, out / kind, name) for name, contract in contracts.items()]
            for kind, contracts in (("marts", marts), ("mappings", sources))
        }
    except OSError as error:
        raise FinegrainError(
            f"{shown(error.filename or out)}: cannot be written: {error.strerror}; name another folder with --out"
        ) from None
