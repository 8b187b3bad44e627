"""Released heads: their tensors, their sizes, and PyTorch's output on the same weights."""

import arrays
import jax
import numpy as np
import peers
import pytest

from dinov2_jax import zoo
from dinov2_jax.convert import export
from dinov2_jax.convert import probes as convert
from dinov2_jax.models import probes

WIDTH, GRID = 24, (6, 9)


def features(count: int, seed: int = 0) -> list:
    """Patch maps and cls tokens of some blocks."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.normal(size=(2, *GRID, WIDTH)).astype(np.float32),
            rng.normal(size=(2, WIDTH)).astype(np.float32),
        )
        for _ in range(count)
    ]


def random_state(shapes: dict) -> dict[str, np.ndarray]:
    """Tensors of a head; a variance is positive."""
    rng, found = np.random.default_rng(1), {}
    for name, shape in shapes.items():
        value = rng.normal(size=shape) * max(np.prod(shape[1:]), 1) ** -0.5
        found[name] = (np.abs(value) + 0.5 if "var" in name else value).astype("f4")
    return found


def dpt_shapes(width: int, widths: tuple, channels: int) -> dict[str, tuple]:
    """Official names and shapes of a DPT head."""
    c, found = channels, {}
    for i, w in enumerate(widths):
        found |= {
            f"reassemble_blocks.readout_projects.{i}.0.weight": (width, 2 * width),
            f"reassemble_blocks.readout_projects.{i}.0.bias": (width,),
            f"reassemble_blocks.projects.{i}.conv.weight": (w, width, 1, 1),
            f"reassemble_blocks.projects.{i}.conv.bias": (w,),
            f"convs.{i}.conv.weight": (c, w, 3, 3),
            f"fusion_blocks.{i}.project.conv.weight": (c, c, 1, 1),
            f"fusion_blocks.{i}.project.conv.bias": (c,),
        }
        for unit in (1, 2)[i == 0 :]:
            for conv in (1, 2):
                name = f"fusion_blocks.{i}.res_conv_unit{unit}.conv{conv}.conv.weight"
                found[name] = (c, c, 3, 3)
    for i, side in ((0, 4), (1, 2), (3, 3)):
        name = f"reassemble_blocks.resize_layers.{i}"
        found[f"{name}.weight"] = (widths[i], widths[i], side, side)
        found[f"{name}.bias"] = (widths[i],)
    found |= {"project.conv.weight": (c, c, 3, 3), "project.conv.bias": (c,)}
    for i, shape in (
        (0, (c // 2, c, 3, 3)),
        (2, (32, c // 2, 3, 3)),
        (4, (1, 32, 1, 1)),
    ):
        found[f"conv_depth.head.{i}.weight"] = shape
        found[f"conv_depth.head.{i}.bias"] = shape[:1]
    return found


def segmentation_shapes(width: int, classes: int) -> dict[str, tuple]:
    """Official names and shapes of a segmentation head over that many channels."""
    norm = {f"bn.{n}": (width,) for n in ("weight", "bias")}
    norm |= {f"bn.running_{n}": (width,) for n in ("mean", "var")}
    conv = {"conv_seg.weight": (classes, width, 1, 1), "conv_seg.bias": (classes,)}
    return norm | conv


SHAPES = {
    "linear": {"weight": (10, 2 * WIDTH), "bias": (10,)},
    "linear4": {"weight": (10, 5 * WIDTH), "bias": (10,)},
    "depth": {
        "conv_depth.weight": (16, 2 * WIDTH, 1, 1),
        "conv_depth.bias": (16,),
    },
    "depth4": {
        "conv_depth.weight": (16, 8 * WIDTH, 1, 1),
        "conv_depth.bias": (16,),
    },
    "dpt": dpt_shapes(WIDTH, (8, 12, 16, 20), 16),
    "segmentation": segmentation_shapes(WIDTH, 7),
    "ms": segmentation_shapes(4 * WIDTH, 7),
}
LAYERS = {"linear": 1, "depth": 1, "segmentation": 1}


def ours(kind: str, layers: list) -> np.ndarray:
    """Our output."""
    head, variables = convert.read_head(random_state(SHAPES[kind]))
    given = probes.linear_input(layers) if kind.startswith("linear") else layers
    with jax.default_matmul_precision("highest"):
        return np.asarray(head.apply(variables, given))


def theirs(kind: str, layers: list) -> np.ndarray:
    """The same by PyTorch's functions."""
    torch = peers.package("torch", "torch")
    f = torch.nn.functional
    state = {k: torch.tensor(v) for k, v in random_state(SHAPES[kind]).items()}
    maps = [(torch.tensor(p).permute(0, 3, 1, 2), torch.tensor(c)) for p, c in layers]

    def conv(x, name, **options):
        return f.conv2d(
            x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options
        )

    def with_cls(patches, cls):
        return torch.cat([patches, cls[:, :, None, None].expand_as(patches)], 1)

    if kind.startswith("linear"):
        parts = [cls for _, cls in maps] + [maps[-1][0].flatten(2).mean(2)]
        return f.linear(torch.cat(parts, 1), state["weight"], state["bias"]).numpy()
    if kind.startswith("depth"):
        grown = [
            f.interpolate(with_cls(*m), scale_factor=4, mode="bilinear") for m in maps
        ]
        shares = torch.relu(conv(torch.cat(grown, 1), "conv_depth")) + 0.1
        shares = shares / shares.sum(1, keepdim=True)
        bins = torch.linspace(1e-3, 10, shares.shape[1])
        return torch.einsum("bkhw,k->bhw", shares, bins).numpy()
    if kind in ("segmentation", "ms"):
        x = torch.cat([patches for patches, _ in maps], 1)
        stats = (state[f"bn.running_{n}"] for n in ("mean", "var"))
        x = f.batch_norm(x, *stats, state["bn.weight"], state["bn.bias"])
        return conv(x, "conv_seg").permute(0, 2, 3, 1).numpy()
    return dpt(torch, state, maps, conv, with_cls).numpy()


