"""`dinov2-jax evaluate` on scans of digits, beside scikit-learn on the same features."""

import csv
import json
import pathlib
import pickle

import numpy as np
import peers
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax import errors
from dinov2_jax.cli import (
    evaluate,
    evaluate_linear,
    frozen,
    results,
    storing,
    suites,
)
from dinov2_jax.convert import export, names
from dinov2_jax.data import sources
from dinov2_jax.evals import linear, metrics
from dinov2_jax.viz import evaluation

sklearn = pytest.importorskip("sklearn", reason="needs the extra 'test'")

from sklearn import datasets, linear_model
from sklearn import metrics as judged
from sklearn import neighbors as theirs

CONFIGS = pathlib.Path(command.__file__).parents[1] / "configs"
SIZES = ("resize=32", "crop=32", "batch_size=64")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A narrow backbone as a file."""
    built = peers.model(patch_size=8, image_size=32)
    state = names.backbone_to_official(peers.params(built), 8)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    export.write_safetensors(path, state, export.about(built))
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Class folders of scans, 300 to train and 120 to judge."""
    home = tmp_path_factory.mktemp("digits")
    data = datasets.load_digits()
    for number, (image, label) in enumerate(zip(data.images[:420], data.target)):
        split = "train" if number < 300 else "val"
        path = home / split / f"digit{label}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.repeat(np.round(image * 15.9).astype(np.uint8)[..., None], 3, -1)
        Image.fromarray(pixels).resize((32, 32), 3).save(path)
    return home


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Features that the tasks share."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def rows(weights, digits, cache):
    """Both splits' features of unit length, and labels."""
    backbone = frozen.load(str(weights))
    wanted = evaluate.settings("knn", dict(x.split("=") for x in SIZES))
    found = []
    for split in ("train", "val"):
        apply = frozen.cls_of(backbone, "float32")
        spec = f"folder:{digits / split}"
        one = frozen.features(backbone, apply, "cls", spec, cache, wanted)
        x = one.rows / np.linalg.norm(one.rows, axis=1, keepdims=True)
        found.append((x, one.labels))
    return found


@pytest.fixture
def ask(weights, digits, cache, tmp_path):
    """Runs a task; returns the exit code and what results.json holds."""

    def run(task, *more, out="out", train=True):
        given = [task, f"--weights={weights}", f"--val=folder:{digits / 'val'}"]
        given += [f"--train=folder:{digits / 'train'}"] if train else []
        given += [f"--out={tmp_path / out}", f"--cache={cache}"]
        told = {x.split("=")[1] for x in more if x.startswith("--set=")}
        given += [f"--set={x}" for x in SIZES if x.split("=")[0] not in told]
        code = command.main(["evaluate", *given, *more])
        path = tmp_path / out / "results.json"
        return code, json.loads(path.read_text()) if path.exists() else None

    return run


