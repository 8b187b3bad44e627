"""PyTorch files: what is read, with and without PyTorch at hand."""

import argparse
import collections
import functools
import pickle
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torchfiles as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2_jax.convert import inert, pth

quick = functools.partial(settings, deadline=None, database=None, derandomize=True)
KINDS = {
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Float": np.float32,
    "Double": np.float64,
    "Byte": np.uint8,
    "Char": np.int8,
    "Short": np.int16,
    "Int": np.int32,
    "Long": np.int64,
    "Bool": np.bool,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", [tf.write_zip, tf.write_stream])
def test_a_tensor_of_any_kind_is_read_from_both_formats(kind, write, tmp_path):
    values = np.array([0, 1, 1, 0, 1, 0]).astype(KINDS[kind])
    view, raw = ((), values.tobytes())
    if write is tf.write_stream:
        view, raw = (None,), (6, values.tobytes())
    tensor = tf.tensor(kind=f"torch {kind}Storage", view=view)
    write(tmp_path / "x.pth", {"weight": tensor}, {"0": raw})
    weight = pth.read_pth(tmp_path / "x.pth")["weight"]
    assert weight.dtype == KINDS[kind]
    assert np.array_equal(weight, values.reshape(2, 3))


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64", "bfloat16"])
def test_a_tensor_in_untyped_bytes_has_the_type_it_names(kind, tmp_path):
    values = np.arange(6).astype(kind)
    bytes_ = tf.Global("torch.storage UntypedStorage")
    untyped = tf.Ask("storage", bytes_, "0", "cpu", values.nbytes)
    kind = tf.Global(f"torch {kind}")
    tensor = tf.call(tf.RETYPED, untyped, 0, (6,), (1,), False, {}, kind)
    tf.write_zip(tmp_path / "x.pth", tensor, {"0": values.tobytes()})
    assert np.array_equal(pth.read_pth(tmp_path / "x.pth"), values)


@given(st.data())
@quick(max_examples=60)
def test_a_strided_view_equals_numpys(tmp_path_factory, data):
    storage = np.arange(60, dtype=np.float32)
    view = storage.reshape(3, 4, 5)
    view = view.transpose(data.draw(st.permutations(range(3))))
    index = [
        slice(*sorted(data.draw(st.tuples(*[st.integers(0, 5)] * 2)))) for _ in "abc"
    ]
    view = view[tuple(index)][:: data.draw(st.integers(1, 3))]
    start = storage.__array_interface__["data"][0]
    offset = (view.__array_interface__["data"][0] - start) // 4 if view.size else 0
    stride = tuple(step // 4 for step in view.strides)
    tensor = tf.tensor("0", view.shape, stride, offset, count=60)
    path = tmp_path_factory.getbasetemp() / "strided.pth"
    tf.write_zip(path, tensor, {"0": storage.tobytes()})
    read = pth.read_pth(path)
    assert read.shape == view.shape
    assert np.array_equal(read, view)


def test_tensors_are_views_of_the_file_that_nobody_can_write(tmp_path):
    path = tmp_path / "x.pth"
    big = tf.tensor(size=(2**23,), stride=(1,), count=2**23)
    tf.write_zip(path, [big, tf.tensor(count=2**23)], {"0": bytes(2**25)})
    tracemalloc.start()
    whole, part = pth.read_pth(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # of 32 MiB
    assert whole.nbytes == 2**25 and np.shares_memory(whole, part)
    with pytest.raises(ValueError, match="read-only"):
        part[0] = 1


def test_a_stream_gives_aligned_arrays_with_one_copy_of_a_storage(tmp_path):
    path = tmp_path / "x.pth"
    for pad in range(8):  # one of them happens to be aligned
        one, two = (
            tf.tensor(size=size, stride=(1,), view=(None,)) for size in [(6,), (3,)]
        )
        tf.write_stream(path, [one, two, "x" * pad], tf.STREAMED)
        first, second, _ = pth.read_pth(path)
        assert first.flags.aligned and not first.flags.writeable
        assert np.shares_memory(first, second)


def test_a_storage_that_is_no_tensor_is_a_flat_array(tmp_path):
    tf.write_zip(tmp_path / "x.pth", tf.tensor().args[0], tf.STORAGES)
    assert pth.read_pth(tmp_path / "x.pth").shape == (6,)


def test_tensors_beyond_the_limit_are_an_error_even_if_they_share_their_bytes(tmp_path):
    path = tmp_path / "x.pth"
    tf.write_zip(path, [tf.tensor() for _ in range(10)], tf.STORAGES)
    assert len(pth.read_pth(path, max_bytes=240)) == 10
    with pytest.raises(inert.BadFile, match="over 239 bytes; give a larger max_bytes"):
        pth.read_pth(path, max_bytes=239)


PLAIN = {
    "texts": ["", "é", "\0"],
    "numbers": (0, -1, 255, 2**31, -(2**63), 2**80, 0.1, float("inf"), True, None),
    "bytes": [b"", b"\0\xff", bytearray(b"ab"), bytearray()],
    1: {"sets": [set(), {1, 2}, frozenset(), frozenset("a")]},
    "numpy": [np.float64(0.1), np.int64(3), np.bool(1), np.float16(2), np.uint8(9)],
    "arrays": [np.arange(6).reshape(2, 3), np.zeros((2, 3), "f4").T, np.zeros((0, 2))],
    "types": [np.dtype("f4"), np.dtype("b1")],
    "scheduler": collections.Counter({30: 1, 60: 1}),
    "args": argparse.Namespace(lr=0.1, name="vit", inner=argparse.Namespace(x=[1])),
    "ordered": collections.OrderedDict(a=1, b=collections.OrderedDict()),
    "long": list(range(3000)),
}


def same(ours, theirs) -> None:
    """Our value equals the original, up to plainer containers."""
    if isinstance(theirs, argparse.Namespace):
        theirs = vars(theirs)
    if isinstance(theirs, dict):
        assert type(ours) is dict and list(ours) == list(theirs)
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(theirs, (list, tuple)):
        assert isinstance(ours, (list, tuple)) and len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            same(our, their)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    elif isinstance(theirs, bytearray):
        assert ours == bytes(theirs)
    else:
        assert type(ours) is type(theirs) and ours == theirs


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_plain_values_come_back_whatever_the_protocol(protocol, tmp_path):
    values = PLAIN
    if protocol == 0:  # has its own way to make objects, which is not read
        values = {name: PLAIN[name] for name in ("texts", "numbers", "long")}
    tf.write_zip(tmp_path / "x.pth", pickle.dumps(values, protocol))
    same(pth.read_pth(tmp_path / "x.pth"), values)


def test_claims_that_would_cost_an_ordinary_unpickler_memory_cost_nothing(tmp_path):
    memo = b"Nr" + struct.pack("<L", 2**32 - 1) + b"j" + struct.pack("<L", 2**32 - 1)
    tf.raw(b"\x95", struct.pack("<Q", 2**62), memo, b"\x86")(tmp_path / "x.pth")
    assert pth.read_pth(tmp_path / "x.pth") == (None, None)


def test_shared_parts_stay_shared_and_attributes_of_a_state_dict_are_dropped(tmp_path):
    state = tf.Raw(
        b"ccollections\nOrderedDict\n)R" + tf.opcodes({"_metadata": {}}) + b"b"
    )
    tf.write_zip(tmp_path / "x.pth", tf.Raw(b"(" + state + b"q\0h\0t"))
    first, second = pth.read_pth(tmp_path / "x.pth")
    assert first == {} and first is second


def tree(seed: int, zipped: bool) -> dict:
    """A checkpoint of PyTorch with tensors of every kind, views, ties and plain values."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
    net.to([torch.float32, torch.float16, torch.bfloat16, torch.float64][seed % 4])
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    sum(p.float().sum() for p in net.parameters()).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 5])
    views = {}
    # PyTorch writes the last three to a stream too, but then cannot read them.
    late = (np.uint16, np.uint32, np.uint64) if zipped else ()
    for kind in (str(np.dtype(kind)) for kind in (*KINDS.values(), *late)):
        counts = torch.tensor(rng.integers(0, 99, rng.integers(1, 5, 3)))
        whole = counts.to(getattr(torch, kind))
        view = whole.permute(*rng.permutation(3).tolist())
        views[kind] = [whole, view, view[rng.integers(len(view)) :, 0], view[0, 0, 0]]
    return {
        "model": net.state_dict(),
        "parameters": list(net.parameters()),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "views": views,
        "tied": [net[0].weight, net[0].weight.data],
        "empty": torch.zeros(0, 3),
        "plain": PLAIN,
        "iteration": seed,
        "shape": torch.Size([2, 3]),
        "kind": torch.bfloat16,
        "device": torch.device("cpu"),
    }


def as_numpy(value: object) -> object:
    """What PyTorch read, with arrays for tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    if isinstance(value, torch.dtype):
        return np.dtype(str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, dict):
        return {key: as_numpy(part) for key, part in value.items()}
    if type(value) in (list, tuple, torch.Size):
        return [as_numpy(part) for part in value]
    return value


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_is_what_torch_load_gives(seed, protocol, zipped, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pth"
    torch.save(
        tree(seed, zipped),
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    theirs = torch.load(path, weights_only=False)
    same(pth.read_pth(path), as_numpy(theirs))


@pytest.mark.torch
def test_files_of_other_things_than_tensors_are_refused_by_name(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pth"
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(
        inert.UnsafeFile, match="names 'torch.nn.modules.linear.Linear'"
    ):
        pth.read_pth(path)
    torch.save(torch.ones(3, 1).expand(3, 4), path)
    with pytest.raises(inert.BadFile, match="needs 12 values and its storage has 3"):
        pth.read_pth(path)
    torch.save(torch.ones(2, dtype=torch.complex64), path)
    with pytest.raises(inert.UnsafeFile, match="ComplexFloatStorage"):
        pth.read_pth(path)


@pytest.mark.torch
def test_the_hand_made_files_are_files_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pth"
    values = np.arange(6, dtype=np.float32)
    tf.write_zip(path, {"weight": tf.tensor()}, {"0": values.tobytes()})
    assert torch.load(path)["weight"].flatten().tolist() == values.tolist()
    tensor = tf.tensor(view=(None,))
    tf.write_stream(path, {"weight": tensor}, {"0": (6, values.tobytes())})
    assert torch.load(path)["weight"].flatten().tolist() == values.tolist()
