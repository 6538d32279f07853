"""File name patterns."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from orchestration.mapping.mapping import Format, format_of


def as_regex(pattern: str) -> str:
    """A glob as a regular expression: `*` stays within a folder, `**/` goes through any."""
    spelled = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(spelled.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))


def may_name(pattern: str, form: Format | None, name: str) -> bool:
    """Whether `find` could have found a file named `name` by this pattern; the file need not exist any more."""
    if pattern.startswith("s3://"):
        return re.fullmatch(as_regex(pattern) + (".*" if pattern.endswith("/") else ""), name, re.DOTALL) is not None
    if glob.has_magic(pattern) and not pattern.startswith("package://"):
        parts = Path(pattern).parts
        first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        return re.fullmatch(as_regex("/".join(parts[first:])), name, re.DOTALL) is not None
    if (form is None and format_of(pattern) is None) or (form and not Path(pattern).suffix):  # a folder
        return format_of(name) is not None and format_of(name) == (form or format_of(name))
    return Path(pattern).name == name
