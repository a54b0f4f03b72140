"""Reports as sentences: what the loader samples from, and whether the texts say left and right."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Only names of sections: "Heart:" or "LUNGS:" opens a finding and must stay with it.
_SECTIONS = (
    r"findings?|impressions?|indications?|history|comparisons?|technique|exam|examination|procedure|conclusions?|"
    r"recommendations?|notifications?|views?|clinical (?:history|information|indication|data)|"
    r"findings (?:and|/) impression|reason for (?:the )?(?:exam|examination|study)"
)
# In any case where a sentence may start; in capitals anywhere, as many tables keep a report on one line.
_HEADER = re.compile(
    rf"(?:^|(?<=[\n.!?:;]))[ \t]*(?i:{_SECTIONS})[ \t]*:|\b(?:{_SECTIONS.upper()})[ \t]*:|"
    r"\b(?:FINAL|PRELIMINARY|WET) (?:REPORT|READ)\b:?"
)
# Lines inside a paragraph are wrapped text, so only blank lines and list items break it.
_PARAGRAPH = re.compile(r"\n\s*\n|\n\s*(?:[-*•]|\d{1,2}[.)])\s+")
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。\uff01\uff1f])")
_ABBREVIATION = re.compile(r"(?:^|\s)(?:dr|mr|mrs|ms|prof|vs|e\.g|i\.e|cf|ca|approx|fig|a\.m|p\.m)\.$", re.I)
_SIDES = re.compile(r"\b(?:left|right)\b", re.I)


def split_sentences(text: str) -> list[str]:
    """The sentences of a report in order, without section headers and list numbers, spaces collapsed.

    A sentence holds at least one letter. Never empty: a text without any sentence is returned whole.
    """
    sentences: list[str] = []
    for paragraph in _PARAGRAPH.split(_HEADER.sub("\n\n", text)):
        unfinished = ""
        for piece in _END.split(paragraph):
            sentence = " ".join(f"{unfinished} {piece}".split())
            unfinished = sentence if _ABBREVIATION.search(sentence) else ""
            if not unfinished and any(character.isalpha() for character in sentence):
                sentences.append(sentence)
        if unfinished:
            sentences.append(unfinished)
    return sentences or [text]


def names_sides(texts: Iterable[str]) -> float:
    """Share of the texts that say "left" or "right", 0 for no texts: what a mirror makes false."""
    said = [_SIDES.search(text) is not None for text in texts]
    return sum(said) / len(said) if said else 0.0
