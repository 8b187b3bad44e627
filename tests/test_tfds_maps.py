"""TFDS data sets with maps, and with several labels an image, made here."""

import pickle

import cv2
import numpy as np
import pytest

from dinov2_jax.data import demo, dense, dense_tfds, manylabels

tfds = pytest.importorskip("tensorflow_datasets", reason="comes with the package")

SIZE = (24, 32)  # pixels
SEVERAL = [([0, 2], [0]), ([1], [1]), ([], []), ([2], [2])]
"""Of each image: all labels, and those of objects that are not difficult."""


def png(array):
    """A PNG file of an array."""
    return cv2.imencode(".png", array[..., ::-1])[1].tobytes()


def drawn(number):
    """A tile of a photograph, its label map and its depth in metres."""
    rng = np.random.default_rng(number)
    image = demo.photograph("coffee")[: SIZE[0], 8 * number :][:, : SIZE[1]]
    ids = rng.integers(0, 3, (*SIZE, 1)).astype(np.uint8)
    depth = rng.uniform(0.5, 9, SIZE).astype(np.float16)
    depth[0, 0] = 0
    return image, ids, depth


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set with everything; its folder."""
    f = tfds.features

    class Mapped(tfds.core.GeneratorBasedBuilder):
        """Four tiles."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            several = f.Sequence(f.ClassLabel(names=["cat", "dog", "cup"]))
            shape = (*SIZE, 1)
            return tfds.core.DatasetInfo(
                builder=self,
                features=f.FeaturesDict(
                    {
                        "image": f.Image(encoding_format="png"),
                        "segmentation_mask": f.Image(
                            shape=shape, encoding_format="png"
                        ),
                        "parts": f.LabeledImage(
                            labels=["sky", "sea", "land"], shape=shape
                        ),
                        "depth": f.Tensor(shape=SIZE, dtype=np.float16),
                        "labels": several,
                        "labels_no_difficult": several,
                    }
                ),
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, (all_of_them, plain) in enumerate(SEVERAL):
                image, ids, depth = drawn(number)
                yield (
                    number,
                    {
                        "image": png(image),
                        "segmentation_mask": png(ids),
                        "parts": png(ids),
                        "depth": depth,
                        "labels": all_of_them,
                        "labels_no_difficult": plain,
                    },
                )

    home = tmp_path_factory.mktemp("tfds")
    Mapped(data_dir=home, file_format="array_record").download_and_prepare()
    return home


def test_label_maps_of_tfds_are_read(prepared):
    spec = f"tfds:mapped:train@{prepared}"
    pairs = dense.open_labels(spec, ignore=2)
    assert pairs.classes == ("sky", "sea", "land") and len(pairs) == 4
    found = {p.image.tobytes(): p.target for p in (pairs[i] for i in range(4))}
    for number in range(4):
        image, ids, _ = drawn(number)
        target = found[np.ascontiguousarray(image).tobytes()]
        np.testing.assert_array_equal(
            target, np.where(ids == 2, -1, ids.astype(int))[..., 0]
        )
        assert target.dtype == np.int32
    # With its version a set is read from its files, and not by the class above.
    whole = dense.open_labels(f"tfds:mapped:1.0.0:train@{prepared}", ignore=2)
    again = pickle.loads(pickle.dumps(whole))
    np.testing.assert_array_equal(again[1].target, pairs[1].target)
    assert pairs.name(2) == f"{spec} record 2"
    with pytest.raises(ValueError, match="names 3 classes, but classes=4"):
        dense.open_labels(spec, classes=4)
    data, feature, names = dense_tfds.opened(spec, ("segmentation_mask",))
    assert names == () and data[0][feature].shape == (*SIZE, 1)
    with pytest.raises(ValueError, match="no image with one of masks; its features"):
        dense_tfds.opened(spec, ("masks",))


def test_depth_maps_of_tfds_are_in_metres(prepared):
    pairs = dense.open_depth(f"tfds:mapped:train[:50%]@{prepared}", scale=1000)
    assert len(pairs) == 2
    depths = [drawn(number)[2] for number in range(4)]
    for i in range(2):
        target = pairs[i].target
        assert target.dtype == np.float32 and target[0, 0] == 0
        assert any((target == depth).all() for depth in depths)


def test_labels_of_difficult_objects_count_for_neither_side(prepared):
    spec = f"tfds:mapped:train@{prepared}"
    classes, targets = manylabels.of_tfds(spec)
    assert classes == ("cat", "dog", "cup")
    wanted = [[1, 0, -1], [0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert sorted(targets.tolist()) == sorted(wanted)
    with pytest.raises(ValueError, match="several labels an image come from tfds:NAME"):
        manylabels.of_tfds("folder:x")


def test_a_set_of_tfds_that_is_not_there_is_told(prepared):
    for opened in (dense.open_labels, dense.open_depth):
        with pytest.raises(ValueError, match="similar names are mnist"):
            opened(f"tfds:mnits@{prepared}")
