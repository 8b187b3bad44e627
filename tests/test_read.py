"""Weights of every format, told from what the files hold; and what is none."""

import json
import pathlib

import arrays
import jax
import ml_dtypes
import numpy as np
import peers
import pytest

from dinov2_jax.convert import (
    check,
    export,
    huggingface,
    infer,
    mapped,
    names,
    read,
    timm,
)
from dinov2_jax.models import heads, layers, vit

RELEASED = json.loads(
    (pathlib.Path(__file__).parent / "parity/golden/export_names.json").read_text()
)
FEED_FORWARD = [(0, "mlp"), (4, "swiglu")]


def write_safetensors(path: pathlib.Path, tensors: dict, **note) -> pathlib.Path:
    """A safetensors file with our note."""
    export.write_safetensors(path, tensors, note)
    return path


def same(found: dict, expected: dict) -> bool:
    """Whether two state dicts hold the same bits under the same names."""
    return set(found) == set(expected) and all(
        check.same(found[name], expected[name]) for name in expected
    )


def head(seed: int, prototypes: int = 12, layers: int = 3) -> dict[str, np.ndarray]:
    """Official state dict of a small head of random numbers."""
    rng, built = np.random.default_rng(seed), heads.Head(prototypes, 16, 8, layers)
    x = jax.ShapeDtypeStruct((1, 192), np.float32)
    shapes = jax.eval_shape(built.init, jax.random.key(0), x)["params"]
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)
    return names.head_to_official(jax.tree.map(draw, shapes))


def narrow(registers: int = 0, ffn: str = "mlp", **changes) -> vit.ViT:
    """A backbone whose number of heads is that of a released one of its width."""
    sizes = {"width": 192, "heads": 3, "depth": 2, "image_size": 56}
    return peers.model(registers, ffn, **(sizes | changes))


@pytest.fixture(scope="module")
def official():
    """Official state dict of the narrow backbone."""
    return peers.official(narrow())


@pytest.mark.parametrize("registers, ffn", FEED_FORWARD)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_an_official_file_gives_its_tensors_and_its_architecture(
    tmp_path, registers, ffn, dtype
):
    built = narrow(registers, ffn)
    state = {name: v.astype(dtype) for name, v in peers.official(built).items()}
    found = read.read_weights(arrays.write_torch(tmp_path / "weights", state))
    assert found.format == "official" and found.heads == {}
    assert same(found.backbone, state)
    assert found.about == export.about(built) | {"grid": 4}


