"""Schedules, parameter groups, stochastic depth and whole training runs."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dinov2_jax.convert import names
from dinov2_jax.data import batch as contract
from dinov2_jax.models import layers, vit
from dinov2_jax.train import optim, schedules, step
from parity import trajectory


def test_schedules_equal_the_reference_in_float64(arrays):
    data = arrays("schedules")
    cfg = data.meta["config"]
    made = trajectory.schedules_of(cfg, cfg["OFFICIAL_EPOCH_LENGTH"])
    rate = made.pop("ema_rate")
    made["momentum"] = lambda at: 1 - rate(at)
    with jax.enable_x64(True):
        for name, schedule in made.items():
            want = data["sched/" + {"weight_decay": "wd"}.get(name, name)]
            got = schedule(jnp.arange(len(want), dtype=jnp.int64))
            trajectory.close(got, want, 1e-12)


def test_learning_rate_is_scaled_as_in_the_reference(arrays):
    cfg = arrays("schedules").meta["config"]
    images = cfg["batch_size_per_gpu"] * cfg["world_size"]
    rule, _, reference = cfg["scaling_rule"].partition("_wrt_")
    got = schedules.scaled_lr(cfg["base_lr"], images, rule, int(reference))
    trajectory.close(got, cfg["lr"], 1e-12)


def golden_groups(golden) -> dict:
    """param_groups.json."""
    return json.loads((golden / "param_groups.json").read_text())


def spread(values, shapes):
    """A tree of factors broadcast to the leaves' shapes."""
    return jax.tree.map(
        lambda v, s: np.broadcast_to(np.float64(v), s.shape), values, shapes
    )


def test_parameter_groups_equal_the_reference(golden):
    groups = golden_groups(golden)
    backbones = [name for name in groups if name.startswith("backbone_")]
    assert backbones
    for name in backbones:
        check_backbone_groups(groups["meta"], groups[name], name)


