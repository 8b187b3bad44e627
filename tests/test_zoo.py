"""Released backbones by name, weights of any source as a module, and their adaption."""

import functools
import http.server
import json
import pathlib
import threading

import arrays
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import tiny

import dinov2_jax
from dinov2_jax import checkpoint, released, tree, zoo
from dinov2_jax import config as settings
from dinov2_jax.cli import assemble
from dinov2_jax.convert import adapt, export, names, timm
from dinov2_jax.models import probes, vit
from dinov2_jax.train import state as train_state

OFFICIAL = json.loads(
    (pathlib.Path(__file__).parent / "parity/golden/export_names.json").read_text()
)
FEATURES = 2e-5  # of features near 1: float32 sums in another order, seen 3e-6


def narrow(registers: int = 0, ffn: str = "mlp", **changes) -> vit.ViT:
    """A backbone whose number of heads its width tells."""
    sizes = {"width": 64, "heads": 1, "depth": 2, "patch_size": 4, "image_size": 24}
    return peers.model(registers, ffn, **(sizes | changes))


@pytest.fixture
def weights(tmp_path):
    """Writes a backbone's official safetensors file and returns its path."""

    def write(built: vit.ViT, note: dict | None = None) -> pathlib.Path:
        path = tmp_path / "weights.safetensors"
        note = export.about(built) if note is None else note
        export.write_safetensors(path, peers.official(built), note)
        return path

    return write


def equal(a: dict, b: dict) -> bool:
    """Whether two trees hold the same numbers."""
    alike = jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)
    return jax.tree.all(alike)


def features(built: vit.ViT, params: dict, images: jax.Array) -> vit.Features:
    """What a module gives for images."""
    return jax.jit(built.apply)({"params": params}, images)


def pixels(height: int, width: int | None = None, channels: int = 3) -> jax.Array:
    """Two images of normal noise."""
    shape = (2, height, width or height, channels)
    return jax.random.normal(jax.random.key(3), shape)


@pytest.mark.parametrize("name", zoo.RELEASED)
def test_released_backbones_have_the_exact_parameters(name):
    registers = zoo.RELEASED[name].registers
    entry = OFFICIAL[name.split("_")[1] + ("_reg4" if registers else "")]
    built = zoo.module(zoo.RELEASED[name].about())
    shapes = jax.eval_shape(built.init, jax.random.key(0), pixels(28))["params"]
    assert tree.count(shapes) == entry["total_params"]
    assert built.heads == entry["num_heads"] and built.image_size == 518
    expected = (True, 0.0) if registers else (False, 0.1)
    assert (built.antialias, built.offset) == expected


def test_released_files_have_the_official_addresses():
    start = "https://dl.fbaipublicfiles.com/dinov2"
    assert zoo.RELEASED["dinov2_vits14"].url == (
        f"{start}/dinov2_vits14/dinov2_vits14_pretrain.pth"
    )
    assert zoo.RELEASED["dinov2_vitg14_reg"].url == (
        f"{start}/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"
    )


def test_the_package_offers_it():
    assert dinov2_jax.load_backbone is zoo.load_backbone
    assert "load_backbone" in dir(dinov2_jax)
    with pytest.raises(AttributeError, match="no attribute 'load_backbon'"):
        _ = dinov2_jax.load_backbon


@pytest.mark.parametrize("registers, ffn", [(0, "mlp"), (4, "swiglu")])
def test_every_format_gives_the_same_module_and_parameters(
    tmp_path, capsys, weights, registers, ffn
):
    built = narrow(registers, ffn)
    params, state = peers.params(built), peers.official(built)
    about = export.about(built)
    export.write_huggingface(tmp_path / "hub", state, about)
    theirs = timm.from_official(state)
    export.write_safetensors(tmp_path / "timm", theirs, {})
    sources = {
        "safetensors": weights(built),
        "huggingface": tmp_path / "hub",
        "timm": tmp_path / "timm",
    }
    images = pixels(24, 32)
    expected = features(built, params, images)
    for kind, path in sources.items():
        heads = 1 if kind == "timm" else None  # which does not tell, nor does the width
        module, found = zoo.load_backbone(None, path, heads=heads)
        assert module == built
        assert equal(found, params) or kind == "timm"  # which drops and joins tensors
        got = features(module, found, images)
        # A sum of two float32 numbers that timm stores is added here as it is there.
        np.testing.assert_array_equal(got.cls, expected.cls)
        count = len(state)
        said = capsys.readouterr().err
        assert f"{count}/{count} tensors of {path} ({kind})" in said
    assert zoo.load_backbone(str(sources["timm"]), heads=1)[0] == built


