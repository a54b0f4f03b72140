"""Where a model folder comes from: its run, what that was trained and chosen on, what it was evaluated on before."""

from __future__ import annotations

import contextlib
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
    not known. watched: further stores that were evaluated during training. noted: what the run's summary.json says of
    each of these: "path", "split", "fingerprint". fingerprint: of the weights in best/, where this is it.
    """

    folder: Path
    run: Path | None = None
    step: int | None = None
    why: str | None = None
    train: str = ""
    select: str = ""
    metric: str = ""
    watched: tuple[str, ...] = ()
    noted: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    fingerprint: str | None = None


def of(folder: Path) -> Lineage:
    """Of a model folder, or of a run, which stands for its best/. UserError for neither, and for a damaged run."""
    model = folder if (folder / modelfolder.CARD).is_file() else folder / "best"
    if not (model / modelfolder.CARD).is_file():
        within = f"; for all of its model folders name {folder}/*" if any(folder.glob(f"*/{modelfolder.CARD}")) else ""
        raise UserError(
            f"{folder}: neither a model folder (no {modelfolder.CARD}) nor a run that chose a step (best/){within}"
        )
    here = model.absolute() if model.name else model.resolve()  # "." has no name
    made_by_run = here.name == "best" or here.parent.name == "kept"
    for run in (here.parent, here.parents[1] if here.parent.name == "kept" else here.parent):
        shown = run if folder.is_absolute() else Path(os.path.relpath(run))
        config = rundir.read_json(run / rundir.CONFIG)
        if isinstance(config, dict) and {"data", "evals", "select"} <= config.keys():
            try:
                return _of_run(model, shown, config)
            except (AttributeError, KeyError, TypeError) as error:
                raise UserError(
                    f"{shown / rundir.CONFIG}, or the best.json or summary.json beside it: not as a run writes it "
                    f"({error}); restore it"
                ) from error
        # Else a damaged file would switch off the check of what the model has seen.
        if made_by_run and (run / rundir.CONFIG).exists():
            raise UserError(
                f"{shown / rundir.CONFIG}: not as a run writes it: what {folder} was trained on cannot be read; "
                "restore it, or copy the model folder to another place and say --trained-on STORE"
            )
    return Lineage(model)


def _of_run(model: Path, run: Path, config: Mapping[str, Any]) -> Lineage:
    metric = config["select"].get("metric", "")
    evals = {name: entry["data"] for name, entry in config["evals"].items()}
    select = evals.get(metric.partition("/")[0], "")
    best = _object(run / "best.json")
    if model.name == "best":
        step, why, mark = best.get("step"), best.get("why"), best.get("fingerprint")
    else:
        number = model.name.removeprefix("step-")
        step, why, mark = (int(number) if number.isdecimal() else None), None, None
    data = _object(run / "summary.json").get("data") or {}
    noted = {one["spec"]: one for one in (data.get("train"), *(data.get("evals") or {}).values()) if one}
    facts = [one.get(key, "") for one in noted.values() for key in ("path", "split", "fingerprint")]
    for value in (config["data"]["train"], metric, *evals.values(), *noted, *facts):
        if not isinstance(value, str):
            raise TypeError(f"{value!r} in place of a text")
    return Lineage(
        folder=model,
        run=run,
        step=step if isinstance(step, int) else None,
        why=why if isinstance(why, str) else None,
        train=config["data"]["train"],
        select=select,
        metric=metric,
        watched=tuple(spec for spec in dict.fromkeys(evals.values()) if spec != select),
        noted=noted,
        fingerprint=mark,
    )


def _object(path: Path) -> dict[str, Any]:
    """The object in a file of the run; {} where there is no such file, TypeError where it holds anything else."""
    found = rundir.read_json(path)
    if not isinstance(found, dict) and path.exists():
        raise TypeError(f"no object in {path.name}")
    return found or {}


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
    not made, which is a warning, not an error.
    """
    verdict = Verdict()
    given = [open_store(spec) for spec in trained_on]
    training = [_compare(store, other, TRAINED, verdict) for other in given]
    choosing = []
    for lineage in {(line.run or line.folder): line for line in lineages}.values():
        if lineage.train and not any(_is_as_read(other, lineage, lineage.train) for other in given):
            training.append(_named(store, lineage, lineage.train, TRAINED, open_store, verdict))
        elif not given:
            said = f"not checked: nothing says what {lineage.folder} was trained on; {REMEDY}"
            training.append(_warned(said, verdict))
        choosing.append(_selection(store, lineage, open_store, verdict))
        verdict.warnings += [
            f"{store.spec} was evaluated during the training of {lineage.run}, though its step was not chosen on it"
            for spec in lineage.watched
            if _is_same(store, lineage, spec)
        ]
    verdict.checks["training"] = "; ".join(dict.fromkeys(training))
    verdict.checks["selection"] = "; ".join(dict.fromkeys(choosing))
    verdict.warnings = list(dict.fromkeys(verdict.warnings))
    return verdict


