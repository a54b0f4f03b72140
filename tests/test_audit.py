"""Audits: every planted fault is found and counted, what cannot be compared is said, and no patient is in them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import clouds, crop, exposed, jpeg, prepared

from hybridclip_jax.data import audit as audits
from hybridclip_jax.data.audit import examine, open_all, overlap
from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError

ZEROS = np.zeros((320, 320), np.uint8)


def row(n: int, image: np.ndarray | None = None, **changes: object) -> dict[str, object]:
    """A row of a table that shares nothing with a row of another n."""
    values: dict[str, object] = {
        "image": clouds(n) if image is None else image,
        "text": f"Findings {n}.",
        "patient": f"Doe^{n}",
        "study": f"study-{n}",
        "view": "PA",
        "Edema": n % 2,
        "licence": "CC0",
    }
    return {**values, **changes}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A training and a test store with one plant of each kind between them."""
    folder = tmp_path_factory.mktemp("planted")
    train = [row(n) for n in range(30)]
    train += [row(30, ZEROS), row(31, ZEROS)]
    test = [
        row(100, jpeg(clouds(3), 50)),  # encoded again
        row(101, crop(clouds(5), 0.1, 0.0)),  # a crop
        row(102, jpeg(exposed(crop(clouds(6), 0.03, 0.1), 0.9, 5), 80)),  # a crop, darker, encoded again
        row(103, clouds(7)),  # the same pixels
        row(104, patient="Doe^8"),  # a patient of the training store
        row(105, text="findings\n  9."),  # a text of the training store, wrapped
        row(106, ZEROS),  # a failed image, as in the training store
        *(row(n) for n in range(107, 112)),
    ]
    stores = [prepared(folder / name, rows, "--split", name) for name, rows in (("train", train), ("test", test))]
    return [str(store) for store in stores]


@pytest.fixture(scope="module")
def found(planted: list[str]) -> dict[str, Any]:
    return examine(open_all(planted), near=True, deep=True)


def where(record: int) -> dict[str, int]:
    return {"record": record, "source_row": record + 1}


def test_every_plant_is_found_and_nothing_else(planted: list[str], found: dict[str, Any]) -> None:
    train, test = f"{planted[0]}:train", f"{planted[1]}:test"
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["ids_why"], pair["images_why"]) == (train, test, None, None)
    assert (pair["patients"], pair["studies"], pair["images"], pair["texts"]) == (1, 0, 1, 1)
    assert pair["records_with_a_shared_text"] == [1, 1]
    assert [(copy["a"], copy["b"]) for copy in pair["near_copies"]] == [
        (where(3), where(0)),
        (where(5), where(1)),
        (where(6), where(2)),
    ]
    assert found["problems"] == [f"{train} and {test} share 1 patient and 1 image"]
    first, second = found["splits"]
    assert first["images"]["constant"] == [where(30) | {"value": 0}, where(31) | {"value": 0}]
    assert second["images"]["constant"] == [where(6) | {"value": 0}]
    assert (first["images"]["all_zero"], second["images"]["all_zero"]) == (2, 1)
    for split in found["splits"]:
        assert not split["near_copies"]
        assert not split["images"]["duplicates"]
        assert not split["images"]["blank_middle"]
        assert not split["damaged"]
        assert split["texts"]["repeated"] == 0


def test_counts_of_a_split(tmp_path: Path) -> None:
    rows = [
        row(0, text="Findings: clear. Impression: none.", Edema=-1, view="AP"),
        row(1, text=" ".join(["word"] * 200), Edema="", view="AP"),
        row(2, image=clouds(1), text="the SAME\ntext", Edema=1),
        row(3, text="The same text", Edema=0, licence=""),
        row(4, text="The same text", study="study-3", patient="Doe^3", view=""),
    ]
    store = prepared(tmp_path / "s", rows, "--uncertain", "one")
    (split,) = examine(open_all([str(store)]))["splits"]
    assert (split["records"], split["studies"], split["patients"]) == (5, 4, 4)
    assert split["labels"] == {
        "uncertain": "one",
        "blank": "missing",
        "counts": {"Edema": {"positive": 2, "negative": 2, "unknown": 1}},
    }
    tokens = split["tokens"]
    assert tokens["longest"] == 202
    assert tokens["beyond"] == {"77": 1, "128": 1, "248": 0, "512": 0}
    histogram = dict(zip(tokens["histogram"]["left_edges"], tokens["histogram"]["counts"], strict=True))
    assert sum(histogram.values()) == 5
    assert {edge: n for edge, n in histogram.items() if n} == {0: 4, 192: 1}
    assert split["views"] == {"AP": 2, "PA": 2, "not stated": 1}
    assert split["licences"] == {"CC0": 4, "not stated": 1}
    assert split["images"]["duplicates"] == [[where(1), where(2)]]
    assert split["images"]["distinct"] == 4
    # one text in studies 2 and 3; that it stands twice in study 3 is no repetition
    assert split["texts"] == {
        "without": 0,
        "distinct": 3,
        "repeated": 1,
        "studies_with_a_repeated_text": 2,
        "most_repeated": [2],
    }