def test_parameters_are_float32_whatever_the_file_holds(tmp_path):
    built = narrow()
    state = {n: v.astype(np.float16) for n, v in peers.official(built).items()}
    export.write_safetensors(tmp_path / "half", state, {})
    _, params = zoo.load_backbone(None, tmp_path / "half", heads=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    back = names.backbone_to_official(params, built.patch_size)
    assert all((back[name] == value).all() for name, value in state.items())


def test_weights_that_do_not_fit_the_name_are_refused_with_lists(weights):
    path = weights(narrow(4))
    with pytest.raises(ValueError, match="another architecture") as error:
        zoo.load_backbone("dinov2_vits14", path)
    said = str(error.value)
    assert "0/175 tensors match" in said
    assert "missing blocks.10." in said and "unexpected register_tokens" in said
    assert "mis-shaped blocks.0.attn.proj.bias: (64,), the model has (384,)" in said
    with pytest.raises(ValueError, match="another architecture"):  # nothing fits
        zoo.load_backbone("dinov2_vits14", path, partial=True)


def test_a_partial_load_lists_what_is_new_and_initialises_it(
    tmp_path, capsys, monkeypatch
):
    big = narrow(4, depth=3)
    monkeypatch.setitem(vit.VARIANTS, "N", {"width": 64, "depth": 3, "heads": 1})
    monkeypatch.setitem(zoo.RELEASED, "narrow_reg", released.Released("N", 4))
    state = peers.official(narrow(patch_size=14, image_size=70))
    state["norm.weight"] = state["norm.weight"][:32]
    export.write_safetensors(tmp_path / "a", state, {})
    with pytest.raises(ValueError, match=r"partial=True \(--partial\) loads what fits"):
        zoo.load_backbone("narrow_reg", tmp_path / "a")
    module, params = zoo.load_backbone("narrow_reg", tmp_path / "a", partial=True)
    assert module.depth == big.depth and module.image_size == 70
    said = capsys.readouterr().err
    assert "narrow_reg: 34/50 tensors of" in said
    assert "missing 15: blocks.2." in said and ", register_tokens\n" in said
    assert (
        "unexpected 0: \nmisshaped 1: norm.weight: (32,), the model has (64,)" in said
    )
    assert "initialised anew" in said
    images = jnp.zeros((1, 14, 14, 3))
    fresh = jax.jit(module.init)(jax.random.key(0), images)["params"]
    assert equal(params["register_tokens"], fresh["register_tokens"])
    assert equal(params["norm"]["scale"], fresh["norm"]["scale"])
    assert equal(params["norm"]["bias"], state["norm.bias"])
    qkv, new = (tree_["blocks"]["attn"]["qkv"]["kernel"] for tree_ in (params, fresh))
    assert equal(qkv[2], new[2])
    assert equal(qkv[1], state["blocks.1.attn.qkv.weight"].T)


@pytest.mark.parametrize(("registers", "size"), [(0, 12), (0, 40), (4, 12)])
def test_another_image_size_resizes_the_positions_once(
    weights, capsys, registers, size
):
    path = weights(narrow(registers))
    module, params = zoo.load_backbone(None, path)
    other, resized = zoo.load_backbone(None, path, image_size=size)
    assert "position grid 6 -> " in capsys.readouterr().err
    assert other.image_size == size
    assert resized["pos_embed"].shape == (1, 1 + (size // 4) ** 2, 64)
    # On that grid the first module resizes at every call what the second has stored.
    expected = features(module, params, pixels(size))
    got = features(other, resized, pixels(size))
    np.testing.assert_allclose(got.patches, expected.patches, atol=FEATURES)
    np.testing.assert_allclose(got.cls, expected.cls, atol=FEATURES)


def test_an_image_size_that_does_not_divide_is_refused(weights):
    path = weights(narrow())
    with pytest.raises(ValueError, match="image_size=30 is no multiple.*give 28 or 32"):
        zoo.load_backbone(None, path, image_size=30)
    with pytest.raises(ValueError, match="image_size=3 is no multiple.*give 4 or 8"):
        zoo.load_backbone(None, path, image_size=3)
    with pytest.raises(ValueError, match="patch_size=0; give 1 or more"):
        zoo.load_backbone(None, path, patch_size=0)


def resized_by_hand(image: np.ndarray, size: int) -> np.ndarray:
    """[p p] -> [size size] bilinear, pixel by pixel."""
    old, new = image.shape[0], np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            y, x = (
                min(max((k + 0.5) * old / size - 0.5, 0), old - 1)
                for k in (row, column)
            )
            top, left = int(min(y, old - 2)), int(min(x, old - 2))
            for i, in_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                for j, in_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                    new[row, column] += in_y * in_x * image[i, j]
    return new


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (5, 6), (14, 16), (14, 8)])
def test_patches_are_resized_as_flexivit_does(old, new):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 2, old, old))
    pixels_ = np.eye(old * old).reshape(-1, old, old)
    resize = np.stack([resized_by_hand(x, new).ravel() for x in pixels_], axis=1)
    inverse = np.linalg.pinv(resize.T)  # of both dimensions together
    expected = (weight.reshape(-1, old * old) @ inverse.T).reshape(3, 2, new, new)
    state = {adapt.PROJECTION: weight, "other": weight}
    got = adapt.patch(state, new)
    # float64 of a well-conditioned pseudo-inverse
    np.testing.assert_allclose(got[adapt.PROJECTION], expected, atol=1e-10)
    assert got["other"] is weight
    x = rng.normal(size=(2, old, old))
    larger = np.stack([resized_by_hand(channel, new) for channel in x])
    tokens = [(w * p).sum((1, 2, 3)) for w, p in ((weight, x), (expected, larger))]
    lost = np.abs(tokens[0] - tokens[1]).max()
    assert lost < 1e-10 if new > old else lost > 1e-3


