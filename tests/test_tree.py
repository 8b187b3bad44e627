"""Names of leaves, and rules that must hit each of them once."""

import numpy as np
import pytest

from dinov2_jax import tree

PARAMS = {
    "head": {"g": np.ones(3)},
    "blocks": {"fc": {"kernel": np.ones((2, 4, 5)), "bias": np.ones((2, 5))}},
    "pair": (np.ones(1), [np.ones(2)]),
}


def test_names_follow_the_order_of_the_leaves():
    assert tree.names(PARAMS) == [
        "blocks/fc/bias",
        "blocks/fc/kernel",
        "head/g",
        "pair/0",
        "pair/1/0",
    ]
    assert tree.names({}) == []


def test_map_named_gives_each_leaf_its_own_name():
    named = tree.map_named(lambda name, leaf: (name, leaf.ndim), PARAMS)
    assert named["blocks"]["fc"] == {
        "bias": ("blocks/fc/bias", 2),
        "kernel": ("blocks/fc/kernel", 3),
    }
    assert named["pair"] == (("pair/0", 1), [("pair/1/0", 1)])


def test_every_leaf_takes_the_value_of_its_one_rule():
    rules = {
        ".*/kernel": 1.0,
        "(?!.*kernel).*": lambda name, leaf: f"{name} has {leaf.size}",
    }
    found = tree.by_rule(rules, PARAMS)
    assert found["blocks"]["fc"]["kernel"] == 1.0
    assert found["blocks"]["fc"]["bias"] == "blocks/fc/bias has 10"
    assert found["head"]["g"] == "head/g has 3"


def test_a_leaf_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"'pair/0' matches 0 rules \[\]"):
        tree.by_rule({"blocks/.*": 1, "head/g": 2}, PARAMS)


def test_a_leaf_with_two_rules_is_an_error_that_names_them():
    with pytest.raises(ValueError, match="'head/g' matches 2 rules") as error:
        tree.by_rule({".*": 1, "head/.*": 2}, PARAMS)
    assert "'.*'" in str(error.value) and "'head/.*'" in str(error.value)


def test_a_rule_must_match_the_whole_name():
    with pytest.raises(ValueError, match="matches 0 rules"):
        tree.by_rule({"head": 1}, {"head": {"g": np.ones(1)}})


def test_count_adds_the_scalars_of_all_leaves():
    assert tree.count(PARAMS) == 3 + 40 + 10 + 1 + 2
    assert tree.count({}) == 0


def test_a_tree_is_made_again_from_the_names_of_its_leaves():
    made = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    leaves = dict(zip(tree.names(made), [1, 2, 3]))
    assert tree.nested(leaves) == made
