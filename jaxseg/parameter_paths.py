"""Variables by path: "params/backbone/levels_0/blocks_1/dcn/offset/kernel".

Rules for learning rates, decay, sharding, conversion and transfer are rules over these.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax


def path_of(key_path: Sequence[Any]) -> str:
    """The path of a leaf, from its key path in a tree."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts, in the order of the tree."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves by path."""
    return {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """`by_path` undone. A model without batch norm has no paths to its `batch_stats`, {}."""
    tree: dict[str, Any] = {"batch_stats": {}}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