def test_another_patch_size_keeps_the_grid_and_the_features(
    weights, capsys, monkeypatch
):
    built = narrow(patch_size=14, image_size=70)
    monkeypatch.setitem(vit.VARIANTS, "N", {"width": 64, "depth": 2, "heads": 1})
    monkeypatch.setitem(zoo.RELEASED, "narrow", released.Released("N", 0))
    path = weights(built)
    module, params = zoo.load_backbone("narrow", path)
    other, changed = zoo.load_backbone(None, path, patch_size=28)
    assert zoo.load_backbone("narrow", path, patch_size=28)[0] == other
    assert "patches 14 -> 28" in capsys.readouterr().err
    assert (other.patch_size, other.image_size) == (28, 140)
    # Enlarged images of enlarged patches, each resized by itself, give the same tokens.
    images = np.asarray(pixels(70))
    cut = images.reshape(2, 5, 14, 5, 14, 3)
    resize = probes.bilinear_weights(14, 28, False)
    enlarged = np.einsum("am,bn,xrmcnk->xracbk", resize, resize, cut)
    expected = features(module, params, images)
    got = features(other, changed, enlarged.reshape(2, 140, 140, 3))
    np.testing.assert_allclose(got.cls, expected.cls, atol=FEATURES)


@pytest.mark.parametrize("channels", [1, 5])
def test_a_gray_image_gives_the_same_features_with_any_channels(
    weights, capsys, channels
):
    path = weights(narrow())
    module, params = zoo.load_backbone(None, path)
    other, changed = zoo.load_backbone(None, path, in_channels=channels)
    assert f"channels 3 -> {channels}" in capsys.readouterr().err
    gray = pixels(24, channels=1)
    expected = features(module, params, jnp.repeat(gray, 3, -1))
    got = features(other, changed, jnp.repeat(gray, channels, -1))
    np.testing.assert_allclose(got.cls, expected.cls, atol=FEATURES)
    weight = peers.official(narrow())[adapt.PROJECTION]
    new = adapt.channels({adapt.PROJECTION: weight}, channels)[adapt.PROJECTION]
    mean = weight.astype(np.float64).mean(1) * 3 / channels
    for channel in range(channels):  # half a unit of the last place of numbers near 1
        np.testing.assert_allclose(new[:, channel], mean, atol=1e-7)


