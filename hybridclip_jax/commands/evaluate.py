"""`hybridclip evaluate`: what a trained model is worth on a store, with intervals, and how that was found out."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import difflib
import functools
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import COMMON, EVALUATORS
from hybridclip_jax.evals.units import UNITS
from hybridclip_jax.logs import Bars

if TYPE_CHECKING:
    from hybridclip_jax.lineage import Verdict

HELP = "evaluate a model, or the mean of several, on a store: values with intervals, checks and a report"
EXAMPLE = "hybridclip evaluate --model runs/demo --data stores/demo:test --protocol chexzero --out results/demo"

FITTED_ON = ("train", "validation")  # fields of stores that a protocol fits something on
_FIELD = "field_"  # before the name of a protocol's field, among the parsed flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    folders: dict[str, Any] = {"nargs": "+", "type": Path, "metavar": "DIR"}
    model = "a model folder, or a run, which stands for its chosen step; of several the mean of their scores counts"
    parser.add_argument("--model", required=True, help=model, **folders)
    parser.add_argument(
        "--against", default=[], help="another side: paired differences, --model less --against, are given", **folders
    )
    parser.add_argument("--data", required=True, metavar="STORE", help=COMMON["data"].help)
    parser.add_argument("--protocol", required=True, metavar="NAME", help=", ".join(EVALUATORS))
    parser.add_argument("--unit", choices=UNITS, default=COMMON["unit"].default, help=COMMON["unit"].help)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the result is written")
    parser.add_argument(
        "--trained-on", nargs="+", default=[], metavar="STORE", help="what a model was trained on, where no run says it"
    )
    parser.add_argument(
        "--allow-overlap", action="store_true", help="evaluate although patients or images were trained or chosen on"
    )
    parser.add_argument(
        "--examples", type=int, default=0, metavar="N", help="show N hits and N misses of each label, as small pictures"
    )
    parser.add_argument("--unverified", action="store_true", help="show published results that nobody has checked too")
    own = parser.add_argument_group("fields of a protocol")
    for key, owners in _fields().items():
        own.add_argument(_flag(key), dest=_FIELD + key, metavar="VALUE", help=_explained(key, owners))


def _explained(key: str, owners: Sequence[str]) -> str:
    """What a field means to the protocols that have it, as argparse wants it."""
    meanings: dict[str, list[str]] = {}
    for name in owners:
        field = EVALUATORS[name].FIELDS[key]
        default = f" (default {field.default})" if field.default not in ("", None) else ""
        meanings.setdefault(field.help + default, []).append(name)
    said = "; ".join(f"{', '.join(names)}: {meaning}" for meaning, names in meanings.items())
    return said.replace("%", "%%")


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


@functools.cache
def _fields() -> Mapping[str, Sequence[str]]:
    """Every field of a protocol that is not of all protocols, and the protocols that have it."""
    owners: dict[str, list[str]] = {}
    for name, evaluator in EVALUATORS.items():
        for key in evaluator.FIELDS:
            owners.setdefault(key, []).append(name)
    return owners


def entry(args: argparse.Namespace) -> dict[str, Any]:
    """The protocol's entry that the flags spell.

    UserError for no such protocol, the flag of another, or one of a wrong type.
    """
    if args.protocol not in EVALUATORS:
        near = difflib.get_close_matches(args.protocol, EVALUATORS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(EVALUATORS)}"
        raise UserError(f"--protocol {args.protocol}: no such protocol; {hint}")
    if args.against and not EVALUATORS[args.protocol].PAIRED:
        raise UserError(
            f"--against: --protocol {args.protocol} has no paired differences; use another, or leave it out"
        )
    own = EVALUATORS[args.protocol].FIELDS
    found: dict[str, Any] = {"protocol": args.protocol, "data": args.data, "unit": args.unit}
    for key, owners in _fields().items():
        text = getattr(args, _FIELD + key)
        if text is None:
            continue
        if key not in own:
            raise UserError(f"{_flag(key)}: is no flag of --protocol {args.protocol}; it is of {', '.join(owners)}")
        found[key] = _typed(_flag(key), text, type(own[key].default))
    return found


def _typed(flag: str, text: str, kind: type) -> str | int:
    if kind is str:
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{flag} {text}: must be a whole number") from None


def run(args: argparse.Namespace) -> None:
    """Prints the values and writes `--out`: metrics.json, predictions.parquet, report.html.

    Raises UserError for whatever the flags, a model or a store get wrong, and where patients or images of the store
    were trained on or chosen on; StorageError where the result cannot be written.
    """
    asked = entry(args)
    if args.examples < 0:
        raise UserError(f"--examples {args.examples}: must be at least 0")
    # Imported here so that the other commands and --help do not wait for jax.
    from hybridclip_jax import evaluation

    try:
        with evaluation.locked(args.out):
            _run(args, asked)
    except UserError as error:
        raise UserError(_in_flags(str(error), args.protocol)) from error


def _in_flags(message: str, protocol: str) -> str:
    """Evaluators name the fields of a config; here they are flags."""
    name = re.escape(f"evals.{protocol}")
    message = re.sub(rf"{name}\.(\w+)( =)?", lambda found: _flag(found[1]), message)
    return re.sub(rf"{name}\b", f"--protocol {protocol}", message)


def _run(args: argparse.Namespace, asked: Mapping[str, Any]) -> None:
    from hybridclip_jax import evaluation, lineage, versions
    from hybridclip_jax.data.store import Store
    from hybridclip_jax.report import evaluation as page
    from hybridclip_jax.report import evaluation_terminal as terminal

    began = time.perf_counter()
    open_store = functools.cache(Store.open)  # models of one evaluation read one store
    store = open_store(args.data)
    models, others = ([lineage.of(folder) for folder in folders] for folders in (args.model, args.against))
    evaluation.refuse_other_folder(args.out, models, asked, store)
    verdict = lineage.check(store, [*models, *others], args.trained_on, open_store)
    _refuse(verdict, args.allow_overlap)
    for field in FITTED_ON:
        if asked.get(field):
            fitted = open_store(asked[field])
            found = lineage.check_fitted(_flag(field), fitted, [*models, *others], args.trained_on, open_store)
            verdict.warnings += [warning for warning in found if warning not in verdict.warnings]
    used = lineage.uses([*models, *others], store, verdict.warnings.append)
    print(terminal.before(store.spec, models, others, verdict.checks, verdict.warnings, used))
    evaluation.check_all([*models, *others])
    with contextlib.closing(Bars("image")) as show:
        ours = evaluation.side(models, asked, open_store, show)
        theirs = evaluation.side(others, asked, open_store, show) if others else None
    pictures = evaluation.examples(ours.scored, args.examples) if args.examples else {}
    result = evaluation.body(ours, theirs) | {
        "chosen": next((line.why for line in models if line.why), None),
        "checks": verdict.checks,
        "warnings": verdict.warnings,
        "used_before": [{key: use.get(key) for key in ("when", "model", "protocol")} for use in used],
        "versions": versions.installed(),
        "command": args.command_line,
        "machine": evaluation.machine(),
        "eval_s": time.perf_counter() - began,
    }
    # Before anybody reads a value: what was seen of a test store cannot be unseen.
    # To the microsecond: two uses are told apart by it.
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    use = {"when": when, "protocol": args.protocol, "unit": args.unit, "out": str(args.out.absolute())}
    for lines, side in ((models, ours), (others, theirs)):
        for warning in lineage.record(lines, store, use | {"values": evaluation.headline(side)} if side else use):
            print(f"warning: {warning}")
    evaluation.write(args.out, result, ours, theirs, pictures)
    print("\n" + terminal.after(result))
    if args.examples and not pictures:
        print(f"note: --examples: {args.protocol} has no label here that some units have and others lack")
    print(f"\nreport       {page.render(args.out, unverified=args.unverified)}")
    print(f"values       {args.out / evaluation.METRICS}\npredictions  {args.out / evaluation.PREDICTIONS}")


def _refuse(verdict: Verdict, allowed: bool) -> None:
    """Raises UserError for faults; where they are allowed they become warnings, which go with the values."""
    if verdict.faults and not allowed:
        raise UserError(
            f"{'; '.join(verdict.faults)}: evaluate on patients that the model has not seen, or, where it is meant, "
            "give --allow-overlap, and the result says so"
        )
    verdict.warnings += [f"{fault} (--allow-overlap): the values say nothing about others" for fault in verdict.faults]
