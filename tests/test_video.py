"""Clips: which frames are read, how their features are joined, and the whole task."""

import json

import numpy as np
import peers
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.cli import evaluate_video, frozen
from dinov2_jax.convert import export, names
from dinov2_jax.data import decode, demo, video

PHOTOGRAPHS = ("china", "coffee", "rocket", "chelsea")
SIDE, STRIDE, LENGTH = 32, 24, 5  # pixels, pixels, frames


def window(photograph, top, left, reverse):
    """A window that slides over a photograph, to the right or to the left."""
    image = demo.photograph(photograph)
    frames = [
        image[top : top + SIDE, left + i * STRIDE : left + i * STRIDE + SIDE]
        for i in range(LENGTH)
    ]
    return frames[::-1] if reverse else frames


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """Class folders of windows that move to the left or to the right, same pixels."""
    home = tmp_path_factory.mktemp("moving")
    for split, tops in (("train", range(8, 200, 24)), ("val", range(20, 200, 48))):
        for name in PHOTOGRAPHS:
            for top in tops:
                for way in ("left", "right"):
                    clip = home / split / way / f"{name}{top}"
                    clip.mkdir(parents=True)
                    for i, frame in enumerate(window(name, top, 60, way == "left")):
                        # frame10 follows frame9
                        Image.fromarray(frame).save(clip / f"frame{i + 8}.png")
    return home


def test_frames_come_from_the_middles_of_equal_parts():
    assert video.at(8, 80) == [5, 15, 25, 35, 45, 55, 65, 75]
    assert video.at(1, 9) == [4] and video.at(4, 2) == [0, 0, 1, 1]
    for length in (1, 7, 8, 300):
        found = video.at(8, length)
        assert found == sorted(found) and 0 <= found[0] and found[-1] < length


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(moving):
    source = video.Frames(str(moving / "train"), 3)
    assert source.classes == ("left", "right")
    assert len(source) == 3 * 2 * 4 * 8
    wanted = window(PHOTOGRAPHS[3], 8, 60, True)  # chelsea8 is the first clip
    for frame, place in enumerate(video.at(3, LENGTH)):
        record = source[frame]
        assert record.label == 0
        np.testing.assert_array_equal(decode.decode(record.image), wanted[place])
    assert source.name(4).endswith("frame 1")
    some = video.Frames(str(moving / "train"), 3, limit=4)
    assert len(some) == 12 and {label for _, label in some.clips} == {0, 1}


def test_what_is_no_folder_of_clips_is_refused(moving, tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        video.Frames(str(tmp_path / "none"), 8)
    with pytest.raises(ValueError, match="no clip .*it needs CLASS/CLIP/FRAME"):
        video.Frames(str(tmp_path), 8)
    with pytest.raises(ValueError, match="no clip, such as frame8.png"):
        video.Frames(str(moving / "train" / "left"), 8)
    with pytest.raises(ValueError, match="frames=0"):
        video.Frames(str(moving / "train"), 0)


def pooled(order, pool):
    """A row of one clip whose frames come in an order."""
    rows = np.random.default_rng(0).normal(size=(4, 6))[list(order)]
    source = type("S", (), {"__len__": lambda self: 4, "clips": [("a", 0)]})()
    found = frozen.Set(rows, np.zeros(4, int), np.arange(4), [], source, {"spec": "x"})
    return evaluate_video.clips(found, 4, pool, 3).rows[0]


def test_averages_forget_the_order_of_frames_and_concatenations_keep_it():
    there, back = (pooled(x, "average") for x in (range(4), range(3, -1, -1)))
    np.testing.assert_allclose(there, back, atol=1e-15)  # sums in another order
    there, back = (pooled(x, "concatenate") for x in (range(4), range(3, -1, -1)))
    # three parts, each with the frames in their order
    turned = back.reshape(3, 4, 2)[:, ::-1].ravel()
    assert (there == turned).all() and not np.allclose(there, back)


def test_a_clip_with_an_unreadable_frame_is_left_out_and_counted():
    source = type("S", (), {"__len__": lambda self: 6, "clips": [("a", 0), ("b", 1)]})()
    about, records = {"spec": "x"}, np.array([0, 2, 3, 4, 5])
    found = frozen.Set(
        np.arange(10.0).reshape(5, 2), records // 3, records, [], source, about
    )
    one = evaluate_video.clips(found, 3, "average", 1)
    assert one.names == ["b"] and one.labels.tolist() == [1]
    assert one.rows.tolist() == [[6, 7]] and one.about["skipped_clips"] == 1
    with pytest.raises(ValueError, match="each of 2 clips has a frame"):
        evaluate_video.clips(
            frozen.Set(*(x[:2] for x in found[:3]), [], source, about), 3, "average", 1
        )


@pytest.fixture(scope="module")
def ask(moving, tmp_path_factory):
    """Runs the task; returns the exit code and what results.json holds."""
    home = tmp_path_factory.mktemp("video")
    built = peers.model(patch_size=8, image_size=SIDE)
    state = names.backbone_to_official(peers.params(built), 8)
    export.write_safetensors(home / "model.safetensors", state, export.about(built))
    sizes = (f"resize={SIDE}", f"crop={SIDE}", "blocks=1", "frames=4", "log_every=100")
    more = ("rates=1.0,8.0", "train_batch=128", "steps=200")

    def run(out, *told):
        given = [f"--weights={home / 'model.safetensors'}", f"--out={home / out}"]
        given += [f"--{x}=folder:{moving / x}" for x in ("train", "val")]
        given += [f"--cache={home / 'features'}"]
        given += [f"--set={x}" for x in (*sizes, *more, *told)]
        code = command.main(["evaluate", "video", *given])
        path = home / out / "results.json"
        return code, json.loads(path.read_text()) if path.exists() else None

    return run


def test_heads_tell_directions_apart_by_concatenated_frames_alone(ask, capsys):
    found = {}
    for pool in evaluate_video.POOLS:
        code, about = ask(pool, f"pool={pool}")
        assert code == 0 and about["metric"] == "top1"
        found[pool] = about["metrics"]["top1"]
        assert about["data"]["val"]["clips"] == 32
    # Both directions show the same frames, so an average gives both the same guess.
    assert found["average"] == pytest.approx(0.5, abs=1 / 32)  # one pair
    assert found["concatenate"] >= 0.75
    assert ask("other", "pool=sum")[0] == 1
    assert "pool=sum; expected one of average, concatenate" in capsys.readouterr().err


@pytest.mark.torch
def test_videos_are_read_by_frame(tmp_path):
    av = pytest.importorskip("av", reason="needs the extra 'video'")
    path = tmp_path / "gray" / "clip.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(24):
            gray = np.full((32, 48, 3), 10 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        file.mux(stream.encode())
    source = video.Frames(str(tmp_path), 8)
    for i in range(8):
        image = source[i].image
        assert image.shape == (32, 48, 3)
        # the codec is lossy
        assert abs(image.mean() - 10 * video.at(8, 24)[i]) < 4
    path.with_name("broken.mp4").write_bytes(path.read_bytes()[:60])
    source = video.Frames(str(tmp_path), 8)
    with pytest.raises(decode.DecodeError, match="broken.mp4 is no video"):
        source[0]


def test_videos_without_the_library_say_which_extra(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "clip.avi").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'dinov2_jax\[video\]'"):
        video.Frames(str(tmp_path), 8)
