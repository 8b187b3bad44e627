"""Whatever is wrong with what the user gave: one line, and nothing half-written.

Each case says what is wrong and words that the line must hold: what was given, what is
needed or what to do. No case gets as far as compiling anything.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax import checkpoint
from dinov2_jax import config as settings
from dinov2_jax.cli import assemble, workdir
from dinov2_jax.convert import export, names
from dinov2_jax.models import vit
from dinov2_jax.train import history
from dinov2_jax.train import state as train_state

CONFIG = '''"""A config that would run."""
from dinov2_jax import config as base

def get_config():
    c = base.default()
    c.data.train = "folder:{images}"
    c.crops.update(global_size=16, local_size=8, local_number=2)
    c.model.update(variant="Ti/4", width=32, depth=2, heads=2)
    c.head.update(prototypes=32, hidden=32, bottleneck=16)
    c.optim.update(warmup=2, freeze_last_layer=1)
    c.teacher.temp_warmup = 4
    c.train.update(steps=8, batch_size=16, group_size=2)
    c.eval.update(crop=16, resize=16, batch_size=16, every=4)
    {line}
    return c
'''

OVERRIDES = {
    "no such folder": ("data.train=folder:{here}/none", ["{here}/none", "folder"]),
    "an empty folder": ("data.train=folder:{empty}", ["{empty}", "no file"]),
    "a folder of texts": ("data.train=folder:{texts}", ["no image", "1 .txt"]),
    "no image decodes": ("data.train=folder:{broken}", ["no decodable", "x.jpg"]),
    "no tar file": ("data.train=tar:{here}/*.tar", ["{here}/*.tar", "no file"]),
    "no record file": ("data.train=arrayrecord:{here}/*.ar", ["matches no file"]),
    "no record in a file": ("data.train=arrayrecord:{texts}/a.txt", ["a.txt"]),
    "no packed folder": ("data.train=arrayrecord:{empty}", ["manifest.json", "packed"]),
    "no Parquet file": ("data.train=parquet:{here}/*.pq", ["{here}/*.pq", "no file"]),
    "a place to cut": ("data.augment_on=gpu", ["'gpu'", "host, device"]),
    "an unknown data set": ("data.train=tfds:cifar1O", ["cifar1O", "cifar10"]),
    "an unknown kind": ("data.train=foldr:/x", ["'foldr'", "did you mean folder:"]),
    "no kind at all": ("data.train={images}", ["{images}", "folder:, tar:"]),
    "no data at all": ("data.train=", ["data.train is empty", "folder:/path"]),
    "an unknown split": ("data.train=demo:test", ["demo:test", "demo:val"]),
    "a weight of nothing": ("data.train=demo:train@0;demo:val@1", ["above 0"]),
    "no such validation": ("data.val=folder:{here}/none", ["{here}/none"]),
    "validation undecoded": ("data.val=folder:{broken}", ["no decodable", "x.jpg"]),
    "validation of other classes": (
        "data.val=demo:val",
        ["data.val has", "not among the 2 of train"],
    ),
    "validation unlabelled": ("data.val=folder:{images}/a", ["data.val", "no labels"]),
    "a global crop": ("crops.global_size=18", ["global_size=18", "4", "16 or 20"]),
    "a local crop": ("crops.local_size=9", ["local_size=9", "choose 8 or 12"]),
    "an eval crop": ("eval.crop=17", ["eval.crop=17", "choose 16 or 20"]),
    "a crop below a patch": ("crops.local_size=3", ["local_size=3", "choose 4 or 8"]),
    "a position table": ("model.image_size=17", ["image_size=17", "patch_size=4"]),
    "groups": ("train.batch_size=17", ["batch_size=17", "group_size=2"]),
    "devices": ("train.batch_size=12", ["6 groups", "8 devices"]),
    "accumulation": ("train.accumulate=3", ["8 groups", "train.accumulate=3"]),
    "no accumulation": ("train.accumulate=0", ["train.accumulate=0", "1 to"]),
    "no steps": ("train.steps=0", ["train.steps=0", "1 to"]),
    "KoLeo alone": ("train.group_size=1", ["KoLeo", "group_size=1", "2 or more"]),
    "a single view": ("crops.local_number=-1", ["local_number=-1", "0 to"]),
    "a falling ratio": ("masks.ratio=(0.5,0.1)", ["(0.5, 0.1)", "rising"]),
    "more than all masked": ("masks.ratio=(0.5,1.1)", ["(0.5, 1.1)", "0 to 1"]),
    "a probability": ("masks.probability=1.5", ["probability=1.5", "0 to 1"]),
    "a scale": ("crops.global_scale=(0,1)", ["global_scale=(0.0, 1.0)", "above 0"]),
    "a hue": ("augment.hue=0.6", ["hue=0.6", "0 to 0.5"]),
    "a temperature": ("teacher.temp=0", ["teacher.temp=0.0", "above 0"]),
    "an infinite rate": ("optim.base_lr=1e999", ["base_lr=inf", "finite"]),
    "a drop rate": ("model.drop_path=1.0", ["drop_path=1.0", "below 1"]),
    "a key": ("optim.base_lrr=1", ["optim.base_lrr", "did you mean optim.base_lr?"]),
    "a section": ("optimm.clip=1", ["optimm.clip", "did you mean optim.clip?"]),
    "a section as key": ("optim=1", ["config.optim does not exist"]),
    "no value": ("train.steps", ["--config.train.steps=VALUE"]),
    "a word for a number": ("train.steps=many", ["train.steps=many", "int", "8"]),
    "a fraction for a count": ("train.steps=1.5", ["train.steps=1.5", "int"]),
    "a number for a bool": ("model.qkv_bias=1", ["qkv_bias=1", "bool", "True"]),
    "one of two": ("masks.ratio=(0.1,)", ["masks.ratio=(0.1,)", "2 floats"]),
    "one for two": ("masks.ratio=0.1", ["masks.ratio=0.1", "tuple of 2 floats"]),
    "words in a tuple": ("optim.betas=('a',1)", ["optim.betas", "2 floats"]),
    "no neighbours": ("eval.neighbors=()", ["eval.neighbors=()", "tuple of ints"]),
    "zero neighbours": ("eval.neighbors=(0,)", ["eval.neighbors=(0,)", "1 to"]),
    "a count too large": ("train.steps=2147483648", ["2147483648", "2^31 - 1"]),
    "a variant": ("model.variant=XL/16", ["'XL/16'", "Ti, S, B, L, g", "S/14"]),
    "a patch of nothing": ("model.variant=L/0", ["'L/0'", "SIZE/PATCH"]),
    "heads": ("model.heads=3", ["width=32", "heads=3"]),
    "a feed-forward": ("model.ffn=gated", ["'gated'", "mlp, swiglu"]),
    "targets": ("loss.targets=centring", ["'centring'", "centering, sinkhorn"]),
    "a dtype": ("train.dtype=float16", ["'float16'", "float32, bfloat16"]),
    "a resize": ("data.resize=cv2", ["'cv2'", "pillow, simd"]),
    "rematerialisation": ("mesh.remat=all", ["'all'", "none, full, dots"]),
    "attention": ("mesh.attention=cudnn", ["cudnn", "platform cpu", "xla"]),
    "a mesh": ("mesh.fsdp=3", ["mesh.fsdp=3", "[1, 2, 4, 8]"]),
    "a scaling": ("optim.lr_scaling=cubic", ["'cubic'", "sqrt"]),
    "a warm-up": ("optim.warmup=9", ["9 steps", "8 steps", "shorten"]),
    "weights of no file": ("init.weights={here}/a.safetensors", ["a.safetensors"]),
    "weights of a kind": ("init.weights={here}/a.pth", ["a.pth", ".safetensors file"]),
    "weights of no run": ("init.weights={empty}", ["{empty}", "no checkpoint"]),
    "weights of a text": ("init.weights={texts}/a.safetensors", ["a.safetensors"]),
}
"""What is wrong -> (override, words of the line); {names} are folders of the test."""

LINES = {
    "a key": ("c.optim.base_lrr = 1.0", ["base_lrr", '"base_lr"', ", line 14"]),
    "a key among others": ("c.optim.update(clip=1.0, warm=2)", ["warm", "line 14"]),
    "a section": ("c.optimm.clip = 1.0", ["optimm", '"optim"', "line 14"]),
    "a type": ("c.train.steps = 'many'", ["steps", "many", "int", "line 14"]),
    "a bool for a count": ("c.train.steps = True", ["config.train.steps=True", "int"]),
    "nothing for a count": ("c.train.steps = None", ["config.train.steps=None"]),
    "three of two": ("c.masks.ratio = (0.1, 0.2, 0.3)", ["masks.ratio", "2 floats"]),
    "a range": ("c.masks.probability = 2.0", ["probability=2.0", "0 to 1"]),
    "a key unlocked": ("c.unlock(); c.optim.clpi = 3.0", ["optim.clpi", "optim.clip"]),
    "a section deleted": ("c.unlock(); del c.optim", ["optim.", "missing"]),
    "a mistake": ("1 / 0", ["ZeroDivisionError", "line 14"]),
    "two lines of error": ("raise ValueError('one\\n two')", ["ValueError: one two"]),
    "its end": ("return", ["NoneType", "default()"]),
    "its syntax": ("c.train. = 1", ["SyntaxError", "line 14"]),
    "an import": ("import grian", ["No module named 'grian'", "line 14"]),
    "a variable": ("import os; os.environ['NONE']", ["KeyError: NONE", "line 14"]),
    "an assertion": ("assert c.seed", ["line 14: AssertionError"]),
}
"""What is wrong in a config file -> (line 14 of it, words of the error line)."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders with images, with nothing, with what is no image."""
    here = tmp_path_factory.mktemp("places")
    made = {name: here / name for name in ("images", "empty", "texts", "broken")}
    for folder in (*made.values(), here / "images" / "a", here / "images" / "b"):
        folder.mkdir()
    for number in range(4):
        pixels = np.full((20, 24, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(
            made["images"] / "ab"[number % 2] / f"{number}.png"
        )
    (made["texts"] / "a.txt").write_text("no image")
    (made["texts"] / "a.safetensors").write_text("no weights")
    (made["broken"] / "c").mkdir()
    (made["broken"] / "c" / "x.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    return made | {"here": here}


@pytest.fixture
def config(places, tmp_path):
    """Writes the config file with a line 14 and returns its path."""

    def write(line: str = "pass") -> pathlib.Path:
        path = tmp_path / "tiny.py"
        path.write_text(CONFIG.format(images=places["images"], line=line))
        return path

    return write


@pytest.fixture
def refusal(capsys, tmp_path, request, told):
    """Runs `train`, which must fail; returns its one line. Nothing may be left."""
    what = request.node.name.partition("[")[2].rstrip("]")
    what = what or request.node.name.removeprefix("test_").replace("_", " ")

    def run(config, *arguments: str, folder: pathlib.Path = tmp_path / "run") -> str:
        before = contents(folder)
        options = [f"--config={config}", f"--workdir={folder}", *arguments]
        assert command.main(["train", *options]) == 1
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if "WARNING" not in line]
        assert out == "" and len(lines) == 1, err
        assert contents(folder) == before
        told(what, lines[0])
        return lines[0]

    return run


def contents(folder: pathlib.Path) -> dict[str, bytes | None] | None:
    """All that lies in a folder; None if there is none."""
    if not folder.is_dir():
        return None
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_the_config_of_these_tests_is_accepted(config):
    loaded = settings.load(str(config()))
    assemble.check(loaded, jax.device_count(), 1)


@pytest.mark.parametrize("wrong", OVERRIDES)
def test_a_wrong_setting_is_one_line(wrong, config, refusal, places):
    override, words = OVERRIDES[wrong]
    line = refusal(config(), "--config." + override.format(**places))
    for word in words:
        assert word.format(**places) in line
    assert line.startswith("dinov2-jax train: ") and len(line) < 400


@pytest.mark.parametrize("wrong", LINES)
def test_a_wrong_config_file_is_one_line(wrong, config, refusal):
    line, words = LINES[wrong]
    said = refusal(config(line))
    for word in ("tiny.py", *words):
        assert word in said
    assert len(said) < 400


def test_what_does_not_fit_together_is_named_together(config, refusal):
    val = "--config.data.val=demo:val"
    said = refusal(config(), val, "--config.eval.crop=20")
    assert "eval.crop=20" in said and "eval.resize=16" in said
    said = refusal(config(), val, "--config.eval.batch_size=12")
    assert "eval.batch_size=12" in said and "8 devices" in said
    lone = ("--config.crops.global_number=1", "--config.crops.local_number=0")
    assert "2 views or more" in refusal(config(), *lone)
    into = ("--config.init.into=all", "--config.init.weights=x")
    said = refusal(config(), *into)
    assert "'all'" in said and "student, teacher, both" in said


def test_a_missing_config_file_is_met_with_the_nearest(config, refusal, tmp_path):
    said = refusal(config().with_name("tyni.py"))
    assert "tyni.py is no file" in said and f"did you mean {tmp_path}/tiny.py?" in said
    assert refusal("none/such.py").endswith("--config=none/such.py is no file.")
    assert "is no file." in refusal(tmp_path)
    assert "takes 0 positional arguments" in refusal(f"{config()}:large")


def test_a_file_without_get_config_is_refused(refusal, tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("")
    assert "no get_config()" in refusal(path)
    path.write_bytes(bytes(range(256)))
    assert "SyntaxError" in refusal(path)


def test_a_workdir_that_cannot_be_written_is_refused(config, refusal, tmp_path):
    said = refusal(config(), "--workdir=gs://bucket/run")
    assert "is an address; mount it" in said
    # In place of a read-only folder, which does not stop the superuser.
    for folder in (config(), config() / "deeper", pathlib.Path("/proc/run")):
        said = refusal(config(), folder=folder)
        assert f"--workdir={folder} cannot be written" in said
        assert "choose another" in said


@pytest.fixture
def begun(config, tmp_path):
    """A workdir in which a run of the config has logged its first step."""
    folder = tmp_path / "run"
    workdir.claim(folder, settings.load(str(config())), False)
    workdir.describe(folder, [], saved=None)
    log = history.History(folder, 0)
    log.write(1, {"loss/total": 1.0})
    log.close()
    return folder


def test_the_run_of_another_config_is_refused_by_what_differs(config, refusal, begun):
    changes = ("--config.seed=3", "--config.crops.local_scale=(0.1,0.3)")
    said = refusal(config(), *changes, "--config.data.threads=9")
    assert "seed: 0 -> 3" in said
    assert "crops.local_scale: [0.05, 0.32] -> [0.1, 0.3]" in said
    assert "data.threads" not in said  # changes no result
    assert "--allow-config-change" in said


def test_metrics_of_a_run_that_nothing_else_is_left_of_are_refused(
    config, refusal, begun
):
    (begun / "run.json").unlink()
    said = refusal(config())
    assert "come to step 1" in said and "--restart" in said
    (begun / "config.json").unlink()
    for damage in (b"\0\xff\n", b"{}\n[1]\n", b'{"step"'):
        (begun / "metrics.jsonl").write_bytes(damage)
        assert "--restart" in refusal(config())
    workdir.claim(begun, settings.load(str(config())), False, restart=True)
    workdir.claim(begun, settings.load(str(config())), False, restart=True)
    assert (begun / "metrics.previous.jsonl").read_bytes() == damage * 2


def test_a_half_written_checkpoint_excuses_the_loss_of_its_own_step_alone(
    config, refusal, begun
):
    (begun / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    workdir.note(begun, saved=1)
    assert "come to step 1" in refusal(config())
    workdir.note(begun, saved=2)
    workdir.check(begun, settings.load(str(config())), False)


def test_a_run_without_its_config_is_refused(config, refusal, begun):
    (begun / "checkpoints" / "1").mkdir(parents=True)
    (begun / "config.json").unlink()
    said = refusal(config())
    assert "config.json is gone" in said and "--allow-config-change" in said
    workdir.check(begun, settings.load(str(config())), True)


def test_a_workdir_that_is_a_link_to_nothing_is_refused(config, refusal, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "none")
    assert "a link to nothing" in refusal(config(), folder=tmp_path / "link")


def test_a_damaged_config_of_a_run_is_refused(config, refusal, begun):
    for text in ("{", "[]"):
        (begun / "config.json").write_text(text)
        said = refusal(config())
        assert "config.json is damaged" in said and "--allow-config-change" in said


def test_allow_config_change_goes_on_with_the_new_config(config, begun):
    changed = settings.load(str(config()), ["seed=3"])
    workdir.claim(begun, changed, True)
    assert (begun / "config.json").read_text() == settings.to_json(changed) + "\n"
    assert (begun / "metrics.jsonl").stat().st_size > 0
    workdir.claim(begun, changed, False)


def test_a_run_that_never_began_does_not_hold_its_workdir(config, tmp_path):
    wrong = settings.load(str(config()), ["init.weights=misspelt"])
    workdir.claim(tmp_path / "run", wrong, False)
    mended = settings.load(str(config()))
    workdir.claim(tmp_path / "run", mended, False)
    assert not settings.differences(mended, recorded(tmp_path / "run"))


def recorded(folder: pathlib.Path) -> dict:
    """The config that a workdir holds."""
    return json.loads((folder / "config.json").read_text())


def zeros(function, *arguments):
    """What a function would return, all zero; nothing is computed."""
    shapes = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)


def test_weights_of_another_architecture_are_refused(config, refusal, tmp_path):
    other = vit.build("Ti/4", width=32, depth=1, heads=2, image_size=16, registers=3)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    params = zeros(other.init, jax.random.key(0), images)["params"]
    path = tmp_path / "other.safetensors"
    export.write_safetensors(path, names.backbone_to_official(params, 4), {})
    said = refusal(config(), f"--config.init.weights={path}")
    for words in ("blocks.1.", "unexpected register_tokens", "another architecture"):
        assert words in said


@pytest.fixture
def stopped(config, tmp_path):
    """A workdir with a checkpoint of step 6, of zeros, of a config with overrides."""

    def make(*overrides: str) -> pathlib.Path:
        c = settings.load(str(config()), overrides)
        model, key = assemble.model(c), jax.random.key(0)
        params = zeros(lambda k: assemble.initial_params(c, model, k), key)
        tx = assemble.recipe(c, model, params).tx
        state = zeros(
            lambda p: train_state.create(p, p, tx, assemble.prototypes(c)), params
        )
        folder = tmp_path / "stopped"
        workdir.claim(folder, c, False)
        with checkpoint.manager(folder / "checkpoints") as checkpoints:
            state = jax.tree.map(jnp.asarray, state)
            note = {"next_step": 6, "history": [], "tally": {}}
            checkpoint.save(checkpoints, 6, state, note)
        return folder

    return make


def test_a_run_of_another_architecture_gives_no_weights(config, refusal, stopped):
    folder = stopped("model.width=16", "head.prototypes=24")
    said = refusal(config(), f"--config.init.weights={folder}")
    assert "backbone/" in said and "config they were trained with" in said
    assert len(said) < 400


def test_a_run_beyond_its_last_step_is_refused(config, capsys, stopped):
    folder = stopped()
    arguments = [f"--config={config()}", f"--workdir={folder}"]
    arguments += ["--config.train.steps=5", "--allow-config-change"]
    assert command.main(["train", *arguments]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "is at step 6" in said and "train.steps=5" in said
    assert not (folder / "export").exists()
