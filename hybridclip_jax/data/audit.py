"""What is in stores, and what is in more than one of them: patients, studies, images, texts.

An audit is a plain dict, ready for JSON: counts, row numbers and the names of stores, splits, labels, views and
licences; never an id, not even a hashed one, and never a text. `record` counts within a split from 0, `source_row`
is the row of the table that the store was prepared from.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hybridclip_jax.data import near_copies
from hybridclip_jax.data.near_copies import CONFIRMED_FROM, Pictures
from hybridclip_jax.data.store import SIDE, Store, check_comparable, parse_spec, read_manifest
from hybridclip_jax.errors import UserError

VERSION = 1
CONTEXTS = (77, 128, 248, 512)  # tokens: CLIP, and the longer contexts that people train
_BAR = 16  # tokens of one bar of the histogram
_SHOWN_KINDS = 30  # different views or licences that are named
_TOP_TEXTS = 10

Audit = dict[str, Any]
Show = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


def _silent(what: str, done: int, total: int) -> None:
    pass


def open_all(specs: Sequence[str]) -> list[Store]:
    """Every split that is named, once; a store without a split stands for all of its splits.

    Raises UserError as `Store.open` does.
    """
    stores: dict[tuple[str, str], Store] = {}
    for spec in specs:
        path, split = parse_spec(spec)
        splits = [split] if split is not None else list(read_manifest(path)[0]["splits"])
        for name in splits or [None]:
            store = Store.open(f"{path}:{name}" if name is not None else spec)
            # By place, not by content: a store copied under another name shares all it has with the first.
            stores.setdefault((str(store.path.resolve()), store.split), store)
    return list(stores.values())


def examine(stores: Sequence[Store], *, near: bool = False, deep: bool = False, show: Show = _silent) -> Audit:
    """The audit of these splits, alone and against each other.

    `near` looks for near copies too, which reads every image; `deep` compares every record with its checksum.
    `show(what, done, total)` is called with what is "checksum", "describe" and "compare". A damaged record raises
    UserError where it must be read and `deep` has not set it aside. `problems` of the audit says in words what must
    not be: patients or images in two splits, damaged records.
    """
    damaged: Sequence[list[int] | None] = _damaged(stores, show) if deep else [None] * len(stores)
    found, rows = _near_copies(stores, damaged, show) if near else (None, [])
    audit: Audit = {
        "format": "hybridclip audit",
        "version": VERSION,
        "near_copies": _near_facts() if near else {"looked_for": False},
        "deep": deep,
        "splits": [_split(store) for store in stores],
        "pairs": [_pair(a, b) for a, b in itertools.combinations(stores, 2)],
    }
    for store, split, bad in zip(stores, audit["splits"], damaged, strict=True):
        split["damaged"] = None if bad is None else [_where(store, row) for row in bad]
    if found is not None:
        _add_near(audit, stores, rows, found)
    audit["problems"] = _problems(audit)
    return audit


class Overlap(NamedTuple):
    """What two stores share: patients, and images equal in every pixel.

    None where ids, or pixels, cannot say. why, images_why: why they cannot; `why` beside a count says of whom they
    cannot, so that 0 is no proof.
    """

    patients: int | None
    images: int | None
    why: str | None
    images_why: str | None

    @property
    def gaps(self) -> list[str]:
        """What was not compared, and why: a clause each."""
        patients = "not every patient checked" if self.patients is not None else "patients not checked"
        whys = ((patients, self.why), ("images not checked", self.images_why))
        return [f"{what}: {why}" for what, why in whys if why]

    @property
    def nothing(self) -> str:
        """What is known not to be shared, where nothing is: "no patient and no image" at best, "" at worst."""
        sure = {"no known patient" if self.why else "no patient": self.patients, "no image": self.images}
        return " and ".join(what for what, count in sure.items() if count == 0)

    def __str__(self) -> str:
        """In words; empty where nothing is known to be shared."""
        counts = ((self.patients, "patient"), (self.images, "image"))
        return " and ".join(f"{n:,} {what}{'s' * (n > 1)}" for n, what in counts if n)


def overlap(a: Store, b: Store) -> Overlap:
    """UserError where the two were made with different patient keys."""
    check_comparable(a, b)
    why, unlike, images = _not_comparable(a, b), _prepared_unlike(a, b), shared_images(a, b)
    return Overlap(
        patients=len(a.patient_set & b.patient_set) if why is None else None,
        images=images if images or unlike is None else None,
        why=why or _partly_known(a, b),
        images_why=unlike,
    )


def shared_images(a: Store, b: Store) -> int:
    """How many different images, equal in every pixel, are in both; images of one value alone do not count."""
    return len((set(a.image_sha256) & set(b.image_sha256)) - _constants(a.channels).keys())


# --- the verdict


def _problems(audit: Audit) -> list[str]:
    said = []
    for pair in audit["pairs"]:
        counts = [(pair["patients"], "patient"), (pair["images"], "image")]
        shared = [f"{n:,} {what}{'s' * (n > 1)}" for n, what in counts if n]
        if shared:
            said.append(f"{pair['a']} and {pair['b']} share {' and '.join(shared)}")
    for split in audit["splits"]:
        if split["damaged"]:
            n = len(split["damaged"])
            said.append(f"{n:,} record{'s' * (n > 1)} of {split['name']} {'are' if n > 1 else 'is'} damaged")
    return said


# --- one split


def _split(store: Store) -> Audit:
    policy = store.manifest["labels"]
    return {
        "name": name_of(store),
        "fingerprint": store.fingerprint,
        "synthetic": store.synthetic,
        "records": len(store),
        "studies": len(set(store.studies)),
        "patients": len(store.patient_set),
        "patients_known": knows_patients(store),
        "text": store.manifest.get("text", "report"),
        "labels": {
            "uncertain": policy["uncertain"],
            "blank": policy["blank"],
            "counts": {label: _label_counts(values) for label, values in store.labels.items()},
        },
        "tokens": _tokens(store),
        "sections": {name: sum(map(bool, map(str.strip, texts))) for name, texts in store.sections.items()},
        "views": _kinds(store.views),
        "licences": _kinds(store.licences),
        "images": _images(store),
        "texts": _texts(store),
        "near_copies": None,
    }


def name_of(store: Store) -> str:
    """PATH:SPLIT."""
    return f"{parse_spec(store.spec)[0]}:{store.split}"


def knows_patients(store: Store) -> bool:
    """Whether the source of the store names the patient of any record; what it made up in their place is no id."""
    return _patients_unknown(store) < int(store.manifest["records"])


def _patients_unknown(store: Store) -> int:
    """Records of the whole store whose patient its source does not name."""
    return int(store.manifest["ids"].get("patients_unknown", 0))


def _label_counts(values: np.ndarray) -> dict[str, int]:
    known = values[~np.isnan(values)]
    return {
        "positive": int((known == 1).sum()),
        "negative": int((known == 0).sum()),
        "unknown": len(values) - len(known),
    }


def _tokens(store: Store) -> Audit:
    lengths = store.n_tokens
    edges = np.arange(0, max(CONTEXTS) + _BAR, _BAR)
    counts, _ = np.histogram(np.minimum(lengths, edges[-1]), [*edges, edges[-1] + 1])
    return {
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
        "longest": int(lengths.max()),
        "beyond": {str(context): int((lengths > context).sum()) for context in CONTEXTS},
        # the last bar holds all from its left edge on
        "histogram": {"left_edges": edges.tolist(), "counts": counts.tolist()},
    }


def _kinds(values: Iterable[str]) -> dict[str, int]:
    counted = collections.Counter(value.strip() or "not stated" for value in values).most_common()
    kinds = dict(counted[:_SHOWN_KINDS])
    if rest := sum(n for _, n in counted[_SHOWN_KINDS:]):
        kinds[f"{len(counted) - _SHOWN_KINDS} others"] = rest
    return kinds


def _images(store: Store) -> Audit:
    constants = _constants(store.channels)
    rows_of = collections.defaultdict(list)
    for row, digest in enumerate(store.image_sha256):
        rows_of[digest].append(row)
    values = {digest: constants[digest] for digest in rows_of if digest in constants}
    repeated = [rows for digest, rows in rows_of.items() if len(rows) > 1 and digest not in values]
    return {
        "distinct": len(rows_of),
        "constant": [_where(store, row) | {"value": v} for digest, v in values.items() for row in rows_of[digest]],
        "all_zero": sum(len(rows_of[digest]) for digest, value in values.items() if value == 0),
        "blank_middle": None,
        "duplicates": [[_where(store, row) for row in rows] for rows in repeated],
    }


def _texts(store: Store) -> Audit:
    """Equal texts count where they stand in different studies: a study's images share its text."""
    of_studies = collections.Counter(text for _, text in set(zip(store.studies, _folded(store), strict=True)) if text)
    repeated = sorted((n for n in of_studies.values() if n > 1), reverse=True)
    return {
        "without": sum(not text.strip() for text in store.texts),
        "distinct": len(of_studies),
        "repeated": len(repeated),
        "studies_with_a_repeated_text": sum(repeated),
        "most_repeated": repeated[:_TOP_TEXTS],
    }