def dpt(torch, state, maps, conv, with_cls):
    """A DPT decoder by PyTorch's functions."""
    f, found = torch.nn.functional, []
    for i, layer in enumerate(maps):
        name = f"reassemble_blocks.readout_projects.{i}.0"
        x = with_cls(*layer).permute(0, 2, 3, 1)
        x = f.gelu(f.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]))
        x = conv(x.permute(0, 3, 1, 2), f"reassemble_blocks.projects.{i}.conv")
        name = f"reassemble_blocks.resize_layers.{i}"
        if i < 2:
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            x = f.conv_transpose2d(x, weight, bias, stride=weight.shape[-1])
        elif i == 3:
            x = conv(x, name, stride=2, padding=1)
        found.append(conv(x, f"convs.{i}.conv", padding=1))

    def unit(x, name):
        y = conv(torch.relu(x), f"{name}.conv1.conv", padding=1)
        return x + conv(torch.relu(y), f"{name}.conv2.conv", padding=1)

    x = None
    for i, finer in enumerate(reversed(found)):
        name = f"fusion_blocks.{i}"
        if x is None:
            x = finer
        else:
            if finer.shape != x.shape:
                finer = f.interpolate(finer, x.shape[2:], mode="bilinear")
            x = x + unit(finer, f"{name}.res_conv_unit1")
        x = unit(x, f"{name}.res_conv_unit2")
        x = f.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = conv(x, f"{name}.project.conv")
    x = torch.relu(conv(x, "project.conv", padding=1))
    x = conv(x, "conv_depth.head.0", padding=1)
    x = f.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    x = torch.relu(conv(x, "conv_depth.head.2", padding=1))
    return torch.relu(conv(x, "conv_depth.head.4"))[:, 0] + 1e-3


@pytest.mark.torch
@pytest.mark.parametrize("kind", SHAPES)
def test_a_head_gives_what_pytorch_gives(kind):
    layers = features(LAYERS.get(kind, 4))
    got, want = ours(kind, layers), theirs(kind, layers)
    assert got.shape == want.shape
    # float32 products in another order, through up to twenty layers
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(("old", "new"), [(5, 10), (6, 9), (9, 4), (1, 3), (4, 1)])
def test_bilinear_weights_are_those_of_the_definition(old, new, align):
    got = probes.bilinear_weights(old, new, align)
    for i in range(new):
        at = i * (old - 1) / max(new - 1, 1) if align else (i + 0.5) * old / new - 0.5
        row = np.interp(np.clip(at, 0, old - 1), np.arange(old), np.arange(old))
        np.testing.assert_allclose(got[i] @ np.arange(old), row, atol=1e-6)
        np.testing.assert_allclose(got[i].sum(), 1, atol=1e-6)


def test_depth_is_the_mean_of_its_bins_in_float64():
    (layer,) = features(1)
    state = random_state(SHAPES["depth"])
    head, variables = convert.read_head(state, max_depth=80.0)
    with jax.default_matmul_precision("highest"):
        got = head.apply(variables, [layer])
    assert got.shape == (2, 4 * GRID[0], 4 * GRID[1])
    # Corners lie outside the centres of the first patch: nothing is interpolated there.
    both = np.concatenate([layer[0][:, 0, 0], layer[1]], 1).astype(np.float64)
    logits = both @ state["conv_depth.weight"][:, :, 0, 0].T + state["conv_depth.bias"]
    shares = np.maximum(logits, 0) + 0.1
    want = shares @ np.linspace(1e-3, 80, 16) / shares.sum(1)
    np.testing.assert_allclose(got[:, 0, 0], want, rtol=1e-5)


def test_batch_norm_learns_its_statistics_in_training():
    head, variables = convert.read_head(random_state(SHAPES["segmentation"]))
    (layer,) = features(1)
    _, changed = head.apply(variables, [layer], True, mutable=["batch_stats"])
    old, new = variables["batch_stats"]["bn"], changed["batch_stats"]["bn"]
    want = 0.9 * old["mean"] + 0.1 * layer[0].mean((0, 1, 2))
    np.testing.assert_allclose(new["mean"], want, atol=1e-5)


