"""Files of several labels an image: one image, one number; no label of no class."""

import json

import pytest

from dinov2_jax.cli import evaluate_linear


@pytest.mark.parametrize(
    ("names", "lists", "words"),
    [
        (["a/1.png", "a/2.png"], [[0], [3]], "has the label 3; .*0 to 2"),
        (["a/1.png", "a/2.png"], [[0], [-1, 2]], "has the label -1; .*0 to 2"),
        (["a/1.png", "b/1.png"], [[0], [1]], "names end in one number"),
        (["x-2.parquet row 0", "x-2.parquet row 1"], [[0], [1]], "end in one number"),
        (["a/3.png"], [[0], [1]], "list index out of range"),
    ],
)
def test_labels_that_fit_no_image_or_class_are_refused(names, lists, words, tmp_path):
    path = tmp_path / "real.json"
    path.write_text(json.dumps(lists))
    with pytest.raises(ValueError, match=words):
        evaluate_linear._many_labels(path, names, "folder:x", 3)


def test_an_image_may_have_several_labels_or_none(tmp_path):
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[0, 2], [], [1]]))
    names = ["v/2.png", "v/1.png"]
    lists = evaluate_linear._many_labels(path, names, "folder:v", 3)
    assert lists == [[], [0, 2]]
