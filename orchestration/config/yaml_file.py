"""Safe YAML reading: within size limits, and with one clear error that names the line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from orchestration.errors import FinegrainError
from orchestration.errors.console import shown

#: Limits: file size in bytes, nesting depth, and number of values (an alias counts as everything it refers to).
LARGEST: Final = 2**20
DEEPEST: Final = 40
MOST: Final = 200_000


#: For the project's own files, which are thousands of lines: libyaml's parser, where PyYAML was built with it.
FAST: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is not allowed here."""


class _Loader(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys (the plain loader silently drops the first) and likely mistakes."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._count = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias, before = self.check_event(yaml.AliasEvent), self._count
        self._depth += 1
        if self._depth > DEEPEST:
            raise _Refused(problem=f"lists and keys are nested more than {DEEPEST} levels deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise _Refused(problem="an alias refers to a value that contains it", problem_mark=mark)
        self._count += self._sizes[id(node)] if is_alias else 1
        if self._count > MOST:
            raise _Refused(problem=f"there are more than {MOST:,} values, with aliases expanded", problem_mark=mark)
        self._sizes.setdefault(id(node), self._count - before)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused(problem="a key must be text, not a list or a mapping", problem_mark=key.start_mark)
            if key.tag == "tag:yaml.org,2002:bool":
                raise _Refused(
                    problem=f"YAML reads the key {key.value} as true or false (also yes, no, on and off): "
                    f'put it in quotes, "{key.value}"',
                    problem_mark=key.start_mark,
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError):
            kind = "date" if node.tag.endswith("timestamp") else "number"
            raise _Refused(
                problem=f"'{_short(node.value)}' looks like a {kind} and is none that can be read; if a text is meant, put it in quotes",
                problem_mark=node.start_mark,
            ) from None

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and not value.isascii():
            try:  # characters beyond the BMP, as JSON escapes them
                value = value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise _Refused(problem="a text contains half a surrogate pair", problem_mark=node.start_mark) from None
        if isinstance(value, str) and "\0" in value:
            raise _Refused(problem="a text contains a NUL character", problem_mark=node.start_mark)
        return value


def _short(text: object) -> str:
    text = shown(text)
    return text if len(text) <= 40 else text[:39] + "…"


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file; errors call it the `what` file. Raises FinegrainError."""
    name = shown(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise FinegrainError(f"{name}: the {what} file has more than {LARGEST // 2**20} MB; is this the data?")
        return yaml.load(content.decode(), Loader=_Loader)
    except FileNotFoundError:
        raise FinegrainError(f"{name}: no such {what} file") from None
    except OSError as error:
        raise FinegrainError(f"{name}: the {what} file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FinegrainError(f"{name}: the {what} file is not UTF-8 text; is this the data?") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if re.match("found undefined alias|could not determine a constructor for the tag", problem):
            problem = "put a text that begins with * or ! in quotes"  # without the text: it may be a password
        if isinstance(error, yaml.reader.ReaderError):
            line = f" line {content.decode()[: error.position].count(chr(10)) + 1}"
        said = "" if isinstance(error, _Refused) else "this is not valid YAML: "
        raise FinegrainError(f"{name}{line}: {said}{problem}") from None
