"""`hybridclip budget`: what a run will cost, before it starts."""

from __future__ import annotations

import argparse

from hybridclip_jax.errors import UserError

HELP = "what a run will cost before it starts: parameters, FLOPs, PF-days, hours, memory"
EXAMPLE = "hybridclip budget --config=configs/hybrid_cxr.py --device v100 --devices 8 --use 0.4 --config.batch_size=128"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="the run's config file")
    parser.add_argument("--device", metavar="NAME", help="one device of the table (default: all)")
    parser.add_argument("--devices", type=int, metavar="N", help="how many of it (default: 1 and 8)")
    parser.add_argument(
        "--use", type=float, metavar="SHARE", help="hours at this share of the peak too, such as a run's mfu"
    )


def run(args: argparse.Namespace) -> None:
    """Prints the tables. Raises UserError for a bad config or device, or a batch that N does not divide."""
    if args.devices is not None and args.devices < 1:
        raise UserError(f"--devices {args.devices}: must be at least 1")
    if args.use is not None and not 0 < args.use <= 1:
        raise UserError(f"--use {args.use:g}: a share of the peak above 0 and at most 1, such as 0.4")
    # Imported here so that the other commands and --help do not wait for jax.
    from hybridclip_jax import budget, config

    loaded = config.load(args.config, args.overrides)
    print(f"{args.config}: " + budget.render(loaded, device=args.device, devices=args.devices, use=args.use))
