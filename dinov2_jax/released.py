"""The eight released backbones and the released heads: what they are, and where."""

import dataclasses

from dinov2_jax.convert import infer
from dinov2_jax.models import vit

URL = "https://dl.fbaipublicfiles.com/dinov2"


@dataclasses.dataclass(frozen=True)
class Released:
    """A released backbone; all have patches of 14 and a position grid of 37."""

    size: str  # letter of vit.VARIANTS
    registers: int  # 0 or 4

    @property
    def url(self) -> str:
        """Address of its file."""
        stem = f"dinov2_vit{self.size.lower()}14"
        kind = f"_reg{self.registers}" if self.registers else ""
        return f"{URL}/{stem}/{stem}{kind}_pretrain.pth"

    def about(self) -> dict:
        """Its arguments of `ViT`.

        Source: the reference's `hubconf.py`.
        """
        found = vit.variant(f"{self.size}/14") | {
            "image_size": 518,
            "registers": self.registers,
            "layerscale": 1.0,
        }
        return {"ffn": "mlp"} | found | infer.resize(self.registers)


RELEASED = {
    f"dinov2_vit{size.lower()}14{'_reg' if registers else ''}": Released(
        size, registers
    )
    for registers in (0, 4)
    for size in ("S", "B", "L", "g")
}
"""Official name -> what it is."""


def _head_urls() -> dict[str, str]:
    """Name of a released head -> address of its file."""
    kinds = ["linear", "linear4"]
    dense = [f"{data}_{k}" for data in ("nyu", "kitti") for k in ("linear", "linear4")]
    dense += ["nyu_dpt", "kitti_dpt"]
    dense += [f"{data}_{k}" for data in ("ade20k", "voc2012") for k in ("linear", "ms")]
    found = {}
    for name, released in RELEASED.items():
        # The model cards list the others for backbones without registers only.
        for kind in kinds if released.registers else kinds + dense:
            url = released.url.replace("_pretrain", f"_{kind}_head")
            found[f"{name}_{kind}"] = url
    return found


HEADS = _head_urls()
"""Name of a released head, such as dinov2_vits14_nyu_linear4 -> its address."""
