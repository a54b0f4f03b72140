"""`hybridclip embed`: images of a store, image files or texts become embeddings in one .npz file."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from hybridclip_jax.errors import UserError

HELP = "embeddings of images (a store, files, DICOM) or texts, L2-normalised float32, in one .npz file"
EXAMPLE = "hybridclip embed --model runs/demo --data stores/demo:test --out test.npz"
BATCH = 64
MOST = 4096  # a batch is made whole, however few the items are: at 224 px this many are 2.5 GB of float32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder, or a run (its chosen model)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", metavar="STORE", help="the images of a store, PATH[:SPLIT]; id: the store's keyed one")
    what.add_argument(
        "--images",
        nargs="+",
        metavar="GLOB",
        help="image files, DICOM too: patterns in quotes, such as 'films/**/*.dcm', or names. The ids are the paths"
        " below the part without * or ?: if your files are named after patients, so are the rows of FILE.npz",
    )
    what.add_argument("--texts", metavar="FILE", help="one text a line (.txt), or a .csv or .jsonl with a column text")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE.npz",
        help="arrays embedding, id, source_row and card (JSON); the same command goes on from what a killed one left",
    )
    parser.add_argument("--batch-size", type=int, default=BATCH, metavar="N", help=f"at a time (default: {BATCH})")
    parser.add_argument(
        "--max-skipped",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="most image files that may be unreadable, as a share (default: 0.01; from 200 files on). They are left"
        " out and listed",
    )


def run(args: argparse.Namespace) -> None:
    """Embeds and prints. Raises UserError or StorageError as embedding.embed does."""
    if not 0 <= args.max_skipped <= 1:
        raise UserError(f"--max-skipped {args.max_skipped:g} is not a share between 0 and 1")
    if not 1 <= args.batch_size <= MOST:
        raise UserError(f"--batch-size {args.batch_size}: must be from 1 to {MOST}")
    # Imported here so that the other commands and --help do not wait for jax.
    from hybridclip_jax import embedding, embedding_items, inference
    from hybridclip_jax.logs import Bars

    out = Path(args.out)
    embedding.check_out(out)
    files = embedding_items.ImageFiles(args.images) if args.images else None
    model = inference.load(args.model, args.batch_size)
    if model.card.kind != "dual":
        raise UserError(f"{model.folder}: holds the {model.card.kind} tower alone; embed needs a model of two towers")
    if model.synthetic:
        print("synthetic model: trained on phantoms, it says nothing about patients")
    items: embedding_items.Items
    with contextlib.closing(Bars("text" if args.texts else "image")) as bars:
        if files is not None:
            items = files
        elif args.data is not None:
            items = embedding_items.StoreImages(model, args.data)
        else:
            items = embedding_items.Texts(model, Path(args.texts), bars)
            if items.truncated:
                print(f"{items.truncated} of {len(items)} texts are cut at the context of {model.context} tokens")
            if items.blank:
                print(f"{items.blank} of {len(items)} texts are blank: their rows hold the embedding of an empty text")
        try:
            outcome = embedding.embed(model, items, out, max_skipped=args.max_skipped, progress=bars, say=print)
        except KeyboardInterrupt:
            print(f"what is done is kept in {out}.partial, and the same command goes on from there")
            raise
    kept = outcome.read - len(outcome.skipped)
    print(f"{out}: {kept} of {outcome.read} {items.unit}s, {model.card.architecture['embed_dim']} numbers each")
    if outcome.skipped:
        print(f"left out: {embedding.reasons(outcome.skipped)}")
