"""`hybridclip doctor`: what is in stores, and what is in two of them that should be in one."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax.data.audit import Show, examine, open_all
from hybridclip_jax.data.store import Store
from hybridclip_jax.data.thumbnail import data_url
from hybridclip_jax.errors import UserError
from hybridclip_jax.logs import Bars, table
from hybridclip_jax.report.audit import NOT_COMPARABLE, Plate, audit_page, near_copies, share
from hybridclip_jax.rundir import write_json, write_whole

HELP = "audit stores, alone and against each other; exit code 2 when two splits share a patient or an image"
EXAMPLE = "hybridclip doctor stores/train stores/test --json audit.json --html audit.html"

_UNITS = {"checksum": "record", "describe": "image", "compare": "pair"}
_MOST_PLATES = 24
_SAMPLES = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stores", nargs="+", metavar="STORE", help="PATH or PATH:SPLIT; of a PATH alone every split is compared"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots and thumbnails")
    parser.add_argument("--deep", action="store_true", help="compare every record with its checksum")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="do not look for near copies (new encodings, crops, shifts): of 460,000 images that takes minutes against"
        " 10,000 others and hours among themselves",
    )


def run(args: argparse.Namespace) -> None:
    """Prints the audit and writes the files asked for.

    Raises UserError where a store cannot be opened, and at the end where the audit found a problem; StorageError
    where a file cannot be written.
    """
    for path in (args.json, args.html):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path}: no such folder as {path.parent}; make it first")
        if path is not None and path.is_dir():
            raise UserError(f"{path} is a folder: name the file to write")
    stores = open_all(args.stores)
    with _progress() as show:
        audit = examine(stores, near=not args.quick, deep=args.deep, show=show)
    print(describe(audit))
    if args.json is not None:
        write_json(args.json, audit)
    if args.html is not None:
        write_whole(args.html, audit_page(audit, _plates(audit, stores)))
    if audit["problems"]:
        raise UserError(f"{'; '.join(audit['problems'])}: mend the stores, or leave one out of the comparison")


@contextlib.contextmanager
def _progress() -> Iterator[Show]:
    """One bar after another."""
    bars = {what: Bars(unit) for what, unit in _UNITS.items()}

    def show(what: str, done: int, total: int) -> None:
        for other in bars.keys() - {what}:
            bars[other].close()
        bars[what](what, done, total)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


# --- the terminal


def describe(audit: Mapping[str, Any]) -> str:
    """The audit as plain tables."""
    splits = audit["splits"]
    blocks = [_splits(splits), _texts(splits)]
    blocks += [_labels(split) for split in splits if split["labels"]["counts"]]
    blocks += ["\n".join(_mixes(split)) for split in splits]
    if audit["pairs"]:
        blocks.append(_pairs(audit["pairs"]))
    if audit["near_copies"]["looked_for"]:
        blocks.append(_near(audit))
    else:
        blocks.append("near copies: not looked for")
    if any(split["synthetic"] for split in splits):
        blocks.append("synthetic data: drawn phantoms are alike, so near copies among them are expected")
    return "\n\n".join(blocks)


def _splits(splits: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            split["name"],
            f"{split['records']:,}",
            f"{split['studies']:,}",
            f"{split['patients']:,}" if split["patients_known"] else "not known",
            sum(len(group) - 1 for group in split["images"]["duplicates"]),
            len(split["images"]["constant"]),
            split["images"]["all_zero"],
            _count(split["images"]["blank_middle"]),
            _count(split["near_copies"]),
            _count(split["damaged"]),
        )
        for split in splits
    ]
    titles = ("split", "images", "studies", "patients", "copies", "constant", "all zero", "blank", "near copies")
    return table((*titles, "damaged"), rows)


def _texts(splits: Sequence[Mapping[str, Any]]) -> str:
    contexts = list(splits[0]["tokens"]["beyond"])
    rows = [
        (
            split["name"],
            split["text"],
            split["texts"]["without"],
            split["texts"]["studies_with_a_repeated_text"],
            max(split["texts"]["most_repeated"], default=0),
            f"{split['tokens']['median']:.0f}",
            f"{split['tokens']['p95']:.0f}",
            split["tokens"]["longest"],
            *(share(beyond, split["records"]) for beyond in split["tokens"]["beyond"].values()),
        )
        for split in splits
    ]
    titles = ("texts of", "part", "without", "repeated", "most often", "tokens: median", "95 %", "longest")
    return table((*titles, *(f"beyond {context}" for context in contexts)), rows)


def _labels(split: Mapping[str, Any]) -> str:
    labels = split["labels"]
    title = f"labels of {split['name']} (uncertain: {labels['uncertain']}, blank: {labels['blank']})"
    rows = [(name, n["positive"], n["negative"], n["unknown"]) for name, n in labels["counts"].items()]
    return table((title, "positive", "negative", "unknown"), rows)


def _mixes(split: Mapping[str, Any]) -> Iterable[str]:
    for what in ("sections", "views", "licences"):
        if split[what]:
            shown = ", ".join(f"{name} {share(n, split['records'])}" for name, n in split[what].items())
            yield f"{what} of {split['name']}: {shown}"


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    keys = ("patients", "studies", "images")
    rows = [
        (
            f"{pair['a']} and {pair['b']}",
            *(NOT_COMPARABLE if pair[key] is None else f"{pair[key]:,}" for key in keys),
            _count(pair["near_copies"]),
            f"{pair['texts']:,}",
        )
        for pair in pairs
    ]
    whys = dict.fromkeys(why for pair in pairs for why in (pair["ids_why"], pair["images_why"]) if why)
    return "\n".join([table(("in both", *keys, "near copies", "texts"), rows), *whys])


def _near(audit: Mapping[str, Any]) -> str:
    found = near_copies(audit)
    if not found:
        return "near copies: none"
    rows = [
        (f"{a} row {copy['a']['source_row']}", f"{b} row {copy['b']['source_row']}", f"{copy['correlation']:.3f}")
        for a, b, copy in found[:_MOST_PLATES]
    ]
    more = f"\n... and {len(found) - len(rows):,} more: see --json" if len(found) > len(rows) else ""
    return table(("near copies to look at", "of", "correlation"), rows) + more


def _count(found: Sequence[object] | None) -> str:
    return "-" if found is None else f"{len(found):,}"


# --- thumbnails


def _plates(audit: Mapping[str, Any], stores: Sequence[Store]) -> dict[str, list[Plate]]:
    by_name = {split["name"]: store for split, store in zip(audit["splits"], stores, strict=True)}
    copies = [(split["name"], group) for split in audit["splits"] for group in split["images"]["duplicates"]]
    return {
        "Near copies, the first of them": [
            Plate(
                (data_url(by_name[a], copy["a"]["record"]), data_url(by_name[b], copy["b"]["record"])),
                f"{a} row {copy['a']['source_row']}, {b} row {copy['b']['source_row']}: {copy['correlation']:.3f}",
            )
            for a, b, copy in near_copies(audit)[:_MOST_PLATES]
        ],
        "Equal images, the first of them": [
            Plate(
                (data_url(by_name[name], group[0]["record"]),),
                f"{name} rows {', '.join(str(where['source_row']) for where in group[:4])}"
                + (", ..." if len(group) > 4 else ""),
            )
            for name, group in copies[:_MOST_PLATES]
        ],
        "Some of each split": [
            Plate([data_url(store, row) for row in _some(len(store))], name) for name, store in by_name.items()
        ],
    }


def _some(n: int) -> Iterable[int]:
    return range(0, n, max(n // _SAMPLES, 1))[:_SAMPLES]
