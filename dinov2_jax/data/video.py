"""Clips as a few frames each: from folders of pictures, or from video files."""

import functools
import os
import re
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import decode, fingerprint, folder
from dinov2_jax.data.record import Record

VIDEOS = (".avi", ".mp4", ".webm", ".mkv", ".mov", ".mpg", ".mpeg", ".m4v")


class Frames:
    """Some frames of every clip, spread evenly, as images of the clip's class.

    Below the root stands a folder for each class, in it the clips: folders of pictures,
    whose names give their order, or video files. Record c * frames + f is frame f of
    clip c.
    """

    def __init__(self, root: str, frames: int, limit: int = 0):
        """
        Args:
            root: the folder.
            frames: of a clip, each from the middle of one of as many equal parts; of a
                clip that has fewer, some come twice.
            limit: at most so many clips, evenly spread; 0 for all.
        Raises: ValueError if the folder is missing or holds no clip, a class folder
            holds pictures beside clips, or videos are there without their library.
        """
        if frames < 1 or limit < 0:
            raise errors.InputError(
                f"{frames=} must be 1 or more and {limit=} 0 or more."
            )
        self.root, self.frames = os.path.abspath(os.path.expanduser(root)), frames
        if not os.path.isdir(self.root):
            raise errors.InputError(f"folder:{root} is not a folder ({self.root}).")
        self.classes = tuple(e.name for e in _entries(self.root) if e.is_dir())
        clips = [
            (name, label)
            for label, kind in enumerate(self.classes)
            for name in _clips(self.root, kind)
        ]
        if not clips:
            raise errors.InputError(
                f"folder:{root} holds no clip; it needs CLASS/CLIP/FRAME.jpg, or "
                f"CLASS/CLIP with one of {' '.join(VIDEOS)}."
            )
        if any(name.lower().endswith(VIDEOS) for name, _ in clips):
            library()
        kept = min(limit or len(clips), len(clips))
        self.clips = tuple(clips[i * len(clips) // kept] for i in range(kept))

    def __len__(self) -> int:
        return len(self.clips) * self.frames

    def __getitem__(self, index: int) -> Record:
        clip, frame = divmod(int(index), self.frames)
        name, label = self.clips[clip]
        path = os.path.join(self.root, name)
        if not os.path.isdir(path):
            return Record(_decoded(path, self.frames)[frame], label)
        files = _pictures(path)
        if not files:
            raise decode.DecodeError(f"{path} holds no picture any more.")
        with open(
            os.path.join(path, files[at(self.frames, len(files))[frame]]), "rb"
        ) as f:
            return Record(f.read(), label)

    def name(self, index: int) -> str:
        clip, frame = divmod(int(index), self.frames)
        return f"{os.path.join(self.root, self.clips[clip][0])} frame {frame}"

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads: every video file, or picture of a clip."""
        yield "video", self.frames, self.classes
        for name, _ in self.clips:
            path = os.path.join(self.root, name)
            if not os.path.isdir(path):
                yield fingerprint.File(path, name)
                continue
            yield name
            for picture in _pictures(path):
                inner = os.path.join(name, picture)
                yield fingerprint.File(os.path.join(self.root, inner), inner)


def at(frames: int, length: int) -> list[int]:
    """Numbers of the middle frames of `frames` equal parts of a clip."""
    return [(2 * i + 1) * length // (2 * frames) for i in range(frames)]


def _entries(path: str) -> list[os.DirEntry]:
    """What a folder holds, hidden files apart, by the numbers in the names."""
    with os.scandir(path) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(found, key=lambda entry: _order(entry.name))


def _order(name: str) -> tuple:
    """Sorts frame9 before frame10."""
    parts = re.split(r"(\d+)", name)
    return [int(x) if i % 2 else x for i, x in enumerate(parts)], name


def _clips(root: str, kind: str) -> list[str]:
    """Clips of a class, as paths below the root."""
    found, other = [], []
    for entry in _entries(os.path.join(root, kind)):
        if entry.is_dir():
            if _pictures(entry.path):
                found.append(os.path.join(kind, entry.name))
            else:
                other.append(entry.name)
        elif entry.name.lower().endswith(VIDEOS):
            found.append(os.path.join(kind, entry.name))
        elif _is_picture(entry.name):
            other.append(entry.name)
    if other:
        raise errors.InputError(
            f"{os.path.join(root, kind)} holds {len(other)} things that are no clip, such "
            f"as {other[0]}; each clip is a video file, or a folder with its pictures."
        )
    return found


def _pictures(path: str) -> list[str]:
    """Pictures of a clip in their order."""
    return [entry.name for entry in _entries(path) if _is_picture(entry.name)]


def _is_picture(name: str) -> bool:
    """Whether a file name says image."""
    return os.fsencode(os.path.splitext(name)[1].lower()) in folder.EXTENSIONS


def library():
    """PyAV.

    Raises: ValueError if it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise errors.InputError(
            "video files need PyAV; pip install 'dinov2_jax[video]', or give folders "
            "of frames."
        ) from error
    return av


@functools.lru_cache(maxsize=2)  # the frames of a clip are asked for one by one
def _decoded(path: str, frames: int) -> tuple[np.ndarray, ...]:
    """[H W 3] uint8 of each wanted frame of a video file.

    A file that announces more frames than it gives repeats its last one.

    Raises: DecodeError if it has no picture, or too large ones.
    """
    av = library()
    try:
        with av.open(path) as file:
            stream = file.streams.video[0]
            size = stream.codec_context.width * stream.codec_context.height
            if not 0 < size <= decode.MAX_PIXELS:
                raise decode.DecodeError(f"{path} has frames of {size} pixels.")
            length = sum(packet.size > 0 for packet in file.demux(stream))
        wanted, found, last = at(frames, length), {}, None
        with av.open(path) as file:
            for number, frame in enumerate(file.decode(video=0)):
                last = number, frame
                if number in wanted:
                    found[number] = frame.to_ndarray(format="rgb24")
                if number >= wanted[-1]:
                    break
        if last is None:
            raise decode.DecodeError(f"{path} holds no frame.")
        final = last[1].to_ndarray(format="rgb24")
        return tuple(found.get(number, final) for number in wanted)
    except (av.error.FFmpegError, IndexError) as error:
        raise decode.DecodeError(f"{path} is no video: {error}") from error
