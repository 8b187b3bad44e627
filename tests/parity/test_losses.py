"""Losses, targets and centres against the reference's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.train import losses


def close(got, want, tolerance, relative=0.0):
    """Equal within an absolute tolerance (or a relative one where given)."""
    np.testing.assert_allclose(np.asarray(got), want, atol=tolerance, rtol=relative)


@pytest.fixture(scope="module")
def data(arrays):
    """losses.npz."""
    return arrays("losses")


def views(rows: np.ndarray, images: int) -> jax.Array:
    """Crop-major rows (all images of crop 1, ...) as [B V K]."""
    return jnp.asarray(rows).reshape(-1, images, rows.shape[-1]).swapaxes(0, 1)


def rows(stacked: jax.Array) -> jax.Array:
    """[B V K] back to crop-major rows."""
    return stacked.swapaxes(0, 1).reshape(-1, stacked.shape[-1])


def test_centered_targets_equal_the_reference(data):
    temp = data.meta["dims"]["t"]
    got = losses.centered_targets(
        data["dino/teacher_logits"], data["dino/center_init"][0], temp
    )
    close(got, data["dino/teacher_probs"], 5e-6)
    ibot = losses.centered_targets(
        data["ibot/teacher_logits"][0], data["ibot/center_init"][0, 0], temp
    )
    close(ibot, data["ibot/teacher_probs"], 5e-6)


def test_local_dino_term_and_gradient_equal_the_reference(data):
    images, temp = data.meta["dims"]["B"], data.meta["student_temp"]
    targets = views(data["dino/teacher_probs"], images)
    student = views(data["dino/student_logits"], images)
    unused, number = jnp.zeros_like(targets), targets.shape[1]
    pairs_of_views = number * (student.shape[1] + number) - number

    def local(student):
        both = jnp.concatenate([unused, student], 1)
        pairs = losses.dino_pairs(both, targets, temp)
        return pairs[number:].sum() * pairs_of_views

    value, grad = jax.value_and_grad(local)(student)
    close(value, data["dino/loss_list"], 2e-5, 1e-6)
    close(rows(grad), data["dino/loss_list_grad"], 5e-6)


def test_global_dino_term_and_gradient_equal_the_reference(data):
    # The golden rows pair student and teacher one to one: swapping the teacher's
    # views turns "the same row" into "the other view".
    images, temp = data.meta["dims"]["B"], data.meta["student_temp"]
    targets = views(data["dino/teacher_probs"], images)[:, ::-1]
    value, grad = jax.value_and_grad(
        lambda student: losses.dino_pairs(student, targets, temp).sum()
    )(views(data["dino/student_global"], images))
    close(value, data["dino/loss_global"], 2e-5, 1e-6)
    close(rows(grad), data["dino/loss_global_grad"], 5e-6)


@pytest.mark.parametrize("head", ["dino", "ibot"])
def test_centers_follow_the_reference_step_by_step(data, head):
    center = jnp.zeros(data[f"{head}_center/0/center_used"].shape[-1])
    momentum = data.meta["center_momentum"]
    for i, temp in enumerate(data.meta["center_step_temps"]):
        logits = jnp.asarray(data[f"{head}_center/{i}/logits"])
        close(center, data[f"{head}_center/{i}/center_used"].reshape(-1), 2e-7)
        probs = losses.centered_targets(logits, center, temp)
        close(probs, data[f"{head}_center/{i}/probs"], 5e-6)
        if head == "dino":
            mean = losses.mean_cls_logits(logits[:, None])
        else:
            mean = losses.mean_patch_logits(logits, jnp.ones(logits.shape[:2]))
        center = losses.next_center(center, mean, momentum)
    close(center, data[f"{head}_center/final_center_after_apply"].reshape(-1), 2e-7)


def test_sinkhorn_equals_the_reference_after_so_many_iterations(data):
    temp, usual = data.meta["dims"]["t"], data.meta["sinkhorn_iterations"]
    stored = {n: x for n, x in data.under("dino_sinkhorn").items() if "probs" in n}
    assert stored
    for name, want in stored.items():
        rounds = int(name.removeprefix("probs").removeprefix("_iters") or usual)
        got = losses.sinkhorn_targets(data["dino_sinkhorn/logits"], temp, rounds)
        close(got, want, 5e-6)


def test_sinkhorn_padding_has_no_mass(data):
    temp = data.meta["dims"]["t"]
    number = int(data["ibot_sinkhorn/n_masked_patches"][0])
    logits = jnp.asarray(data["ibot_sinkhorn/buffer_logits"]).at[number:].set(50.0)
    mass = jnp.arange(logits.shape[0]) < number
    rounds = data.meta["sinkhorn_iterations"]
    got = losses.sinkhorn_targets(logits, temp, rounds, mass)
    close(got[:number], data["ibot_sinkhorn/probs_exact"], 5e-6)
    assert not got[number:].any()


def test_ibot_loss_and_gradient_equal_the_reference(data):
    masks = data["ibot/masks"]
    counts = masks.sum(1)
    where = np.flatnonzero(masks)
    assert (where == data["ibot/mask_indices_list"]).all()
    weights = (1 / counts[where // masks.shape[1]]).astype(np.float32)
    close(weights, data["ibot/masks_weight"], 0)
    pad = 3

    def loss(student):
        padded = jnp.pad(student, ((0, pad), (0, 0)))[None]
        targets = jnp.pad(data["ibot/teacher_probs"], ((0, pad), (0, 0)))[None]
        return losses.ibot(
            padded,
            targets,
            jnp.pad(weights, (0, pad))[None],
            len(masks),
            data.meta["student_temp"],
        )

    value, grad = jax.value_and_grad(loss)(jnp.asarray(data["ibot/student_logits"]))
    close(value, data["ibot/loss"], 2e-5, 1e-6)
    close(value, data["ibot/loss_default_weights"], 2e-5, 1e-6)
    close(grad, data["ibot/loss_grad"], 5e-6)


def test_ibot_of_a_whole_layout_equals_the_reference(data):
    masks = data["ibot/masks"]
    where, counts = np.nonzero(masks), np.maximum(masks.sum(1), 1)
    student, targets = (
        data[f"ibot_full/{name}"][where] for name in ("student", "teacher")
    )
    weights = (1 / counts)[where[0]]
    temp = data.meta["student_temp"]
    value = losses.ibot(student[None], targets[None], weights[None], len(masks), temp)
    close(value, data["ibot_full/loss"], 2e-5, 1e-6)


def test_koleo_and_its_gradient_equal_the_reference(data):
    value, grad = jax.value_and_grad(lambda x: losses.koleo(x).sum())(
        jnp.asarray(data["koleo/in"])[None]
    )
    close(value, data["koleo/loss"], 2e-5, 1e-6)
    close(grad[0], data["koleo/grad"], 5e-6)


def test_koleo_of_duplicates_stays_finite_and_near_the_reference(data):
    # Distances of about 5e-8 feel one unit in the last place of the inputs.
    value, grad = jax.value_and_grad(lambda x: losses.koleo(x).sum())(
        jnp.asarray(data["koleo_dup/in"])[None]
    )
    close(value, data["koleo_dup/loss"], 1e-3)
    assert np.isfinite(grad).all()


def test_two_processes_center_like_one_batch_of_two_groups(arrays):
    data = arrays("losses_dist2")
    ranks = range(data.meta["world_size"])
    momentum = arrays("losses").meta["center_momentum"]
    centers = [0.0, 0.0]
    for i, temp in enumerate(data.meta["center_step_temps"]):
        dino = [jnp.asarray(data[f"rank{r}/center/{i}/dino_logits"]) for r in ranks]
        ibot = [data[f"rank{r}/center/{i}/ibot_logits"][0] for r in ranks]
        size = max(len(x) for x in ibot)
        padded = np.stack([np.pad(x, ((0, size - len(x)), (0, 0))) for x in ibot])
        weights = np.stack([np.arange(size) < len(x) for x in ibot])
        for r in ranks:
            got = losses.centered_targets(dino[r], centers[0], temp)
            close(got, data[f"rank{r}/center/{i}/dino_probs"], 5e-6)
            got = losses.centered_targets(ibot[r], centers[1], temp)
            close(got, data[f"rank{r}/center/{i}/ibot_probs"][0], 5e-6)
        means = (
            losses.mean_cls_logits(jnp.stack(dino)),
            losses.mean_patch_logits(padded, weights),
        )
        centers = [losses.next_center(c, m, momentum) for c, m in zip(centers, means)]
    for r in ranks:
        close(centers[0], data[f"rank{r}/center/final_dino"].reshape(-1), 2e-7)
        close(centers[1], data[f"rank{r}/center/final_ibot"].reshape(-1), 2e-7)


def test_two_processes_sinkhorn_like_one_batch_of_two_groups(arrays):
    data = arrays("losses_dist2")
    ranks, temp = range(data.meta["world_size"]), data.meta["teacher_temp"]
    dino = jnp.stack([data[f"rank{r}/sinkhorn/dino_logits"] for r in ranks])
    ibot = [data[f"rank{r}/sinkhorn/ibot_logits"] for r in ranks]
    size = max(len(x) for x in ibot)
    padded = np.stack([np.pad(x, ((0, size - len(x)), (0, 0))) for x in ibot])
    mass = np.stack([np.arange(size) < len(x) for x in ibot])
    rounds = arrays("losses").meta["sinkhorn_iterations"]
    got_dino = losses.sinkhorn_targets(dino, temp, rounds)
    got_ibot = losses.sinkhorn_targets(padded, temp, rounds, mass)
    for r in ranks:
        close(got_dino[r], data[f"rank{r}/sinkhorn/dino_probs"], 5e-6)
        close(got_ibot[r][mass[r]], data[f"rank{r}/sinkhorn/ibot_probs"], 5e-6)
        assert mass.sum() == data[f"rank{r}/sinkhorn/n_masked_after_allreduce"][0]