def check_fitted(
    flag: str,
    store: Store,
    lineages: Sequence[Lineage],
    trained_on: Sequence[str],
    open_store: Callable[[str], Store],
) -> list[str]:
    """Warnings where an evaluation fits something, such as thresholds, on patients that the models were trained on."""
    verdict = check(store, lineages, trained_on, open_store)
    known = [fault for fault in verdict.faults if fault.endswith(TRAINED)]
    said = [f"{flag}: {fault}: what is fitted on scores of known patients may not hold for others" for fault in known]
    return said + [warning for warning in verdict.warnings if TRAINED in warning]


def _warned(said: str, verdict: Verdict) -> str:
    verdict.warnings.append(said)
    return said


def _selection(store: Store, lineage: Lineage, open_store: Callable[[str], Store], verdict: Verdict) -> str:
    if not lineage.run:
        return _warned(f"not checked: nothing says on what {lineage.folder} was chosen", verdict)
    if not lineage.select:
        return f"{lineage.run} chose its step on no store"
    if _is_same(store, lineage, lineage.select):
        return _warned(
            f"{store.spec} is the store that the step of {lineage.run} was chosen on ({lineage.metric}): these values "
            "are the selection's, and optimistic",
            verdict,
        )
    return _named(store, lineage, lineage.select, CHOSEN, open_store, verdict)


def _is_same(store: Store, lineage: Lineage, spec: str) -> bool:
    """Whether a run's store is this very one, wherever it lies now."""
    folder, split = parse_spec(spec)
    there = Path(lineage.noted.get(spec, {}).get("path", folder)).resolve() == parse_spec(store.spec)[0].resolve()
    same_split = split == store.split or (split is None and len(store.manifest["splits"]) == 1)
    return _is_as_read(store, lineage, spec) or (there and same_split)


def _is_as_read(store: Store, lineage: Lineage, spec: str) -> bool:
    """Whether a store holds what the run read by that name."""
    noted = lineage.noted.get(spec, {})
    return (noted.get("fingerprint"), noted.get("split")) == (store.fingerprint, store.split)


def _named(
    store: Store, lineage: Lineage, spec: str, role: str, open_store: Callable[[str], Store], verdict: Verdict
) -> str:
    """`_compare` with a store that a run's config names: there, or else where the run found it.

    A relative name means another store in another working directory, so what is opened has to be what the run read.
    """
    noted, remedy = lineage.noted.get(spec, {}), f"; {REMEDY}" if role == TRAINED else ""
    found = []
    for name in dict.fromkeys([spec, f"{noted['path']}:{noted['split']}" if "path" in noted else spec]):
        with contextlib.suppress(UserError):
            found.append(open_store(name))
    other = next((one for one in found if _is_as_read(one, lineage, spec)), None)
    if other is not None:
        return _compare(store, other, role, verdict)
    if not found:
        return _warned(f"not checked: {spec}, {role} in {lineage.run}, cannot be opened here{remedy}", verdict)
    known = f"has changed since the run{remedy}" if noted else "may be another store than the run's: no summary.json"
    _warned(f"not checked: {spec}, {role} in {lineage.run}: what is here {known}", verdict)
    return f"{_compare(store, found[-1], role, verdict)} (not checked: {spec} {known})"


def _compare(store: Store, other: Store, role: str, verdict: Verdict) -> str:
    overlap = audit.overlap(store, other)
    gaps = [_warned(f"{gap} ({store.spec} against {other.spec}, {role})", verdict) for gap in overlap.gaps]
    found = []
    if shared := str(overlap):
        found = [f"{shared} of {store.spec} are in {other.spec}, {role}"]
        verdict.faults += [said for said in found if said not in verdict.faults]
    elif overlap.nothing:
        found = [f"{overlap.nothing} of {store.spec} is in {other.spec}, {role}"]
    return "; ".join([*found, *gaps])


# --- what was evaluated before


def uses(
    lineages: Iterable[Lineage], store: Store, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """What the runs of these models note of this store's split, a line each evaluation, oldest first.

    `say` is told of each run whose notes cannot be read.
    """
    found = {}
    for run in _runs(lineages):
        try:
            texts = (run / USES).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            say(f"{run / USES}: cannot be read ({error.strerror}): what was evaluated before is not known")
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
        folders = ", ".join(str(line.folder.absolute()) for line in lines)
        model = {"model": folders, "step": lines[0].step, "steps": [line.step for line in lines]}
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
        except (ValueError, RecursionError):  # torn by a crash
            continue
        if isinstance(line, dict):
            yield line


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """In one write, so that two evaluations at once keep both lines."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # by a crash; this line must not go with it
        os.write(descriptor, ("\n" * torn + json.dumps(line, allow_nan=False) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
