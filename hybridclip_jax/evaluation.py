"""One evaluation outside training: models scored one by one, their mean, and the folder that holds the result."""

# N units, K columns

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hybridclip_jax import inference, lineage, modelfolder, rundir, selection
from hybridclip_jax.data.locks import only_one
from hybridclip_jax.data.store import Store
from hybridclip_jax.data.thumbnail import data_url
from hybridclip_jax.errors import StorageError, UserError
from hybridclip_jax.evals import EVALUATORS, comparison
from hybridclip_jax.evals.comparison import Scored
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Predictions, mean
from hybridclip_jax.evals.units import Units

FORMAT = 1
METRICS, PREDICTIONS, EXAMPLES, PAGE = "metrics.json", "predictions.parquet", "examples.json", "report.html"

Show = Callable[[str, int, int], None]  # what is encoded, how many, of how many


@dataclasses.dataclass(frozen=True)
class Side:
    """What the models of one side said, the mean where there are several.

    models: what metrics.json says of each. values: with intervals. each: where there are several models the values
    of each alone, without. notes: those of every model's evaluator.
    """

    scored: Scored
    models: list[dict[str, Any]]
    values: Values
    each: list[Values]
    notes: list[str]

    @property
    def synthetic(self) -> bool:
        return self.scored.evaluator.store.synthetic or any(model["synthetic"] for model in self.models)


def side(
    lineages: Sequence[lineage.Lineage], entry: Mapping[str, Any], open_store: Callable[[str], Store], show: Show
) -> Side:
    """Asks each model in turn; at no time are the arrays of two in memory.

    entry: `protocol`, `data`, `unit` and the protocol's fields. Raises UserError for what a folder, the entry or the
    store gets wrong, and for several models where the protocol has no mean of theirs.
    """
    if len(lineages) > 1 and not EVALUATORS[entry["protocol"]].AVERAGES:
        raise UserError(f"--protocol {entry['protocol']}: scores of several models have no mean; name one model a side")
    pairs = [_ask(line, entry, open_store, show) for line in lineages]
    asked, models = [scored for scored, _ in pairs], [facts for _, facts in pairs]
    scored, several = asked[0], len(asked) > 1
    if several:
        scored = Scored(scored.evaluator, mean([one.predictions for one in asked]))
    return Side(
        scored=scored,
        models=models,
        values=scored.evaluator.score(scored.predictions),
        each=[one.evaluator.point(one.predictions) for one in asked] if several else [],
        notes=list(dict.fromkeys(note for one in asked for note in one.evaluator.describe()["notes"])),
    )


def check_all(lineages: Sequence[lineage.Lineage]) -> None:
    """UserError where one of several models cannot be read: before the first is scored, not after."""
    for line in lineages if len(lineages) > 1 else ():
        _refuse_one_tower(line.folder, modelfolder.load(line.folder)[1])


def _refuse_one_tower(folder: Path, card: modelfolder.Card) -> None:
    if card.kind != "dual":
        raise UserError(f"{folder}: holds the {card.kind} tower alone; evaluate needs a model of two towers")


def _ask(
    line: lineage.Lineage, entry: Mapping[str, Any], open_store: Callable[[str], Store], show: Show
) -> tuple[Scored, dict[str, Any]]:
    model = inference.load(line.folder)
    if line.fingerprint not in (None, model.fingerprint):
        raise UserError(
            f"{line.folder}: is not the model that {line.run}/best.json names: the run is going on, and best/ changed "
            "while it was read; run again"
        )
    _refuse_one_tower(line.folder, model.card)
    evaluator = EVALUATORS[entry["protocol"]](entry["protocol"], entry, model.preparation(open_store))
    encode = _shown(model.encoders, len(evaluator.units.row_M), str(line.folder), show)
    facts = {
        "folder": str(line.folder),
        "fingerprint": model.fingerprint,
        "run": str(line.run) if line.run else None,
        "step": line.step,
        "why": line.why,
        "synthetic": model.synthetic,
    }
    return Scored(evaluator, evaluator.predict(encode, model.params)), facts


def _shown(encode: Encode, images: int, label: str, show: Show) -> Encode:
    """The encoders, telling of each batch of images. A protocol that reads further stores goes beyond `images`."""
    done = 0

    def told(*arguments: Any) -> Any:
        nonlocal done
        found = np.asarray(encode.images(*arguments))  # waited for here: else the bar runs ahead of the device
        before, done = done, done + encode.batch_size
        count = min(done, images) if before < images else done  # the last batch is filled up
        show(label, count, max(count, images))
        return found

    return dataclasses.replace(encode, images=told)


# --- what is said of it


def body(ours: Side, theirs: Side | None) -> dict[str, Any]:
    """What metrics.json holds of the scores themselves."""
    against = None
    if theirs is not None:
        differences = comparison.differences(ours.scored, theirs.scored)
        against = {"models": theirs.models, "values": theirs.values, "differences": differences}
    return {
        "format": FORMAT,
        "evaluation": {**ours.scored.evaluator.describe(), "notes": ours.notes},
        "models": ours.models,
        "values": ours.values,
        "each": ours.each,
        "against": against,
        "curves": comparison.curves(ours.scored.predictions, ours.values),
        "synthetic": ours.synthetic or (theirs is not None and theirs.synthetic),
    }


def headline(side: Side) -> Values:
    """The one value of a side to show where one is shown."""
    name = selection.headline(side.values)
    return {name: finite(side.values[name])} if name else {}


def machine() -> dict[str, Any]:
    """What it ran on, without the machine's name."""
    devices = jax.local_devices()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
    }


