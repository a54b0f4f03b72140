"""Reports into sections by the stated rules, and what counts as no text; on report texts written for the tests."""

from __future__ import annotations

import time
from pathlib import Path

import prepared
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridclip_jax.data.sectioning import is_placeholder, split_report

WRAPPED = """\
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old man with cough  // rule out pneumonia

 TECHNIQUE:  PA and lateral views.

 COMPARISON:  ___.

 FINDINGS:

 The heart is of normal size. There is no
 focal consolidation, effusion or pneumothorax.
 LUNGS: Clear.

 IMPRESSION:

 1.  No pneumonia.
 2.  Unchanged since ___.

 RECOMMENDATION(S):  None.

 NOTIFICATION:  The findings were discussed by telephone.
"""


def test_a_report_with_every_header() -> None:
    assert split_report(WRAPPED) == {
        "findings": "The heart is of normal size. There is no\n focal consolidation, effusion or pneumothorax.\n"
        " LUNGS: Clear.",
        "impression": "1.  No pneumonia.\n 2.  Unchanged since ___.",
        "comparison": "___.",
    }
    windows = WRAPPED.replace("\n", "\r\n")
    assert split_report(windows) == {k: v.replace("\n", "\r\n") for k, v in split_report(WRAPPED).items()}


# Name, report, sections.
CASES: list[tuple[str, str, dict[str, str]]] = [
    ("a colon behind blanks", "FINDINGS : a\nIMPRESSION\t: b", {"findings": "a", "impression": "b"}),
    ("any case at a line start", "findings: a\nImpression: b", {"findings": "a", "impression": "b"}),
    ("alone on a line", "FINDINGS\na\n\nImpression\nb", {"findings": "a", "impression": "b"}),
    ("a small word alone on a line", "The heart is as in\ncomparison\nIMPRESSION: b", {"impression": "b"}),
    ("no colon within a line", "IMPRESSION: FINDINGS are stable", {"impression": "FINDINGS are stable"}),
    ("one line, capitals", "FINDINGS: no fluid IMPRESSION: normal", {"findings": "no fluid", "impression": "normal"}),
    ("one line, sentences", "Findings: Clear. Impression: Normal.", {"findings": "Clear.", "impression": "Normal."}),
    ("one line, no full stop", "Findings: clear Impression: normal", {"findings": "clear", "impression": "normal"}),
    ("a small word within a line", "IMPRESSION: the impression: normal", {"impression": "the impression: normal"}),
    ("the tail of a phrase", "IMPRESSION: LIMITED STUDY: normal", {"impression": "LIMITED STUDY: normal"}),
    ("the tail of a title", "Findings: Incidental Findings: none", {"findings": "Incidental Findings: none"}),
    ("a de-identified word before", "COMPARISON: XXXX FINDINGS: a", {"findings": "a", "comparison": "XXXX"}),
    (
        "capitals throughout",
        "FINDINGS: CLEAR. OTHER FINDINGS: NONE. IMPRESSION: NORMAL",
        {"findings": "CLEAR. OTHER FINDINGS: NONE.", "impression": "NORMAL"},
    ),
    (
        "a numbered list",
        "IMPRESSION:\n1. No change. 2. Comparison: none at hand.\n3. Fine.",
        {"impression": "1. No change. 2. Comparison: none at hand.\n3. Fine."},
    ),
    ("an unknown title", "FINDINGS:\nLUNGS: clear\nBONES: intact", {"findings": "LUNGS: clear\nBONES: intact"}),
    ("an alias", "FINDINGS: a\nCONCLUSION(S): b", {"findings": "a", "impression": "b"}),
    ("British", "FINDINGS: a\nOPINION: b", {"findings": "a", "impression": "b"}),
    ("and recommendation", "IMPRESSION AND RECOMMENDATION(S): a", {"impression": "a"}),
    ("both at once", "FINDINGS AND IMPRESSION: a", {"findings": "a", "impression": "a"}),
    (
        "both, then one",
        "FINDINGS/IMPRESSION: a\nIMPRESSION: b",
        {"findings": "a", "impression": "b"},
    ),
    ("one, then both", "IMPRESSION: b\nFINDINGS/IMPRESSION: a", {"findings": "a", "impression": "a"}),
    ("the question, not the answer", "CLINICAL IMPRESSION: cough\nIMPRESSION: clear", {"impression": "clear"}),
    ("a slip: missing", "FINDNGS: a\nIMPRESSON: b", {"findings": "a", "impression": "b"}),
    ("a slip: too many", "FINNDINGS: a\nIMPRESSSION: b", {"findings": "a", "impression": "b"}),
    ("a slip: wrong", "FINDIMGS: a\nIMPRESSIOM: b", {"findings": "a", "impression": "b"}),
    ("a slip: swapped", "FIDNINGS: a\nIMRPESSION: b", {"findings": "a", "impression": "b"}),
    ("two slips are another word", "IMPRESSION: a\nOCCLUSION: b", {"impression": "a\nOCCLUSION: b"}),
    ("a slip within a line is text", "IMPRESSION: a CONCLUSON: b", {"impression": "a CONCLUSON: b"}),
    ("the last of several", "IMPRESSION: a\nFINDINGS: x\nIMPRESSION: b", {"findings": "x", "impression": "b"}),
    ("the last with text", "IMPRESSION: a\nFINDINGS: x\nIMPRESSION:\n", {"findings": "x", "impression": "a"}),
    (
        "an addendum in front",
        "ADDENDUM: Impression: wrong side.\n FINAL REPORT\nFINDINGS: a\nIMPRESSION: b",
        {"findings": "a", "impression": "b"},
    ),
    (
        "recommendation and notification in front",
        "RECOMMENDATION(S): CT.\nNOTIFICATION: phoned.\nFINDINGS: a\nIMPRESSION: b",
        {"findings": "a", "impression": "b"},
    ),
    (
        "recommendation between",
        "IMPRESSION: a\nRECOMMENDATIONS: CT.\nFINDINGS: b NOTIFICATION: phoned.",
        {"findings": "b", "impression": "a"},
    ),
    ("an empty section", "FINDINGS:\nIMPRESSION: a", {"impression": "a"}),
    ("no impression", "FINDINGS: a", {"findings": "a"}),
    (
        "de-identification marks stay",
        "IMPRESSION: Seen by [**Name 1**] on [**2101-3-4**], ___, XXXX.",
        {"impression": "Seen by [**Name 1**] on [**2101-3-4**], ___, XXXX."},
    ),
    ("no header at all", "Rotated film.\n\nNo pneumonia.\n\n", {"last_paragraph": "No pneumonia."}),
    (
        "no header of a section",
        "FINAL REPORT\n EXAMINATION:  CHEST (AP)\n\n Old film.\n\n Moderate\n opacity.\n\n",
        {"last_paragraph": "Moderate\n opacity."},
    ),
    (
        "a comparison is one paragraph",
        "COMPARISON:\n\n None.\n\n The lungs are clear.",
        {"comparison": "None.", "last_paragraph": "The lungs are clear."},
    ),
    ("notification is no last paragraph", "Clear.\n\nNOTIFICATION: phoned.\n\nAt noon.", {"last_paragraph": "Clear."}),
    ("only fields", "EXAMINATION: CHEST\nINDICATION: cough", {}),
    ("nothing", "", {}),
    ("blanks", " \n\t\r\n", {}),
    (
        "other scripts",
        "FINDINGS: Lungen frei — größer?\nIMPRESSION: 正常",
        {"findings": "Lungen frei — größer?", "impression": "正常"},
    ),
]