def _folded(store: Store) -> list[str]:
    """Texts with white space and case folded: layouts of one report wrap it differently."""
    return [" ".join(text.split()).casefold() for text in store.texts]


def _where(store: Store, row: int) -> dict[str, int]:
    return {"record": int(row), "source_row": int(store.source_rows[row])}


@functools.cache
def _constants(channels: int) -> dict[str, int]:
    """Checksum -> value of each image whose pixels are all equal: failed images are known without reading them."""
    shape = (SIDE, SIDE, channels)
    return {hashlib.sha256(np.full(shape, value, np.uint8).tobytes()).hexdigest(): value for value in range(256)}


def _damaged(stores: Sequence[Store], show: Show) -> list[list[int]]:
    """For each split the records that are not as their checksum says."""
    damaged: list[list[int]] = [[] for _ in stores]
    total, done = sum(map(len, stores)), 0
    for store, bad in zip(stores, damaged, strict=True):
        for row in range(len(store)):
            if not store.intact(row):
                bad.append(row)
            done += 1
            show("checksum", done, total)
    return damaged


# --- two splits


def _pair(a: Store, b: Store) -> Audit:
    why = _not_comparable(a, b)
    patients = studies = None
    if why is None:
        patients = len(a.patient_set & b.patient_set)
        # within the patient: a source may number each patient's studies from 1
        studies = len(set(zip(a.patients, a.studies, strict=True)) & set(zip(b.patients, b.studies, strict=True)))
    images, unlike = shared_images(a, b), _prepared_unlike(a, b)
    texts_a, texts_b = _folded(a), _folded(b)
    texts = (set(texts_a) & set(texts_b)) - {""}
    return {
        "a": name_of(a),
        "b": name_of(b),
        "patients": patients,
        "studies": studies,
        "ids_why": why or _partly_known(a, b),
        "images": images if images or unlike is None else None,
        "images_why": unlike,
        "texts": len(texts),
        "records_with_a_shared_text": [sum(text in texts for text in said) for said in (texts_a, texts_b)],
        "near_copies": None,
    }