def test_sections_are_counted_where_they_say_something(tmp_path: Path) -> None:
    rows = [row(n, findings="Clear." if n else "", impression="No change.") for n in range(3)]
    rows = [{name: cell for name, cell in values.items() if name != "text"} for values in rows]
    (split,) = examine(open_all([str(prepared(tmp_path / "s", rows, "--text", "impression"))]))["splits"]
    assert split["sections"]["findings"] == 2
    assert split["sections"]["impression"] == 3
    assert split["text"] == "impression"


def two(folder: Path, a: tuple[str, ...] = (), b: tuple[str, ...] = (), **drop: str) -> dict[str, Any]:
    """The pair of two stores with the same two rows, prepared with these flags."""
    rows = [{name: cell for name, cell in row(n).items() if name not in drop} for n in range(2)]
    return two_of(folder, rows, a, b)


def two_of(folder: Path, rows: list[dict[str, object]], a: tuple[str, ...], b: tuple[str, ...]) -> dict[str, Any]:
    stores = [prepared(folder / name, rows, *flags) for name, flags in (("a", a), ("b", b))]
    (pair,) = examine(open_all(list(map(str, stores))))["pairs"]
    return pair


def test_different_namespaces_are_not_comparable_and_never_0(tmp_path: Path) -> None:
    pair = two(tmp_path, b=("--namespace", "elsewhere"))
    assert (pair["patients"], pair["studies"]) == (None, None)
    assert str(pair["ids_why"]).startswith("not comparable by id: namespaces 'hospital' and 'elsewhere'")
    assert (pair["images"], pair["texts"]) == (2, 2), "pixels and texts need no ids"


def test_different_keys_are_said_and_do_not_end_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = prepared(tmp_path / "a", [row(0)])
    monkeypatch.setenv("HYBRIDCLIP_PATIENT_KEY", "another key of 16 characters")
    b = prepared(tmp_path / "b", [row(0)])
    (pair,) = examine(open_all([str(a), str(b)]))["pairs"]
    assert (pair["patients"], pair["studies"], pair["images"]) == (None, None, 1)
    assert pair["ids_why"] == "not comparable by id: made with different patient keys"


def test_a_source_without_patients_is_not_known_to_share_none(tmp_path: Path) -> None:
    rows = [{name: cell for name, cell in row(n).items() if name != "patient"} for n in range(2)]
    a = prepared(tmp_path / "a", rows)
    b = prepared(tmp_path / "b", [row(n) for n in range(5, 7)])  # files of the same names, which are no patients
    audit = examine(open_all([str(a), str(b)]))
    assert [split["patients_known"] for split in audit["splits"]] == [False, True]
    (pair,) = audit["pairs"]
    assert pair["patients"] is None
    assert pair["ids_why"] == f"not comparable by id: no patients are known of {a}:all"


def test_images_of_one_name_are_no_shared_patients_where_none_is_named(tmp_path: Path) -> None:
    nameless = [[{k: cell for k, cell in row(n).items() if k not in ("patient", "study")}] for n in range(2)]
    a, b = (prepared(tmp_path / name, rows) for name, rows in zip("ab", nameless, strict=True))
    audit = examine(open_all([str(a), str(b)]))
    assert audit["pairs"][0]["patients"] is None and audit["problems"] == []
    assert str(overlap(Store.open(str(a)), Store.open(str(b)))) == ""
    same = prepared(tmp_path / "c", nameless[0])
    assert str(overlap(Store.open(str(a)), Store.open(str(same)))) == "1 image"