@pytest.mark.parametrize("name", [n for n in RELEASED if n.startswith("vit")])
def test_the_tensors_of_released_models_tell_their_architecture(name):
    entry = RELEASED[name]
    state = {
        key: np.broadcast_to(np.float32(0), shape)
        for key, shape in entry["state_dict"].items()
    }
    found = infer.architecture(state)
    expected = {
        "width": entry["embed_dim"],
        "depth": entry["depth"],
        "heads": entry["num_heads"],
        "patch_size": entry["patch_size"],
        "image_size": entry["img_size"],
        "registers": entry["num_register_tokens"],
        "mlp_ratio": 4.0,
        "antialias": entry["num_register_tokens"] > 0,
        "offset": 0.0 if entry["num_register_tokens"] else 0.1,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["variant"][0].lower() == name[3] and found["variant"][1:] == "/14"


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("ratio", [1.0, 2.65, 3.9, 4.0, 6.5])
def test_any_hidden_width_is_told_from_the_tensors(ffn, ratio):
    built = narrow(0, ffn, mlp_ratio=ratio)
    hidden = int(built.width * infer.architecture(peers.official(built))["mlp_ratio"])
    rounded = layers.swiglu_hidden if ffn == "swiglu" else int
    assert rounded(hidden) == rounded(int(built.width * ratio))


def test_biases_and_layerscale_that_are_missing_are_told():
    built = narrow(layerscale=None, qkv_bias=False, ffn_bias=False)
    found = infer.architecture(peers.official(built))
    assert found["layerscale"] is None and found["proj_bias"]
    assert not found["qkv_bias"] and not found["ffn_bias"]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_safetensors_file_is_mapped_and_its_note_is_used(tmp_path, official, dtype):
    state = {name: value.astype(dtype) for name, value in official.items()}
    note = {"heads": 6, "antialias": True, "offset": 0.0, "step": 3}
    path = write_safetensors(tmp_path / "weights.pth", state, **note)
    found = read.read_weights(path)
    assert found.format == "safetensors" and same(found.backbone, state)
    assert found.about["heads"] == 6 and found.about["antialias"]
    assert found.about["offset"] == 0.0
    big = found.backbone["blocks.0.attn.qkv.weight"]
    assert not big.flags.owndata and not big.flags.writeable


def test_tensors_that_lie_unaligned_in_a_safetensors_file_are_copied(tmp_path):
    value = np.arange(3, dtype=np.float32)
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    header = json.dumps({"a": entry})
    header += " " * (1 - (8 + len(header)) % 2)  # an odd place for the data
    raw = len(header).to_bytes(8, "little") + header.encode() + value.tobytes()
    (tmp_path / "a").write_bytes(raw)
    tensors, note = mapped.tensors(tmp_path / "a")
    assert (tensors["a"] == value).all() and tensors["a"].flags.aligned and note == {}


def test_the_teacher_file_of_the_reference_gives_backbone_and_heads(tmp_path):
    state = peers.official(narrow(depth=4))
    parts = {"dino_head": head(1), "ibot_head": head(2, 20)}
    chunks = {f"backbone.{n}": v for n, v in export.chunked(state, 2).items()}
    assert "backbone.blocks.1.3.norm1.bias" in chunks
    for name, part in parts.items():
        chunks |= {f"{name}.{key}": value for key, value in part.items()}
    found = read.read_weights(
        arrays.write_torch(tmp_path / "teacher.pth", {"teacher": chunks})
    )
    assert found.format == "training" and same(found.backbone, state)
    assert set(found.heads) == set(parts)
    for name, part in parts.items():
        assert same(found.heads[name], part)
        again = names.head_to_official(names.head_from_official(found.heads[name]))
        assert same(again, part)
    with pytest.raises(ValueError, match="only a teacher; ask for which='teacher'"):
        read.read_weights(tmp_path / "teacher.pth", "student")


def test_a_whole_training_model_gives_the_network_asked_for(tmp_path):
    both = {which: peers.official(narrow(), i) for i, which in enumerate(read.WHICH)}
    model = {"dino_loss.center": np.zeros((1, 12), np.float32)}
    for i, (which, state) in enumerate(both.items()):
        model |= {f"module.{which}.backbone.{n}": v for n, v in state.items()}
        model |= {f"module.{which}.dino_head.{n}": v for n, v in head(i).items()}
    saved = {"model": model, "iteration": 7, "optimizer": {"state": {}, "lr": 0.1}}
    path = arrays.write_torch(tmp_path / "model_final.rank_0.pth", saved)
    for i, (which, state) in enumerate(both.items()):
        found = read.read_weights(path, which)
        assert found.format == "training" and same(found.backbone, state)
        assert same(found.heads["dino_head"], head(i))
    with pytest.raises(ValueError, match="which='both'; choose one of teacher, stud"):
        read.read_weights(path, "both")
    assert found.lines[0].startswith(
        "took the backbone under 'model.student.backbone.'"
    )
    assert found.lines[1:] == ("left out 1 tensor beside the backbone: dino_loss.*",)


def write_folder(path, tensors: dict, config: dict, shards: int = 1) -> pathlib.Path:
    """A Hugging Face folder of one file or of several with their index."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_safetensors(path / "model.safetensors", tensors)
        return path
    places = {n: f"model-{i % shards + 1}.safetensors" for i, n in enumerate(tensors)}
    for file in set(places.values()):
        part = {n: v for n, v in tensors.items() if places[n] == file}
        write_safetensors(path / file, part)
    index = {"metadata": {}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("registers, ffn", FEED_FORWARD)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_hugging_face_folder_is_read_with_its_config(
    tmp_path, registers, ffn, shards
):
    built = narrow(registers, ffn, heads=6)  # what the tensors do not tell
    state = peers.official(built)
    config = huggingface.config(export.about(built))
    theirs = huggingface.from_official(state)
    folder = write_folder(tmp_path / "hub", theirs, config, shards)
    found = read.read_weights(folder)
    assert found.format == "huggingface" and same(found.backbone, state)
    assert found.about == export.about(built) | {"grid": 4}
    if shards == 1:
        bare = read.read_weights(folder / "model.safetensors")
        assert (
            bare.format == "huggingface"
            and bare.about["heads"] == 3
            and "guess" in bare.guess
        )
        assert same(bare.backbone, state)


def test_a_hugging_face_folder_with_a_fault_is_refused(tmp_path, official):
    theirs = huggingface.from_official(official)
    config = huggingface.config(export.about(narrow()))
    deeper = config | {"num_hidden_layers": 3}
    other = write_folder(tmp_path / "other", theirs, deeper)
    with pytest.raises(ValueError, match="disagree: depth 3 against 2"):
        read.read_weights(other)
    folder = write_folder(tmp_path / "shards", theirs, config, 2)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    for wrong, words in (
        ({"gone.weight": "model-1.safetensors"}, r"shards lack gone\.weight"),
        ({"gone.weight": "model-9.safetensors"}, r"model-9\.safetensors is missing"),
        ({"gone.weight": "../other/model.safetensors"}, "outside its folder"),
    ):
        places = {"weight_map": listed["weight_map"] | wrong}
        index.write_text(json.dumps(places))
        with pytest.raises(ValueError, match=words):
            read.read_weights(folder)
    for text in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            read.read_weights(folder)
    for text in ("{", "[1]", '{"model_type": "vit"}'):
        (other / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json cannot be used"):
            read.read_weights(other)


@pytest.mark.parametrize("registers, ffn", FEED_FORWARD)
@pytest.mark.parametrize("write", [arrays.write_torch, write_safetensors])
def test_a_timm_file_is_read(tmp_path, registers, ffn, write):
    built = narrow(registers, ffn)
    theirs = timm.from_official(peers.official(built))
    found = read.read_weights(write(tmp_path / "model", theirs))
    assert found.format == "timm" and same(found.backbone, timm.to_official(theirs))
    assert found.about == export.about(built) | {"grid": 4}


ZERO = np.zeros(2, np.float32)
BLOCK = {
    "cls_token": np.zeros((1, 1, 2), np.float32),
    "blocks.0.attn.qkv.weight": np.zeros((6, 2), np.float32),
}
WRONG = {
    "a ResNet": ({"conv1.weight": ZERO, "layer1.0.conv1.weight": ZERO}, "a ResNet"),
    "a wrapped ResNet": ({"model": {"module.layer1.0.conv1.weight": ZERO}}, "a ResNet"),
    "a classifier": ({"weight": ZERO, "bias": ZERO}, "which goes on a backbone"),
    "a depth head": ({"decode_head.conv_depth.weight": ZERO}, "depth head"),
    "DINOv3": (BLOCK | {"storage_tokens": ZERO, "mask_token": ZERO}, "a DINOv3"),
    "an optimizer": ({"state": {}, "param_groups": []}, "an optimizer's state"),
    "a head": (head(0), "a DINO projection head without its backbone"),
    "shards of FSDP": (
        {"model": {"student.backbone._flat_param": ZERO}},
        r"FSDP run; the same run's eval/\*/teacher_checkpoint\.pth",
    ),
    "something unknown": ({"encoder.weight": ZERO}, "no format that is known"),
    "a list": ([1, 2], "a list"),
    "nothing": ({}, "no weights"),
    "a head of another kind": (
        {"backbone.cls_token": ZERO, "backbone.mask_token": ZERO, "neck.bias": ZERO},
        r"tensors are of no format that is known",
    ),
    "a backbone without its sizes": (
        BLOCK | {"mask_token": ZERO},
        r"lack patch_embed\.proj\.weight",
    ),
}
"""What a file is -> its content, and words of the error."""


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_no_backbone_is_told_apart(tmp_path, kind):
    content, words = WRONG[kind]
    path = arrays.write_torch(tmp_path / "weights.pth", content)
    with pytest.raises(ValueError, match=words) as error:
        read.read_weights(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08\x00 gzip", "unpack it first"),
        (b"\x89HDF\r\n\x1a\n\x00", "an HDF5 file"),
        (b"just words", "not a PyTorch file"),
        (b"", "is empty"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{ no header but it ", "safetensors"),
    ],
)
def test_a_file_that_is_no_weights_is_told_apart(tmp_path, data, words):
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read.read_weights(path)


def test_a_path_of_nothing_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no file or folder. Give a DINOv2 back"):
        read.read_weights(tmp_path / "none")
    with pytest.raises(ValueError, match="no checkpoint of a run, no model.safetens"):
        read.read_weights(tmp_path)


def test_quantised_weights_are_refused(tmp_path, official):
    quantised = official | {"norm.weight": np.ones(192, np.int64)}
    path = arrays.write_torch(tmp_path / "weights.pth", quantised)
    with pytest.raises(ValueError, match=r"norm\.weight is of type int64"):
        read.read_weights(path)


@pytest.mark.parametrize(
    ("note", "words"),
    [
        ({"heads": 5}, "heads=5 at width 192"),
        ({"heads": "two"}, "heads='two'"),
        ({"offset": 1.5}, "offset=1.5"),
        ({"registers": 4}, "registers 4 against 0"),
    ],
)
def test_a_note_that_cannot_be_true_is_refused(tmp_path, official, note, words):
    path = write_safetensors(tmp_path / "a.safetensors", official, **note)
    with pytest.raises(ValueError, match=words):
        read.read_weights(path)


def test_doubled_blocks_and_tensors_are_refused(official):
    name = "blocks.1.norm1.bias"
    twice = official | {"blocks.0.1.norm1.bias": official[name]}
    with pytest.raises(ValueError, match="Some blocks are there twice"):
        names.unchunked(twice)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mlp.1.running_mean": ZERO}, r"unexpected mlp\.1\.running_mean"),
        ({"mlp.2.bias": None}, r"missing mlp\.2\.bias"),
        ({"last_layer.weight_v": ZERO}, r"mis-shaped last_layer\.weight_v: \(2,\)"),
        ({"last_layer.weight_g": None}, r"missing last_layer\.weight_g"),
    ],
)
def test_a_head_of_another_make_is_refused(change, words):
    state = {k: v for k, v in (head(0) | change).items() if v is not None}
    with pytest.raises(ValueError, match=words):
        names.head_from_official(state)


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_heads_of_any_depth_come_back(depth):
    state = head(0, layers=depth)
    newer = {new: state[old] for new, old in names.NEWER_NORM.items()}
    newer |= {name: value for name, value in state.items() if "weight_" not in name}
    for given in (state, newer):
        assert same(names.head_to_official(names.head_from_official(given)), state)