def _not_comparable(a: Store, b: Store) -> str | None:
    try:
        if check_comparable(a, b) != "comparable":
            return f"not comparable by id: namespaces {a.namespace!r} and {b.namespace!r} (prepare --namespace)"
    except UserError:
        return "not comparable by id: made with different patient keys"
    unknown = [name_of(store) for store in (a, b) if not knows_patients(store)]
    return f"not comparable by id: no patients are known of {' and '.join(unknown)}" if unknown else None


def _partly_known(a: Store, b: Store) -> str | None:
    """Of how many records the patient is not known, where that is not all."""
    counts = {
        parse_spec(store.spec)[0]: f"{_patients_unknown(store):,} of {store.manifest['records']:,} records"
        for store in (a, b)
        if _patients_unknown(store)
    }
    said = " and ".join(f"{count} of {path}" for path, count in counts.items())
    return f"not comparable by id in part: no patient is known of {said}" if said else None


def _prepared_unlike(a: Store, b: Store) -> str | None:
    """Why equal pictures may have unequal pixels in these two."""
    if a.channels != b.channels:
        return f"not comparable by pixel: {a.channels} and {b.channels} channels"
    ours, theirs = (store.manifest.get("preprocessing", {}) for store in (a, b))
    rules = [rule for rule in sorted(ours.keys() | theirs.keys()) if ours.get(rule) != theirs.get(rule)]
    return f"not comparable by pixel: prepared with different {' and '.join(rules)}" if rules else None


def refuse_unlike(where: str, other: Store, store: Store) -> None:
    """UserError, begun with `where`, where the images of `other` were prepared otherwise than those of `store`."""
    theirs, ours = (one.manifest.get("preprocessing", {}) for one in (other, store))
    for rule in sorted(theirs.keys() | ours.keys()):
        if theirs.get(rule) != ours.get(rule):
            raise UserError(
                f"{where}: prepared with {rule} = {theirs.get(rule)}, but {store.spec} with {ours.get(rule)}; "
                "prepare both alike"
            )


# --- near copies


def _near_facts() -> Audit:
    return {
        "looked_for": True,
        "confirmed_from": CONFIRMED_FROM,
        "kept_by_crops": 0.9,
        "not_looked_for": ["mirrored", "turned", "inverted"],
    }


def _near_copies(
    stores: Sequence[Store], damaged: Sequence[list[int] | None], show: Show
) -> tuple[near_copies.Found, list[np.ndarray]]:
    """What was found among the first of each distinct, sound image, and the rows of those."""
    rows, pictures = [], []
    for store, bad in zip(stores, damaged, strict=True):
        left_out = set(bad or ())
        kept: dict[str, int] = {}
        for row, digest in enumerate(store.image_sha256):
            if row not in left_out and digest not in _constants(store.channels):
                kept.setdefault(digest, row)
        rows.append(np.array(list(kept.values()), int))
        pictures.append(Pictures(functools.partial(_read, store, rows[-1]), list(kept)))
    return near_copies.find(pictures, show), rows


def _read(store: Store, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
    return store.images(rows[which])


def _add_near(audit: Audit, stores: Sequence[Store], rows: Sequence[np.ndarray], found: near_copies.Found) -> None:
    for store, split, kept, blank in zip(stores, audit["splits"], rows, found.blank, strict=True):
        split["images"]["blank_middle"] = [_where(store, kept[i]) for i in blank]
        split["near_copies"] = []
    for pair in audit["pairs"]:
        pair["near_copies"] = []
    places = dict(zip(itertools.combinations(range(len(stores)), 2), audit["pairs"], strict=True))
    for copy in found.copies:
        i, j = copy.group, copy.other_group
        into = audit["splits"][i] if i == j else places[i, j]
        a, b = (_where(stores[g], rows[g][row]) for g, row in ((i, copy.row), (j, copy.other_row)))
        into["near_copies"].append({"a": a, "b": b, "correlation": copy.score})
