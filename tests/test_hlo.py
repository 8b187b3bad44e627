"""The reader of compiled programs, on programs whose collectives are known."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax.plan import hlo, program

LAYERS, ROWS, COLUMNS = 5, 64, 24
WHOLE = ROWS * COLUMNS * 4  # bytes of a layer's float32 weights


@pytest.fixture(scope="module")
def mesh(devices):
    """Eight devices as 2 x 4."""
    return jax.make_mesh((2, 4), ("replica", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def scanned(mesh, body) -> list[hlo.Collective]:
    """The collectives of a scan over layers of weights whose rows are sharded."""
    inside = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)

    @inside(in_specs=(P("fsdp"), P(None, "fsdp")), out_specs=P("fsdp"))
    def run(x, weights):
        return jax.lax.scan(lambda x, w: (body(x, w), None), x, weights)[0]

    def array(spec, *shape):
        where = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

    x = array(P("fsdp"), ROWS, COLUMNS)
    lowered = jax.jit(run).lower(x, array(P(None, "fsdp"), LAYERS, ROWS, COLUMNS))
    return hlo.collectives(lowered.compile().as_text())


def gathered(x, w):
    whole = jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)
    return jnp.tanh(x @ whole.T @ whole)


def test_a_gather_in_a_scan_is_counted_once_a_layer(mesh):
    (one,) = scanned(mesh, gathered)
    assert (one.kind, one.group, one.trips, one.in_loop) == (
        "all-gather",
        4,
        LAYERS,
        True,
    )
    assert one.shapes == (("f32", (ROWS, COLUMNS)),)
    assert one.bytes == WHOLE
    assert one.wire == LAYERS * WHOLE * 3 / 4
    assert "all_gather" in one.source


def test_reductions_count_what_they_send(mesh):
    def body(x, w):
        # Full rows on each device, summed over the ring, then over the replicas.
        whole = jnp.tanh(jnp.tile(w * x.sum(), (4, 1)))
        part = jax.lax.psum_scatter(whole, "fsdp", scatter_dimension=0, tiled=True)
        return jax.lax.psum(jnp.tanh(part), "replica")

    found = {one.kind: one for one in scanned(mesh, body)}
    assert set(found) == {"reduce-scatter", "all-reduce"}
    scatter, reduce = found["reduce-scatter"], found["all-reduce"]
    assert (scatter.group, scatter.bytes) == (4, WHOLE)
    assert scatter.wire == LAYERS * WHOLE * 3 / 4
    assert (reduce.group, reduce.bytes) == (2, WHOLE / 4)
    assert reduce.wire == LAYERS * 2 * WHOLE / 4 / 2
    assert scatter.trips == reduce.trips == LAYERS
    # Neighbours in a ring follow each other; replicas are a ring apart.
    assert scatter.members == (0, 1, 2, 3)
    assert reduce.members == (0, 4)


def test_exchanges_and_rotations_are_found(mesh):
    def body(x, w):
        x = jax.lax.all_to_all(jnp.tanh(x + w), "fsdp", 0, 0, tiled=True)
        return jax.lax.ppermute(
            jnp.tanh(x), "fsdp", [(i, (i + 1) % 4) for i in range(4)]
        )

    found = {one.kind: one for one in scanned(mesh, body)}
    assert set(found) == {"all-to-all", "collective-permute"}
    assert found["all-to-all"].wire == LAYERS * WHOLE / 4 * 3 / 4
    assert found["collective-permute"].wire == LAYERS * WHOLE / 4
    assert found["collective-permute"].members == (0, 1, 2, 3)


def test_loops_inside_loops_multiply(mesh):
    def body(x, w):
        return jax.lax.fori_loop(0, 7, lambda _, x: gathered(x, w * x.sum()), x)

    (one,) = scanned(mesh, body)
    assert one.trips == 7 * LAYERS


def test_what_lies_outside_the_loop_runs_once(mesh):
    def run(x):
        return jax.lax.psum(jnp.tanh(x), ("replica", "fsdp"))

    both = P(("replica", "fsdp"))
    inside = jax.shard_map(run, mesh=mesh, in_specs=both, out_specs=P())
    x = jax.ShapeDtypeStruct(
        (ROWS, COLUMNS), jnp.float32, sharding=NamedSharding(mesh, both)
    )
    (one,) = hlo.collectives(jax.jit(inside).lower(x).compile().as_text())
    assert (one.trips, one.in_loop, one.group) == (1, False, 8)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
        ("replica_groups=[2,4]<=[8], x", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, x", tuple(range(8))),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", (0, 1)),
        ("replica_groups=mesh['a'=8] {'a':(1)2}, x", (0, 4)),
        ("replica_groups=mesh['a'=8] {'a':(4)2}, x", (0, 1)),
        ("replica_groups={}, x", None),
    ],
)
def test_groups_are_read_in_every_spelling(text, want):
    assert program.first_group(text) == want


# The spelling of the TPU compiler, shortened: an asynchronous gather is a fusion, of
# which computations that overlap with it hold a copy; a reduce-scatter is an
# all-reduce inside a fusion; the trips stand in the loop's condition.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4

%gather (p.1: bf16[8,16]) -> bf16[32,16] {
  %p.1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=1, \
replica_groups=[1,4]<=[4], dimensions={0}
}

%async_copy (p.2: bf16[8,16]) -> bf16[32,16] {
  %p.2 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=1, \
replica_groups=[1,4]<=[4], dimensions={0}
}

%all-reduce-scatter (p.3: f32[32,16]) -> f32[8,16] {
  %p.3 = f32[32,16]{1,0:T(8,128)} parameter(0)
  %all-reduce.3 = f32[32,16]{1,0:T(8,128)} all-reduce(%p.3), channel_id=2, \
replica_groups=[1,4]<=[4], to_apply=%sum
  ROOT %slice.3 = f32[8,16]{1,0:T(8,128)} slice(%all-reduce.3), slice={[0:8], [0:16]}
}

%body (arg: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %arg = (s32[]{:T(128)}, /*index=1*/bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %async-collective-start = bf16[32,16]{1,0} fusion(%x), kind=kCustom, calls=%gather
  %async-collective-fusion.1 = bf16[8,16]{1,0} fusion(%x), calls=%async_copy
  %async-collective-done = bf16[32,16]{1,0} fusion(%async-collective-start), calls=%end
  %fusion.3 = f32[8,16]{1,0:T(8,128)} fusion(%big), calls=%all-reduce-scatter
  ROOT %out = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) tuple(%i, %x)
}

%condition (arg: (s32[], bf16[8,16])) -> pred[] {
  %arg.2 = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %limit = s32[]{:T(128)} constant(40)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (p: bf16[8,16]) -> bf16[8,16] {
  %p = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %while = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) while(%start), \
condition=%condition, body=%body
}
"""