def test_k_nn_is_that_of_scikit_learn_on_the_same_features(ask, rows, tmp_path):
    code, about = ask("knn", "--set=neighbors=1,10", "--set=few=5")
    (x, y), (others, labels) = rows
    assert code == 0
    for k in (1, 10):

        def weigh(distances):
            return np.exp((1 - distances**2 / 2) / 0.07)

        model = theirs.KNeighborsClassifier(k, weights=weigh, algorithm="brute")
        want = model.fit(x, y).score(others, labels)
        assert about["metrics"][f"top1_k{k}"] == pytest.approx(want, abs=1e-9)
    assert about["metrics"]["top1"] > 0.5  # ten classes: chance is 0.1
    assert 0.1 < about["metrics"]["top1_k1_few5"] < about["metrics"]["top1_k1"]
    assert about["architecture"] == "width 48 x 4/8"
    assert (
        about["data"]["val"]["images"] == 120 and about["data"]["val"]["skipped"] == 0
    )
    out = tmp_path / "out"
    text = (out / "report.html").read_text()
    assert "Confusion matrix" in text and "Worst classes" in text and "digit3" in text
    assert Image.open(out / "pictures" / "confusion.png").size == (240, 240)
    with (out / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 1 and float(lines[0]["value"]) == about["metrics"]["top1"]
    assert lines[0]["weights_sha256"] == about["weights_sha256"]


def test_logistic_regression_is_that_of_scikit_learn(ask, rows):
    sweep = ("number=3", "lowest=-1", "highest=3")
    code, about = ask("logreg", *(f"--set={x}" for x in sweep))
    (x, y), (others, labels) = rows
    assert code == 0
    c = about["metrics"]["c"]
    assert c in (0.1, 10.0, 1000.0)
    model = linear_model.LogisticRegression(C=c, tol=1e-8, max_iter=5000)
    want = model.fit(x.astype(np.float64), y).score(others, labels)
    # a row on the border between two classes may fall to either side
    assert about["metrics"]["top1"] == pytest.approx(want, abs=1.5 / len(labels))
    assert about["metrics"]["top1"] > 0.5


def test_features_are_kept_and_serve_every_task(ask, rows, cache, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*.npy")}

    def never(*_):
        raise AssertionError("features were made again")

    monkeypatch.setattr(storing, "write", never)
    assert ask("knn", "--set=neighbors=3")[0] == 0
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.npy")} == before


SMALL = ("blocks=1,2", "rates=2.0,8.0,24.0", "train_batch=32", "log_every=20")


def test_linear_heads_learn_the_digits(ask, digits, tmp_path):
    real = [[] for _ in range(420)]
    for path in (digits / "val").glob("*/*.png"):
        real[int(path.stem) - 1] = [int(path.parent.name[-1])]
    (tmp_path / "real.json").write_text(json.dumps(real))
    val = f"folder:{digits / 'val'}"
    code, about = ask(
        "linear",
        *(f"--set={x}" for x in (*SMALL, "steps=60", "augment=false")),
        f"--test=again={val}",
        f"--test=real={val}",
        f"--labels=real={tmp_path / 'real.json'}",
    )
    assert code == 0
    found = about["metrics"]
    assert found["top1"] > 0.25  # random features; chance is 0.1, five deviations 0.24
    assert found["again/top1"] == found["real/top1"] == pytest.approx(found["top1"])
    head = np.load(tmp_path / "out" / "head.npz")
    assert head["classes"].tolist() == [f"digit{i}" for i in range(10)]
    # each cls token, and the mean patch
    width = 48 * (found["blocks"] + found["mean_patch"])
    assert head["kernel"].shape == (width, 10)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "All heads on val" in text


def test_a_stopped_training_goes_on_to_the_same_heads(ask, tmp_path, monkeypatch):
    more = [f"--set={x}" for x in (*SMALL, "steps=6", "save_every=2", "val_every=3")]
    assert ask("linear", *more, out="whole")[0] == 0
    update, left = linear.update, [3]

    def stops(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise errors.InputError("stopped by the test")
        return update(*arguments)

    monkeypatch.setattr(linear, "update", stops)
    assert ask("linear", *more, out="parts") == (1, None)
    monkeypatch.setattr(linear, "update", update)
    assert ask("linear", *more, out="parts")[0] == 0
    heads = [np.load(tmp_path / x / "head.npz") for x in ("whole", "parts")]
    for name in ("kernel", "bias", "kind"):
        assert (heads[0][name] == heads[1][name]).all()
    code, _ = ask("linear", *more, "--set=seed=1", out="parts")
    assert code == 1


def test_images_of_one_class_find_each_other(ask, rows, tmp_path):
    code, about = ask("retrieval", "--set=pictures=3", train=False)
    (others, labels) = rows[1]
    assert code == 0
    dots, areas, firsts = others @ others.T, [], []
    for i in range(len(labels)):
        rest = np.arange(len(labels)) != i
        same = (labels == labels[i])[rest]
        areas.append(judged.average_precision_score(same, dots[i][rest]))
        firsts.append(same[dots[i][rest].argmax()])
    assert about["metrics"]["map"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert about["metrics"]["recall_at_1"] == pytest.approx(np.mean(firsts))
    assert (tmp_path / "out" / "pictures" / "found.png").is_file()


def test_tiles_of_one_photograph_find_each_other(ask, tmp_path):
    given = ("--val=demo:train", "--set=limit=140", f"--cache={tmp_path / 'own'}")
    code, about = ask("retrieval", *given, train=False)
    assert code == 0 and about["data"]["val"]["images"] == 140
    # fourteen photographs: chance is 0.07
    assert about["metrics"]["recall_at_1"] > 0.4 > about["metrics"]["map"] / 2


def test_queries_of_no_known_class_are_distractors(ask, digits, tmp_path):
    some = tmp_path / "some"
    for name in ("digit1", "digit7"):
        (some / name).mkdir(parents=True)
        for path in (digits / "train" / name).iterdir():
            (some / name / path.name).write_bytes(path.read_bytes())
    code, about = ask("retrieval", f"--train=folder:{some}", "--set=protocol=gap")
    assert code == 0
    found, labels = about["metrics"], [p.parent.name for p in digits.glob("val/*/*")]
    known = sum(x in ("digit1", "digit7") for x in labels)
    assert found["distractors"] == len(labels) - known
    assert 0 < found["gap"] < found["gap_without_distractors"] <= 1


def test_the_shipped_suite_names_the_twelve_sets_of_the_paper():
    common, tasks = suites.tasks(f"{CONFIGS / 'suites' / 'transfer.py'}:/data/planes")
    assert len(tasks) == 12 and common == {}
    for entry in tasks.values():
        evaluate.settings(entry["task"], entry["set"])
        for split in ("train", "val"):
            kind, _, rest = entry[split].partition(":")
            assert kind == "folder" or sources.TFDS.fullmatch(rest)
    known = pytest.importorskip("tensorflow_datasets").list_builders(
        with_community_datasets=False
    )
    sets = [entry["train"].split(":")[1].split("/")[0] for entry in tasks.values()]
    assert [x for x in sets if x not in known] == [""]  # Aircraft, by its path
    assert tasks["fgvc_aircraft"]["train"] == "folder:/data/planes/trainval"
    assert tasks["voc2007"]["set"]["metric"] == "map11"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x = 1", "it defines no get_config"),
        ("def get_config(): return {'tasks': {}}", "returns dict, not an ml_collec"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("get_config = lambda: C()", "has no tasks"),
        ("get_config = lambda: C({'task': {}})", "'task', which is nothing; did you"),
        ("get_config = lambda: C({'tasks': {'a': 1}})", "tasks.a is no dict"),
        ("get_config = lambda: C({'tasks': {'a': {'tain': 1}}})", "tasks.a has no 'ta"),
        ("get_config = lambda: C({'tasks': {'a': {'task': 'x'}}})", "is no task"),
    ],
)
def test_what_is_no_suite_is_refused_in_one_line(tmp_path, capsys, body, message):
    path = tmp_path / "suite.py"
    path.write_text(f"from ml_collections import ConfigDict as C\n{body}\n")
    given = ["evaluate", "all", f"--config={path}", "--weights=x", f"--out={tmp_path}"]
    assert command.main(given) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert command.main([*given[:2], "--config=none.py", *given[3:]]) == 1
    assert "--config=none.py is no file" in capsys.readouterr().err


def test_settings_of_a_task_come_from_a_config_too(ask, tmp_path):
    path = tmp_path / "knn.py"
    text = "import ml_collections as m\nget_config = lambda: m.ConfigDict({0})\n"
    path.write_text(text.format({"neighbors": (3, 5), "temp": 0.1}))
    code, about = ask("knn", f"--config={path}", "--set=temp=0.2")
    assert code == 0 and about["settings"]["temp"] == 0.2
    assert about["settings"]["neighbors"] == [3, 5]


def test_several_processes_are_refused_at_once():
    evaluate.require_one_process(1)
    with pytest.raises(ValueError, match="one process, but 4 were started"):
        evaluate.require_one_process(4)


@pytest.fixture(scope="module")
def many(digits):
    """Labels of the digits' scans: even, prime, and a digit of its own."""
    kinds = {"even": (0, 2, 4, 6, 8), "prime": (2, 3, 5, 7), "zero": (0,)}
    for split in ("train", "val"):
        labels = {
            path.stem: [k for k, v in kinds.items() if int(path.parent.name[-1]) in v]
            for path in digits.glob(f"{split}/*/*.png")
        }
        # What counts for neither side: the zeros are no even number here.
        zeros = [stem for stem, some in labels.items() if "zero" in some]
        labels |= {stem: ["zero"] for stem in zeros}
        told = {"classes": [*kinds, "none"], "images": labels}
        told["difficult"] = {stem: ["even"] for stem in zeros}
        (digits / f"{split}.json").write_text(json.dumps(told))
    return digits


def test_images_of_many_labels_are_judged_as_by_scikit_learn(ask, rows, many):
    sweep = ("metric=map", "number=2", "lowest=0", "highest=1")
    files = [f"--labels={x}={many / x}.json" for x in ("train", "val")]
    code, about = ask("logreg", *(f"--set={x}" for x in sweep), *files)
    assert code == 0 and about["metric"] == "map"
    (x, y), (others, labels) = rows
    c, areas = about["metrics"]["c"], []
    for own in ((2, 4, 6, 8), (2, 3, 5, 7), (0,)):
        use, seen = ((y > 0), (labels > 0)) if 8 in own else (y >= 0, labels >= 0)
        model = linear_model.LogisticRegression(C=c, tol=1e-8, max_iter=5000)
        model.fit(x[use].astype(np.float64), np.isin(y[use], own))
        scores = model.decision_function(others[seen])
        wanted = np.isin(labels[seen], own)
        areas.append(judged.average_precision_score(wanted, scores))
    # Their solver stops near the minimum, where two images may change places.
    assert about["metrics"]["map"] == pytest.approx(np.mean(areas), abs=2e-3)
    assert about["metrics"]["map"] > 0.6 and "map11" in about["metrics"]


def test_corruptions_are_told_by_their_mean_error(weights, tmp_path):
    backbone = frozen.load(str(weights))
    job = results.Job(
        "linear",
        "x",
        backbone,
        "folder:t",
        "folder:v",
        {"c": f"corruptions:{tmp_path}", "v2": "folder:w"},
        {},
        tmp_path,
        tmp_path,
        evaluate.settings("linear", {}),
    )
    tests = evaluate_linear.test_sets(job)
    assert len(tests) == 15 * 5 + 1
    assert tests["c/fog/3"] == f"folder:{tmp_path / 'fog' / '3'}"
    classes, source = ("a", "b"), type("S", (), {"classes": ("a", "b")})()

    def features(spec):
        labels, about = np.array([0, 1, 1, 1]), {"spec": spec}
        names = list("abcd")
        return frozen.Set(np.zeros((4, 3)), labels, np.arange(4), names, source, about)

    def head(rows, among=None):
        assert among is None or among.tolist() == [0, 1]
        return np.zeros((len(rows), 2))

    found, about, images = evaluate_linear.on_tests(job, tests, classes, features, head)
    assert found["v2/top1"] == 0.25 and found["c/fog_error"] == 0.75
    want = np.mean([0.75 / error for error in metrics.ALEXNET.values()])
    assert found["c/mce"] == pytest.approx(want) and len(about) == 76
    assert images[0]["correct"].tolist() == [True, False, False, False]


def test_revisited_ground_truth_is_followed(weights, digits, tmp_path):
    paths = sorted((digits / "val").glob("*/*.png"))
    base, queries = paths[2:40], paths[:2]
    label = [p.parent.name for p in base]
    truth = {
        "imlist": [p.stem for p in base],
        "qimlist": [p.stem for p in queries],
        "gnd": [
            {
                "bbx": [0, 0, 32, 32],
                "easy": [i for i, x in enumerate(label) if x == q.parent.name][1:],
                "hard": [i for i, x in enumerate(label) if x == q.parent.name][:1],
                "junk": [],
            }
            for q in queries
        ],
    }
    path = tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps(truth))
    given = [f"--weights={weights}", f"--val=folder:{digits / 'val'}"]
    given += [f"--out={tmp_path / 'out'}", f"--set=truth={path}"]
    given += ["--set=protocol=revisited", *(f"--set={x}" for x in SIZES)]
    assert command.main(["evaluate", "retrieval", *given]) == 0
    about = json.loads((tmp_path / "out" / "results.json").read_text())
    assert about["metric"] == "map_medium" and 0.3 < about["metrics"]["map_medium"] <= 1
    assert set(about["metrics"]) >= {"map_easy", "map_hard", "mp10_hard"}
    assert about["data"]["val"]["images"] == 38


def test_all_tasks_of_a_config_run_once_and_stand_in_a_table(
    weights, digits, cache, tmp_path, capsys
):
    path = tmp_path / "suite.py"
    path.write_text(
        f"""import ml_collections

def get_config():
    spec = {{x: f"folder:{digits}/{{x}}" for x in ("train", "val")}}
    config = ml_collections.ConfigDict()
    config.set = {{"resize": 32, "crop": 32, "neighbors": (3,)}}
    config.tasks = {{
        "knn": {{"task": "knn", **spec}},
        "more": {{"task": "knn", **spec, "set": {{"neighbors": (5,)}}}},
        "retrieval": {{"task": "retrieval", "val": spec["val"]}},
    }}
    return config
"""
    )
    given = ["evaluate", "all", f"--config={path}", f"--weights={weights}"]
    given += [f"--out={tmp_path / 'out'}", f"--cache={cache}"]
    assert command.main(given) == 0
    out = capsys.readouterr().out
    assert out.count("knn: top1 ") == 2 and "in the mean of 2" in out
    stamp = (tmp_path / "out" / "knn" / "results.json").stat().st_mtime_ns
    wrong = tmp_path / "wrong.py"
    wrong.write_text(path.read_text().replace('spec["val"]', '"demo:x"'))
    assert command.main([*given[:2], f"--config={wrong}", *given[3:]]) == 1
    assert "1 of 3 tasks have images that cannot" in capsys.readouterr().err
    assert command.main(given) == 0
    assert (tmp_path / "out" / "knn" / "results.json").stat().st_mtime_ns == stamp
    page = tmp_path / "table.html"
    table = ["evaluate", "table", str(tmp_path / "out"), f"--out={page}"]
    capsys.readouterr()
    assert command.main(table) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[2].startswith("| knn | width 48 x 4/8 | knn |")
    assert "retrieval" in page.read_text()


def test_the_table_puts_the_papers_numbers_beside_ours(tmp_path, capsys):
    about = {"architecture": "S/14 reg", "task": "linear", "val": "folder:x"}
    about |= {"metric": "top1", "metrics": {"top1": 0.8, "v2/top1": 0.7, "rate": 0.1}}
    (tmp_path / "results.json").write_text(json.dumps(about | {"settings": {}}))
    assert command.main(["evaluate", "table", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[-3:] for line in lines] == [
        ["80.0 %", "80.9 %", "ImageNet-1k |"],
        ["70.0 %", "71.0 %", "ImageNet-V2 |"],
    ]


def test_what_cannot_be_evaluated_is_refused_in_one_line(
    ask, digits, weights, tmp_path, capsys
):
    other = tmp_path / "other"
    for name in ("digit0", "cat"):
        (other / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(other / name / "a.png")
    plain = tmp_path / "plain"
    plain.mkdir()
    Image.new("RGB", (32, 32)).save(plain / "a.png")
    cases = [
        (("knn", f"--val=folder:{other}"), "1 are not among the 10 of train: cat"),
        (("knn", f"--val=folder:{plain}"), "has no classes"),
        (("knn", "--set=crop=30"), "no multiple of the patch size 8"),
        (
            ("knn", "--set=neighbours=3"),
            "no setting neighbours; did you mean neighbors",
        ),
        (("knn", "--set=temp=warm"), "temp=warm is no float"),
        (("knn", "--set=neighbors=0"), "neighbors=(0,); expected 1 to 2^31 - 1, each"),
        (("knn", "--test=v2=folder:x"), "takes no --test"),
        (("knn", "--name=dinov2_vits14"), "architecture"),
        (("linear", "--set=blocks=1,9"), "these weights have 4"),
        (("linear", f"--test=x=folder:{plain}", "--labels=y=z"), "names no --test"),
        (("linear", "--test=x"), "is not NAME=VALUE"),
        (
            ("retrieval", "--set=protocol=mine"),
            "expected one of labels, gap, revisited",
        ),
        (("retrieval", "--set=protocol=revisited"), "needs --set truth=FILE"),
    ]
    for given, message in cases:
        assert ask(*given)[0] == 1, given
        lines = capsys.readouterr().err.splitlines()
        assert message in lines[-1], lines[-1]
        assert lines[-1].startswith("dinov2-jax evaluate: ")
    assert not (tmp_path / "out" / "results.json").exists()


def test_labels_out_of_range_are_refused():
    found = frozen.Set(
        np.zeros((2, 3)),
        np.array([0, 7]),
        np.arange(2),
        ["a", "b"],
        type("S", (), {"classes": ("x", "y")})(),
        {"spec": "tfds:x"},
    )
    with pytest.raises(ValueError, match="labels run from 0 to 7.*0 to 1, its 2"):
        frozen.require_classes(found)


def test_a_confusion_matrix_is_dark_where_a_class_was_guessed():
    picture = evaluation.confusion_picture(np.array([[4, 0], [1, 3]]))
    assert picture.shape == (48, 48, 3)
    light = picture.astype(int).sum(-1)[::24, ::24]
    assert light[0, 0] < light[1, 1] < light[1, 0] < light[0, 1]


def test_what_belongs_to_a_query_is_framed_green():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 30, 3), np.uint8) for _ in range(3)]
    picture = evaluation.found_picture(images[:1], [images[1:]], [[True, False]], 40)
    assert picture.shape == (52, 150, 3)
    assert tuple(picture[8, 60]) == evaluation.GOOD
    assert tuple(picture[8, 106]) == evaluation.BAD


def test_the_settings_of_a_task_are_listed(capsys):
    assert command.main(["evaluate", "logreg", "--settings"]) == 0
    out = capsys.readouterr().out
    assert "iterations=1000" in out and "number=45" in out and "dtype=float64" in out


def test_shares_are_shown_in_per_cent_and_errors_as_they_are():
    assert results.shown("delta1", 0.953) == "95.3 %"
    assert results.shown("rmse", 0.4172) == "0.4172"
    assert results.shown("images", 12) == "12"
