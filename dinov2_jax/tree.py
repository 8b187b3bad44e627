"""Names of a pytree's leaves, and rules that must hit every leaf exactly once."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dinov2_jax import errors


def path_name(path: tuple) -> str:
    """Slash-separated name of a leaf, e.g. `backbone/blocks/attn/qkv/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def names(tree: Any) -> list[str]:
    """Names of all leaves, in the tree's own order."""
    return [path_name(path) for path, _ in jax.tree.leaves_with_path(tree)]


def nested(leaves: Mapping[str, Any]) -> dict:
    """The tree of dicts whose leaves have these names."""
    found: dict = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        inside = found
        for part in path:
            inside = inside.setdefault(part, {})
        inside[last] = leaf
    return found


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree with every leaf replaced by `function(name, leaf)`."""
    return jax.tree.map_with_path(lambda p, leaf: function(path_name(p), leaf), tree)


def by_rule(rules: Mapping[str, Any], tree: Any) -> Any:
    """Give every leaf the value of the one rule whose pattern matches its whole name.

    Args:
        rules: regular expression -> value, or function (name, leaf) -> value.
        tree: the pytree; only names and leaves are read.
    Returns: a tree of the same structure that holds the values.
    Raises: ValueError if a leaf is matched by no rule or by more than one.
    """

    def value(name: str, leaf: Any) -> Any:
        hits = [pattern for pattern in rules if re.fullmatch(pattern, name)]
        if len(hits) != 1:
            raise errors.InputError(
                f"Parameter {name!r} matches {len(hits)} rules {hits}; it needs exactly "
                f"one of {list(rules)}. Add or narrow a rule."
            )
        rule = rules[hits[0]]
        return rule(name, leaf) if callable(rule) else rule

    return map_named(value, tree)


def count(tree: Any) -> int:
    """Number of scalars in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
