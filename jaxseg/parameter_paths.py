"""Addresses variables by path, such as "params/backbone/levels_0/blocks_1/dcn/offset/kernel".

The rules for learning rates, weight decay, sharding, conversion and transfer match these paths.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax


def path_of(key_path: tuple[Any, ...]) -> str:
    """Returns the path of a leaf, given its key path in a tree."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def begins_with(path: str, patterns: Sequence[str]) -> bool:
    """Tells whether a regular expression matches the beginning of a path.

    >>> begins_with("backbone/blocks_1/norm1/scale", ["decode_head/", "backbone/blocks_"])
    True
    """
    return any(re.match(pattern, path) for pattern in patterns)


def by_path(tree: Any) -> dict[str, Any]:
    """Flattens nested dicts to leaves by path, in the order of the tree."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the leaves by path."""
    return {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuilds the nested dicts that `by_path` flattened.

    The result always has "batch_stats". They are empty in a model without batch norm, and then no
    path mentions them.
    """
    return with_leaves({"batch_stats": {}}, leaves)


def with_leaves(tree: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts with further leaves, or others in their place, by path."""
    result = {
        key: with_leaves(value, {}) if isinstance(value, Mapping) else value
        for key, value in tree.items()
    }
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return result
