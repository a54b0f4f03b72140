"""Tables that readers share: gzip, and first rows that are no header and must not be repeated."""

from __future__ import annotations

import gzip
from pathlib import Path

import prepared
import pytest

from hybridclip_jax.data.formats.table import find_table, is_name, read_table
from hybridclip_jax.errors import UserError


@pytest.mark.parametrize("name", ["t.csv.gz", "t.tsv.gz", "t.jsonl.gz", "t.csv"])
def test_gzip_is_known_by_its_bytes(tmp_path: Path, name: str) -> None:
    text = {"t.tsv.gz": "a\tb\n1\t2\n", "t.jsonl.gz": '{"a": 1, "b": 2}\n'}.get(name, "a,b\n1,2\n")
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    table = read_table(find_table(tmp_path))
    assert table.columns == ("a", "b") and table.rows == [["1", "2"]]


def test_columns_are_found_by_name_or_listed(tmp_path: Path) -> None:
    table = read_table(prepared.write(tmp_path / "t.csv", ["a,b", "1,2"]))
    assert table.positions("b", "a") == (1, 0)
    assert table.position("b") == 1 and table.position("c") is None
    with pytest.raises(UserError, match="lacks column 'c'. It has 'a', 'b'"):
        table.positions("a", "c")


@pytest.mark.parametrize(
    "row",
    [
        "patient64741/study1/view1_frontal.jpg,No edema",
        "1,FINDINGS: the lungs are clear.",
        "p10000032,No edema",
        "1.2.840.113619.2.55.3,No edema",
        "Doe," + "no acute disease " * 6,
        '"Doe\nJane",No edema',
    ],
)
def test_a_table_without_a_header_is_refused_and_not_repeated(tmp_path: Path, row: str) -> None:
    with pytest.raises(UserError, match="its first row looks like data") as error:
        read_table(prepared.write(tmp_path / "t.csv", [row, row]))
    assert not any(word in str(error.value) for word in ("64741", "clear", "10000032", "113619", "Doe", "edema"))


def test_a_json_key_that_is_data_is_refused_and_not_repeated(tmp_path: Path) -> None:
    lines = ['{"image": "a.png"}', '{"patient64741/view1.jpg": "No edema"}']
    with pytest.raises(UserError, match=r"row 2 \(line 2\) has data for a key") as error:
        read_table(prepared.write(tmp_path / "t.jsonl", lines))
    assert "64741" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0",
        "Unnamed: 0",
        "AP/PA",
        "00100020",
        "text_style_0",
        "Enlarged Cardiomediastinum",
        "Pneumonia?",
        "PatientOrientationCodeSequence_CodeMeaning",
    ],
)
def test_names_that_real_tables_have(name: str) -> None:
    assert is_name(name)
