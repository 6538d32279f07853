"""Which marts a build of some nodes builds whole: with all that they are made of, and every test of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A node of dbt's graph: what it is (`model`, `seed`, `snapshot` or `test`), its name, whether it is a mart, the keys of
    what it reads, and whether the build is of it."""

    kind: str
    name: str
    is_mart: bool
    inputs: tuple[str, ...]
    is_selected: bool


def whole_marts(nodes: Mapping[str, Node]) -> list[str]:
    """The names, sorted, of the marts of which nothing is left out: neither what they are made of, nor a test that reads nothing else."""
    left_out = {key: node for key, node in nodes.items() if not node.is_selected}

    def is_whole(mart: str) -> bool:
        parts = made_of(mart, nodes)
        return not any(
            key in parts or (node.kind == "test" and parts.issuperset(node.inputs)) for key, node in left_out.items()
        )

    return sorted(node.name for key, node in nodes.items() if node.is_mart and is_whole(key))


def made_of(key: str, nodes: Mapping[str, Node]) -> set[str]:
    """The keys of a node and of all that it is made of."""
    found, waiting = {key}, [key]
    while waiting:
        node = nodes.get(waiting.pop())
        new = set(node.inputs) - found if node else set()
        found |= new
        waiting += new
    return found


def of_graph(graph: str) -> list[str]:
    """`whole_marts` of dbt's graph, as macros/builds.sql writes it to JSON: by key, what `Node` says, in that order."""
    return whole_marts(
        {
            key: Node(kind, name, is_mart, tuple(inputs), is_selected)
            for key, (kind, name, is_mart, inputs, is_selected) in json.loads(graph).items()
        }
    )