def test_the_text_of_a_tpu_program_hides_three_things():
    gather, scatter = hlo.collectives(TPU)
    assert (gather.kind, gather.asynchronous) == ("all-gather", True)
    assert gather.shapes == (("bf16", (32, 16)),)
    assert (scatter.kind, scatter.asynchronous) == ("reduce-scatter", False)
    assert gather.trips == scatter.trips == 40
    assert gather.wire == 40 * 32 * 16 * 2 * 3 / 4
    assert scatter.wire == 40 * 32 * 16 * 4 * 3 / 4


START = "%s = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups=[1,4]<=[4], "
PAIR = """HloModule jit_step, num_partitions=4

ENTRY %main (p: f32[2]) -> f32[8] {
  %p = f32[2]{0} parameter(0)
  START dimensions={0}
  BETWEEN
  ROOT %d = f32[8]{0} all-gather-done(%s)
}
"""


@pytest.mark.parametrize(
    ("between", "want"),
    [
        ("%b = f32[2]{0} bitcast(%p)", False),
        ("%b = f32[2]{0} fusion(%p), kind=kLoop, calls=%work", True),
    ],
)
def test_a_pair_overlaps_only_if_work_lies_between(between, want):
    text = PAIR.replace("START", START).replace("BETWEEN", between)
    (one,) = hlo.collectives(text)
    assert one.asynchronous is want
    assert one.bytes == 8 * 4


def test_a_loop_of_unknown_length_is_refused():
    text = TPU.replace("constant(40)", "get-tuple-element(%arg.2), index=0")
    with pytest.raises(ValueError, match="loop whose length"):
        hlo.collectives(text)


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        (("bf16", (3, 5)), 30),
        (("pred", (4,)), 4),
        (("s4", (4,)), 2),
        (("f8e4m3fn", (4,)), 4),
        (("f32", ()), 4),
        (("token", ()), 0),
    ],
)
def test_sizes_of_arrays(shape, want):
    assert hlo.size_of(shape) == want