@pytest.mark.parametrize(("report", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_rules(report: str, expected: dict[str, str]) -> None:
    assert split_report(report) == expected


def test_sections_come_in_one_order() -> None:
    # The order of a store's columns must not depend on which report comes first.
    assert list(split_report("COMPARISON: c\nIMPRESSION: b\nFINDINGS: a")) == ["findings", "impression", "comparison"]


PIECES = st.sampled_from(
    [
        "FINDINGS:",
        "Impression:",
        "IMPRESSION",
        "COMPARISON :",
        "NOTIFICATION:",
        "FINDINGS AND IMPRESSION:",
        "IMPRESON:",
        "\n",
        "\n\n",
        " ",
        "\t",
        ". ",
        "1. ",
        "___",
        "The heart is large",
        "NO CHANGE",
        "é",
        "\r\n",
        ":",
        "impression",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join))
def test_a_section_is_a_stripped_stretch_of_the_report(report: str) -> None:
    sections = split_report(report)
    for text in sections.values():
        assert text
        assert text == text.strip()
        assert text in report
    assert ("last_paragraph" in sections) <= sections.keys().isdisjoint({"findings", "impression"})


MEGABYTE = 1_000_000
HOSTILE = [
    " ",
    "\n",
    "\n \n",
    "\n ",
    "_",
    "[",
    "[**",
    "a:",
    "x",
    "xxx ",
    "1. ",
    "IMPRESSION",
    "IMPRESSION ",
    "IMPRESSION:",
]
HOSTILE += ["\nIMPRESION:", "FINDINGS AND ", "FINDINGS" + " " * 79, "FINDINGS" + " " * 79 + "\n", "Impression: a. "]


@pytest.mark.parametrize("piece", HOSTILE, ids=[repr(piece[:16]) for piece in HOSTILE])
def test_a_megabyte_made_to_be_slow_takes_less_than_a_second(piece: str) -> None:
    text = piece * (MEGABYTE // len(piece)) + "a"
    start = time.process_time()
    split_report(text)
    is_placeholder(text)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "___",
        "_ _",
        ".",
        "NO IMPRESSION",
        "No impression.",
        "XXXX",
        "XXXX.",
        "XXXX XXXX",
        "N/A",
        "n/a.",
        "NA",
        "None",
        "None.",
        "nan",
        "NULL",
        "[**2101-3-4**]",
        "[** Name **] [** Place **].",
        "-",
    ],
)
def test_what_says_nothing(text: str) -> None:
    assert is_placeholder(text)


@pytest.mark.parametrize(
    "text",
    [
        "Normal.",
        "No acute disease.",
        "None seen.",
        "No impression of failure.",
        "XXXX opacity.",
        "Xx",
        "[**Name**] clear",
        "not applicable here",
        "1. Clear",
        "No change since ___",
        "正常",
        "A",
    ],
)
def test_what_says_something(text: str) -> None:
    assert not is_placeholder(text)


def test_a_column_of_reports_is_split_when_sections_are_asked_for(tmp_path: Path) -> None:
    reports = ["FINDINGS: Clear. IMPRESSION: Normal.", "FINDINGS: Clear.", "No header."]
    rows = [f'{prepared.save(tmp_path / f"{n}.png", n).name},"{report}"' for n, report in enumerate(reports)]
    table = prepared.write(tmp_path / "t.csv", ["image,report", *rows])
    for policy, texts in (
        ("impression", ["Normal."]),
        ("findings", ["Clear.", "Clear."]),
        ("findings+impression", ["Clear.\n\nNormal.", "Clear."]),
        ("report", reports),
    ):
        out = tmp_path / f"s-{policy}"
        assert prepared.prepare("csv", "--source", table, "--text", policy, "--out", out) == 0
        assert prepared.split(out).texts == texts
    assert prepared.notes(tmp_path / "s-impression")["sections"] == "by the headers in the text"
    assert prepared.notes(tmp_path / "s-report")["sections"] == "none"
    assert prepared.skipped(tmp_path / "s-impression") == {"no impression": 2}


def test_a_combined_header_is_paired_once(tmp_path: Path) -> None:
    row = f"{prepared.save(tmp_path / 'a.png', 1).name},FINDINGS AND IMPRESSION: Clear."
    table = prepared.write(tmp_path / "t.csv", ["image,report", row])
    options = ("--text", "findings+impression", "--out", tmp_path / "s")
    assert prepared.prepare("csv", "--source", table, *options) == 0
    assert prepared.split(tmp_path / "s").texts == ["Clear."]
