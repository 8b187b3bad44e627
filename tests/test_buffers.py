"""Memory that is used again, and never while anything still refers to it."""

import pickle

import jax
import numpy as np
import pytest

from dinov2_jax.data import buffers

SHAPE = (4, 64, 64, 3)


@pytest.mark.parametrize(
    "held",
    [
        lambda array: array,
        lambda array: array[1:3, :10],
        lambda array: array.reshape(4, -1)[2:],
        lambda array: memoryview(array),
        jax.device_put,  # on a CPU the same memory
    ],
    ids=["all", "a part", "a part of a view", "a memoryview", "a device's array"],
)
def test_nothing_that_is_held_is_handed_out_again(held):
    made = buffers.Buffers(SHAPE)
    array = made.take()
    array[:] = 1
    part = held(array)
    del array
    for _ in range(3):
        made.take()[:] = 2
    assert (np.asarray(part) == 1).all()


def test_what_nobody_holds_is_used_again():
    made = buffers.Buffers(SHAPE)
    first = made.take()
    place = first.ctypes.data
    second = made.take()
    assert second.ctypes.data != place
    del first
    assert made.take().ctypes.data == place


def test_each_process_has_its_own():
    made = buffers.Buffers(SHAPE)
    made.take()
    copy = pickle.loads(pickle.dumps(made))
    assert copy.take().shape == SHAPE
