"""Images that cannot be used as they are, and options that make no sense: one line."""

import numpy as np
import pytest
import rasters
from PIL import Image

from dinov2_jax import __main__ as command

SAMPLES = np.linspace(-1, 1, 24 * 32, dtype=np.float32).reshape(24, 32)
BANDS = np.zeros((24, 32, 13), np.uint16)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
SOURCES = {
    "floats without a range": (
        rasters.tiff(SAMPLES),
        ["32-bit float gray TIFF", "-1 to 1", "data.range=LOW,HIGH", "data stats"],
    ),
    "signed numbers without a range": (
        rasters.tiff((SAMPLES * 1000).astype(np.int16)),
        ["16-bit signed gray TIFF", "-1000 to 1000", "data.range=LOW,HIGH"],
    ),
    "a TIFF of 13 bands": (
        rasters.tiff(BANDS, photometric=1),
        ["a TIFF of 13 bands", "1 or 3"],
    ),
    "a HEIC image named .jpg": (HEIC, ["a HEIC image", "convert it to JPEG"]),
    "a DICOM file named .tif": (bytes(128) + b"DICM", ["a DICOM file", "data.range"]),
    "a web page named .jpg": (b"<html>404", ["an HTML page", "download"]),
}
SETTINGS = {
    "a range of one number": ("data.range=4095", ["data.range=4095", "LOW,HIGH"]),
    "a falling range": ("data.range=1,0", ["data.range=1,0", "rising"]),
    "a range of no numbers": ("data.range=nan,1", ["data.range=nan,1", "0,4095"]),
    "what is done with damage": ("data.damaged=drop", ["=drop", "fill or skip"]),
}
OPTIONS = {
    "pack --longest=0": "at least 1",
    "pack --longest=-5": "at least 1",
    "pack --shuffle=-1": "at least 0",
    "pack --shard-records=0": "at least 1",
    "pack --quality=101": "from 1 to 100",
    "pack --max-skipped=nan": "from 0 to 1",
    "pack --max-skipped=1.5": "from 0 to 1",
    "pack --max-pixels=0": "at least 1",
    "pack --range=0": "LOW,HIGH",
    "check --max-pixels=-1": "at least 1",
    "check --range=1,1": "LOW,HIGH",
    "check --out=/dev/null/list.txt": "Not a directory",
    "check --out=/": "Is a directory",
    "stats --out=/dev/null": "Not a directory",
    "stats --records=0": "at least 1",
    "stats --max-pixels=0": "at least 1",
    "stats --range=a,b": "LOW,HIGH",
}


@pytest.fixture
def folder(tmp_path):
    """Writes a class folder of two files; returns the source."""

    def write(data: bytes, ending: str = ".jpg") -> str:
        for number in range(2):
            path = tmp_path / "images" / "a" / f"{number}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return f"folder:{tmp_path / 'images'}"

    return write


@pytest.fixture
def refused(tmp_path, capsys, told):
    """Runs a command, which must fail with one line, and returns that."""

    def run(what: str, *arguments: str) -> str:
        assert command.main([*arguments]) == 1
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if "WARNING" not in line]
        assert out == "" and len(lines) == 1, err
        assert not (tmp_path / "run").exists() and not (tmp_path / "packed").exists()
        told(what, lines[0])
        return lines[0]

    return run


@pytest.fixture
def config(tmp_path):
    """The file of a config that would run."""
    path = tmp_path / "tiny.py"
    path.write_text(
        "from dinov2_jax import config as base\n"
        "def get_config():\n"
        "    c = base.default()\n"
        "    c.crops.update(global_size=16, local_size=8, local_number=2)\n"
        "    c.model.update(variant='Ti/4', width=32, depth=2, heads=2)\n"
        "    c.optim.update(warmup=2, freeze_last_layer=1)\n"
        "    c.teacher.temp_warmup = 4\n"
        "    c.train.update(steps=8, batch_size=16, group_size=2)\n"
        "    return c\n"
    )
    return path


@pytest.mark.parametrize("what", SOURCES)
def test_a_source_of_images_that_cannot_be_used(
    what, folder, refused, config, tmp_path
):
    data, words = SOURCES[what]
    line = refused(
        what,
        "train",
        f"--config={config}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.train={folder(data)}",
    )
    assert all(word in line for word in ["no decodable image", "1.jpg", *words])


@pytest.mark.parametrize("what", SETTINGS)
def test_a_setting_of_decoding(what, refused, config, tmp_path):
    setting, words = SETTINGS[what]
    line = refused(
        what,
        "train",
        f"--config={config}",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.train=demo:train",
        f"--config.{setting}",
    )
    assert all(word in line for word in words)


@pytest.mark.parametrize("what", OPTIONS)
def test_an_option_of_the_data_commands(what, folder, refused, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    source = folder((tmp_path / "good.png").read_bytes())
    action, option = what.split()
    out = [str(tmp_path / "packed")] if action == "pack" else []
    line = refused(f"data {what}", "data", action, source, *out, option)
    assert option.removeprefix("--") in line and OPTIONS[what] in line


def test_measuring_what_cannot_be_decoded(folder, refused):
    source = folder(HEIC)
    line = refused("data stats of HEIC images", "data", "stats", source)
    assert "none of 2 records can be decoded (2 no image)" in line
    assert "a HEIC image" in line
