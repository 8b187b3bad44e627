"""Plans of runs on devices that are not at hand."""

import importlib.util
import itertools
import json
import pathlib
import textwrap

import pytest
import tiny

from dinov2_jax import __main__ as command
from dinov2_jax.cli import compiling
from dinov2_jax.plan import bounds, fitting, hlo, table, topologies

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install 'dinov2_jax[tpu]'",
)


def plan(*given: str) -> int:
    return command.main(["plan", *map(str, given)])


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> pathlib.Path:
    """A config file of the tiny model."""
    path = tmp_path_factory.mktemp("plan") / "tiny.py"
    settings = tiny.config().to_dict()
    path.write_text(
        textwrap.dedent(
            f"""
            from dinov2_jax import config as base

            def get_config():
                config = base.default()
                for name, section in {settings!r}.items():
                    if isinstance(section, dict):
                        config[name].update(section)
                    else:
                        config[name] = section
                return config
            """
        )
    )
    return path


IMAGES = 64
"""A device's, so many that activations are larger than any weight of the tiny model."""


@pytest.fixture(scope="module")
def found(config) -> dict:
    """What the whole command finds out, without the compiler's optimisations."""
    out = config.parent / "plan.json"
    code = plan(
        f"--config={config}",
        "--topology=v5e:2x2",
        f"--batch-per-device={IMAGES}",
        "--fast",
        f"--json={out}",
        "--config.mesh.fsdp=2",
        "--config.mesh.remat=full",
        "--config.loss.targets=sinkhorn",
    )
    assert code == 0
    (one,) = json.loads(out.read_text())["plans"]
    return one


@pytest.mark.compiler
@needs_libtpu
def test_the_command_compiles_the_step_for_tpus_that_are_not_there(found):
    assert found["devices"] == 4
    assert found["mesh"] == {"replica": 2, "fsdp": 2}
    assert (found["per_device"], found["batch"]) == (IMAGES, 4 * IMAGES)
    assert found["fits"]
    assert found["limit"] == 15.75 * 2**30
    state = found["state"]
    assert state["parameters"] == state["teacher"]
    assert state["optimizer"] >= 2 * state["parameters"]
    assert found["memory"]["peak"] > sum(state.values())
    assert found["flops"]["remat"] > 0
    assert found["bound"]["seconds"] >= max(
        found["bound"][name] for name in ("compute", "memory", "wire")
    )
    text = table.page(found, "Ti/4")
    for word in ("fits", "lower bound", "chip-hours", "small ones, ", "peaks: cloud"):
        assert word in text
    peaks = found["peaks"] | {"network": 50e9}  # as of a GPU
    full = found | {"peaks": peaks, "needed": 0.9 * found["limit"]}
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in table.page(full, "Ti/4")
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in text
    alone = found | {"fast": False, "gathers_overlapped": None}  # as of rings of one
    assert "; nothing is gathered" in table.page(alone, "Ti/4")
    titles, _, row = (x.split(" | ") for x in table.overview([alone]).splitlines())
    assert row[titles.index("gathers overlapped")] == "-"
    head, rule, *rows = table.overview([found, found]).splitlines()
    assert len(rows) == 2
    assert head.count("|") == rule.count("|") == rows[0].count("|")


@pytest.mark.compiler
@needs_libtpu
def test_the_state_is_donated(found):
    # The compiler may pad; nothing of the state may be there twice.
    state = sum(found["state"].values()) - found["state"]["batch"]
    memory = found["memory"]
    assert memory["donated"] >= state
    assert memory["outputs"] - memory["donated"] < 2**16  # the metrics


@pytest.mark.compiler
@needs_libtpu
def test_layers_send_weights_and_never_activations(found):
    sent = [compiling.read(one) for one in found["collectives"]]
    width, hidden = 32, 128
    largest = 4 * width * hidden  # bytes of a block's largest weight, float32
    tokens = IMAGES * 2 * 17 * width * 4  # bytes of the global crops' tokens
    assert largest < tokens / 8
    assert not [one for one in sent if one.kind == "all-to-all"]
    loop = [one for one in sent if one.in_loop]
    for one in loop:
        assert max(hlo.size_of(tuple(shape)) for shape in one.shapes) <= largest, one
        assert one.trips == 2, one  # layers
    gathered = [one.bytes for one in loop if one.kind == "all-gather"]
    # The four kernels: the teacher's, the student's, and those for its backward pass.
    weights = [width * n for n in (3 * width, width, hidden, hidden)]
    assert sorted(gathered) == sorted(3 * [4 * n for n in weights])
    # Their gradients arrive by reduce-scatters, which this compiler may cut into
    # permutations of shards; what is summed over all devices is small.
    reduced = {one.kind for one in loop} - {"all-gather", "all-reduce"}
    assert reduced <= {"reduce-scatter", "collective-permute"}
    assert reduced


