"""Checkpoints: which are kept, and which is chosen from a folder that was damaged."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2_jax import checkpoint, resume

STEPS = (2, 4, 6)


def state(step: int) -> dict:
    """A small state that tells its step."""
    return {"step": jnp.int32(step), "w": jnp.full((3, 5), step, jnp.float32)}


SHAPES = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Checkpoints of three steps."""
    folder = tmp_path_factory.mktemp("checkpoints") / "checkpoints"
    with checkpoint.manager(folder, keep=3) as checkpoints:
        for step in STEPS:
            checkpoint.save(checkpoints, step, state(step), {"next_step": step})
    return folder


def found(folder):
    """(step, its w) of what is chosen, None if there is nothing, or the error."""
    try:
        with checkpoint.manager(folder, keep=3) as checkpoints:
            chosen = resume.newest(checkpoints, SHAPES)
    except ValueError as error:
        return error
    if chosen is None:
        return None
    step, restored, note = chosen
    assert note == {"next_step": step} and int(restored["step"]) == step
    assert (np.asarray(restored["w"]) == step).all()
    return step


def test_the_newest_is_chosen(whole):
    assert found(whole) == 6


DAMAGE = st.tuples(
    st.sampled_from(STEPS),
    st.integers(0, 40),
    st.sampled_from(["truncate", "delete", "garbage", "empty", "folder"]),
)
JUNK = st.sampled_from(
    ["8", "notes.txt", "7.orbax-checkpoint-tmp", "007", "-3", "9/state", "latest"]
)


def damage(folder, step: int, number: int, how: str) -> None:
    """Spoil one file of a checkpoint, or all of it."""
    files = sorted(p for p in (folder / str(step)).rglob("*") if p.is_file())
    if how == "folder" or not files:
        shutil.rmtree(folder / str(step), ignore_errors=True)
        return
    path = files[number % len(files)]
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
    else:
        ends = {"truncate": data[: len(data) // 2], "empty": b""}
        path.write_bytes(ends.get(how, bytes(x ^ 0x5A for x in data)))


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(st.lists(DAMAGE, min_size=1, max_size=4), st.lists(JUNK, max_size=2))
def test_whatever_a_crash_left_a_sound_checkpoint_or_a_clear_error(
    whole, tmp_path_factory, damages, junk
):
    folder = tmp_path_factory.mktemp("damaged") / "checkpoints"
    shutil.copytree(whole, folder)
    for one in damages:
        damage(folder, *one)
    for name in junk:
        path = folder / name
        if name == "notes.txt":
            path.write_text("mine")
        else:
            path.mkdir(parents=True, exist_ok=True)
    chosen = found(folder)
    untouched = set(STEPS) - {step for step, _, _ in damages}
    if untouched:
        # one that was damaged where it does not matter may be newer
        assert chosen in STEPS and chosen >= max(untouched)
    elif isinstance(chosen, ValueError):
        assert "choose another --workdir" in str(chosen) and "\n" not in str(chosen)
    else:
        assert chosen is None or chosen in STEPS
    shutil.rmtree(folder.parent)


def test_the_latest_the_best_and_every_kth_are_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    with checkpoint.manager(folder, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 11):
            accuracy = {3: 0.9}.get(step, 0.1)
            checkpoint.save(checkpoints, step, state(step), {}, accuracy)
            checkpoints.wait_until_finished()
        assert sorted(checkpoints.all_steps()) == [3, 4, 8, 9, 10]


def test_a_step_and_its_batch_come_back_as_they_were(tmp_path):
    from dinov2_jax.data.batch import Batch

    rng = np.random.default_rng(0)
    batch = Batch(*(jnp.asarray(rng.normal(size=(8, i + 1))) for i in range(5)))
    checkpoint.save_step(tmp_path / "failed/7", state(6), batch)
    where = jax.tree.map(lambda x: x.sharding, batch)
    back, same = checkpoint.restore_step(tmp_path / "failed/7", SHAPES, where)
    for a, b in zip(jax.tree.leaves((back, same)), jax.tree.leaves((state(6), batch))):
        assert a.dtype == b.dtype and (np.asarray(a) == np.asarray(b)).all()
    with pytest.raises(ValueError, match="holds no step of this config"):
        checkpoint.restore_step(tmp_path, SHAPES, where)
