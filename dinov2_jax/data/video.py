"""Clips as a few frames each: from folders of pictures, or from video files."""

import functools
import os
import re
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import decode, fingerprint, folder, walk
from dinov2_jax.data.record import Record
from dinov2_jax.escaping import escaped, normalized

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
        ignored = walk.Ignored()
        found = walk.Walk(self.root, ignored)
        kinds = [name for name, is_folder in _entries(found) if is_folder]
        self.classes = tuple(map(normalized, kinds))
        clips = [
            (name, label)
            for label, kind in enumerate(kinds)
            for name in _clips(found, kind)
        ]
        if not clips:
            raise errors.InputError(
                f"folder:{root} holds no clip (ignored: {ignored or 'nothing'}); it "
                "needs CLASS/CLIP/FRAME.jpg, or CLASS/CLIP with one of "
                f"{' '.join(VIDEOS)}."
            )
        walk.tell(f"folder:{root}", len(clips), ignored, "clips")
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
        files = _pictures(walk.Walk(path, walk.Ignored()), "")
        if not files:
            raise decode.DecodeError(f"{escaped(path)} holds no picture any more.")
        file = os.path.join(path, files[at(self.frames, len(files))[frame]])
        with open(file, "rb") as picture:
            return Record(picture.read(), label)

    def name(self, index: int) -> str:
        clip, frame = divmod(int(index), self.frames)
        return f"{escaped(os.path.join(self.root, self.clips[clip][0]))} frame {frame}"

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads: every video file, or picture of a clip."""
        yield "video", self.frames, self.classes
        for name, _ in self.clips:
            path = os.path.join(self.root, name)
            if not os.path.isdir(path):
                yield fingerprint.File(path, name)
                continue
            yield name
            for picture in _pictures(walk.Walk(path, walk.Ignored()), ""):
                inner = os.path.join(name, picture)
                yield fingerprint.File(os.path.join(self.root, inner), inner)


def at(frames: int, length: int) -> list[int]:
    """Numbers of the middle frames of `frames` equal parts of a clip."""
    return [(2 * i + 1) * length // (2 * frames) for i in range(frames)]


def _entries(found: walk.Walk, path: str = "") -> list[tuple[str, bool]]:
    """What a folder of a walk holds, by the numbers in the names."""
    entries = found.entries(os.fsencode(path))
    named = [(os.fsdecode(name), is_folder) for name, is_folder in entries]
    return sorted(named, key=lambda entry: _order(entry[0]))


def _order(name: str) -> tuple:
    """Sorts frame9 before frame10."""
    parts = re.split(r"(\d+)", name)
    return [int(x) if i % 2 else x for i, x in enumerate(parts)], name


def _clips(found: walk.Walk, kind: str) -> list[str]:
    """Clips of a class, as paths below the root."""
    clips, other = [], []
    for name, is_folder in _entries(found, kind):
        path = os.path.join(kind, name)
        if is_folder:
            lost = found.ignored.entries[walk.UNREADABLE]
            if _pictures(found, path):
                clips.append(path)
            elif found.ignored.entries[walk.UNREADABLE] == lost:
                other.append(path)
        elif name.lower().endswith(VIDEOS):
            clips.append(path)
        elif folder.is_image(name, found.ignored):
            other.append(path)
    if other:
        raise errors.InputError(
            f"{escaped(os.path.join(found.root, os.fsencode(kind)))} holds {len(other)} "
            f"things that are no clip, such as {escaped(os.path.basename(other[0]))}; "
            "each clip is a video file, or a folder with its pictures."
        )
    return clips


def _pictures(found: walk.Walk, path: str) -> list[str]:
    """Pictures of a clip in their order."""
    names = [name for name, is_folder in _entries(found, path) if not is_folder]
    return [name for name in names if folder.is_image(name, found.ignored)]


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
    """[H W 3] uint8 of each wanted frame of a video file, turned as players show it.

    A file that announces more frames than it gives repeats its last one.

    Raises: DecodeError if it has no picture, or too large ones.
    """
    av, name = library(), escaped(path)
    try:
        # A file object: FFmpeg takes no names that are not UTF-8.
        with open(path, "rb") as data, av.open(data) as file:
            stream = file.streams.video[0]
            length = sum(packet.size > 0 for packet in file.demux(stream))
        wanted, found, last = at(frames, length), {}, None
        with open(path, "rb") as data, av.open(data) as file:
            stream = file.streams.video[0]
            _limit(name, stream.codec_context)
            for number, frame in enumerate(file.decode(stream)):
                last = number, frame
                if number in wanted:
                    found[number] = _shown(name, frame)
                if number >= wanted[-1]:
                    break
        if last is None:
            raise decode.DecodeError(f"{name} holds no frame.")
        final = _shown(name, last[1])
        return tuple(found.get(number, final) for number in wanted)
    except (decode.DecodeError, MemoryError):
        raise
    # FFmpeg's readers raise nearly every kind of error on damaged files.
    except Exception as error:
        raise decode.DecodeError(f"{name} is no video: {error}") from error


def _limit(name: str, sized) -> None:
    """Raises DecodeError unless what has a width and a height is of an allowed size."""
    size = sized.width * sized.height
    if not 0 < size <= decode.MAX_PIXELS:
        raise decode.DecodeError(f"{name} has frames of {size} pixels.")


def _shown(name: str, frame) -> np.ndarray:
    """[H W 3] uint8 of a frame, by the display matrix that cameras write."""
    _limit(name, frame)  # frames may be larger than the file says
    image = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    return turned(image, ((a, b), (c, d)), name)


def turned(
    image: np.ndarray, matrix: tuple[tuple[int, int], tuple[int, int]], name: str = ""
) -> np.ndarray:
    """A coded picture as it is to be shown.

    Args:
        image: [H W 3].
        matrix: ((a, b), (c, d)), which takes the point (x, y) of the picture, x to the
            right and y down, to (a x + c y, b x + d y); only the signs count.
        name: of the file, for messages.
    Returns: [H W 3] or [W H 3], turned by quarters, mirrored or both.
    Raises: DecodeError if it turns by another angle.
    Source: ISO/IEC 14496-12 section 8.3.2, the matrix of a track.
    """
    (a, b), (c, d) = matrix
    if a and d and not b and not c:
        rows, columns = d, a
    elif b and c and not a and not d:
        image, rows, columns = image.swapaxes(0, 1), b, c
    else:
        raise decode.DecodeError(
            f"{name} is to be shown by the matrix {matrix}, which is no turn by quarters."
        )
    return np.ascontiguousarray(
        image[:: -1 if rows < 0 else 1, :: -1 if columns < 0 else 1]
    )
