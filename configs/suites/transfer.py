"""The paper's twelve transfer sets by logistic regression, and their mean.

dinov2-jax evaluate all --config=configs/suites/transfer.py --weights=... --out=...

Eleven are TFDS sets, prepared once in ArrayRecord format. FGVC Aircraft is none: make
class folders of it (docs/evaluation.md says how) in data/fgvc_aircraft, or name another
place as the argument: --config=configs/suites/transfer.py:/data/fgvc_aircraft.

Source: arXiv:2304.07193; metrics as in arXiv:1805.08974.
"""

import ml_collections


def get_config(aircraft: str = "data/fgvc_aircraft"):
    def of(train: str, val: str, metric: str = "top1"):
        settings = {"metric": metric}
        return {"task": "logreg", "train": train, "val": val, "set": settings}

    def tfds(name: str, train: str, val: str, metric: str = "top1"):
        return of(f"tfds:{name}:{train}", f"tfds:{name}:{val}", metric)

    each = "mean_per_class"
    tasks = {
        "food101": tfds("food101", "train", "validation"),
        "cifar10": tfds("cifar10", "train", "test"),
        "cifar100": tfds("cifar100", "train", "test"),
        "sun397": tfds("sun397", "train", "test"),
        "cars196": tfds("cars196", "train", "test"),
        "fgvc_aircraft": of(
            f"folder:{aircraft}/trainval", f"folder:{aircraft}/test", each
        ),
        "voc2007": tfds("voc/2007", "train+validation", "test", "map11"),
        "dtd": tfds("dtd", "train+validation", "test"),
        "oxford_iiit_pet": tfds("oxford_iiit_pet", "train", "test", each),
        "caltech101": tfds("caltech101", "train", "test", each),
        "oxford_flowers102": tfds(
            "oxford_flowers102", "train+validation", "test", each
        ),
        "caltech_birds2011": tfds("caltech_birds2011", "train", "test"),
    }
    return ml_collections.ConfigDict({"tasks": tasks})
