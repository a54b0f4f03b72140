"""The page's tables: AUROC by label, data, speed and work, machine, config, and how to run it again."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from hybridclip_jax.logs import duration
from hybridclip_jax.report.audit import pairs_table, splits_table
from hybridclip_jax.report.markup import Markup, element, pairs, table
from hybridclip_jax.report.run import Run, at_step, evaluations, labels, shown_step, value_or_why
from hybridclip_jax.report.words import count, figures, number, text


def labels_section(run: Run) -> Markup:
    evals = evaluations(run.metrics)
    step = shown_step(run.best, evals)
    if step is None:
        return element("section", element("h2", "AUROC by label"), element("p", "No AUROC has been logged."))
    parts = []
    for name, lines in evals.items():
        line = at_step(lines, step)
        rows = [_label_row(line, label, label) for label in labels(lines)]
        averaged = count((line or {}).get("auroc/n_labels"))
        for key, title in (("mean", f"mean of {averaged}"), ("mean5", "mean of the five competition labels")):
            if line is not None and f"auroc/{key}" in line:
                rows.append(_label_row(line, key, title, class_="total"))
        protocol = run.config["evals"].get(name, {}).get("protocol")
        head = [
            element("th", "label"),
            element("th", "AUROC", class_="n"),
            element("th", "0 to 1", class_="bars"),
            element("th", "interval or reason"),
        ]
        said = element("p", f"protocol {protocol}", class_="note") if protocol else None
        parts.append(element("section", element("h3", name), said, table(element("tr", head), rows)))
    title = element("h2", f"AUROC by label at step {step:,}")
    return element("section", title, element("div", parts, class_="beside"))


def _label_row(line: Mapping[str, Any] | None, key: str, title: str, class_: str | None = None) -> Markup:
    value, why = value_or_why(line, key)
    low, high = (number((line or {}).get(f"auroc_{end}/{key}")) for end in ("lo", "hi"))
    if value is not None and low is not None and high is not None:
        why = f"{low:.3f}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high:.3f}"
    cells = [
        element("th", title, scope="row"),
        element("td", "n/a" if value is None else f"{value:.3f}", class_="n"),
        element("td", None if value is None else _bar(value), class_="bars"),
        element("td", why, class_="why"),
    ]
    return element("tr", cells, class_=class_)


def _bar(value: float) -> Markup:
    """The AUROC as a bar from 0 to 1 with chance as a tick."""
    return element(
        "svg",
        element("rect", x=0, y=2, width=130, height=6),
        element("rect", x=0, y=2, width=round(130 * min(max(value, 0.0), 1.0), 1), height=6, class_="fill"),
        element("line", x1=65, x2=65, y1=0, y2=10),
        viewBox="0 0 130 10",
        class_="bar",
        aria_hidden="true",
    )


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
    rate = number(run.summary.get("pairs_per_s"))
    rows = [
        ("pairs per second", f"{rate:,.4g}" if rate is not None else median("pairs_per_s", "(median)")),
        ("step", median("step_ms", "ms (median)")),
        ("waiting for input, of that", median("input_wait_ms", "ms (median)")),
        ("arithmetic", median("tflops", "TFLOP/s (median)")),
        ("PF-days of model work", figures(run.last("pf_days_model"))),
        ("PF-days of device capacity used", figures(run.last("pf_days_capacity"))),
        ("their ratio (MFU)", "not known for this device" if mfu is None else f"{mfu:.1%}"),
        ("wall time", "not recorded" if (wall := run.last("wall_s")) is None else duration(wall)),
        ("attempts", count(run.summary.get("attempts"))),
    ]
    note = "One PF-day is 8.64e19 floating-point operations; a multiply-add counts as two. Training alone."
    return element("section", element("h2", "Speed and work"), pairs(rows), element("p", note, class_="note"))


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


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """[("optim.name", "sgd"), ...] in the config's order; an empty group stands as {}."""
    rows: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