@pytest.mark.compiler
@needs_libtpu
@pytest.mark.slow
def test_most_of_what_is_gathered_overlaps_on_v5e(tmp_path):
    out = tmp_path / "plan.json"
    code = plan(
        f"--config={CONFIGS / 'vits14_in1k.py'}",
        "--topology=v5e:2x2",
        "--batch-per-device=8",
        f"--json={out}",
        "--config.mesh.fsdp=4",
        "--config.mesh.remat=full",
    )
    assert code == 0
    (one,) = json.loads(out.read_text())["plans"]
    assert one["gathers_overlapped"] >= 0.7


@pytest.mark.compiler
@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_told_with_what_to_change(config, capsys):
    code = plan(
        f"--config={config}",
        "--topology=v5e:2x2",
        "--batch-per-device=4096",
        "--fast",
        "--config.head.prototypes=131072",
    )
    assert code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "4096 images a device do not fit" in said
    assert "GiB are needed and 15.75 are there" in said
    assert "--batch-per-device" in said
    assert "--config.mesh.remat=full" in said


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("HLO temporaries (64.15G) exceeds available HBM (15.75G)", 64.15 * 2**30),
        ("Used 20.19G of 15.75G hbm. Exceeded hbm capacity", 20.19 * 2**30),
        ("something new", None),
    ],
)
def test_a_compiler_s_refusal_is_read(message, needed):
    found = compiling.refused(
        f"RESOURCE_EXHAUSTED: {message}", topologies.parse("v5e:2x2")
    )
    assert not found["fits"]
    assert found["needed"] == needed


def test_another_failure_of_a_compiler_is_no_lack_of_memory():
    with pytest.raises(ValueError, match="the compiler for v5e:2x2 failed: INTERNAL"):
        compiling.refused("INTERNAL: oh", topologies.parse("v5e:2x2"))


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:", "v5e:3x3", "v5e-64", "v9:2x2", "h100:8", "h100:1x9", "v4:0"]
)
def test_an_unknown_topology_is_refused_with_the_known_ones(name, config, capsys):
    assert plan(f"--config={config}", f"--topology={name}") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"dinov2-jax plan: topology '{name}' is unknown; known are")
    assert "v5e:2x2|2x4" in said
    assert "h100" in said
    assert said.count("\n") == 1


@pytest.mark.skipif(
    any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="the compiler whose lack is told is here",
)
def test_a_compiler_that_is_not_installed_is_told_with_its_extra(config, capsys):
    assert plan(f"--config={config}", "--topology=h100:1x8") == 1
    said = capsys.readouterr().err
    assert "jax-cuda13-plugin, is not installed" in said
    assert "pip install 'dinov2_jax[cuda]'" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-per-device=-1"], "--batch-per-device=-1; it needs 1 or more"),
        (["--optics"], "unknown option '--optics'"),
    ],
)
def test_bad_options_are_told(options, words, config, capsys):
    assert plan(f"--config={config}", "--topology=v5e:2x2", *options) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "per_device", "words"),
    [
        ({"train__batch_size": "18"}, 0, "does not divide over 4 devices"),
        ({"train__accumulate": "2"}, 7, "7 images a device make no groups"),
        ({}, 1, "1 images a device make no groups of 2"),
        ({}, 7, "7 images a device make no groups of 2"),
    ],
)
def test_a_batch_that_is_not_possible_is_told(overrides, per_device, words):
    with pytest.raises(ValueError, match=words):
        compiling.fit_batch(tiny.config(**overrides), per_device, 4)


@pytest.mark.parametrize(
    ("per_device", "most", "want"), [(8, 12, 8), (24, 12, 12), (32, 12, 8), (7, 64, 7)]
)
def test_groups_are_the_largest_that_divide_a_device_s_batch(per_device, most, want):
    config = tiny.config(train__group_size=str(most))
    compiling.fit_batch(config, per_device, 4)
    assert config.train.group_size == want
    assert config.train.batch_size == 4 * per_device