def test_of_how_many_records_the_patient_is_not_known_is_said(tmp_path: Path) -> None:
    a = prepared(tmp_path / "a", [row(0), row(1), row(2, patient="")])
    b = prepared(tmp_path / "b", [row(1), row(6)])
    audit = examine(open_all([str(a), str(b)]))
    assert [split["patients_known"] for split in audit["splits"]] == [True, True]
    (pair,) = audit["pairs"]
    assert pair["patients"] == 1
    assert pair["ids_why"] == f"not comparable by id in part: no patient is known of 1 of 3 records of {a}"
    shared = overlap(Store.open(str(a)), Store.open(str(b)))
    assert (str(shared), shared.gaps) == ("1 patient and 1 image", [f"not every patient checked: {pair['ids_why']}"])
    apart = overlap(Store.open(str(a)), Store.open(str(prepared(tmp_path / "c", [row(7)]))))
    assert (str(apart), apart.nothing) == ("", "no known patient and no image")


def test_images_prepared_differently_are_not_comparable_by_pixel_unless_some_are_equal(tmp_path: Path) -> None:
    equal = two(tmp_path / "square", b=("--resize", "stretch"))
    assert equal["images"] == 2
    wide = [row(0, np.ascontiguousarray(clouds(0)[:200]))]
    pair = two_of(tmp_path / "wide", wide, (), ("--resize", "stretch"))
    assert pair["images"] is None
    assert pair["images_why"] == "not comparable by pixel: prepared with different resize"
    shared = overlap(*(Store.open(str(tmp_path / "wide" / name / "store")) for name in "ab"))
    assert (shared.images, shared.gaps) == (None, [f"images not checked: {pair['images_why']}"])
    pair = two(tmp_path / "colour", b=("--colour",))
    assert pair["images"] is None
    assert pair["images_why"] == "not comparable by pixel: 1 and 3 channels"


def test_each_split_is_audited_once_however_it_is_named(tmp_path: Path) -> None:
    rows = [row(n, split=("train", "val")[n % 2]) for n in range(4)]
    store = prepared(tmp_path / "s", rows)
    names = [split["name"] for split in examine(open_all([f"{store}:val", str(store), f"{store}/"]))["splits"]]
    assert names == [f"{store}:val", f"{store}:train"]
    assert examine(open_all([str(store)]))["problems"] == []
    with pytest.raises(UserError, match="has no split 'tset'"):
        open_all([f"{store}:tset"])


def test_a_copy_of_a_store_shares_everything_with_it(tmp_path: Path) -> None:
    store = prepared(tmp_path / "s", [row(n) for n in range(4)])
    shutil.copytree(store, tmp_path / "copy")
    (pair,) = examine(open_all([str(store), str(tmp_path / "copy")]))["pairs"]
    assert (pair["patients"], pair["images"]) == (4, 4)


def test_a_damaged_record_is_named_and_set_aside(tmp_path: Path) -> None:
    store = prepared(tmp_path / "s", [row(n) for n in range(4)] + [row(4, jpeg(clouds(2)))])
    (images,) = store.glob("images-*.npy")
    with images.open("r+b") as file:
        file.seek(128 + 2 * 320 * 320 + 500)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    audit = examine(open_all([str(store)]), near=True, deep=True)
    assert audit["splits"][0]["damaged"] == [where(2)]
    assert audit["problems"] == [f"1 record of {store}:all is damaged"]
    assert not audit["splits"][0]["near_copies"], "the damaged one is a copy of the last"


def test_a_jpeg_store_is_audited_like_a_raw_one(tmp_path: Path) -> None:
    rows = [row(n) for n in range(3)] + [row(3, crop(clouds(1), 0, 0))]
    raw, packed = prepared(tmp_path / "a", rows), prepared(tmp_path / "b", rows, "--encoding", "jpeg")
    audit = examine(open_all([str(raw), str(packed)]), near=True, deep=True)
    assert audit["pairs"][0]["images"] == 4
    for split in audit["splits"]:
        assert [(copy["a"], copy["b"]) for copy in split["near_copies"]] == [(where(1), where(3))]
        assert split["damaged"] == []


def test_an_audit_is_stable_json_without_a_patient_in_it(planted: list[str], found: dict[str, Any]) -> None:
    text = json.dumps(found, allow_nan=False)
    assert json.dumps(examine(open_all(planted), near=True, deep=True)) == text
    for spec in planted:
        store = Store.open(spec)
        for private in (*store.ids, *store.studies, *store.patients, *store.texts, *store.image_sha256):
            assert private not in text
    assert "Doe" not in text
    assert "study-" not in text


def test_images_of_one_value_are_known_by_their_checksum() -> None:
    for value in (0, 255):
        pixels = np.full((320, 320, 3), value, np.uint8)
        assert audits._constants(3)[hashlib.sha256(pixels.tobytes()).hexdigest()] == value
