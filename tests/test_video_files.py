"""Video files: turned as players show them, and one that is damaged ends nothing."""

import os
import pathlib
import struct

import densefiles
import numpy as np
import pyarrow.parquet
import pytest

from dinov2_jax.cli import evaluate_video, results
from dinov2_jax.data import decode, video

av = pytest.importorskip("av", reason="needs the extra 'video'")
pytestmark = pytest.mark.torch  # with the packages of other libraries

ONE = 1 << 16  # of the matrix' fixed point numbers
SIZE = (32, 48)  # pixels, height and width


def clip(path: pathlib.Path, frames: int = 4, seed: int = 0) -> np.ndarray:
    """Writes a video of one picture, and returns the picture as it is decoded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((*SIZE, 3), np.uint8)
    image[: SIZE[0] // 2, : SIZE[1] // 2] = (250, 20, 20)
    image[SIZE[0] // 2 :] += np.uint8(40 + 10 * seed)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        for _ in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    return video._decoded.__wrapped__(str(path), 1)[0]


def with_matrix(path: pathlib.Path, rows: tuple[int, ...]) -> None:
    """Writes a, b, c and d of the display matrix into the header of an mp4's track."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version 0: flags, times, layer
    a, b, c, d = rows
    matrix = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    assert struct.unpack(">9i", data[at : at + 36])[-1] == 1 << 30
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


TURNS = {
    "by 90 to the right": ((0, ONE, -ONE, 0), lambda x: np.rot90(x, -1)),
    "by 180": ((-ONE, 0, 0, -ONE), lambda x: np.rot90(x, 2)),
    "by 90 to the left": ((0, -ONE, ONE, 0), np.rot90),
    "mirrored": ((-ONE, 0, 0, ONE), lambda x: x[:, ::-1]),
    "mirrored and turned": ((0, ONE, ONE, 0), lambda x: x.swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", TURNS)
def test_frames_are_turned_as_players_show_them(name, tmp_path):
    matrix, want = TURNS[name]
    plain = clip(tmp_path / "a" / "clip.mp4")
    assert plain.shape == (*SIZE, 3)
    assert plain[4, 4, 0] > 200 and plain[4, 4, 1] < 50
    with_matrix(tmp_path / "a" / "clip.mp4", matrix)
    source = video.Frames(str(tmp_path), 2)
    for index in range(2):
        np.testing.assert_array_equal(source[index].image, want(plain))
    with av.open(str(tmp_path / "a" / "clip.mp4")) as file:
        rotation = next(file.decode(video=0)).rotation
    if not name.startswith("mirrored"):  # PyAV's angle is to the left
        np.testing.assert_array_equal(np.rot90(plain, rotation // 90), want(plain))


def test_another_angle_is_no_frame(tmp_path):
    clip(tmp_path / "a" / "clip.mp4")
    with_matrix(tmp_path / "a" / "clip.mp4", (ONE, ONE, -ONE, ONE))
    with pytest.raises(decode.DecodeError, match="clip.mp4 .* no turn by quarters"):
        video.Frames(str(tmp_path), 2)[0]


def test_a_name_that_is_not_utf_8_is_read(tmp_path):
    plain = clip(tmp_path / "a" / "clip.mp4")
    odd = os.fsdecode(b"caf\xe9.mp4")
    (tmp_path / "a" / "clip.mp4").rename(tmp_path / "a" / odd)
    source = video.Frames(str(tmp_path), 1)
    np.testing.assert_array_equal(source[0].image, plain)


def test_damaged_clips_wherever_they_stand_are_left_out_and_counted(tmp_path):
    """The first, the last and every second one of few: what is asked for at the start."""
    for split in ("train", "val"):
        for kind, seed in (("dark", 0), ("light", 9)):
            for i in range(4):
                path = tmp_path / split / kind / f"v{i}.mp4"
                clip(path, seed=seed + i % 2)
                if i in (0, 2):
                    path.write_bytes(
                        (b"no video at all", path.read_bytes()[:99])[i // 2]
                    )
    specs = tuple(f"folder:{tmp_path / x}" for x in ("train", "val"))
    settings = {"resize": 32, "crop": 32, "frames": 2, "blocks": (1,), "steps": 8}
    settings |= {"rates": (1.0,), "train_batch": 8, "batch_size": 8}
    backbone = densefiles.backbone(depth=1)
    job = densefiles.job(evaluate_video, backbone, specs, tmp_path / "out", **settings)
    (tmp_path / "out").mkdir()
    outcome = evaluate_video.run(job)
    for split in ("train", "val"):
        assert outcome.data[split]["clips"] == 4
        assert outcome.data[split]["skipped_clips"] == 4
    results.write(job, outcome, 1.0)
    table = pyarrow.parquet.read_table(tmp_path / "out" / "predictions.parquet")
    table = table.to_pydict()
    assert [name[-7:] for name in table["id"]] == ["/v1.mp4", "/v3.mp4"] * 2
    assert table["record"] == [1, 3, 5, 7] and table["split"] == ["val"] * 4
    assert table["label"] == ["dark"] * 2 + ["light"] * 2
    right = [a == b for a, b in zip(table["label"], table["prediction"])]
    assert table["correct"] == right
    assert np.mean(right) == pytest.approx(outcome.metrics["top1"])