def test_a_name_refuses_other_channels_patches_and_heads_unless_asked(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(vit.VARIANTS, "N", {"width": 64, "depth": 2, "heads": 1})
    monkeypatch.setitem(zoo.RELEASED, "narrow", released.Released("N", 0))
    built = narrow(image_size=24)
    path = tmp_path / "a"
    export.write_safetensors(path, peers.official(built), {})
    with pytest.raises(ValueError, match=r"\(64, 3, 4, 4\), the model has \(64, 588\)"):
        zoo.load_backbone("narrow", path)
    module, _ = zoo.load_backbone("narrow", path, patch_size=4)
    assert module.patch_size == 4
    export.write_safetensors(path, peers.official(built), {"heads": 4})
    with pytest.raises(ValueError, match="4 attention heads, narrow has 1"):
        zoo.load_backbone("narrow", path, patch_size=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a checkpoint of random student and teacher; and its parameters."""
    return write_run(tmp_path_factory.mktemp("run"))


def write_run(folder: pathlib.Path, spoiled: bool = False) -> tuple:
    """As `run`; spoiled with one NaN in the teacher."""
    c = tiny.config(model__registers=2, model__antialias="True")
    model, rng = assemble.model(c), np.random.default_rng(0)

    def drawn() -> dict:
        draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)
        return jax.tree.map(draw, assemble.shapes(c, model))

    student, teacher = jax.tree.map(jnp.asarray, (drawn(), drawn()))
    if spoiled:
        norm = teacher["backbone"]["norm"]
        norm["bias"] = norm["bias"].at[3].set(jnp.nan)
    tx = assemble.recipe(c, model, student).tx
    state = train_state.create(student, teacher, tx, assemble.prototypes(c))
    (folder / "config.json").write_text(settings.to_json(c))
    with checkpoint.manager(folder / "checkpoints") as checkpoints:
        checkpoint.save(checkpoints, 5, state, {"next_step": 5, "history": []})
    return folder, model.backbone, {"student": student, "teacher": teacher}


def test_a_run_that_diverged_is_refused_by_tensor(tmp_path):
    folder, backbone, expected = write_run(tmp_path, spoiled=True)
    with pytest.raises(ValueError, match=r"1 of .. tensors hold NaN.*: norm\.bias\."):
        zoo.load_backbone(folder)
    module, params = zoo.load_backbone(folder, which="student")
    assert module.heads == backbone.heads
    assert equal(params, expected["student"]["backbone"])


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_a_workdir_gives_its_student_or_teacher(run, capsys, which):
    folder, backbone, expected = run
    module, params = zoo.load_backbone(folder, which=which)
    assert equal(params, expected[which]["backbone"])
    expected_about = export.about(backbone) | {"layerscale": 1.0}  # not its first value
    assert export.about(module) == expected_about  # of which tensors tell no heads
    assert "(workdir)" in capsys.readouterr().err
    found = zoo.read_any(folder, which)
    assert found.format == "workdir"
    head = names.head_from_official(found.heads["dino_head"])
    assert equal(head, expected[which]["dino_head"])


def test_a_workdir_without_its_config_is_refused(run, tmp_path):
    (tmp_path / "checkpoints").symlink_to(run[0] / "checkpoints")
    with pytest.raises(ValueError, match="config.json tells the patch size"):
        zoo.load_backbone(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"variant": "S"}}')
    with pytest.raises(ValueError, match="cannot be read"):
        zoo.load_backbone(tmp_path)
    with pytest.raises(ValueError, match="which='both'; choose one of"):
        zoo.read_any(run[0], "both")


def test_weights_that_do_not_tell_their_heads_are_refused(weights):
    path = weights(narrow(width=48, heads=3), {})
    with pytest.raises(
        ValueError, match=r"width 48 is of no released model; .*--num-heads"
    ):
        zoo.load_backbone(None, path)
    module, _ = zoo.load_backbone(None, weights(narrow(width=48, heads=3)))
    assert module.heads == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Give a name, one of dinov2_vits14"),
        (("dinov2_vits14reg",), "no path; .* did you mean dinov2_vits14_reg"),
        (
            ("none/such",),
            "no official name and no path; .* a name such as dinov2_vits14",
        ),
        (("resnet", "some/path"), "'resnet' is no official name"),
    ],
)
def test_a_name_or_path_of_nothing_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        zoo.load_backbone(*arguments)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that a server on this machine serves in place of the official one."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(folder)
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(released, "URL", f"http://127.0.0.1:{server.server_port}")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_name_alone_downloads_its_official_file_once(site, capsys):
    built = zoo.module(zoo.RELEASED["dinov2_vits14_reg"].about())
    state = {n: v.astype(np.float16) for n, v in peers.official(built).items()}
    path = site / "dinov2_vits14" / "dinov2_vits14_reg4_pretrain.pth"
    path.parent.mkdir()
    arrays.write_torch(path, state)
    module, params = zoo.load_backbone("dinov2_vits14_reg")
    assert module == built
    said = capsys.readouterr().err
    assert "no checksum is known" in said
    assert "176/176 tensors of dinov2_vits14_reg (official)" in said
    back = names.backbone_to_official(params, 14)
    assert all((back[name] == value).all() for name, value in state.items())
    path.unlink()  # now it is in the cache
    assert zoo.read_any("dinov2_vits14_reg").about["variant"] == "S/14"
