"""The tables of a run's page: evaluations, data, speed and work, machine, config, and how to run it again."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Mapping
from typing import Any

from hybridclip_jax.logs import duration
from hybridclip_jax.report.audit import pairs_table, splits_table
from hybridclip_jax.report.markup import Markup, element, join, pairs, table
from hybridclip_jax.report.run import Run, at_step, evaluations, shown_step
from hybridclip_jax.report.scores import measured, scores
from hybridclip_jax.report.values import headline, read
from hybridclip_jax.report.words import count, decimal, figures, flatten, moment, number, text


def evaluations_section(run: Run, *, unverified: bool) -> Markup:
    evals = evaluations(run.metrics)
    step = shown_step(run.best, evals)
    if step is None:
        return element("section", element("h2", "Evaluations"), element("p", "No evaluation has been logged."))
    described = run.summary.get("evaluations") or {}
    parts = []
    for name, lines in evals.items():
        line = at_step(lines, step)
        info = described.get(name) or _from_config(run.config["evals"].get(name))
        shown = element("p", "Not evaluated at this step.")
        if line is not None:
            said = element("p", measured(info), class_="quiet") if info else None
            shown = join([said, scores(line, info, unverified=unverified)])
        parts.append(element("section", element("h3", name), shown))
    return element("section", element("h2", f"Evaluations at step {step:,}"), parts)


def _from_config(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """What can be said of an evaluation that the summary does not describe."""
    return {} if entry is None else {"protocol": entry["protocol"], "data": entry["data"]}


def uses_section(run: Run) -> Markup | None:
    """Each time that `evaluate` used a model of the run: a test set looked at often is none."""
    if not run.uses:
        return None
    head = element("tr", [element("th", title) for title in ("when", "step", "protocol", "on", "values")])
    rows = []
    for use in run.uses:
        said = [f"{value.name} {decimal(value.value)}" for value in headline(read(use.get("values") or {}))]
        steps = [step for step in use.get("steps") or [use.get("step")] if step is not None]
        step = ", ".join(map(count, dict.fromkeys(steps)))
        cells = [element("td", cell) for cell in (moment(use["when"]), step, use["protocol"], use["data"])]
        rows.append(element("tr", cells, element("td", ", ".join(said), class_="source")))
    stores = collections.Counter(use["data"] for use in run.uses)
    again = [f"{data} {times} times" for data, times in stores.items() if times > 1]
    note = f"Used more than once: {', '.join(again)}. A choice made after a look at the test set is not tested by it."
    section = [element("h2", "Uses by evaluate"), table(head, rows)]
    return element("section", section, element("p", note, class_="note") if again else None)


def data_section(run: Run) -> Markup:
    data = run.summary.get("data") or {}
    stores = [("train", data.get("train") or {"spec": run.config["data"]["train"]})]
    counted = data.get("evals") or {}
    stores += [
        (f"eval/{name}", counted.get(name) or {"spec": entry["data"]}) for name, entry in run.config["evals"].items()
    ]
    head = element(
        "tr",
        element("th", "use"),
        element("th", "store"),
        element("th", "records", class_="n"),
        element("th", "patients", class_="n"),
    )
    kinds: dict[object, Markup] = {
        value: element("div", words, class_="note")
        for value, words in ((True, "synthetic phantoms"), (False, "not synthetic"))
    }
    rows = [
        element(
            "tr",
            element("th", use, scope="row"),
            element("td", store["spec"] or "not recorded", kinds.get(store.get("synthetic")), class_="long"),
            element("td", count(store.get("records")), class_="n"),
            element("td", count(store.get("patients")), class_="n"),
        )
        for use, store in stores
    ]
    audited = [splits_table(run.audit), pairs_table(run.audit)] if run.audit else []
    return element("section", element("h2", "Data"), table(head, rows), audited)


def work_section(run: Run) -> Markup:
    def median(name: str, unit: str) -> str:
        values = run.train_values(name)
        return f"{statistics.median(values):,.4g} {unit}" if values else "not recorded"

    mfu = run.last("mfu")
    share = run.summary.get("eval_share") or {}
    estimate = run.summary.get("estimate") or {}
    rate, hours = (number(value) for value in (run.summary.get("pairs_per_s"), estimate.get("hours")))
    rows = [
        ("pairs per second", f"{rate:,.4g}" if rate is not None else median("pairs_per_s", "(median)")),
        ("step", median("step_ms", "ms (median)")),
        ("waiting for input, of that", median("input_wait_ms", "ms (median)")),
        ("arithmetic", median("tflops", "TFLOP/s (median)")),
        ("PF-days of model work", figures(run.last("pf_days_model"))),
        ("PF-days against the estimate", _against(run.last("pf_days_model"), estimate.get("pf_days"))),
        ("PF-days of device capacity used", figures(run.last("pf_days_capacity"))),
        ("their ratio (MFU)", "not known for this device" if mfu is None else f"{mfu:.1%}"),
        ("wall time", "not recorded" if (wall := run.last("wall_s")) is None else duration(wall)),
        ("wall time by the estimate", "not known" if hours is None else duration(3600 * hours)),
        ("evaluation, of the time of all attempts", _share(share.get("wall"))),
        ("evaluation, of all FLOPs", _share(share.get("flops"))),
        ("attempts", count(run.summary.get("attempts"))),
    ]
    note = "One PF-day is 8.64e19 floating-point operations; a multiply-add counts as two. Training alone."
    return element("section", element("h2", "Speed and work"), pairs(rows), element("p", note, class_="note"))


def _against(done: float | None, asked: float | None) -> str:
    """The work done, beside what the run was estimated to take before its first step."""
    if not asked:
        return "not recorded"
    return f"{figures(done)} of {figures(asked)}" + ("" if done is None else f" ({done / asked:.0%})")


def _share(value: object) -> str:
    found = number(value)
    return "not recorded" if found is None else f"{found:.1%}"


def machine_section(run: Run) -> Markup:
    devices, versions = run.summary.get("devices") or {}, run.summary.get("versions") or {}
    rows = [(f"devices: {key}", text(value)) for key, value in devices.items()]
    rows += [(str(key), text(value)) for key, value in versions.items()]
    parts = [pairs(rows) if rows else element("p", "Not recorded: the run has written no summary.json yet.")]
    towers = run.summary.get("parameters")
    if towers:
        head = element("tr", element("th", "tower"), *(element("th", h, class_="n") for h in ("parameters", "train")))
        counts = [
            element(
                "tr",
                element("th", tower, scope="row"),
                *(element("td", count(entry[key]), class_="n") for key in ("count", "trainable")),
            )
            for tower, entry in towers.items()
        ]
        parts = [
            element("h2", "Parameters"),
            table(head, counts),
            element("h2", "Machine and versions"),
            *parts,
        ]
    else:
        parts.insert(0, element("h2", "Machine and versions"))
    return element("section", parts)


def config_section(run: Run) -> Markup:
    rows = [(name, text(value)) for name, value in flatten(run.config)]
    folded = element("details", element("summary", f"{len(rows)} settings"), pairs(rows))
    return element("section", element("h2", "Config"), folded)


def reproduce_section(run: Run) -> Markup:
    command = run.summary.get("command")
    if not command:
        said = element("p", "The command was not recorded: the run has written no summary.json yet.")
        return element("section", element("h2", "To reproduce"), said)
    note = "The config above is what that command resolved to; seed and stores are among its fields."
    return element("section", element("h2", "To reproduce"), element("pre", command), element("p", note, class_="note"))