@pytest.mark.parametrize(("most", "accumulate"), [(64, 1), (12, 1), (2, 1), (12, 3)])
def test_sizes_of_a_search_rise_and_keep_groups_near_the_recipe_s(most, accumulate):
    sizes = fitting.sizes(most, accumulate)
    assert sizes[-1] > fitting.LARGEST / 2
    for a, b in itertools.pairwise(sizes):
        assert a < b <= 2 * a
    for n in sizes:
        group = fitting.group_size(n, most, accumulate)
        assert n % (group * accumulate) == 0
        assert 2 * group >= min(most, n // accumulate)


@pytest.mark.parametrize("start", [2, 8, 64, 256])
@pytest.mark.parametrize("limit", [10.0, 30.0, 100.0, 1e6])
def test_a_search_finds_the_largest_size_that_fits(start, limit):
    # A state, a line, and near the limit a compiler that needs less than the line.
    def attempt(n: int) -> fitting.Try:
        line = 4 + 0.5 * n
        needed = (
            line if line < 0.9 * limit else 0.9 * limit + 0.5 * (line - 0.9 * limit)
        )
        return fitting.Try(n, needed if needed <= limit else None, needed <= limit)

    sizes = fitting.sizes(8)
    tries = fitting.largest(attempt, sizes, start, limit)
    assert len(tries) <= fitting.TRIES
    assert len({one.per_device for one in tries}) == len(tries)
    best = max(one.per_device for one in tries if one.fits)
    want = max(n for n in sizes if attempt(n).fits)
    # Six compilations may end before the exact size; never far from it.
    assert 0.7 * want <= best <= want


def test_a_search_of_what_never_fits_ends():
    tries = fitting.largest(
        lambda n: fitting.Try(n, None, False), fitting.sizes(8), 64, 1.0
    )
    assert [one.fits for one in tries] == [False] * len(tries)
    assert len(tries) <= fitting.TRIES


def collective(kind="all-gather", members=(0, 1, 2, 3), overlaps=False, trips=10):
    shapes = (("bf16", (500, 1000)),)
    return hlo.Collective(kind, members, trips, shapes, overlaps, True)


V5E, H100 = topologies.KINDS["v5e"], topologies.KINDS["h100"]


def test_the_bound_adds_what_stands_alone_and_hides_the_rest():
    sent = [collective(), collective("all-reduce", overlaps=True)]
    given = {"peak": 1e12, "flops": 2e9, "moved": 819e6, "sent": sent}
    one = bounds.bound(V5E, None, **given, scheduled=True)
    gather = 10 * 1e6 * 3 / 4 / 200e9
    assert one.compute == pytest.approx(2e-3)
    assert one.memory == pytest.approx(1e-3)
    assert one.wire == pytest.approx(3 * gather)  # an all-reduce sends twice
    assert one.exposed == pytest.approx(gather)
    assert one.seconds == pytest.approx(2e-3 + gather)
    assert one.limit == "compute"
    hidden = bounds.bound(V5E, None, **given, scheduled=False)
    assert hidden.seconds == pytest.approx(2e-3)
    slow = bounds.bound(V5E, None, **given | {"moved": 819e9}, scheduled=True)
    assert (slow.limit, slow.seconds) == ("memory", pytest.approx(1.0))


@pytest.mark.parametrize(
    ("members", "seconds"),
    [
        (range(4), 7.5e6 / 450e9),  # inside a node: its links
        (range(0, 64, 8), 10e6 * 7 / 8 / 50e9),  # one of each node: its adapter
        (range(16), 10e6 * 15 / 16 / (8 * 50e9)),  # eight rings share the adapters
    ],
)
def test_what_leaves_a_node_is_sent_by_its_adapters(members, seconds):
    one = collective(members=tuple(members))
    assert bounds.transfer(H100, 8, one) == pytest.approx(seconds)


def test_a_run_takes_its_images_over_the_rate():
    run = bounds.run(images=7_200_000, batch=100, devices=4, seconds=0.5)
    assert run == pytest.approx({"images_s": 200, "days": 10 / 24, "chip_hours": 40})


def test_the_share_that_overlaps_is_of_bytes():
    sent = [collective(trips=3, overlaps=True), collective(trips=1)]
    assert bounds.overlapped(sent, "all-gather") == 0.75
    assert bounds.overlapped(sent, "all-to-all") is None


def test_memory_moves_the_state_twice_and_what_lives_beside_it():
    assert bounds.moved(arguments=10, outputs=8, peak=15) == 28
