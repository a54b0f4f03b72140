"""`prepare --format phantom`: drawn chest phantoms with written reports, in place of a dataset on disk."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator

import PIL.Image

from hybridclip_jax.data import phantom as drawing
from hybridclip_jax.data import phantom_report as writing
from hybridclip_jax.data.phantom_findings import (
    DIFFICULTIES,
    LABELS,
    VERSION,
    Difficulty,
    Draws,
    draw_findings,
    labels,
    patient_of,
)
from hybridclip_jax.data.study import Format, Source, Study
from hybridclip_jax.errors import UserError


def _add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--count", type=int, default=2000, metavar="N", help="phantoms (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other patients (default 0)")
    parser.add_argument("--difficulty", choices=sorted(DIFFICULTIES), default="easy", help="default: easy")
    parser.add_argument("--train-share", type=float, default=0.8, help="of the patients (default 0.8)")
    parser.add_argument("--val-share", type=float, default=0.1, help="the rest is test (default 0.1)")


def _image(seed: int, index: int, difficulty: Difficulty) -> PIL.Image.Image:
    return PIL.Image.fromarray(drawing.phantom(seed, index, difficulty)[0])


def _split(seed: int, patient: int, train_share: float, val_share: float) -> str:
    at = Draws("split", seed, patient).uniform()
    return "train" if at < train_share else "val" if at < train_share + val_share else "test"


def _studies(count: int, seed: int, difficulty: Difficulty, train_share: float, val_share: float) -> Iterator[Study]:
    for index in range(count):
        patient = patient_of(seed, index)
        sections = writing.report(seed, index, difficulty)
        name = f"phantom-{seed}-{index:07d}"
        yield Study(
            source_row=index + 1,
            id=name,
            study=name,
            patient=f"phantom-{seed}-p{patient:07d}",
            split=_split(seed, patient, train_share, val_share),
            view="PA",
            text=writing.text_of(sections),
            sections=sections,
            labels=dict(labels(draw_findings(seed, index))),
            load_image=functools.partial(_image, seed, index, difficulty),
        )


def _read(args: argparse.Namespace) -> Source:
    if args.count < 1:
        raise UserError(f"--count {args.count}: give the number of phantoms to draw, at least 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give a seed of at least 0")
    if not (args.train_share >= 0 and args.val_share >= 0 and args.train_share + args.val_share <= 1 + 1e-9):
        raise UserError(
            f"--train-share {args.train_share} --val-share {args.val_share}: give shares of at least 0 "
            "that add up to at most 1; what is left is the test split"
        )
    difficulty = DIFFICULTIES[args.difficulty]
    return Source(
        studies=_studies(args.count, args.seed, difficulty, args.train_share, args.val_share),
        total=args.count,
        labels=LABELS,
        namespace="phantom",
        public_ids=True,
        synthetic=True,
        notes={
            "data": "synthetic: drawn chest phantoms with generated reports; no patient is in them",
            "generator": f"phantom version {VERSION}",
            "seed": str(args.seed),
            "difficulty": difficulty.name,
        },
    )


FORMAT = Format(
    "phantom",
    _add_arguments,
    _read,
    describe="drawn chest phantoms with written reports, in place of a dataset",
    example="--seed 1 --count 4000",
)
