"""What `embed` checks of its settings, before it reads an image or writes a file."""

from dinov2_jax import errors
from dinov2_jax.cli import setting
from dinov2_jax.models import vit

KINDS = ("cls", "registers", "mean_patch", "patches")
DTYPES = ("float32", "float16")
COMPUTE = ("float32", "bfloat16")
RANGES = {
    "resize": setting.COUNT,
    "crop": setting.COUNT,
    "dtype": setting.choice(*DTYPES),
    "compute": setting.choice(*COMPUTE),
    "workers": setting.WHOLE,
    "threads": setting.COUNT,
    "max_pixels": setting.COUNT,
}
"""Setting -> the values that it takes."""


def sizes(
    what: tuple[str, ...],
    batch_size: int,
    shard_size: int,
    devices: int,
    limit: int | None,
    **others,
) -> None:
    """Raises ValueError if what is asked for does not fit together."""
    if not what or len(set(what)) < len(what) or not set(what) <= set(KINDS):
        raise errors.InputError(
            f"what={','.join(what)}; choose some of {', '.join(KINDS)}."
        )
    if batch_size < 1 or batch_size % devices:
        raise errors.InputError(
            f"A batch of {batch_size} images does not divide over {devices} devices; "
            "choose a multiple of their number."
        )
    if shard_size < batch_size or shard_size % batch_size:
        raise errors.InputError(
            f"A shard of {shard_size} images is no multiple of a batch of {batch_size}; "
            f"choose {max(shard_size // batch_size, 1) * batch_size}."
        )
    if limit is not None and limit < 1:
        raise errors.InputError(f"limit={limit}; give 1 or more, or leave it out.")
    for key, value in others.items():
        setting.require(key, value, RANGES[key])
    crop_in_image(others["resize"], others["crop"])


def crop_in_image(resize: int, crop: int) -> None:
    """Raises ValueError unless the crop lies in the resized image."""
    if crop > resize:
        raise errors.InputError(
            f"crop={crop} is larger than the shorter side of the resized image, "
            f"resize={resize}; raise resize or lower crop."
        )


def model(backbone: vit.ViT, what: tuple[str, ...], crop: int) -> None:
    """Raises ValueError if the backbone cannot give what is asked for."""
    if crop % backbone.patch_size:
        raise errors.InputError(
            f"crop={crop} is no multiple of the patch size {backbone.patch_size}."
        )
    if "registers" in what and not backbone.registers:
        raise errors.InputError(
            "These weights have no registers; leave them out of what."
        )
