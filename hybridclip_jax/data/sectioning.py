"""The parts of a report, and what stands in place of one."""

from __future__ import annotations

import functools
import itertools
import re
from typing import NamedTuple

_FINDINGS, _IMPRESSION, _COMPARISON = "findings", "impression", "comparison"
_BOTH = "findings and impression"
# Of a header that names no section: whether the text under it may be what the report says without headers.
_WHOLE, _FIELD, _ASIDE = "whole", "field", "aside"
_KINDS: dict[str, tuple[str, ...]] = {
    _FINDINGS: ("FINDINGS", "FINDING", "FINDING(S)"),
    _IMPRESSION: (
        "IMPRESSION",
        "IMPRESSIONS",
        "IMPRESSION(S)",
        "FINAL IMPRESSION",
        "CONCLUSION",
        "CONCLUSIONS",
        "CONCLUSION(S)",
        "OPINION",
        *(
            f"IMPRESSION{join}RECOMMENDATION{plural}"
            for join in (" AND ", " & ", "/", " / ")
            for plural in ("", "S", "(S)")
        ),
    ),
    _BOTH: tuple(
        pair
        for join in (" AND ", " & ", "/", " / ")
        for pair in (f"FINDINGS{join}IMPRESSION", f"IMPRESSION{join}FINDINGS")
    ),
    _COMPARISON: ("COMPARISON", "COMPARISONS", "COMPARISON(S)"),
    _WHOLE: ("FINAL REPORT", "WET READ", "PRELIMINARY REPORT", "ADDENDUM", "REPORT", "NARRATIVE"),
    _FIELD: (
        "EXAM",
        "EXAMINATION",
        "EXAMINATIONS",
        "EXAM DATE",
        "STUDY",
        "PROCEDURE",
        "PROCEDURE COMMENTS",
        "TECHNIQUE",
        "INDICATION",
        "INDICATIONS",
        "INDICATION(S)",
        "CLINICAL INDICATION",
        "HISTORY",
        "CLINICAL HISTORY",
        "CLINICAL INFORMATION",
        "CLINICAL IMPRESSION",  # the question of the doctor who sent the patient, not the answer
        "REASON FOR EXAM",
        "REASON FOR EXAMINATION",
        "REASON FOR STUDY",
        "REASON FOR THE EXAM",
        "REASON FOR THIS EXAMINATION",
        "ACCESSION NUMBER",
    ),
    _ASIDE: (
        "RECOMMENDATION",
        "RECOMMENDATIONS",
        "RECOMMENDATION(S)",
        "NOTIFICATION",
        "NOTIFICATIONS",
        "NOTIFICATION(S)",
        "END OF IMPRESSION",
        "SUMMARY",
        "ATTENDING",
        "DICTATED BY",
    ),
}
_KIND_OF = {title: kind for kind, titles in _KINDS.items() for title in titles}
_OFTEN_MISSPELT = ("FINDINGS", "IMPRESSION", "CONCLUSION", "COMPARISON")
# Not so "STUDY" or "HISTORY", which end many a phrase.
_SELDOM_A_TAIL = {"FINDINGS", "IMPRESSION", "CONCLUSION", "COMPARISON", "INDICATION", "RECOMMENDATION", "NOTIFICATION"}

# Every repetition is bounded or tried at line starts only, so the time grows with the text and not faster. The look at
# the first letter spares most characters the list of titles.
_TITLES = "|".join(re.escape(title).replace(r"\ ", r"[ \t]{1,4}") for title in sorted(_KIND_OF, key=len, reverse=True))
_FIRST_LETTERS = "".join(sorted({title[0] for title in _KIND_OF}))
_HEADER = re.compile(
    rf"(?P<start>^[ \t]*)?(?<![A-Za-z])(?=[{_FIRST_LETTERS}])(?P<title>{_TITLES})"
    r"(?:[ \t]{0,8}(?P<colon>:)|(?=[ \t]{0,80}\r?$))",
    re.I | re.M | re.A,
)
_MISSPELT = re.compile(r"^[ \t]*(?P<title>[A-Za-z]{7,11})[ \t]{0,8}:", re.M)
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_SENTENCE_ENDS = (".", "!", "?", ":", ";", ")", "]")
_LIST_NUMBER = re.compile(r"(?:^|\s)\d{1,2}[.)]$")

_DEIDENTIFIED = re.compile(r"\[\*\*[^\[\]]{0,200}\]")
_WORD = re.compile(r"[^\W_]+")
_SAY_NOTHING = {(), ("no", "impression"), ("n", "a"), ("na",), ("none",), ("nan",), ("null",)}


class _Header(NamedTuple):
    start: int  # of the title in the text
    end: int  # behind its colon
    kind: str


def is_placeholder(text: str) -> bool:
    """Whether a text says nothing: blank or only punctuation, "NO IMPRESSION", "None.", "N/A", "nan", "null",
    or only marks left by de-identification ("___", "_ _", "XXXX.", "[**2101-3-4**]").
    """
    words = (match.group().lower() for match in _WORD.finditer(_DEIDENTIFIED.sub(" ", text)))
    first = tuple(itertools.islice(words, 3))
    if first in _SAY_NOTHING:
        return True
    return all(len(word) >= 3 and set(word) == {"x"} for word in itertools.chain(first, words))


