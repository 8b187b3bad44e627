"""Options of the compiler: the real compilers take them, and the user's go first."""

import os
import subprocess
import sys
import types

import pytest

from dinov2_jax import flags
from dinov2_jax.plan import topologies


def device(platform: str, kind: str):
    """What stands for a device here: its platform and its kind."""
    return types.SimpleNamespace(platform=platform, device_kind=kind)


def test_every_chip_that_needs_options_has_them():
    assert flags.compiler_options(device("cpu", "cpu"), {}) == {}
    assert flags.compiler_options(device("tpu", "TPU v5 lite"), {}) == {}
    assert "xla_enable_async_all_gather" in flags.compiler_options(
        device("tpu", "TPU v6 lite"), {}
    )
    for platform in ("gpu", "cuda"):
        assert flags.compiler_options(device(platform, "NVIDIA H100 80GB HBM3"), {})


@pytest.mark.parametrize("variable", ["XLA_FLAGS", "LIBTPU_INIT_ARGS"])
def test_what_the_user_has_set_is_left_alone(variable):
    chip = device("tpu", "TPU v4")
    name = "xla_enable_async_all_gather"
    own = {variable: f"--xla_something=3 --{name}=false"}
    left = flags.compiler_options(chip, own)
    assert name not in left
    assert left.keys() == flags.compiler_options(chip, {}).keys() - {name}


COMPILE = """
import sys
import jax
from jax.sharding import SingleDeviceSharding
from dinov2_jax import flags
from dinov2_jax.plan import topologies
device = topologies.describe(topologies.parse(sys.argv[1]))[0]
options = flags.compiler_options(device, {})
assert options, device.device_kind
x = jax.ShapeDtypeStruct((8, 128), "f4", sharding=SingleDeviceSharding(device))
jax.jit(lambda x: x + 1).lower(x).compile(compiler_options=options)
try:
    jax.jit(lambda x: x + 2).lower(x).compile(compiler_options={"xla_no_such": True})
except Exception:
    print("taken")
"""


@pytest.mark.compiler
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "h100:1x8"])
def test_the_real_compiler_takes_every_option(name):
    try:
        topologies.require_compiler(topologies.parse(name))
    except ValueError as error:
        pytest.skip(str(error))
    environment = {
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_OPTIMIZATION_LEVEL": "O0",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, name],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert "taken" in done.stdout, done.stderr[-2000:]