PARAMETERS = {  # of the released heads: width -> count
    "linear": {384: 769_000, 768: 1_537_000, 1024: 2_049_000, 1536: 3_073_000},
    "linear4": {384: 1_921_000, 768: 3_841_000, 1024: 5_121_000, 1536: 7_681_000},
    "depth": {384: 196_864, 768: 393_472, 1024: 524_544, 1536: 786_688},
    "depth4": {384: 786_688, 768: 1_573_120, 1024: 2_097_408, 1536: 3_145_984},
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_released_heads_have_so_many_parameters(kind):
    for width, count in PARAMETERS[kind].items():
        layers = 4 if kind.endswith("4") else 1
        one = (np.zeros((1, 2, 2, width), "f4"), np.zeros((1, width), "f4"))
        if kind.startswith("linear"):
            head, given = probes.LinearClassifier(), probes.linear_input([one] * layers)
        else:
            head, given = probes.LinearDepth(), [one] * layers
        shapes = jax.eval_shape(head.init, jax.random.key(0), given)
        assert sum(x.size for x in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("width", [384, 768, 1024, 1536])
def test_a_dpt_head_of_released_size_has_the_official_tensors(width):
    widths = tuple(width // 2 ** (3 - i) for i in range(4))
    table = dpt_shapes(width, widths, 256)
    one = (np.zeros((1, 4, 4, width), "f4"), np.zeros((1, width), "f4"))
    shapes = jax.eval_shape(probes.DPTDepth(widths).init, jax.random.key(0), [one] * 4)
    total = sum(x.size for x in jax.tree.leaves(shapes))
    assert total == sum(int(np.prod(shape)) for shape in table.values())


def test_names_may_carry_prefixes_and_counters_are_left_out():
    state = random_state(SHAPES["segmentation"])
    plain = convert.read_head(state)[1]
    wrapped = {f"decode_head.{k}": v for k, v in state.items()}
    wrapped["decode_head.bn.num_batches_tracked"] = np.array(7)
    _, found = convert.read_head({"state_dict": wrapped})
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), plain, found))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_head_that_is_not_whole_is_refused_by_name(kind):
    state = random_state(SHAPES[kind])
    marks = set(convert.MARKS)
    lost = next(name for name in state if name not in marks)
    with pytest.raises(ValueError, match=f"missing {lost}; unexpected extra"):
        convert.read_head(
            {k: v for k, v in state.items() if k != lost} | {"extra": state[lost]}
        )
    spoiled = state | {lost: state[lost][None]}
    with pytest.raises(ValueError, match=f"mis-shaped {lost}"):
        convert.read_head(spoiled)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_head_whose_sizes_do_not_fit_each_other_is_refused_by_name(kind):
    state = random_state(SHAPES[kind])
    bias = next(name for name in state if name.endswith("bias"))
    with pytest.raises(ValueError, match="fit together: the sizes of"):
        convert.read_head(state | {bias: np.append(state[bias], state[bias])})


def test_what_is_no_head_is_refused():
    with pytest.raises(ValueError, match="of no released head: blocks.0.x"):
        convert.read_head({"blocks.0.x": np.zeros(3)})
    with pytest.raises(ValueError, match="no state dict"):
        convert.read_head({"epoch": 3})


@pytest.mark.parametrize("source", ["head.pth", "dinov2_vits14_linear4"])
def test_a_head_is_loaded_from_a_file_or_by_its_name(source, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path))  # as if downloaded before
    state = random_state(SHAPES["linear4"])
    names = {"head.pth": "head.pth"}
    arrays.write_torch(tmp_path / names.get(source, f"{source}_head.pth"), state)
    given = tmp_path / source if source in names else source
    head, variables = zoo.load_head(given)
    assert isinstance(head, probes.LinearClassifier)
    assert (variables["params"]["linear"]["kernel"] == state["weight"].T).all()


def test_a_head_is_told_by_what_its_file_holds(tmp_path):
    path, state = tmp_path / "head.pth", random_state(SHAPES["linear"])
    export.write_safetensors(path, state, {})
    assert isinstance(zoo.load_head(path)[0], probes.LinearClassifier)


def test_a_head_of_an_unknown_name_is_met_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean dinov2_vits14_nyu_dpt"):
        zoo.load_head("dinov2_vits14_nyu_dtp")


def test_released_heads_have_the_addresses_of_the_reference():
    found = zoo.HEADS
    base = "https://dl.fbaipublicfiles.com/dinov2"
    for name, url in {
        "dinov2_vits14_linear": "dinov2_vits14/dinov2_vits14_linear_head.pth",
        "dinov2_vitg14_nyu_dpt": "dinov2_vitg14/dinov2_vitg14_nyu_dpt_head.pth",
        "dinov2_vitb14_ade20k_ms": "dinov2_vitb14/dinov2_vitb14_ade20k_ms_head.pth",
        "dinov2_vitl14_reg_linear4": (
            "dinov2_vitl14/dinov2_vitl14_reg4_linear4_head.pth"
        ),
    }.items():
        assert found[name] == f"{base}/{url}"
    assert len(found) == 4 * (2 + 3 + 3 + 4) + 4 * 2