def split_report(text: str) -> dict[str, str]:
    """The sections of a report: "findings", "impression", "comparison", "last_paragraph"; those that are there.

    Each is a stretch of `text`, stripped at both ends and otherwise as it stands: lists, line ends and the
    marks of de-identification ("___", "XXXX", "[** **]") are kept, nothing is joined or cut.

    The rules:
    - A header is one of the titles in this file: at the start of a line with a colon, in any case; alone on a
      line, with a capital; within a line with a capital and a colon, behind the end of a sentence and not as an
      item of a list ("2. Comparison:").
    - Within a line and within a sentence, only a title in capitals that is not the tail of a longer phrase in
      capitals ("LIMITED STUDY:"), or a title that seldom is one (FINDINGS, IMPRESSION, CONCLUSION, COMPARISON,
      INDICATION, RECOMMENDATION, NOTIFICATION): in capitals, unless all the report is; or as "Findings:" where the
      word before has no capital ("Incidental Findings:" is text).
    - FINDINGS, IMPRESSION, CONCLUSION and COMPARISON at the start of a line with a colon may have one slip of
      the pen: a letter too many, missing, wrong, or two swapped.
    - CONCLUSION, OPINION and IMPRESSION AND RECOMMENDATION(S) are an impression. FINDINGS AND IMPRESSION is both:
      each then has the same text. A title not in this file ("LUNGS:") is part of the text around it.
    - A section ends at the next header of any kind, so RECOMMENDATION(S) and NOTIFICATION end one wherever they
      stand, and what stands in front of FINDINGS or IMPRESSION is in neither.
    - Of a section that occurs more than once, the last one with any text counts: addenda and final reports come
      later.
    - A comparison is the first paragraph under its header: reports without a FINDINGS header go on below it.
    - "last_paragraph" is given only where findings and impression are both missing: the last paragraph that
      stands under no header, where a header has the first paragraph below it, and RECOMMENDATION, NOTIFICATION and
      the like have all of them.
    """
    headers = _headers(text)
    ends = [*(header.start for header in headers), len(text)][1:]
    last: dict[str, str] = {}
    for header, end in zip(reversed(headers), reversed(ends), strict=True):
        under = "" if header.kind in last else text[header.end : end].strip()
        if under:
            last[header.kind] = _BLANK_LINE.split(under, 1)[0].rstrip() if header.kind == _COMPARISON else under
            if header.kind == _BOTH:
                last.setdefault(_FINDINGS, under)
                last.setdefault(_IMPRESSION, under)
    found = {name: last[name] for name in (_FINDINGS, _IMPRESSION, _COMPARISON) if name in last}
    if _FINDINGS not in found and _IMPRESSION not in found:
        paragraph = _last_paragraph(text, headers, ends)
        if paragraph:
            found["last_paragraph"] = paragraph
    return found


def _headers(text: str) -> list[_Header]:
    capitals_throughout = text == text.upper()
    found = [
        _Header(match.start("title"), match.end(), _KIND_OF[_title(match["title"])])
        for match in _HEADER.finditer(text)
        if _is_header(text, match, capitals_throughout)
    ]
    known = {header.start for header in found}
    for match in _MISSPELT.finditer(text):
        meant = _meant(match["title"].upper())
        if meant is not None and match.start("title") not in known:
            found.append(_Header(match.start("title"), match.end(), _KIND_OF[meant]))
    return sorted(found)


@functools.lru_cache(maxsize=4096)
def _title(written: str) -> str:
    return " ".join(written.upper().split())


def _is_header(text: str, match: re.Match[str], capitals_throughout: bool) -> bool:
    title, colon = match["title"], match["colon"] is not None
    if match["start"] is not None:
        return colon or title[0].isupper()
    if not colon or not title[0].isupper():
        return False
    start = match.start("title")
    before = text[max(0, start - 40) : start].rstrip(" \t")
    if before.endswith(_SENTENCE_ENDS):
        return title.isupper() or not (before[-2:-1].isdigit() and _LIST_NUMBER.search(before))
    word = (before.split() or [""])[-1]
    seldom_a_tail = _title(title) in _SELDOM_A_TAIL
    if title.isupper():
        return not word.isupper() or (seldom_a_tail and not capitals_throughout)
    return seldom_a_tail and not word[:1].isupper()


@functools.lru_cache(maxsize=4096)
def _meant(title: str) -> str | None:
    return next((name for name in _OFTEN_MISSPELT if _one_slip(title, name)), None)


def _one_slip(word: str, meant: str) -> bool:
    """Whether one letter more, less or other, or two swapped, make `word` of `meant`; not where they are equal."""
    same = next((i for i, (a, b) in enumerate(zip(word, meant, strict=False)) if a != b), min(len(word), len(meant)))
    wrong, due = word[same:], meant[same:]
    swapped = wrong[1:2] + wrong[:1] + wrong[2:]
    return word != meant and (wrong[1:] == due or wrong == due[1:] or wrong[1:] == due[1:] or swapped == due)


def _last_paragraph(text: str, headers: list[_Header], ends: list[int]) -> str:
    stretches = [("", 0, headers[0].start if headers else len(text))]
    stretches += [(header.kind, header.end, end) for header, end in zip(headers, ends, strict=True)]
    for kind, start, end in reversed(stretches):
        if kind == _ASIDE:
            continue
        paragraphs = [part.strip() for part in _BLANK_LINE.split(text[start:end].strip())]
        if kind in (_FIELD, _COMPARISON):
            del paragraphs[0]
        said = [part for part in paragraphs if part]
        if said:
            return said[-1]
    return ""
