"""The input pipeline against the reference's transforms and against decoding alone.

    python benchmarks/input_pipeline.py --out=benchmarks/results/input_pipeline.json

Makes JPEGs of 500 x 375 pixels from the embedded photographs and prints, as images per
second of one core, in turns: the reference's pipeline (torchvision and Pillow, with its
parameters), ours with crops cut on the host by Pillow and by vector units, ours with
crops left to the devices, decoding alone. Then what the devices' share costs them, where
the host's time goes, how throughput grows with workers, and how long a step waits for
its data.
torchvision and cykooz.resizer: pip install -e '.[peers,simd]'.
"""

import argparse
import collections
import cProfile
import io
import json
import os
import pathlib
import pstats
import statistics
import sys
import tempfile
import time
import types

import cv2
import jax
import numpy as np
from array_record.python import array_record_module
from PIL import Image

import dinov2_jax.data.demo
from dinov2_jax import cropping
from dinov2_jax.cli import workdir
from dinov2_jax.data import arrays, decode, draws, packing, pipeline, sources

CROP = draws.MultiCrop()
SETTINGS = {
    "multicrop": CROP,
    "patch_size": 14,
    "mask_probability": 0.5,
    "mask_ratio": (0.1, 0.5),
    "seed": 0,
    "group_size": 32,
}


