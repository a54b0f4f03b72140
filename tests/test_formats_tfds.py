"""`prepare --format tfds` on a dataset that tensorflow_datasets itself prepared as ArrayRecord."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import prepared
import pytest

from hybridclip_jax.data.formats import Study, tfds
from hybridclip_jax.data.workers import file_state, files_of

# tensorflow_datasets wants the builder in a package of its own; images are given encoded, as without tensorflow
# it cannot encode them.
BUILDER = """
import io

import numpy as np
import prepared
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = dict(
            image=tfds.features.Image(shape=(None, None, 1)),
            report=tfds.features.Text(),
            impression=tfds.features.Text(),
            patient_id=tfds.features.Text(),
            edema=tfds.features.ClassLabel(names=["no", "yes"]),
            mass=np.int8,
            device=np.bool_,
            age=np.int32,
            boxes=tfds.features.Sequence(np.int32),
        )
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return dict(train=self._generate_examples(range(0, 6)), test=self._generate_examples(range(6, 8)))

    def _generate_examples(self, seeds):
        for seed in seeds:
            yield f"key {seed}", dict(
                image=io.BytesIO(prepared.encoded(prepared.picture(seed))),
                report=f"R\\u00e9port {seed}." if seed != 5 else b"K\\xf6rper",
                impression=f"Impression {seed}.",
                patient_id=f"p{seed // 2}",
                edema=(1, 0, -1)[seed % 3],
                mass=(1, 0, -1)[seed % 3],
                device=seed % 2 == 0,
                age=40 + seed,
                boxes=[seed],
            )
"""
RUN = """
import sys

sys.path[:0] = [{tests!r}, {packages!r}]
from mini_cxr.mini_cxr_dataset_builder import Builder

