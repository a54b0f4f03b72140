"""Splitting reports of the shapes that real data sets use."""

from __future__ import annotations

import pytest

from hybridclip_jax.data.sentences import names_sides, split_sentences

HOSPITAL = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough, eval for PNA

 COMPARISON:  None.

 FINDINGS:

 The cardiac, mediastinal and hilar contours are
 normal. Lungs are clear.  Nodule measures 2.5 cm vs. 2 cm before!

 IMPRESSION:

 1.  No acute process.
 2.  Stable nodule, discussed with Dr. ___ at 10:15 a.m. on ___.
"""


def test_a_hospital_report() -> None:
    assert split_sentences(HOSPITAL) == [
        "CHEST (PA AND LAT)",
        "___F with cough, eval for PNA",
        "None.",
        "The cardiac, mediastinal and hilar contours are normal.",
        "Lungs are clear.",
        "Nodule measures 2.5 cm vs. 2 cm before!",
        "No acute process.",
        "Stable nodule, discussed with Dr. ___ at 10:15 a.m. on ___.",
    ]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("FINDINGS: Clear. IMPRESSION: Normal.", ["Clear.", "Normal."]),
        ("Findings: Clear\nImpression: Normal", ["Clear", "Normal"]),
        ("CHEST PA FINDINGS: Clear lungs IMPRESSION: Normal", ["CHEST PA", "Clear lungs", "Normal"]),
        ("FINDINGS: LUNGS: Clear. HEART: Large.", ["LUNGS: Clear.", "HEART: Large."]),
        ("Impression: 1. Effusion. 2. No pneumothorax", ["Effusion.", "No pneumothorax"]),
        ("- small effusion\n- large heart", ["- small effusion", "large heart"]),
        ("Small effusion?! Large heart", ["Small effusion?!", "Large heart"]),
        ("胸部正常。心影增大。", ["胸部正常。", "心影增大。"]),
        ("Reviewed by Dr.", ["Reviewed by Dr."]),
        ("no full stop", ["no full stop"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@pytest.mark.parametrize("text", ["", "  ", "FINDINGS:", "___. 12. --"])
def test_a_text_without_sentences_stays_whole(text: str) -> None:
    assert split_sentences(text) == [text]


def test_names_sides_is_the_share_that_says_left_or_right() -> None:
    assert names_sides(["Left effusion.", "RIGHT-sided", "bright, leftover", "normal"]) == 0.5
    assert names_sides([]) == 0.0