def examples(scored: Scored, count: int) -> dict[str, Any]:
    """The `count` most confident hits and misses of each label, as small pictures; a study shows its first image.

    Empty where the protocol has no labels to be right or wrong about.
    """
    predictions, store, units = scored.predictions, scored.evaluator.store, scored.evaluator.units
    found = {}
    for column, score_N, truth_N in zip(
        predictions.columns, predictions.score_NxK.T, predictions.truth_NxK.T, strict=True
    ):
        hits, misses = comparison.examples(score_N, truth_N, count)
        if hits or misses:
            found[column] = {
                kind: [
                    {
                        "url": data_url(store, int(units.row_N[unit])),
                        "score": float(score_N[unit]),
                        "truth": int(truth_N[unit]),
                        "source_row": int(store.source_rows[units.row_N[unit]]),
                    }
                    for unit in chosen
                ]
                for kind, chosen in (("hits", hits), ("misses", misses))
            }
    about = (
        "The units that the model orders most confidently right (hits) and wrong (misses) for each label: on the right "
        "or on the wrong side of most units of the other class."
    )
    return {"format": FORMAT, "about": about, "labels": found} if found else {}


# --- the folder


def locked(out: Path) -> contextlib.AbstractContextManager[None]:
    """Held while `out` is checked and written: two evaluations into one folder would mix their files."""
    whole = out.resolve()  # "." has no name
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {out.parent} cannot be made: {error.strerror}; name another folder") from error
    busy = f"--out {out}: another evaluate is writing it: wait for it, or name another folder"
    return only_one(whole.with_name(f"{whole.name}.lock"), busy)


def refuse_other_folder(out: Path, models: Sequence[lineage.Lineage], entry: Mapping[str, Any], store: Store) -> None:
    """UserError unless `out` is new, empty, or holds this very evaluation, which is written over.

    The same are the models' weights, the store by what it holds, and the protocol with its unit and fields.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if not out.is_dir():
        return  # its parent took the lock file
    try:
        tempfile.TemporaryFile(dir=out).close()  # now, not when all is scored
        empty = not any(out.iterdir())
    except OSError as error:
        raise StorageError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    if empty:
        return
    earlier = rundir.read_json(out / METRICS)
    if not (isinstance(earlier, dict) and {"format", "evaluation", "models"} <= earlier.keys()):
        raise UserError(f"--out {out}: holds other files, and no evaluation to write over; name another folder")
    fields = {key: entry.get(key, field.default) for key, field in EVALUATORS[entry["protocol"]].FIELDS.items()}
    ours = {key: entry[key] for key in ("protocol", "unit")} | {"store_fingerprint": store.fingerprint}
    asked = ours | {"split": store.split, "fields": fields, "models": [_stated(line.folder) for line in models]}
    try:
        theirs = {key: earlier["evaluation"].get(key) for key in [*ours, "fields"]}
        theirs["split"] = earlier["evaluation"]["set"]["split"]
        theirs["models"] = [model["fingerprint"] for model in earlier["models"]]
    except (AttributeError, KeyError, TypeError):
        theirs = {}
    if differ := [key for key in asked if theirs.get(key) != asked[key]]:
        what = ", ".join(key.replace("store_fingerprint", "data") for key in differ)
        raise UserError(f"--out {out}: holds another evaluation (of another {what}); name another folder")


def _stated(folder: Path) -> str | None:
    card = rundir.read_json(folder / modelfolder.CARD)
    return card.get("fingerprint") if isinstance(card, dict) else None


def write(out: Path, result: Mapping[str, Any], ours: Side, theirs: Side | None, pictures: Mapping[str, Any]) -> None:
    """All files but the page; those of an evaluation before are gone first. Raises StorageError."""
    try:
        out.mkdir(exist_ok=True)
        for name in (PREDICTIONS, EXAMPLES, PAGE):
            (out / name).unlink(missing_ok=True)
        # First: were the rest lost to a kill, it still marks the folder as one that may be written over.
        rundir.write_whole(out / METRICS, json.dumps(finite(result), indent=2, allow_nan=False) + "\n")
        _write_predictions(out / PREDICTIONS, ours.scored, theirs.scored.predictions if theirs else None)
        if pictures:
            rundir.write_whole(out / EXAMPLES, json.dumps(pictures, allow_nan=False) + "\n")
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error


def finite(value: Any) -> Any:
    """The same, ready for strict JSON: numpy's numbers as Python's, what is not finite as null.

    Bytes of a path that are no UTF-8 are written as an escape, which every reader can show.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {finite(str(key)): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    if isinstance(value, np.generic | np.ndarray):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_predictions(path: Path, scored: Scored, against: Predictions | None) -> None:
    """One row a unit; a study has the id and the source_row of its first image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    store, units = scored.evaluator.store, scored.evaluator.units
    columns: dict[str, Any] = _identity(store, units)
    parts = [("score", scored.predictions, scored.predictions.score_NxK)]
    parts += [("truth", scored.predictions, scored.predictions.truth_NxK)]
    if against is not None:
        parts.append(("against", against, against.score_NxK))
    for kind, predictions, value_NxK in parts:
        for column, value_N in zip(predictions.columns, value_NxK.T, strict=True):
            columns[f"{kind}/{column}"] = pa.array(value_N.astype(np.float64), from_pandas=True)  # NaN as null
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:  # given a path, pyarrow would expand a "~" in it
        pq.write_table(pa.table(columns), file)
    partial.replace(path)


def _identity(store: Store, units: Units) -> dict[str, Any]:
    rows = units.row_N.tolist()
    return {
        "id": [store.ids[row] for row in rows],
        "study": [store.studies[row] for row in rows],
        "patient": [store.patients[row] for row in rows],
        "source_row": store.source_rows[units.row_N],
    }
