"""Stores: what is written is what is read; what is damaged, half-written or foreign never opens."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hybridclip_jax.data import store as store_module
from hybridclip_jax.data import store_writer
from hybridclip_jax.data.private_ids import IdHasher, key_file, user_key
from hybridclip_jax.data.store import Store, check_comparable
from hybridclip_jax.data.store_writer import Record, StoreWriter
from hybridclip_jax.errors import StorageError, UserError

LABELS = ("Edema", "No Finding")


def record(row: int, split: str, patient: str = "", **changes: object) -> Record:
    values: dict[str, object] = {
        "id": f"id{row}",
        "study": f"study{row}",
        "patient": patient or f"patient{row}",
        "split": split,
        "view": "PA",
        "text": f"Text of row {row}.\n\n  Überall „klar“ = clear.",
        "sections": {"findings": f"Findings {row}"},
        "n_tokens": 2 + row,
        "labels": {"Edema": (1.0, 0.0, -1.0, None)[row % 4], "No Finding": None},
        "source_row": row,
    }
    return Record(**{**values, **changes})  # type: ignore[arg-type]


def pixels_of(row: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (320, 320, channels), dtype=np.uint8)


def manifest(
    namespace: str = "csv:a",
    key: str = "k",
    uncertain: str = "ignore",
    blank: str = "missing",
    labels: tuple[str, ...] = LABELS,
) -> dict:
    return {
        "labels": {"names": list(labels), "uncertain": uncertain, "blank": blank},
        "ids": {"namespace": namespace, "key_fingerprint": key, "public_key": False},
    }


def write(
    out: Path,
    records: list[Record],
    channels: int = 1,
    encoding: str = "raw",
    labels: tuple[str, ...] = LABELS,
    **kwargs: str,
) -> Path:
    with StoreWriter(
        out, channels=channels, labels=labels, sections=("findings",), synthetic=False, encoding=encoding
    ) as writer:
        for item in records:
            writer.append(item, pixels_of(item.source_row, channels))
        writer.skip(99, "empty text")
        writer.finish(manifest(labels=labels, **kwargs))
    return out


@pytest.fixture(scope="module")
def two_splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows 1..8, alternating between train and val, in image files of three records."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_writer, "SHARD_RECORDS", 3)
        return write(folder / "s", [record(row, ("val", "train")[row % 2]) for row in range(1, 9)])


def damaged_rows(store: Store) -> list[int]:
    return [row for row in range(len(store)) if not store.intact(row)]


@pytest.mark.parametrize(("split", "rows"), [("train", [1, 3, 5, 7]), ("val", [2, 4, 6, 8])])
def test_a_split_reads_back_as_written(two_splits: Path, split: str, rows: list[int]) -> None:
    store = Store.open(f"{two_splits}:{split}")
    expected = [record(row, split) for row in rows]
    assert len(store) == 4
    assert (store.split, store.channels, store.synthetic) == (split, 1, False)
    assert store.ids == [item.id for item in expected]
    assert store.studies == [item.study for item in expected]
    assert store.patients == [item.patient for item in expected]
    assert store.texts == [item.text for item in expected]
    assert store.sections == {"findings": [item.sections["findings"] for item in expected]}
    assert store.views == ["PA"] * 4
    assert store.n_tokens.dtype == np.int32
    assert store.n_tokens.tolist() == [item.n_tokens for item in expected]
    assert store.source_rows.tolist() == rows
    images = store.images(np.array([3, 0, 0, 2]))
    np.testing.assert_array_equal(images, np.stack([pixels_of(rows[i]) for i in (3, 0, 0, 2)]))
    assert not np.shares_memory(images, store.image(0))
    np.testing.assert_array_equal(store.image(1), pixels_of(rows[1]))


def test_the_files_are_what_their_names_say(two_splits: Path) -> None:
    others = ["manifest.json", "skipped.jsonl", "table.parquet"]
    assert leftovers(two_splits) == [f"images-0000{i}.npy" for i in range(3)] + others
    shapes = [np.load(two_splits / f"images-0000{i}.npy").shape for i in range(3)]
    assert shapes == [(3, 320, 320, 1), (3, 320, 320, 1), (2, 320, 320, 1)]
    table = pq.read_table(two_splits / "table.parquet")
    texts = ["id", "study", "patient", "split", "view", "text", "findings"]
    assert table.column_names == [*texts, "n_tokens", *LABELS, "licence", "source_row", "image_sha256"]
    assert table["Edema"].to_pylist()[:4] == [0.0, -1.0, None, 1.0]  # as the source gave them
    assert json.loads((two_splits / "skipped.jsonl").read_text()) == {"row": 99, "reason": "empty text"}
    facts = json.loads((two_splits / "manifest.json").read_text())
    assert facts["splits"]["train"] == {"records": 4, "studies": 4, "patients": 4}
    Store.open(f"{two_splits}:val").verify()


def test_image_hash_is_of_the_stored_pixels(two_splits: Path) -> None:
    store = Store.open(f"{two_splits}:val")
    for row in range(len(store)):
        digest = store_module.hashlib.sha256(store.image(row).tobytes()).hexdigest()
        assert store.image_sha256[row] == digest


def test_a_store_travels_to_another_process_without_its_pixels(two_splits: Path) -> None:
    store = Store.open(f"{two_splits}:train")
    before = store.image(2).copy()
    data = pickle.dumps(store)
    assert len(data) < 10_000
    np.testing.assert_array_equal(pickle.loads(data).image(2), before)


def test_colour_has_three_channels(tmp_path: Path) -> None:
    store = Store.open(str(write(tmp_path / "c", [record(1, "all")], channels=3)))
    assert store.channels == 3
    np.testing.assert_array_equal(store.image(0), pixels_of(1, 3))


@pytest.mark.parametrize(
    ("uncertain", "blank", "expected"),
    [
        ("ignore", "missing", [1, 0, np.nan, np.nan]),
        ("zero", "missing", [1, 0, 0, np.nan]),
        ("one", "missing", [1, 0, 1, np.nan]),
        ("ignore", "negative", [1, 0, np.nan, 0]),
        ("one", "negative", [1, 0, 1, 0]),
    ],
)
def test_labels_follow_the_policy(tmp_path: Path, uncertain: str, blank: str, expected: list[float]) -> None:
    # Edema 1, 0, -1, blank beside a label that is blank but in the last row
    rows = [record(row, "all") for row in (4, 5, 6)]
    rows.append(record(7, "all", labels={"Edema": None, "No Finding": 1.0}))
    store = Store.open(str(write(tmp_path / "s", rows, uncertain=uncertain, blank=blank)))
    assert store.label_names == LABELS
    assert store.labels["Edema"].dtype == np.float32
    np.testing.assert_array_equal(store.labels["Edema"], np.array(expected, np.float32))
    gaps = [0.0 if blank == "negative" else np.nan] * 3
    np.testing.assert_array_equal(store.labels["No Finding"], [*gaps, 1.0])


@pytest.mark.parametrize(("names", "negative"), [(("Edema",), True), (LABELS, False)], ids=["one label", "two labels"])
def test_a_row_that_nobody_labelled_is_no_row_of_negatives(
    tmp_path: Path, names: tuple[str, ...], negative: bool
) -> None:
    blank = dict.fromkeys(names)
    rows = [record(4, "all", labels={**blank, "Edema": -1.0}), record(7, "all", labels=blank)]
    store = Store.open(str(write(tmp_path / "s", rows, labels=names, blank="negative")))
    for name in names:
        gap = 0.0 if name != "Edema" else np.nan
        np.testing.assert_array_equal(store.labels[name], np.array([gap, 0 if negative else np.nan], np.float32))


def test_spec_errors_name_the_remedy(two_splits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such store; make one: hybridclip prepare"):
        Store.open(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"several splits: name one as .*:SPLIT. It has train \(4\), val \(4\)"):
        Store.open(str(two_splits))
    with pytest.raises(UserError, match=r"no split 'test'. It has train \(4\), val \(4\)"):
        Store.open(f"{two_splits}:test")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file"):
        with pytest.raises(UserError, match="is not a store"):
            Store.open(str(tmp_path / name))


def test_one_split_needs_no_name_and_a_colon_in_the_path_is_no_split(tmp_path: Path) -> None:
    out = write(tmp_path / "at:12", [record(1, "only")])
    assert Store.open(str(out)).split == "only"
    assert Store.open(f"{out}:only").split == "only"


def test_a_tilde_in_a_path_is_a_name_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~").mkdir()
    write(Path("~") / "s", [record(1, "all")])
    assert len(Store.open("~/s")) == 1


def edited(tmp_path: Path, **changes: object) -> str:
    out = write(tmp_path / "s", [record(1, "all")])
    path = out / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(out)


def test_a_foreign_or_damaged_manifest_is_refused(tmp_path: Path) -> None:
    spec = edited(tmp_path, format_version=1)
    with pytest.raises(UserError, match="store format 1 and this program reads 2"):
        Store.open(spec)
    path = Path(spec) / "manifest.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match="is not a store"):
        Store.open(spec)


# field -> what stands in it
NONSENSE: list[tuple[str, object]] = [
    ("records", True),
    ("records", -1),
    ("channels", "x"),
    ("channels", 2),
    ("synthetic", "no"),
    ("encoding", 5),
    ("shard_records", 0),
    ("splits", []),
    ("splits", {}),
    ("splits", {"all": 1}),
    ("splits", {"all": {"records": 1}, "more": {"records": 1}}),
    ("sections", [1]),
    ("labels", []),
    ("labels.names", None),
    ("labels.uncertain", "maybe"),
    ("labels.blank", ["missing"]),
    ("ids", None),
    ("ids.namespace", None),
    ("ids.key_fingerprint", 5),
    ("ids.patients_unknown", "some"),
    ("files", []),
    ("preprocessing", 5),
    ("source", 5),
]


def put(out: str, field: str, value: object, *, gone: bool = False) -> None:
    """Sets one field of the manifest, or takes it away."""
    path = Path(out) / "manifest.json"
    body = json.loads(path.read_text())
    node, (*above, last) = body, field.split(".", 1)
    for key in above:
        node = node[key]
    node[last] = value
    if gone:
        del node[last]
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(("field", "value"), NONSENSE)
def test_nonsense_in_the_manifest_is_refused_by_its_field(field: str, value: object, tmp_path: Path) -> None:
    spec = edited(tmp_path)
    put(spec, field, value)
    with pytest.raises(UserError) as caught:
        Store.open(spec)
    assert str(caught.value) == f"{spec}/manifest.json: {field} is not as prepare writes it: run prepare again"


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("ids.namespace", "ids.namespace"),
        ("labels.names", "labels.names"),
        ("labels.blank", "labels.blank"),
        ("files.table.parquet", "files.table.parquet"),
        ("files.images-00000.npy", "files.images-00000.npy"),
        ("channels", "channels"),
    ],
)
def test_a_field_that_is_gone_from_the_manifest_is_named(field: str, named: str, tmp_path: Path) -> None:
    spec = edited(tmp_path)
    put(spec, field, None, gone=True)
    with pytest.raises(UserError, match=f"manifest.json: {named} is not as prepare writes it"):
        Store.open(spec)


def test_what_the_manifest_says_of_a_file_has_its_size_and_checksum(tmp_path: Path) -> None:
    spec = edited(tmp_path)
    put(spec, "files.table.parquet", {"bytes": 5})
    with pytest.raises(UserError, match="manifest.json: files.table.parquet is not as prepare writes it"):
        Store.open(spec)


def test_a_manifest_of_more_records_than_files_is_refused_at_once(tmp_path: Path) -> None:
    spec = edited(tmp_path, records=10**15, splits={"all": {"records": 10**15}})
    with pytest.raises(UserError, match="manifest.json: files is not as prepare writes it"):
        Store.open(spec)


@pytest.mark.parametrize("field", ["sections", "labels.names"])
def test_a_column_that_the_table_has_not_is_named(field: str, tmp_path: Path) -> None:
    spec = edited(tmp_path)
    put(spec, field, ["nope"])
    with pytest.raises(UserError) as caught:
        Store.open(spec)
    says = f"{spec}/manifest.json: {field}: {spec}/table.parquet has no 'nope': run prepare again"
    assert str(caught.value) == says


def test_a_split_of_another_size_than_the_tables_is_refused(tmp_path: Path) -> None:
    spec = edited(tmp_path, splits={"other": {"records": 1}})
    with pytest.raises(UserError, match="manifest.json: splits.other is not as prepare writes it"):
        Store.open(spec)


def test_a_manifest_nested_without_end_is_refused(tmp_path: Path) -> None:
    spec = edited(tmp_path)
    (Path(spec) / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is not a store"):
        Store.open(spec)


def test_grey_pixels_are_not_spread_over_three_channels(tmp_path: Path) -> None:
    store = Store.open(edited(tmp_path, channels=3))
    with pytest.raises(UserError, match="images-00000.npy cannot be read as a store's images: run prepare again"):
        store.images(np.array([0]))


def test_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images are encoded as 'webp', and this program reads raw, jpeg"):
        Store.open(edited(tmp_path, encoding="webp"))


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no records"):
        Store.open(edited(tmp_path, records=0, splits={}))


def test_a_file_gone_cut_or_flipped_is_found(tmp_path: Path) -> None:
    out = write(tmp_path / "s", [record(1, "all"), record(2, "all")])
    store = Store.open(str(out))
    for name in store.manifest["files"]:
        whole = (out / name).read_bytes()
        (out / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            Store.open(str(out))
        (out / name).write_bytes(whole[:-1])
        with pytest.raises(UserError, match=f"{name} has .* bytes where the manifest says"):
            Store.open(str(out))
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        (out / name).write_bytes(flipped)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            store.verify()
        (out / name).write_bytes(whole)
        store.verify()
    table = out / "table.parquet"
    flipped = bytearray(table.read_bytes())
    flipped[100] ^= 1
    table.write_bytes(flipped)
    with pytest.raises(UserError, match="table.parquet is damaged"):
        Store.open(str(out))
    table.write_bytes(b"\0" * table.stat().st_size)
    with pytest.raises(UserError, match="table.parquet is damaged"):
        Store.open(str(out))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_without_finish_nothing_appears(tmp_path: Path) -> None:
    def fail() -> None:
        with StoreWriter(tmp_path / "s", channels=1, labels=LABELS, sections=(), synthetic=False) as writer:
            writer.append(record(1, "all"), pixels_of(1))
            assert leftovers(tmp_path) == ["s.lock", "s.partial"]
            raise error

    error: BaseException = UserError("of the source")
    with pytest.raises(UserError):
        fail()
    assert leftovers(tmp_path) == []
    error = KeyboardInterrupt()  # what is done is kept for the next attempt
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert leftovers(tmp_path) == ["s.partial"]


def test_an_existing_output_is_never_touched(tmp_path: Path) -> None:
    out = write(tmp_path / "s", [record(1, "all")])
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="already exists: name another --out, or remove it"):
        write(out, [record(2, "all")])
    assert (out / "manifest.json").read_bytes() == before
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    with pytest.raises(UserError, match="already exists"):
        write(tmp_path / "folder", [record(2, "all")])
    assert leftovers(tmp_path) == ["folder", "s"]
    assert write(tmp_path / "new" / "s", [record(1, "all")]).is_dir()  # folders above it are made


@pytest.mark.parametrize("name", ["", ".", "/", "a\0b"])
def test_an_output_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--out .*: not a name for a new folder"):
        write(Path(name), [record(1, "all")])


def test_two_writers_of_one_output_refuse_each_other(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", channels=1, labels=LABELS, sections=("findings",), synthetic=False) as writer:
        with pytest.raises(UserError, match="another prepare is writing"):
            write(tmp_path / "s", [record(2, "all")])
        writer.append(record(1, "all"), pixels_of(1))
        writer.finish(manifest())
    assert Store.open(str(tmp_path / "s")).ids == ["id1"]
    assert leftovers(tmp_path) == ["s"]


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial" / "images-00007.npy").write_bytes(b"old")
    (tmp_path / "s.lock").touch()
    out = write(tmp_path / "s", [record(1, "all")])
    assert leftovers(tmp_path) == ["s"]
    assert not (out / "images-00007.npy").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="s.partial holds files that prepare does not write: move it"):
        write(tmp_path / "s", [record(1, "all")])
    assert leftovers(tmp_path) == ["s.partial"]
    assert leftovers(tmp_path / "s.partial") == ["thesis.txt"]


def test_a_label_with_the_name_of_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label or section 'view'"):
        StoreWriter(tmp_path / "s", channels=1, labels=("view",), sections=(), synthetic=False)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_full_disk_is_a_storage_error(tmp_path: Path, encoding: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    partial = tmp_path / "s.partial"
    with pytest.raises(StorageError, match="cannot write the store: No space left"):  # noqa: SIM117
        with StoreWriter(
            tmp_path / "s", channels=1, labels=LABELS, sections=(), synthetic=False, encoding=encoding
        ) as writer:
            writer.resume("", lambda n, done: True)
            (partial / {"raw": "images-00000.npy", "jpeg": "images-00000.jpegs"}[encoding]).symlink_to("/dev/full")
            writer.append(record(1, "all"), pixels_of(1))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_reads_back_near_and_says_what_is_damaged(tmp_path: Path, channels: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_writer, "SHARD_RECORDS", 3)
        out = write(tmp_path / "s", [record(row, "all") for row in range(1, 9)], channels, encoding="jpeg")
    assert leftovers(out)[:3] == [f"images-0000{i}.array_record" for i in range(3)]
    store = Store.open(str(out))
    assert (store.encoding, store.channels) == ("jpeg", channels)
    store.verify()
    for row in range(8):
        exact = pixels_of(row + 1, channels)
        assert store.image(row).dtype == np.uint8
        assert np.abs(store.image(row).astype(int) - exact).mean() < 8  # noise is the worst there is
        assert store.image_sha256[row] == store_module.hashlib.sha256(exact.tobytes()).hexdigest()
        assert store.intact(row)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).images(np.array([5, 1])), store.images([5, 1]))
    shard = out / "images-00001.array_record"
    data = bytearray(shard.read_bytes())
    data[100_000] ^= 1
    shard.write_bytes(data)
    [damaged] = damaged_rows(Store.open(str(out)))
    assert damaged in (3, 4, 5)
    with pytest.raises(UserError, match="images-00001.array_record: record . is damaged: copy the store again"):
        Store.open(str(out)).image(damaged)
    shard.write_bytes(b"\0" * len(data))
    assert damaged_rows(Store.open(str(out))) == [3, 4, 5]
    with pytest.raises(UserError, match="images-00001.array_record: record . is damaged"):
        Store.open(str(out)).image(4)


def test_damaged_records_are_told_by_row(two_splits: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    shutil.copytree(two_splits, out)
    assert damaged_rows(Store.open(f"{out}:train")) == []
    shard = out / "images-00001.npy"  # of rows 4, 5 and 6 of the source
    data = bytearray(shard.read_bytes())
    data[128 + 320 * 320 + 17] ^= 4
    shard.write_bytes(data)
    assert damaged_rows(Store.open(f"{out}:train")) == [2]
    assert damaged_rows(Store.open(f"{out}:val")) == []
    shard.write_bytes(b"x" + data[1:])
    assert damaged_rows(Store.open(f"{out}:val")) == [1, 2]


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_files_have_the_permissions_that_the_user_asks_for(tmp_path: Path, encoding: str) -> None:
    before = os.umask(0o027)
    try:
        out = write(tmp_path / "s", [record(1, "all")], encoding=encoding)
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}


def test_patients_compare_within_a_namespace_and_a_key(tmp_path: Path) -> None:
    def make(name: str, patients: list[str], **kwargs: str) -> Store:
        records = [record(i, "all", patient) for i, patient in enumerate(patients, start=1)]
        return Store.open(str(write(tmp_path / name, records, **kwargs)))

    a = make("a", ["p", "q", "q", "r"])
    b = make("b", ["q", "r", "s"])
    assert check_comparable(a, b) == "comparable"
    assert len(a.patient_set & b.patient_set) == 2
    elsewhere = make("c", ["q"], namespace="csv:b")
    assert check_comparable(a, elsewhere) == "not comparable by id"
    other_key = make("d", ["q"], key="other")
    with pytest.raises(UserError, match="made with different patient keys"):
        check_comparable(a, other_key)
    public = make("e", ["q"], namespace="phantom", key="public")
    assert check_comparable(a, public) == "not comparable by id"


def test_hashes_depend_on_key_namespace_and_kind() -> None:
    hasher = IdHasher(b"key", "csv:a")
    assert hasher("patient", "7") == IdHasher(b"key", "csv:a")("patient", "7")
    others = {
        hasher("patient", "7"),
        hasher("patient", "07"),
        hasher("id", "7"),
        IdHasher(b"key", "csv:b")("patient", "7"),
        IdHasher(b"yek", "csv:a")("patient", "7"),
    }
    assert len(others) == 5
    assert all(len(value) == 32 and int(value, 16) >= 0 for value in others)
    assert hasher.fingerprint != IdHasher(b"yek", "csv:a").fingerprint


@pytest.fixture
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HYBRIDCLIP_PATIENT_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def test_the_key_file_is_made_once_for_its_owner_only(own_config: Path) -> None:
    keys: list[bytes] = []
    threads = [threading.Thread(target=lambda: keys.append(user_key())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert len(keys[0]) == 64
    assert key_file() == own_config / "hybridclip" / "patient_key"
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    assert leftovers(key_file().parent) == ["patient_key"]


def test_a_key_that_others_read_or_that_is_empty_is_refused(own_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_key()
    os.chmod(key_file(), 0o640)
    with pytest.raises(UserError, match="run chmod 600"):
        user_key()
    os.chmod(key_file(), 0o600)
    key_file().write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        user_key()
    monkeypatch.setenv("HYBRIDCLIP_PATIENT_KEY", "  ")
    with pytest.raises(UserError, match="HYBRIDCLIP_PATIENT_KEY has 0 characters: give it at least 16"):
        user_key()
    monkeypatch.delenv("HYBRIDCLIP_PATIENT_KEY")
    own_config.joinpath("file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own_config / "file"))
    with pytest.raises(StorageError, match="set HYBRIDCLIP_PATIENT_KEY instead"):
        user_key()
