"""Where a model folder comes from: its run, what that was trained and chosen on, what it was evaluated on before."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridclip_jax import modelfolder, rundir
from hybridclip_jax.data import audit
from hybridclip_jax.data.store import Store, parse_spec
from hybridclip_jax.errors import UserError

USES = "evaluated.jsonl"
REMEDY = "name it with --trained-on STORE"
TRAINED, CHOSEN = "which was trained on", "on which the step was chosen"


@dataclasses.dataclass(frozen=True)
class Lineage:
    """What is known of one model folder.

    run: the folder of the run that made it, None where it lies in none. step: of its weights. why: that step, in a
    sentence. train, select: the stores that were trained and chosen on, as the run's config names them; empty where
    not known. watched: further stores that were evaluated during training. fingerprints: of these, as the run found
    them.
    """

    folder: Path
    run: Path | None = None
    step: int | None = None
    why: str | None = None
    train: str = ""
    select: str = ""
    metric: str = ""
    watched: tuple[str, ...] = ()
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)


def of(folder: Path) -> Lineage:
    """Of a model folder, or of a run, which stands for its best/. UserError for neither, and for a damaged run."""
    model = folder if (folder / modelfolder.CARD).is_file() else folder / "best"
    if not (model / modelfolder.CARD).is_file():
        raise UserError(f"{folder}: neither a model folder (no {modelfolder.CARD}) nor a run that chose a step (best/)")
    here = model.absolute() if model.name else model.resolve()  # "." has no name
    for run in (here.parent, here.parents[1] if here.parent.name == "kept" else here.parent):
        config = rundir.read_json(run / rundir.CONFIG)
        if isinstance(config, dict) and {"data", "evals", "select"} <= config.keys():
            shown = run if folder.is_absolute() else Path(os.path.relpath(run))
            try:
                return _of_run(model, shown, config)
            except (AttributeError, KeyError, TypeError) as error:
                raise UserError(
                    f"{shown / rundir.CONFIG}, or the best.json or summary.json beside it: not as a run writes it "
                    f"({error}); restore it"
                ) from error
    return Lineage(model)


def _of_run(model: Path, run: Path, config: Mapping[str, Any]) -> Lineage:
    metric = config["select"].get("metric", "")
    evals = {name: entry["data"] for name, entry in config["evals"].items()}
    select = evals.get(metric.partition("/")[0], "")
    best = rundir.read_json(run / "best.json") or {}
    if model.name == "best":
        step, why = best.get("step"), best.get("why")
    else:
        number = model.name.removeprefix("step-")
        step, why = (int(number) if number.isdigit() else None), None
    data = (rundir.read_json(run / "summary.json") or {}).get("data") or {}
    stores = [data.get("train"), *(data.get("evals") or {}).values()]
    return Lineage(
        folder=model,
        run=run,
        step=step if isinstance(step, int) else None,
        why=why if isinstance(why, str) else None,
        train=config["data"]["train"],
        select=select,
        metric=metric,
        watched=tuple(spec for spec in dict.fromkeys(evals.values()) if spec != select),
        fingerprints={store["spec"]: store.get("fingerprint", "") for store in stores if store},
    )


# --- who was seen before


@dataclasses.dataclass
class Verdict:
    """checks: a sentence for each thing that was, or was not, looked into. faults: what makes the values worthless.
    warnings: what a reader of the values must know."""

    checks: dict[str, str] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def check(
    store: Store,
    lineages: Sequence[Lineage],
    trained_on: Sequence[str] = (),
    open_store: Callable[[str], Store] = Store.open,
) -> Verdict:
    """What `store` shares with what the models were trained and chosen on.

    trained_on: stores that the models were trained on, where no run's config names them, or beside what it names;
    UserError where one cannot be opened. A store that a run names and that is not there any more is a check that was
    not made, not an error.
    """
    verdict = Verdict()
    training = [_compare(store, open_store(spec), TRAINED, verdict) for spec in trained_on]
    choosing = []
    for lineage in {(line.run or line.folder): line for line in lineages}.values():
        if lineage.train:
            training.append(_named(store, lineage, lineage.train, TRAINED, open_store, verdict))
        elif not trained_on:
            training.append(f"not checked: nothing says what {lineage.folder} was trained on; {REMEDY}")
        choosing.append(_selection(store, lineage, open_store, verdict))
        verdict.warnings += [
            f"{store.spec} was evaluated during the training of {lineage.run}, though its step was not chosen on it"
            for spec in lineage.watched
            if _is_same(store, lineage, spec)
        ]
    verdict.checks["training"] = "; ".join(dict.fromkeys(training))
    verdict.checks["selection"] = "; ".join(dict.fromkeys(choosing))
    return verdict


def _selection(store: Store, lineage: Lineage, open_store: Callable[[str], Store], verdict: Verdict) -> str:
    if not lineage.run:
        return f"not checked: nothing says on what {lineage.folder} was chosen"
    if not lineage.select:
        return f"{lineage.run} chose its step on no store"
    if _is_same(store, lineage, lineage.select):
        said = (
            f"{store.spec} is the store that the step of {lineage.run} was chosen on ({lineage.metric}): these values "
            "are the selection's, and optimistic"
        )
        verdict.warnings.append(said)
        return said
    return _named(store, lineage, lineage.select, CHOSEN, open_store, verdict)


def _is_same(store: Store, lineage: Lineage, spec: str) -> bool:
    """Whether a run's store is this very one, wherever it lies now."""
    split = parse_spec(spec)[1]
    there = Path(parse_spec(spec)[0]).resolve() == parse_spec(store.spec)[0].resolve()
    same = lineage.fingerprints.get(spec) == store.fingerprint or there
    return same and (split == store.split or (split is None and len(store.manifest["splits"]) == 1))