def check_backbone_groups(meta, want, ffn):
    """Asserts that a backbone's factors equal the reference's."""
    model = vit.ViT(
        width=meta["embed"],
        depth=meta["depth"],
        heads=meta["heads"],
        patch_size=meta["patch"],
        image_size=meta["img"],
        registers=meta["nreg"] if "reg" in ffn else 0,
        ffn="swiglu" if "swiglu" in ffn else "mlp",
    )
    x = jnp.zeros((1, meta["img"], meta["img"], 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    params = {"backbone": shapes["params"]}
    factors = optim.multipliers(params, meta["decay"], meta["pe"])
    lr, decay, last = (
        names.backbone_to_official(spread(f, params)["backbone"], meta["patch"])
        for f in factors
    )
    # a chunked model's names carry the chunk; the absolute block number counts
    for plain, expected in names.unchunked(want).items():
        assert list(lr[plain].shape) == expected["shape"]
        trajectory.close(
            lr[plain], expected["lr_multiplier"], 0, 1e-6
        )  # float32 factors
        assert (decay[plain] == expected["wd_multiplier"]).all()
        assert (last[plain] == expected["is_last_layer"]).all()
    assert len(want) == len(lr)


def test_head_groups_equal_the_reference(golden):
    groups = golden_groups(golden)
    heads = [name for name in groups if name.endswith("_head")]
    assert heads
    for head in heads:
        check_head_groups(groups[head], head)


def check_head_groups(want, head):
    """Asserts that a head's factors equal the reference's."""
    state_dict = {name: np.zeros(entry["shape"]) for name, entry in want.items()}
    backbone = {"blocks": {"ls1": {"gamma": np.zeros((2, 4))}}}
    params = {"backbone": backbone, head: names.head_from_official(state_dict)}
    factors = optim.multipliers(params)
    lr, decay, last = (names.head_to_official(spread(f, params)[head]) for f in factors)
    for name, expected in want.items():
        assert (lr[name] == expected["lr_multiplier"]).all()
        assert (decay[name] == expected["wd_multiplier"]).all()
        assert (last[name] == expected["is_last_layer"]).all()
    assert len(want) == len(lr)


def block_of(data, tag) -> tuple[layers.Block, dict]:
    """The golden block without its own randomness, and its parameters."""
    weights = data.under(f"{tag}/weights")
    gamma = weights["ls1.gamma"]
    stacked = {f"blocks.0.{name}": value for name, value in weights.items()}
    model = vit.ViT(width=len(gamma), depth=1, heads=data.meta["heads"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 14, 14, 3)))
    only = {"blocks": shapes["params"]["blocks"]}
    params = names.backbone_from_official(stacked, only)
    return jax.tree.map(lambda a: jnp.asarray(a[0]), params["blocks"])


def run_block(data, tag, entries, kept, weights):
    """The golden block with given rows kept in its two branches."""
    params = block_of(data, tag)
    layout = tuple(x.shape[:2] for x in entries)
    heads = data.meta["heads"]

    def module(cls, name, *args, **kwargs):
        apply = cls(*args, **kwargs).apply
        return lambda x, *rest: apply({"params": params[name]}, x, *rest)

    norms = [module(vit.nn.LayerNorm, n, 1e-6) for n in ("norm1", "norm2")]
    scales = [module(layers.LayerScale, n, 1.0) for n in ("ls1", "ls2")]
    attention = module(layers.Attention, "attn", heads)
    feed = module(layers.Mlp, "mlp", params["mlp"]["fc1"]["kernel"].shape[1])
    x = layers.pack([jnp.asarray(e)[None] for e in entries])
    branches = (
        lambda y, part: scales[0](attention(norms[0](y), part)),
        lambda y, part: scales[1](feed(norms[1](y))),
    )
    for branch, rows, factor in zip(branches, kept, weights):
        rows = [jnp.asarray(r)[None] for r in rows]
        factor = [jnp.asarray(f, jnp.float32)[None] for f in factor]
        x = layers.subset_residual(x, layout, rows, factor, branch)
    return [s[0] for s in layers.unpack(x, layout)]


def test_stochastic_depth_equals_the_reference_with_its_permutations(arrays):
    data = arrays("stochastic_depth")
    for case in data.meta["cases"]:
        tag, sizes = case["tag"], case["list_subset_sizes"]
        entries = [data[f"{tag}/in/{i}"] for i in range(len(sizes))]
        got = [layers.subset_size(len(x), case["rate"]) for x in entries]
        assert got == sizes
        kept = [
            [data[f"{tag}/list/perm/{part}/{i}"][:s] for i, s in enumerate(sizes)]
            for part in ("attn", "ffn")
        ]
        factor = [np.full(s, len(x) / s) for x, s in zip(entries, sizes)]
        trajectory.close([f[0] for f in factor], case["list_scale"], 1e-6)
        out = run_block(data, tag, entries, kept, [factor, factor])
        for i, rows in enumerate(out):
            trajectory.close(rows, data[f"{tag}/list/out/{i}"], 2e-5)
        whole = [[np.arange(len(x)) for x in entries]] * 2
        plain = [[np.ones(len(x)) for x in entries]] * 2
        for i, rows in enumerate(run_block(data, tag, entries, whole, plain)):
            trajectory.close(rows, data[f"{tag}/eval/out/{i}"], 2e-5)


def test_stochastic_depth_of_one_batch_equals_the_reference(arrays):
    data = arrays("stochastic_depth")
    for case in data.meta["cases"]:
        tag, x = case["tag"], data[f"{case['tag']}/in/0"]
        if f"{tag}/tensor/perm/attn" in data:
            size = layers.subset_size(len(x), case["rate"])
            kept = [[data[f"{tag}/tensor/perm/{p}"][:size]] for p in ("attn", "ffn")]
            factors = [[np.full(size, len(x) / size)]] * 2
        else:
            kept = [[np.arange(len(x))]] * 2
            keeps = [
                data[f"{tag}/tensor/keep/{p}"].reshape(-1) for p in ("attn", "ffn")
            ]
            # the stored keep mask is already divided by the probability, or not
            factors = [[k / k.max() / (1 - case["rate"])] for k in keeps]
        (out,) = run_block(data, tag, [x], kept, factors)
        trajectory.close(out, data[f"{tag}/tensor/out"], 2e-5)


@pytest.fixture(scope="module")
def run(arrays):
    """run(stem) -> (Golden, states after each step with the initial one, metrics)."""

    @functools.cache
    def go(stem):
        golden_run = trajectory.Golden(arrays, stem)
        jitted = jax.jit(functools.partial(step.train_step, golden_run.recipe))
        states, metrics = [golden_run.state("init")], []
        for number in range(1, golden_run.steps + 1):
            new, terms = jitted(states[-1], golden_run.batch(number))
            states.append(new)
            metrics.append(jax.device_get(terms))
        return golden_run, states, metrics

    return go


def test_losses_of_the_trajectory_equal_the_reference(run, trajectory_file):
    golden_run, _, metrics = run(trajectory_file)
    scalars = golden_run.data.under("step_scalars")
    recipe = golden_run.recipe
    local = golden_run.cfg["crops"]["local_crops_number"]
    # (our name, its name, weight, factor): the reference displays KoLeo weighted and halved, iBOT
    # halved, and nothing that has no weight
    shown = [
        ("dino_local", "dino_local_crops_loss", recipe.dino_weight * local, 1),
        ("dino_global", "dino_global_crops_loss", recipe.dino_weight, 1),
        ("koleo", "koleo_loss", recipe.koleo_weight, 2 / (recipe.koleo_weight or 1)),
        ("ibot", "ibot_loss", recipe.ibot_weight, 2),
    ]
    for i, terms in enumerate(metrics):
        tolerance = 1e-5 if i == 0 else 2e-5
        trajectory.close(terms["loss/total"], scalars["loss/total"][i], tolerance)
        for ours, theirs, weight, factor in shown:
            if not weight:
                continue
            want = scalars[f"loss/{theirs}"][i] * factor
            wide = tolerance / weight if ours == "koleo" else 2 * tolerance
            trajectory.close(terms[f"loss/{ours}"], want, wide)


def test_schedules_of_the_trajectory_equal_the_reference(run, trajectory_file):
    golden_run, _, metrics = run(trajectory_file)
    scalars = golden_run.data.under("step_scalars")
    for i, terms in enumerate(metrics):
        for ours, theirs in (
            ("lr", "lr"),
            ("last_layer_lr", "last_layer_lr"),
            ("weight_decay", "wd"),
            ("teacher_temp", "teacher_temp"),
        ):
            trajectory.close(
                terms[f"sched/{ours}"], scalars[theirs][i], 1e-9, 1e-6
            )  # float32
        trajectory.close(
            terms["sched/ema_rate"], 1 - scalars["momentum"][i], 1e-9, 1e-6
        )


def test_gradient_norms_of_the_trajectory_equal_the_reference(run, trajectory_file):
    golden_run, _, metrics = run(trajectory_file)
    norms = golden_run.data.under("step_scalars/norm")
    assert set(norms) == set(golden_run.params("init"))
    for name, want in norms.items():
        trajectory.close([m[f"grad_norm/{name}"] for m in metrics], want, 5e-5)


def test_centers_of_the_trajectory_equal_the_reference(run, trajectory_file):
    golden_run, states, _ = run(trajectory_file)
    for number in range(1, golden_run.steps + 1):
        for head in ("dino", "ibot"):
            used = golden_run.data.get(f"step{number}/{head}_center_used")
            mine = getattr(states[number - 1].centers, head)
            want = np.zeros(mine.shape) if used is None else used.reshape(-1)
            trajectory.close(mine, want, 3e-7)


def test_gradients_of_the_first_step_equal_the_reference(run, trajectory_file):
    golden_run, states, _ = run(trajectory_file)
    recipe, batch, first = golden_run.recipe, golden_run.batch(1), states[0]
    temp = recipe.schedules["teacher_temp"](0)

    @jax.jit
    def gradient(first, batch):
        targets, _ = step.teach(recipe, first.teacher, first.centers, batch, temp)
        return step.ssl_grad(first.params, recipe, batch, targets, jax.random.key(0))[0]

    got = golden_run.official(gradient(first, batch))
    for name, want in golden_run.stored("grads/step1").items():
        trajectory.close(
            got[name], want, min(5e-6, max(1e-7, 2e-5 * np.abs(want).max()))
        )


def test_weights_of_the_trajectory_equal_the_reference(run, trajectory_file):
    golden_run, states, _ = run(trajectory_file)
    peak = golden_run.cfg["optim"]["lr"]
    snapshots = [
        (number, prefix, part, tolerance)
        for network, part, tolerance in (
            ("student", "params", 2e-6),
            ("teacher", "teacher", 1e-6),
        )
        for number, prefix in golden_run.snapshots(network).items()
    ]
    for number, prefix, part, tolerance in snapshots:
        got = golden_run.official(getattr(states[number], part))
        off = []
        for name, want in golden_run.stored(prefix).items():
            difference = np.abs(got[name] - want)
            if name.endswith("attn.qkv.bias"):  # the key's own part is rounding noise
                difference = np.delete(difference.reshape(3, -1), 1, axis=0)
            off.append(difference.ravel())
        off = np.concatenate(off)
        assert (off <= tolerance).mean() >= 0.999, prefix
        assert off.max() <= peak, prefix


def test_first_teacher_update_equals_the_reference(run, trajectory_file):
    golden_run, states, _ = run(trajectory_file)
    before, after = (golden_run.official(states[i].teacher) for i in (0, 1))
    rate = 1 - golden_run.data["step_scalars/momentum"][0]
    peak = golden_run.cfg["optim"]["lr"]
    for name, want in golden_run.stored("teacher_after_step1_delta").items():
        delta = (after[name] - before[name]).astype(np.float64)
        # one unit in the last place of a weight near 1, over all entries
        noise = 6e-8 * np.sqrt(delta.size) + rate * peak * 1e-2
        if name.endswith("attn.qkv.bias"):  # the key's third takes random steps
            noise += rate * peak * np.sqrt(delta.size / 3)
        trajectory.close(np.linalg.norm(delta), want[0], noise)


def test_stored_gradients_give_the_stored_weights(run, trajectory_file):
    golden_run, states, _ = run(trajectory_file)
    recipe, first = golden_run.recipe, states[0]
    grads = golden_run.params("grads/step1")
    rates = {name: recipe.schedules[name](0) for name in optim.RATES}
    fresh = recipe.tx.init(first.params)
    updates, _ = recipe.tx.update(grads, fresh, first.params, **rates)
    got = golden_run.official(optax.apply_updates(first.params, updates))
    for name, want in golden_run.stored("student_after_step1").items():
        # float32 rounding of weights up to 4 and of the Adam quotient at tiny gradients
        trajectory.close(got[name], want, 3e-7)


def test_losses_after_stored_steps_equal_the_reference(run, trajectory_file):
    golden_run, states, _ = run(trajectory_file)
    student, teacher = map(golden_run.snapshots, ("student", "teacher"))
    numbers = (set(student) & set(teacher)) - {golden_run.steps}
    assert numbers
    update = jax.jit(functools.partial(step.train_step, golden_run.recipe))
    for number in numbers:
        start = golden_run.state(student[number], teacher[number])
        centers = states[number].centers  # have a test of their own
        start = start.replace(step=jnp.int32(number), centers=centers)
        _, terms = update(start, golden_run.batch(number + 1))
        want = golden_run.data["step_scalars/loss/total"][number]
        trajectory.close(terms["loss/total"], want, 2e-5)


@pytest.mark.slow  # tests/test_sharding.py accumulates a smaller model
def test_gradient_accumulation_gives_the_same_step(run, trajectory_file):
    golden_run, states, _ = run(trajectory_file)
    batch, images = golden_run.batch(1), golden_run.dims["B"]
    if images % 2 or images < 4:
        pytest.skip(f"{images} images make no two groups of neighbours")
    per_image = batch.masks.reshape(2, images // 2 * batch.masks.shape[1], -1)
    packed = contract.pack_masks(
        np.asarray(per_image), batch.masks.shape[1], batch.mask_indices.shape[1]
    )
    two_groups = batch.replace(mask_indices=packed[1], mask_weights=packed[2])
    results = []
    for parts in (1, 2):
        recipe = dataclasses.replace(golden_run.recipe, accumulate=parts)
        results.append(
            jax.jit(functools.partial(step.train_step, recipe))(states[0], two_groups)
        )
    (_, whole), (_, parts) = results
    for name in whole:
        trajectory.close(
            parts[name], whole[name], 2e-5, 1e-5
        )  # another order of float32 sums
