"""Retrieval metrics against cases worked by hand, loops and scikit-learn."""

import json
import os
import pickle

import numpy as np
import pytest

from dinov2_jax.cli import ground_truth
from dinov2_jax.evals import retrieval

metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra 'test'")


def unit(rng, rows: int, width: int = 8) -> np.ndarray:
    """[rows width] float32 of unit length."""
    x = rng.normal(size=(rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def ranked(*ids) -> list[retrieval.Ranked]:
    """One query for each list of ids."""
    return [
        retrieval.Ranked(i, np.array(row), -np.arange(len(row), dtype=np.float32))
        for i, row in enumerate(ids)
    ]


@pytest.mark.parametrize("block", [1, 3, 64])
def test_the_database_is_ranked_by_similarity(block):
    rng = np.random.default_rng(0)
    queries, database = unit(rng, 7), unit(rng, 20)
    for one in retrieval.rankings(queries, database, block=block):
        dots = database @ queries[one.query]
        assert sorted(one.ids) == list(range(20))
        # products of float32 in another order
        np.testing.assert_allclose(one.dots, np.sort(dots)[::-1], atol=1e-6)
        np.testing.assert_allclose(dots[one.ids], one.dots, atol=1e-6)


def test_a_row_is_not_its_own_neighbour():
    rows = unit(np.random.default_rng(0), 9)
    for one in retrieval.rankings(rows, rows, without_self=True, block=4):
        assert sorted(one.ids) == [i for i in range(9) if i != one.query]


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    relevant = rng.random(30) < 0.3
    want = metrics.average_precision_score(relevant, -np.arange(30))
    assert retrieval.average_precision(relevant) == pytest.approx(want)


def test_average_precision_by_hand():
    assert retrieval.average_precision([True, False, True]) == pytest.approx(5 / 6)
    assert retrieval.average_precision([True, False], 2) == 0.5  # one was not found
    assert np.isnan(retrieval.average_precision([False, False]))


def published_ap(ranks, nres):
    """The loop that the revisited protocol publishes, written out."""
    area, step = 0.0, 1.0 / nres
    for j, rank in enumerate(ranks):
        before = 1.0 if rank == 0 else j / rank
        area += (before + (j + 1) / (rank + 1)) * step / 2
    return area


def test_the_area_by_trapezoids_is_that_of_the_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        places = np.sort(rng.choice(40, rng.integers(1, 9), replace=False))
        got = retrieval.trapezoid_precision(places, 9)
        assert got == pytest.approx(published_ap(places, 9))
    assert retrieval.trapezoid_precision([0, 1, 2], 3) == 1


def test_levels_count_some_lists_and_take_others_out():
    truth = [{"easy": [3], "hard": [1], "junk": [0]}]
    found = retrieval.revisited(ranked([0, 1, 2, 3, 4]), truth)
    # easy: 0 and 1 are out, 3 stands second; hard: 0 and 3 are out, 1 stands first
    assert found["map_easy"] == pytest.approx(published_ap([1], 1)) == 0.25
    assert found["map_hard"] == 1
    assert found["map_medium"] == pytest.approx(published_ap([0, 2], 2))
    assert (found["mp1_easy"], found["mp1_medium"], found["mp1_hard"]) == (0, 1, 1)
    assert found["mp5_medium"] == pytest.approx(2 / 3)  # no further than the last
    assert found["mp10_easy"] == 0.5


def test_queries_with_nothing_to_find_on_a_level_are_left_out_of_it():
    truth = [
        {"easy": [0], "hard": [], "junk": []},
        {"easy": [], "hard": [2], "junk": []},
    ]
    found = retrieval.revisited(ranked([0, 1, 2], [0, 1, 2]), truth)
    assert found["map_easy"] == 1 and found["map_hard"] == published_ap([2], 1)
    assert found["map_medium"] == pytest.approx((1 + published_ap([2], 1)) / 2)
    with pytest.raises(ValueError, match="No query has an image to find"):
        retrieval.revisited(ranked([0]), [{"easy": [], "hard": [], "junk": [0]}])


def test_map_and_recall_by_label_equal_a_loop_with_scikit_learn():
    rng = np.random.default_rng(0)
    queries, database = unit(rng, 12), unit(rng, 30)
    wanted, labels = rng.integers(0, 5, 12), rng.integers(0, 4, 30)
    areas = []
    found = retrieval.by_label(
        retrieval.rankings(queries, database),
        wanted,
        labels,
        (1, 3),
        each=lambda one, area: areas.append((one.query, area)),
    )
    dots = queries @ database.T
    known = np.flatnonzero(np.isin(wanted, labels))
    assert 0 < len(known) < 12 and found["queries"] == len(known)
    want = [
        metrics.average_precision_score(labels == wanted[i], dots[i]) for i in known
    ]
    assert found["map"] == pytest.approx(np.mean(want))
    for k in (1, 3):
        tops = [labels[np.argsort(-dots[i])[:k]] == wanted[i] for i in known]
        assert found[f"recall_at_{k}"] == pytest.approx(
            np.mean([t.any() for t in tops])
        )
    assert [i for i, _ in areas] == list(range(12))
    assert np.isfinite([a for _, a in areas]).sum() == len(known)
    with pytest.raises(ValueError, match="No query's label"):
        retrieval.by_label(ranked([0, 1]), np.array([7]), np.array([1, 2]))


def test_gap_by_hand():
    # by confidence: right, wrong, distractor, right; three of the four have an answer
    confidence, right = [0.2, 0.9, 0.8, 0.5], [True, True, False, False]
    got = retrieval.global_average_precision(confidence, right, 3)
    assert got == pytest.approx((1 + 2 / 4) / 3)
    with pytest.raises(ValueError, match="GAP needs one"):
        retrieval.global_average_precision([0.1], [False], 0)


def test_gap_counts_distractors_against_the_confident():
    labels = np.array([5, 6])
    lists = [
        retrieval.Ranked(0, np.array([0, 1]), np.array([0.5, 0.1])),
        retrieval.Ranked(1, np.array([1, 0]), np.array([0.9, 0.1])),
        retrieval.Ranked(2, np.array([1, 0]), np.array([0.7, 0.1])),
    ]
    found = retrieval.gap_by_label(lists, np.array([5, -1, 6]), labels)
    assert found["gap"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["gap_without_distractors"] == 1 and found["accuracy"] == 1
    assert found["distractors"] == 1


GROUND = {
    "imlist": ["a", "b", "c"],
    "qimlist": ["q"],
    "gnd": [
        {
            "bbx": np.array([1.5, 2, 30, 40]),
            "easy": np.array([0]),
            "hard": [2],
            "junk": np.zeros(0, np.int64),
        }
    ],
}


@pytest.mark.parametrize("protocol", [2, 4])
def test_ground_truth_is_read_from_a_pickle_and_from_json(tmp_path, protocol):
    path = tmp_path / "gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps(GROUND, protocol))
    found = ground_truth.read(path)
    assert (found.images, found.queries) == (("a", "b", "c"), ("q",))
    assert found.boxes == ((1.5, 2.0, 30.0, 40.0),)
    assert found.lists == ({"easy": (0,), "hard": (2,), "junk": ()},)
    other = tmp_path / "gnd.json"
    other.write_text(json.dumps(GROUND, default=lambda array: array.tolist()))
    assert ground_truth.read(other) == found


class Command:
    """Runs when a pickle that holds it is loaded by the usual means."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "change",
    [
        {"qimlist": ["q", "r"]},
        {"imlist": ["a"]},
        {"gnd": [{"bbx": [1, 2], "easy": [0], "hard": [], "junk": []}]},
        {"gnd": [{"easy": [0]}]},
    ],
)
def test_what_is_no_ground_truth_is_refused(tmp_path, change):
    path = tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps(GROUND | change))
    with pytest.raises(ValueError, match="no ground truth of revisited"):
        ground_truth.read(path)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    path, made = tmp_path / "gnd.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps(GROUND | {"imlist": Command(made)}))
    with pytest.raises(ValueError, match="names 'posix.mkdir', which"):
        ground_truth.read(path)
    assert not made.exists()
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        ground_truth.read(tmp_path / "none.pkl")
    path.write_bytes(pickle.dumps(GROUND)[:-20])
    with pytest.raises(ValueError, match="no ground truth"):
        ground_truth.read(path)


def python_2(raw):
    """GROUND as Python 2 pickled it: texts and bytes are one kind, of one byte each."""

    def text(x):
        return b"U" + bytes([len(x)]) + x

    dtype = b"cnumpy\ndtype\n(" + text(b"i8") + b"K\x00K\x01tR"
    dtype += b"(K\x03" + text(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t"
    array += text(b"b") + b"tR(K\x01(K\x01t" + dtype + b"I00\n" + text(raw) + b"tb"
    number = b"cnumpy.core.multiarray\nscalar\n(" + dtype + text(raw) + b"tR"
    answer = b"}(" + text(b"bbx") + b"](K\x01K\x02K\x1eK\x28e" + text(b"easy") + array
    answer += text(b"hard") + b"](" + number + b"e" + text(b"junk") + b"]u"
    lists = (b"imlist", [b"a", b"b", b"c"]), (b"qimlist", [b"q"])
    parts = [text(k) + b"](" + b"".join(map(text, v)) + b"e" for k, v in lists]
    return b"\x80\x02}(" + b"".join(parts) + text(b"gnd") + b"](" + answer + b"eu."


def test_arrays_and_numbers_of_python_2_are_read(tmp_path):
    path = tmp_path / "gnd.pkl"
    path.write_bytes(python_2((2).to_bytes(8, "little")))
    found = ground_truth.read(path)
    assert found.images == ("a", "b", "c") and found.boxes == ((1, 2, 30, 40),)
    assert found.lists == ({"easy": (2,), "hard": (2,), "junk": ()},)
    path.write_bytes(python_2((200).to_bytes(8, "little")))
    with pytest.raises(ValueError, match="an answer is no number below 3"):
        ground_truth.read(path)


@pytest.mark.parametrize("seed", range(4))
def test_no_bytes_make_a_ground_truth_or_another_error(tmp_path, seed):
    rng, path = np.random.default_rng(seed), tmp_path / "gnd.pkl"
    whole = pickle.dumps(GROUND, 2)
    for _ in range(100):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=3):
            data[place] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            ground_truth.read(path)
        except ValueError as error:
            assert "no ground truth" in str(error)
