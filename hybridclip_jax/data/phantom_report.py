"""Reports of phantoms, from a grammar that can also be read back.

Every sentence stands alone: it is one expansion of one template, and `meaning` gives the labels it affirms or
denies by looking it up among all expansions. A report affirms each finding that is present at least once, and
never one that is absent.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping

from hybridclip_jax.data.phantom_findings import (
    FINDINGS,
    NO_FINDING,
    ZONES,
    Difficulty,
    Draws,
    Finding,
    draw_findings,
)
from hybridclip_jax.data.phantom_wording import (
    AFFIRM,
    ASIDES,
    BOTH_EFFUSIONS,
    DENY,
    KINDS,
    NO_EFFUSION,
    NO_EFFUSION_OR_AIR,
    OPENING,
    SURVEY,
    Wordings,
)

_LONG_SHARE = 0.02  # of the reports: these go through every rib and vertebra, beyond a context of 512 tokens
_PLAIN = 0.5  # how often the plain wording is taken rather than another


def _fill(template: str, finding: Finding, kind: str = "") -> str:
    text = template.format(side=finding.side, zone=finding.zone, kind=kind)
    return text[0].upper() + text[1:]


def _parts(label: str) -> tuple[str, str]:
    """A label's key in the tables, and the side it names."""
    side, _, rest = label.partition(" ")
    return (rest, side.lower()) if rest == "Pleural Effusion" else (label, "")


@functools.cache
def _meanings() -> dict[str, frozenset[tuple[str, bool]]]:
    table: dict[str, frozenset[tuple[str, bool]]] = {}

    def enter(sentence: str, *claims: tuple[str, bool]) -> None:
        if table.setdefault(sentence, frozenset(claims)) != frozenset(claims):
            raise AssertionError(f"two meanings: {sentence}")

    for told, tables in ((True, AFFIRM), (False, DENY)):
        for label in (*FINDINGS, NO_FINDING):
            key, own = _parts(label)
            kinds = list(itertools.chain(*KINDS.values()))
            for template in itertools.chain(*tables[key]):
                for side, zone, kind in itertools.product((own,) if own else ("left", "right"), ZONES, kinds):
                    enter(_fill(template, Finding(side, zone), kind), (label, told))
    left, right = ("Left Pleural Effusion", "Right Pleural Effusion")
    for sentence in BOTH_EFFUSIONS:
        enter(sentence, (left, True), (right, True))
    for sentence in NO_EFFUSION:
        enter(sentence, (left, False), (right, False))
    for sentence in NO_EFFUSION_OR_AIR:
        enter(sentence, (left, False), (right, False), ("Pneumothorax", False))
    for sentence in (*OPENING, *ASIDES, *SURVEY):
        enter(sentence)
    return table


def meaning(sentence: str) -> frozenset[tuple[str, bool]]:
    """The (label, present) pairs that a sentence of the grammar claims; empty for an aside.

    Raises ValueError for a sentence that the grammar cannot make.
    """
    try:
        return _meanings()[sentence]
    except KeyError:
        raise ValueError(f"not a sentence of the phantom grammar: {sentence!r}") from None


def _say(wordings: Wordings, label: str, finding: Finding, draws: Draws) -> str:
    key, side = _parts(label)
    plain, other = wordings[key]
    template = draws.choice(plain if draws.chance(_PLAIN) else other)
    kind = draws.choice(KINDS[finding.kind]) if finding.kind else ""
    return _fill(template, finding if finding.side or not side else Finding(side), kind)


def _affirmed(findings: Mapping[str, Finding], draws: Draws) -> list[str]:
    """One sentence for each finding that is present, in any order; both effusions may share one."""
    names = list(findings)
    sentences = []
    both = [name for name in names if name.endswith("Pleural Effusion")]
    if len(both) == 2 and draws.chance(0.3):
        names = [name for name in names if name not in both]
        sentences.append(draws.choice(BOTH_EFFUSIONS))
    sentences += [_say(AFFIRM, name, findings[name], draws) for name in names]
    return draws.shuffled(sentences)


def _denied(findings: Mapping[str, Finding], share: float, draws: Draws) -> list[str]:
    """Sentences for this share of the absent findings, in any order."""
    absent = [name for name in FINDINGS if name not in findings and draws.chance(share)]
    sentences = []
    pleural = [name for name in absent if name.endswith("Pleural Effusion")]
    if len(pleural) == 2 and draws.chance(0.6):
        absent = [name for name in absent if name not in pleural]
        if "Pneumothorax" in absent and draws.chance(0.5):
            absent.remove("Pneumothorax")
            sentences.append(draws.choice(NO_EFFUSION_OR_AIR))
        else:
            sentences.append(draws.choice(NO_EFFUSION))
    sentences += [_say(DENY, name, Finding(), draws) for name in absent]
    return draws.shuffled(sentences)


def report(seed: int, index: int, difficulty: Difficulty) -> dict[str, str]:
    """One phantom's report: its "impression" and mostly, before it, its "findings". Without the headers."""
    findings = draw_findings(seed, index)
    draws = Draws("report", seed, index)
    overall = _say(AFFIRM if not findings else DENY, NO_FINDING, Finding(), draws)
    length = draws.uniform()
    sections = {}
    if length > 0.2 or length < _LONG_SHARE:
        body = _affirmed(findings, draws) + _denied(findings, difficulty.negated, draws)
        if not findings and draws.chance(0.5):
            body.append(overall)
        body = draws.shuffled(body)
        asides = draws.shuffled(ASIDES)[: draws.below(3)]
        if length < _LONG_SHARE:
            asides = [*draws.shuffled(ASIDES), *SURVEY]
        opening = [draws.choice(OPENING)] if draws.chance(0.5) else []
        sections["findings"] = " ".join([*opening, *body, *asides] or [draws.choice(OPENING)])
    conclusion = _affirmed(findings, draws)
    if not findings or draws.chance(0.3):
        conclusion.append(overall)
    conclusion += _denied(findings, difficulty.negated * (0.4 if sections else 1.0), draws)
    sections["impression"] = " ".join(conclusion)
    return sections


def text_of(sections: Mapping[str, str]) -> str:
    """The whole report, each section under its header."""
    return "\n".join(f"{name.upper()}: {body}" for name, body in sections.items())