def options() -> argparse.Namespace:
    """Sizes of the task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="JPEGs made")
    parser.add_argument("--sample", type=int, default=192, help="images of a timing")
    parser.add_argument("--canvas", type=int, default=512, help="pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--step", type=float, default=1.5, help="s of the fake step")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def write_images(folder: pathlib.Path, number: int) -> str:
    """An ArrayRecord file of JPEGs cut from the embedded photographs; its spec."""
    places = sorted(pathlib.Path(dinov2_jax.data.demo.__file__).parent.glob("*.jpg"))
    photographs = [Image.open(path).convert("RGB") for path in places]
    rng, path = np.random.default_rng(0), folder / "images.arrayrecord"
    writer = array_record_module.ArrayRecordWriter(str(path), packing.OPTIONS)
    for index in range(number):
        picture = photographs[index % len(photographs)]
        width, height = picture.size
        share = rng.uniform(0.6, 1.0)
        w, h = int(width * share), int(height * share)
        left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
        picture = picture.crop((left, top, left + w, top + h)).resize((500, 375))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=90)
        writer.write(arrays.labelled_record(data.getvalue(), index % 10))
    writer.close()
    return f"arrayrecord:{path}"


def reference() -> types.FunctionType:
    """bytes -> ten normalised tensors, as the reference's data augmentation makes them."""
    # Beside a CPU build of torch its compiled operators, unused here, do not load.
    name = "torchvision._meta_registrations"
    sys.modules.setdefault(name, types.ModuleType(name))
    import torch
    from torchvision import transforms as t

    torch.set_num_threads(1)
    bicubic = t.InterpolationMode.BICUBIC

    def crop(size, scale):
        cut = t.RandomResizedCrop(size, scale=scale, interpolation=bicubic)
        return [cut, t.RandomHorizontalFlip(0.5)]

    def blur(chance):
        return t.RandomApply([t.GaussianBlur(9, sigma=(0.1, 2.0))], p=chance)

    colors = [
        t.RandomApply([t.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        t.RandomGrayscale(0.2),
    ]
    normal = [
        t.ToTensor(),
        t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    large, small = crop(224, (0.32, 1.0)), crop(98, (0.05, 0.32))
    solarize = t.RandomSolarize(128, 0.2)
    views = [
        t.Compose([*large, *colors, blur(0.0), *normal]),
        t.Compose([*large, *colors, blur(0.9), solarize, *normal]),
        *[t.Compose([*small, *colors, blur(0.5), *normal])] * 8,
    ]

    def run(data: bytes) -> list:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        return [view(picture) for view in views]

    return run


def batches(source, sample: int, canvas: int | None = None, **more):
    """An iterator of training batches of 32 that holds so many images."""
    return pipeline.train_batches(
        source,
        **SETTINGS,
        batch_size=32,
        start=0,
        stop=sample // 32,
        canvas=canvas,
        **{"threads": 0, **more},
    )


def drained(elements) -> None:
    """Makes all and keeps none, as training does."""
    collections.deque(elements, maxlen=0)


def per_core(work, images: int) -> float:
    """Images per second of processor time."""
    began = time.process_time()
    work()
    return images / (time.process_time() - began)


def speeds(source, o: argparse.Namespace) -> dict[str, list[float]]:
    """Images per CPU-second of each way, in turns."""
    made, data = reference(), [source[i].image for i in range(o.sample)]
    ways = {
        "reference": lambda: drained(map(made, data)),
        "host": lambda: drained(batches(source, o.sample)),
        "host, simd": lambda: drained(batches(source, o.sample, resize="simd")),
        "device, host side": lambda: drained(batches(source, o.sample, o.canvas)),
        "decode alone": lambda: drained(map(decode.decode, data)),
    }
    found = {name: [] for name in ways}
    for _ in range(o.repeats):
        for name, work in ways.items():
            found[name].append(per_core(work, o.sample))
    for name, rates in found.items():
        print(f"{name:<20} {statistics.median(rates):8.1f} images/CPU-s")
    return found


def on_devices(source, o: argparse.Namespace) -> dict[str, float]:
    """Operations, memory and speed of cutting the crops on the device at hand."""
    built = next(batches(source, 32, o.canvas)).batch
    cut = jax.jit(lambda x, d: cropping.views(x, d, CROP, block=8))
    images, drawn = jax.device_put((built.images, built.draws))

    def one(x, d):
        return cropping.views(x, d, CROP, block=1)

    # Of one image, because a loop's body is counted once however often it runs.
    single = jax.jit(one).lower(images[:1], jax.tree.map(lambda x: x[:1], drawn))
    found = {"gflop_per_image": single.compile().cost_analysis()["flops"] / 1e9}
    memory = cut.lower(images, drawn).compile().memory_analysis()
    found["working_mib_of_8"] = memory.temp_size_in_bytes / 2**20
    found["canvas_mib_per_image"] = 3 * o.canvas**2 / 2**20
    jax.block_until_ready(cut(images, drawn))
    began = time.perf_counter()
    jax.block_until_ready(cut(images, drawn))
    found["images_per_s"] = 32 / (time.perf_counter() - began)
    print(
        f"on {jax.devices()[0].device_kind}: {found['gflop_per_image']:.2f} GFLOP and "
        f"{found['canvas_mib_per_image']:.2f} MiB an image, "
        f"{found['working_mib_of_8']:.0f} MiB for 8 at a time, "
        f"{found['images_per_s']:.1f} images/s"
    )
    return found


def stages(source, o: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Share of the host's time in each function, by a profile."""
    wanted = {
        "read": ("__getitem__", "arrays.py"),
        "decode": ("decode", "decode.py"),
        "chance": ("numbers", "draws.py"),
        "draws": ("draws", "draws.py"),
        "crops": ("views", "augment.py"),
        "masks": ("_masks", "build.py"),
        "all of a batch": ("__call__", "build.py"),
    }
    found = {}
    for place, canvas in (("host", None), ("device", o.canvas)):
        profile = cProfile.Profile()
        # Only this thread is profiled, so it calls the builder itself.
        steps = batches(source, o.sample, canvas)
        profile.runcall(drained, steps)
        stats = pstats.Stats(profile).stats
        total = sum(entry[2] for entry in stats.values())
        found[place] = {
            stage: sum(
                entry[3]
                for (file, _, name), entry in stats.items()
                if name == function and file.endswith(f"data/{module}")
            )
            / total
            for stage, (function, module) in wanted.items()
        }
        shares = ", ".join(f"{k} {v:.1%}" for k, v in found[place].items())
        print(f"{place}: {shares}")
    return found


def random_reads(source, number: int = 20_000) -> float:
    """Records read per second in random order."""
    order = np.random.default_rng(0).integers(0, len(source), number)
    began = time.perf_counter()
    for index in order:
        source[index]
    rate = number / (time.perf_counter() - began)
    print(f"ArrayRecord: {rate:.0f} random reads/s")
    return rate


def by_workers(source, o: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Images per second of wall time with so many worker processes, once running."""
    found = {"host": {}, "device": {}}
    for place, canvas in (("host", None), ("device", o.canvas)):
        for workers in o.workers:
            steps = batches(source, 32 * 40, canvas, workers=workers, threads=1)
            for _ in range(4 * max(workers, 1)):
                next(steps)  # workers have started and are filled
            began = time.perf_counter()
            for _ in range(16):
                next(steps)
            rate = 16 * 32 / (time.perf_counter() - began)
            steps.close()
            found[place][workers] = rate
            print(f"{place}, {workers} workers: {rate:.0f} images/s")
    return found


def waits(source, o: argparse.Namespace) -> float:
    """Share of the time that a step of fixed length waits for its batch of 32."""
    steps = batches(source, 32 * 14, o.canvas, threads=2, prefetch=2)
    next(steps)
    waited = worked = 0.0
    for _ in range(12):
        time.sleep(o.step)
        began = time.perf_counter()
        next(steps)
        waited += time.perf_counter() - began
        worked += o.step
    steps.close()
    share = waited / (waited + worked)
    print(f"a step of {o.step} s waits {share:.2%} of its time for data")
    return share


def main() -> None:
    o = options()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = sources.open_source(write_images(pathlib.Path(folder), o.images))
        found = {"images_per_cpu_s": speeds(source, o)}
        middle = {k: statistics.median(v) for k, v in found["images_per_cpu_s"].items()}
        found["ratios"] = {
            "host/reference": middle["host"] / middle["reference"],
            "simd/reference": middle["host, simd"] / middle["reference"],
            "device/reference": middle["device, host side"] / middle["reference"],
            "device/decode": middle["device, host side"] / middle["decode alone"],
        }
        print(", ".join(f"{k} {v:.2f}" for k, v in found["ratios"].items()))
        found |= {
            "on_devices": on_devices(source, o),
            "profile": stages(source, o),
            "random_reads_per_s": random_reads(source),
            "images_per_s_by_workers": by_workers(source, o),
            "wait_share": waits(source, o),
        }
    if o.out:
        about = {"cores": os.cpu_count(), "images": o.images, "sample": o.sample}
        workdir.write_text(o.out, json.dumps(about | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
