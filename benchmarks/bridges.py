"""Every pair of formats, in a table: tensors that match, features that differ.

python benchmarks/bridges.py [--models S S_reg ...] [--to onnx ...] [--sizes 224 ...]

For each architecture, weights without a zero or a one (norms, biases and LayerScale are
random too) are written in every format that can be read; each of these files is read,
filled into our own tree of parameters, taken out of it again and written in every
format. What this last file holds is compared bit for bit with the first weights, and
its features, by the format's own package in float32, with ours from the first weights.
g has its first 4 blocks, so that two cores and 24 GB are enough.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
import types

# The index's torchvision cannot register its operators beside a CPU build of PyTorch.
stub = types.ModuleType("torchvision._meta_registrations")
sys.modules.setdefault(stub.__name__, stub)

import jax
import numpy as np

from dinov2_jax import zoo
from dinov2_jax.cli import backbone_options, identity, workdir
from dinov2_jax.convert import check, export, names, onnx, peers, read, stablehlo
from dinov2_jax.models import vit

FILES = {
    "official": "model.pth",
    "safetensors": "model.safetensors",
    "huggingface": "model",
    "timm": "timm.safetensors",
}
PROGRAMS = {"onnx": "model.onnx", "stablehlo": "program"}
MODELS = {
    f"{released.size}{'_reg' if released.registers else ''}": released
    for released in zoo.RELEASED.values()
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", nargs="+", default=list(MODELS), choices=MODELS)
    add("--to", nargs="+", default=[*FILES, *PROGRAMS], choices=[*FILES, *PROGRAMS])
    add("--sizes", nargs="+", default=["224", "518", "224x336"], help="pixels")
    add("--depth-g", type=int, default=4, help="blocks of g, of 40")
    add("--json", type=pathlib.Path, help="file for all numbers")
    return parser.parse_args()


def weights(model: vit.ViT) -> dict:
    """Random parameters, none of them 0 or 1, whose features stay near 1."""
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, model.patch_size, model.patch_size, 3), "f4")
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]

    def fill(path: tuple, leaf) -> np.ndarray:
        last = path[-1].key
        noise = rng.standard_normal(leaf.shape, np.float32)
        if last == "kernel":
            return noise * np.float32(leaf.shape[-2] ** -0.5)
        if last == "scale":
            return 1 + np.float32(0.3) * noise
        if last == "gamma":
            return np.float32(0.3) + np.float32(0.1) * noise
        return np.float32(0.3) * noise

    return jax.tree.map_with_path(fill, shapes)


def write(kind: str, path: pathlib.Path, model, params, size) -> None:
    """A file or folder of that format, from our parameters."""
    state = names.backbone_to_official(params, model.patch_size)
    if kind == "official":
        export.write_official(path, state)
    elif kind == "safetensors":
        export.write_safetensors(path, state, export.about(model))
    elif kind == "huggingface":
        export.write_huggingface(path, state, export.about(model))
    elif kind == "timm":
        export.write_timm(path, state, export.about(model))
    elif kind == "onnx":
        onnx.write(path, state, model, {}, size)
    else:
        stablehlo.write(path, model, params, {}, size)


class Bridges:
    """All pairs of one architecture."""

    def __init__(
        self, name: str, sizes: list[tuple[int, int]], to: list[str], depth_g: int
    ) -> None:
        told = MODELS[name].about()
        if told["width"] == vit.VARIANTS["g"]["width"]:
            told["depth"] = depth_g
        self.name, self.sizes, self.to = name, sizes, to
        self.model = zoo.module(told)
        self.params = weights(self.model)
        self.state = names.backbone_to_official(self.params, self.model.patch_size)
        self.mine = {}  # our features by image size and resize of positions
        self.seen = {}  # differences by target and content, so that none runs twice

    def rows(self) -> list[dict]:
        """One a pair: from, to, tensors, differences by image size, what ran."""
        found = []
        for first, stem in FILES.items():
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / stem
                write(first, path, self.model, self.params, None)
                state = read.read_weights(path).backbone
                params = names.backbone_from_official(state, self.params)
                for kind in self.to:
                    start = time.perf_counter()
                    found.append(self.pair(kind, params) | {"from": first})
                    line = f"{self.name} {first} -> {kind}"
                    print(line, f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
        return found

    def pair(self, kind: str, params: dict) -> dict:
        """Write a format from parameters that were read, and compare its file."""
        program, found = kind in PROGRAMS, {}
        key = (kind, identity.digest(params))
        if key in self.seen:
            return self.seen[key]
        for sizes in [[size] for size in self.sizes] if program else [self.sizes]:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / (FILES | PROGRAMS)[kind]
                write(kind, path, self.model, params, sizes[0])
                equal = check.tensors(kind, path, self.state, self.params)
                worst, ran = self.differences(kind, path, sizes)
            found |= worst
        row = {"model": self.name, "to": kind, "tensors": equal, "by": ran}
        self.seen[key] = row | {"differences": found}
        return self.seen[key]

    def differences(self, kind: str, path: pathlib.Path, sizes: list) -> tuple:
        """Largest (cls, patches) differences by size, and what ran."""
        resize = check.resize(kind, self.model)
        model = self.model.clone(**resize)
        # One size at a time: an image must not depend on the sizes beside it.
        stacks = [check.images([s], model.in_channels, number=1)[0] for s in sizes]
        if kind == "safetensors":
            state = read.read_weights(path).backbone
            again = names.backbone_from_official(state, self.params)
            theirs = [check.ours(model, again, images) for images in stacks]
            ran = "read back"
        else:
            theirs, ran = check.PEERS[kind](path, export.about(model), stacks)
        found = {}
        for size, images, other in zip(sizes, stacks, theirs):
            key = (size, *resize.values())
            if key not in self.mine:
                self.mine[key] = check.ours(model, self.params, images)
            pairs = zip(self.mine[key], other)
            found[size] = tuple(float(np.abs(a - b).max()) for a, b in pairs)
        return found, ran


def table(rows: list[dict], sizes: list[tuple[int, int]]) -> str:
    """Markdown: a line for each model and target, the sources side by side."""
    sides = [f"{a}x{b}" for a, b in sizes]
    head = ["model", "to", *(f"from {kind}" for kind in FILES), *sides, "by"]
    lines = [head, ["---"] * len(head)]
    for model in dict.fromkeys(row["model"] for row in rows):
        for kind in dict.fromkeys(row["to"] for row in rows):
            mine = [r for r in rows if (r["model"], r["to"]) == (model, kind)]
            equal = {row["from"]: row["tensors"] for row in mine}
            counts = [f"{t.total - len(t.lost)}/{t.total}" for t in equal.values()]
            worst = []
            for size in sizes:
                pairs = [row["differences"][size] for row in mine]
                worst.append(" / ".join(f"{max(part):.1e}" for part in zip(*pairs)))
            lines.append([model, kind, *counts, *worst, mine[0]["by"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NOTE = """
Tensors: equal bit for bit to the first weights, of all that the format could hold under
official names (StableHLO: leaves of our tree). timm drops mask_token and, with
registers, adds the cls position into cls_token; ONNX drops mask_token and holds cls,
position and register tokens as constants of the graph. Differences: largest absolute
one of cls / patch features from any of the four sources, of features whose root mean
square is near 1, for one image of noise. Models that resize positions in a way of their
own (transformers without registers, timm) are compared with ours set to that way."""


def main() -> None:
    """Print the table."""
    chosen = arguments()
    sizes = [backbone_options.pixels(text) for text in chosen.sizes]
    jax.config.update("jax_default_matmul_precision", "highest")
    rows = []
    for name in chosen.models:
        try:
            rows += Bridges(name, sizes, chosen.to, chosen.depth_g).rows()
        except peers.Absent as absent:
            sys.exit(f"bridges.py: {absent}")
    print(table(rows, sizes))
    print(NOTE)
    if chosen.json:
        plain = [
            row
            | {"tensors": [row["tensors"].total, row["tensors"].lost]}
            | {
                "differences": {
                    f"{a}x{b}": d for (a, b), d in row["differences"].items()
                }
            }
            for row in rows
        ]
        workdir.write_text(chosen.json, json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