def _named(
    store: Store, lineage: Lineage, spec: str, role: str, open_store: Callable[[str], Store], verdict: Verdict
) -> str:
    """`_compare` with a store that a run's config names."""
    try:
        other = open_store(spec)
    except UserError:
        remedy = f"; {REMEDY}" if role == TRAINED else ""
        return f"not checked: {spec}, {role} in {lineage.run}, cannot be opened here{remedy}"
    said = _compare(store, other, role, verdict)
    changed = lineage.fingerprints.get(spec, other.fingerprint) != other.fingerprint
    return f"{said} ({spec} has changed since the run)" if changed else said


def _compare(store: Store, other: Store, role: str, verdict: Verdict) -> str:
    overlap = audit.overlap(store, other)
    if shared := str(overlap):
        said = f"{shared} of {store.spec} are in {other.spec}, {role}"
        if said not in verdict.faults:
            verdict.faults.append(said)
        return said
    if overlap.why:
        return f"patients not checked against {other.spec}, {role}: {overlap.why}; no image is in both"
    return f"no patient and no image of {store.spec} is in {other.spec}, {role}"


# --- what was evaluated before


def uses(lineages: Iterable[Lineage], store: Store) -> list[dict[str, Any]]:
    """What the runs of these models note of this store's split, a line each evaluation, oldest first."""
    found = {}
    for run in _runs(lineages):
        try:
            texts = (run / USES).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        of_this = {"store_fingerprint": store.fingerprint, "split": store.split}
        for line in _objects(texts):
            if of_this.items() <= line.items():  # two runs that were compared both hold a line of it
                found[str(line.get("when")), str(line.get("out"))] = line
    return [found[key] for key in sorted(found)]


def record(lineages: Sequence[Lineage], store: Store, use: Mapping[str, Any]) -> list[str]:
    """Notes in the folder of each run of these models that they were evaluated on this store: `use`, with "when".

    Returns a sentence for each folder that takes no note, such as somebody else's.
    """
    of_this = {"data": store.spec, "split": store.split, "store_fingerprint": store.fingerprint}
    refused = []
    for run, lines in _runs(lineages).items():
        model = {"model": ", ".join(str(line.folder) for line in lines), "step": lines[0].step}
        try:
            _append(run / USES, {**model, **of_this, **use})
        except OSError as error:
            refused.append(f"{lines[0].run}: this use of {store.spec} could not be noted in it: {error.strerror}")
    return refused


def _runs(lineages: Iterable[Lineage]) -> dict[Path, list[Lineage]]:
    found: dict[Path, list[Lineage]] = {}
    for line in lineages:
        if line.run:
            found.setdefault(line.run.resolve(), []).append(line)
    return found


def _objects(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:  # torn by a crash
            continue
        if isinstance(line, dict):
            yield line


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """In one write, so that two evaluations at once keep both lines."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, (json.dumps(line, allow_nan=False) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
