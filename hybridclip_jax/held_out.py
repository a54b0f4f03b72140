"""A run's evaluations: built, checked against what is trained on, and what has to be said of each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from hybridclip_jax import selection
from hybridclip_jax.data import audit
from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import EVALUATORS, Evaluator, Preparation


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Evaluators by name, and the rule of choosing by one of them, None where nothing is evaluated.

    notes: sentences by evaluator, to stand beside its values. warnings: sentences for the start of the run.
    """

    evaluators: dict[str, Evaluator]
    rule: selection.Rule | None
    notes: dict[str, list[str]]
    warnings: list[str]


def build(config: Any, preparation: Preparation, train: Store) -> HeldOut:
    """Raises UserError for an entry or a store at fault, and where an evaluation shares patients or images with
    `train` and data.allow_overlap is off."""
    evaluators: dict[str, Evaluator] = {}
    warnings: list[str] = []
    for name, entry in config.evals.items():
        if not entry.data:
            raise UserError(f"evals.{name}.data is empty: name a store, e.g. --config.evals.{name}.data=STORE:val")
        checked = dataclasses.replace(preparation, open_store=functools.partial(_open, name, preparation, train))
        evaluators[name] = EVALUATORS[entry.protocol](name, entry.to_dict(), checked)
        warnings += _against_training(name, evaluators[name].store, train, allowed=config.data.allow_overlap)
    if not evaluators:
        return HeldOut({}, None, {}, [])
    rule = _rule(config, evaluators)
    return HeldOut(evaluators, rule, _notes(rule, evaluators), warnings)


def _open(name: str, preparation: Preparation, train: Store, spec: str) -> Store:
    """A store that the evaluation `name` reads; UserError where its images were not prepared as those of `train`."""
    store = preparation.open_store(spec)
    audit.refuse_unlike(f"evals.{name}: {spec}", store, train)
    return store


def _against_training(name: str, held_out: Store, train: Store, *, allowed: bool) -> list[str]:
    """Warnings; UserError where something is shared that may not be."""
    shared, where = audit.overlap(held_out, train), f"evals.{name}.data = {held_out.spec}"
    warnings = []
    if str(shared) and not allowed:
        raise UserError(
            f"{where}: {shared} are in {train.spec} as well; evaluate on patients that are not trained on (stores of "
            "different sources need different --namespace), or, where it is meant, give "
            "--config.data.allow_overlap=True"
        )
    if str(shared):
        warnings.append(
            f"{where}: {shared} are trained on (data.allow_overlap is on): its values say nothing about other patients"
        )
    return warnings + [f"{where}, against {train.spec}: {gap}" for gap in shared.gaps]


def _rule(config: Any, evaluators: Mapping[str, Evaluator]) -> selection.Rule:
    select = config.select
    name, _, key = select.metric.partition("/")
    chooser = evaluators[name]
    rule = selection.Rule(select.metric, select.mode, select.patience, select.keep, chooser.store.spec)
    # Asked now: a misspelt or undefined select.metric must not wait for the first evaluation.
    values, constants = chooser.at_chance(), chooser.constants(chooser.blank())
    if isinstance(values.get(key), int | float) and key in constants:
        measured = min((value for value in values if value not in constants), key=lambda v: not v.endswith("/mean"))
        raise UserError(f"select.metric = {rule.metric}: measures no model; name another, e.g. {name}/{measured}")
    if not selection.history([{"step": 0, "split": rule.split, **values}], rule.metric):
        raise UserError(
            f"select.metric = {rule.metric}: undefined on that store (a label needs records that have it and records "
            "that do not); use another metric or another store"
        )
    return rule


def _notes(rule: selection.Rule, evaluators: Mapping[str, Evaluator]) -> dict[str, list[str]]:
    chooser = rule.metric.partition("/")[0]
    chosen_on = evaluators[chooser].store
    notes = {chooser: [f"the checkpoint is chosen by {rule.metric}: at the chosen step, its values are optimistic"]}
    for name, evaluator in evaluators.items():
        if name == chooser:
            continue
        shared = audit.overlap(evaluator.store, chosen_on)
        if str(shared):
            said = f"shares {shared} with {chosen_on.spec}, on which the checkpoint is chosen: no independent test"
        elif shared.gaps:
            said = f"against {chosen_on.spec}, on which the checkpoint is chosen: {'; '.join(shared.gaps)}"
        else:
            said = f"the checkpoint is not chosen by it, nor on any of its patients ({rule.metric} chooses)"
        notes[name] = [said]
    return notes