Builder(data_dir={data!r}, file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a prepared version: splits train (6 records) and test (2)."""
    root = tmp_path_factory.mktemp("tfds")
    package = root / "packages" / "mini_cxr"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "mini_cxr_dataset_builder.py").write_text(BUILDER)
    program = RUN.format(tests=str(Path(__file__).parent), packages=str(package.parent), data=str(root / "data"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    return root / "data" / "mini_cxr" / "1.0.0"


def copied(version: Path, to: Path) -> Path:
    shutil.copytree(version, to)
    return to


def test_splits_texts_labels_and_pixels(version: Path, tmp_path: Path) -> None:
    assert prepared.prepare("tfds", "--source", version, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "train")
    assert prepared.skipped(tmp_path / "s") == {"text that is not UTF-8": 1}
    assert len(store) == 5 and len(prepared.split(tmp_path / "s", "test")) == 2
    seeds = [int(text.removeprefix("R\u00e9port ").removesuffix(".")) for text in store.texts]  # in hashed order
    assert sorted(seeds) == [0, 1, 2, 3, 4]
    assert store.sections["impression"] == [f"Impression {seed}." for seed in seeds]
    for row, seed in enumerate(seeds):
        np.testing.assert_array_equal(store.image(row), prepared.stored(prepared.picture(seed)))
        assert store.labels["device"][row] == (seed % 2 == 0)
    assert len(set(store.patients)) == 3
    assert store.manifest["ids"]["namespace"] == "tfds:mini_cxr"
    said = prepared.notes(tmp_path / "s")
    assert store.label_names == ("device", "edema", "mass")  # sorted: their order as given changes with the process
    assert said["columns not used"] == "age" and said["features not used"] == "boxes"


def test_an_unknown_class_is_not_an_uncertain_one(version: Path, tmp_path: Path) -> None:
    """-1 in a class label means that nothing is known; in a number it is CheXpert's uncertain."""
    flags = ("--tfds-text-column", "report", "--uncertain", "one")
    assert prepared.prepare("tfds", "--source", version, *flags, "--out", tmp_path / "s") == 0
    store = prepared.split(tmp_path / "s", "train")
    third = [int(text[-2]) % 3 for text in store.texts]
    np.testing.assert_array_equal(store.labels["edema"], [(1, 0, np.nan)[n] for n in third])
    np.testing.assert_array_equal(store.labels["mass"], [(1, 0, 1)[n] for n in third])


def test_a_changed_file_of_records_is_noticed(version: Path, tmp_path: Path) -> None:
    """Images belong to the file that holds them, and an interrupted prepare goes on only where that is as it was."""
    folder = copied(version, tmp_path / "1.0.0")
    args = argparse.Namespace(source=str(folder), text="report")
    parser = argparse.ArgumentParser()
    tfds.FORMAT.add_arguments(parser)
    source = tfds.FORMAT.read(parser.parse_args([], args))
    loads = [study.load_image for study in source.studies if isinstance(study, Study)]
    for split in ("train", "test"):
        before = [list(map(file_state, files_of(load))) for load in loads]
        [records] = folder.glob(f"*-{split}.array_record*")
        os.utime(records, ns=(0, 0))
        changed = [list(map(file_state, files_of(load))) != state for load, state in zip(loads, before, strict=True)]
        assert changed == [split == "train"] * 5 + [split == "test"] * 2


def test_neither_tensorflow_nor_the_network_is_touched(version: Path, tmp_path: Path) -> None:
    program = f"""
import socket, sys
def refuse(*_): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from hybridclip_jax import cli
sys.argv = ["hybridclip", "prepare", "--format", "tfds", "--source", {str(version)!r}, "--out", {str(tmp_path / "s")!r}]
assert cli.main() == 0
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules and "mini_cxr" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]


def test_what_the_user_can_mend_is_one_line(version: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def line(source: Path, *flags: object) -> str:
        capfd.readouterr()
        assert prepared.prepare("tfds", "--source", source, *flags, "--out", tmp_path / "s") == 2
        return prepared.error_line(capfd)

    assert "has no dataset_info.json" in line(tmp_path)
    assert "perhaps " + str(version) in line(version.parent) and "perhaps " + str(version) in line(version.parents[1])
    assert "no image feature 'scan'" in line(version, "--tfds-image-column", "scan")
    assert "no column 'words'" in line(version, "--tfds-text-column", "words")

    record = copied(version, tmp_path / "tfrecord")
    info = json.loads((record / "dataset_info.json").read_text())
    for change in ({"fileFormat": "tfrecord"}, {"fileFormat": {}, "alternativeFileFormats": 3}):
        (record / "dataset_info.json").write_text(json.dumps({**info, **change}))
        assert "prepare it again with file_format='array_record'" in line(record)

    odd = copied(version, tmp_path / "odd")
    features = (odd / "features.json").read_text()
    strange = "antigravity.core.Feature"
    name = "tensorflow_datasets.core.features.text_feature.Text"
    (odd / "features.json").write_text(features.replace(name, strange, 1))
    assert f"{strange!r} is no feature of tensorflow_datasets and is not imported" in line(odd)
    assert "antigravity" not in sys.modules
    for text in ("{", "[]", "{}", features[: len(features) // 2], '{"featuresDict": {"features": 3}}'):
        (odd / "features.json").write_text(text)
        line(odd)


def test_damaged_records_are_one_line(version: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, cut in (("half", 0.5), ("end", 0.98), ("empty", 0.0)):
        folder = copied(version, tmp_path / name)
        (file,) = folder.glob("*train.array_record*")
        raw = file.read_bytes()
        file.write_bytes(raw[: int(len(raw) * cut)])
        capfd.readouterr()
        assert prepared.prepare("tfds", "--source", folder, "--out", tmp_path / "s") == 2
        assert "split train is damaged" in capfd.readouterr().err
    folder = copied(version, tmp_path / "gone")
    next(folder.glob("*train.array_record*")).unlink()
    assert prepared.prepare("tfds", "--source", folder, "--out", tmp_path / "s") == 2
