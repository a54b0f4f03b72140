"""Every setting of a run, once, with its default; what each may hold; and how a file and flags become one config."""

from __future__ import annotations

import difflib
import importlib.machinery
import json
import math
import os
import re
import traceback
import types
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from hybridclip_jax.data.transforms import CROPS
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import COMMON, EVALUATORS
from hybridclip_jax.modelcard import LARGEST_IMAGE
from hybridclip_jax.models import IMAGE_ENCODERS, TEXT_ENCODERS
from hybridclip_jax.objectives import OBJECTIVES
from hybridclip_jax.optim import OPTIMIZERS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
UNIT_LOGIT_RANGE = (0.0, math.log(100))

# field -> the values it may take
CHOICES: dict[str, tuple[str, ...]] = {
    "objective": tuple(OBJECTIVES),
    "model.image.arch": tuple(IMAGE_ENCODERS),
    "model.text.arch": tuple(TEXT_ENCODERS),
    "data.crop": CROPS,
    "data.sampler": ("shuffle",),
    "optim.name": tuple(OPTIMIZERS),
    "optim.schedule": ("constant", "cosine"),
    "select.mode": ("max", "min"),
    "compute.dtype": ("float32", "bfloat16"),
    "compute.attention": ("xla", "cudnn"),
    "watchdog.at_chance": ("warn", "stop"),
}
# beginnings of the names of values of which the highest would be the worst; of all others the lowest would be
LOWER_IS_BETTER = ("loss", "median_rank", "wording_spread", "sides/cosine", "order/cosine")
# field -> the smallest value it may take
AT_LEAST: dict[str, float] = {
    "seed": 0,
    "steps": 1,
    "batch_size": 2,
    "eval_every": 1,
    "log_every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "model.embed_dim": 1,
    "model.text.context": 3,
    "data.image_size": 1,
    "data.sentences": 0,
    "select.patience": 0,
    "select.keep": 1,
    "optim.warmup_steps": 0,
    "optim.learning_rate": 0.0,
    "optim.weight_decay": 0.0,
    "optim.momentum": 0.0,
    "mesh.data": 0,
    "mesh.fsdp": 1,
}


def default() -> ConfigDict:
    """The recipe's values for every field. Locked: a misspelt field in a config file is an error."""
    config = ConfigDict(
        {
            "seed": 0,
            "steps": 25_000,
            "batch_size": 64,
            "eval_every": 500,
            "log_every": 50,
            "objective": "contrastive",
            "model": {
                "image": {"arch": "dinov3_vitb16", "weights": ""},
                "text": {"arch": "clip_text_b", "weights": "", "context": 512},
                "embed_dim": 512,
                "temperature": 0.07,
                # range of ln(1 / temperature) that the logit scale is clamped to after each update
                "logit_scale_range": UNIT_LOGIT_RANGE,
            },
            "data": {
                "train": "",
                "image_size": 224,
                "crop": "random",
                "flip": True,
                "mean": CLIP_MEAN,
                "std": CLIP_STD,
                "sampler": "shuffle",
                # folder on a disk of this computer that stores are copied to and read from, such as $TMPDIR; "": none
                "stage_dir": "",
                # True: train although an evaluation's patients or images are trained on too; the run says so
                "allow_overlap": False,
                # 0: the whole text; k: 1 to k sentences of it, drawn anew each epoch
                "sentences": 0,
            },
            "optim": {
                "name": "sgd",
                "learning_rate": 1e-4,
                "momentum": 0.9,
                "weight_decay": 0.0,
                "schedule": "constant",
                "warmup_steps": 0,
                # (regex, learning-rate factor, weight-decay factor); first match wins; factor 0 freezes
                "groups": ((".*", 1.0, 1.0),),
            },
            "evals": {},
            "select": {
                # <evaluation>/<value>, e.g. external/auroc/mean, and whether the highest or the lowest is best
                "metric": "",
                "mode": "max",
                # so many evaluations in a row without a better value end the run; 0: never
                "patience": 0,
                # how many of the best models stay: more than one makes kept/, an ensemble's members
                "keep": 1,
            },
            "checkpoint": {"every": 500, "keep": 2},
            "compute": {"dtype": "float32", "remat": False, "attention": "xla"},
            "mesh": {"data": 0, "fsdp": 1},
            "watchdog": {"at_chance": "warn"},
        }
    )
    return config.lock()


def add_eval(config: ConfigDict, name: str, protocol: str = "chexzero", **fields: str | int) -> None:
    """Adds `config.evals.<name>` with its protocol's fields; a misspelt one raises AttributeError."""
    entry = ConfigDict(eval_defaults(protocol)).lock()
    entry.update(fields)
    with config.evals.unlocked():
        config.evals[name] = entry


def eval_defaults(protocol: str) -> dict[str, str | int]:
    """Every field of an evaluation of this protocol, with its default."""
    own = EVALUATORS[protocol].FIELDS if protocol in EVALUATORS else {}
    return {key: field.default for key, field in {**COMMON, **own}.items()} | {"protocol": protocol}


def load(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The validated config of a Python file (`FILE` or `FILE:argument`) and `--config.a.b=V` overrides.

    Raises UserError, in one line, for a missing file, an unknown field, a wrong type or a value out of range.
    """
    config = _from_file(path)
    _change_protocols(config, overrides)
    for override in overrides:
        _check_field(config, override)
    if overrides:
        config = _overridden(config, overrides)
    problems = list(validate(config))
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    return config


def _from_file(path: str) -> ConfigDict:
    file, *argument = path.split(":", 1)
    if not os.path.isfile(file):
        hint = f"; did you mean {file}.py?" if os.path.isfile(file + ".py") else ""
        raise UserError(f"--config: no such file: {file}{hint}")
    loader = importlib.machinery.SourceFileLoader("config_file", file)
    module = types.ModuleType(loader.name)
    module.__file__ = file
    try:
        loader.exec_module(module)
        get_config = vars(module).get("get_config")
        if get_config is None:
            raise UserError(f"{file}: defines no get_config()")
        config = get_config(*argument)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        # a config file is a program: whatever it raises is the user's to see, in one line
        raise UserError(f"{_place(error, file)}: {type(error).__name__}: {_brief(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() must return a ConfigDict, not {type(config).__name__}")
    return config


def _place(error: BaseException, file: str) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}, line {lines[-1]}" if lines else file


def _brief(error: BaseException) -> str:
    """What an error says, without the listing of the whole config that ml_collections puts in the middle."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return re.sub(r'Other fields present: ".*?"\n', "", text, flags=re.DOTALL)


def _overridden(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    values, arguments = flags.FlagValues(), ["main", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
    except Exception as error:  # absl's and ml_collections' errors share no base; each names its flag
        raise UserError(_brief(error)) from error
    return values.config


def _change_protocols(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Gives an evaluation whose protocol a flag changes that protocol's fields, so that other flags can set them."""
    for override in overrides:
        found = re.fullmatch(r"--config\.evals\.([^.=]+)\.protocol=(.+)", override)
        if found and found[1] in config.evals and found[2] in EVALUATORS:
            kept = {key: v for key, v in config.evals[found[1]].items() if key in eval_defaults(found[2])}
            add_eval(config, found[1], **{**kept, "protocol": found[2]})


def _check_field(config: ConfigDict, override: str) -> None:
    name = override.lstrip("-").split("=", 1)[0].removeprefix("no")
    parts = name.split(".")
    if parts[0] != "config" or len(parts) < 2:
        raise UserError(f"{override}: overrides look like --config.optim.learning_rate=1e-3")
    node = config
    for depth, part in enumerate(parts[1:], start=1):
        known = list(node.keys()) if isinstance(node, ConfigDict) else []
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
            raise UserError(f"{'.'.join(parts[: depth + 1])}: no such field; {hint}")
        node = node[part]


def get(config: ConfigDict, field: str) -> object:
    node: object = config
    for part in field.split("."):
        node = node[part]  # type: ignore[index]  # a dotted field names nested ConfigDicts
    return node


def validate(config: ConfigDict) -> Iterator[str]:
    """Yields one sentence for every bad value, so that a person mends all of them at once."""
    broken = list(_structure(config, default(), ""))
    if broken:  # values of the wrong kind cannot be compared with anything
        yield from broken
        yield "start from hybridclip_jax.config.default()"
        return
    for field, allowed in CHOICES.items():
        value = get(config, field)
        if value not in allowed:
            yield f"{field} = {value!r}: must be one of {', '.join(allowed)}"
    for field, least in AT_LEAST.items():
        value = get(config, field)
        if not math.isfinite(value) or value < least:  # type: ignore[arg-type, operator]  # AT_LEAST names numbers
            yield f"{field} = {value}: must be at least {least:g}"
    if config.seed >= 2**63:
        yield f"seed = {config.seed}: must be below 2**63"
    if config.optim.momentum >= 1:
        yield f"optim.momentum = {config.optim.momentum}: must be below 1"
    if not 0 < config.model.temperature < math.inf:
        yield f"model.temperature = {config.model.temperature}: must be above 0"
    wrong = list(_tuples(config))
    yield from wrong
    if not wrong:
        yield from _temperature(config)
    yield from _image_size(config)
    yield from _evals(config)


def _temperature(config: ConfigDict) -> Iterator[str]:
    low, high = config.model.logit_scale_range
    if config.model.temperature > 0 and not low <= -math.log(config.model.temperature) <= high:
        yield (
            f"model.temperature = {config.model.temperature}: the first update would clamp it to "
            f"model.logit_scale_range, {math.exp(-high):g} to {math.exp(-low):g}"
        )


def _structure(config: ConfigDict, reference: ConfigDict, prefix: str) -> Iterator[str]:
    for key in config:
        if key not in reference:
            yield f"{prefix}{key}: no such field"
    for key, value in reference.items():
        if key not in config:
            yield f"{prefix}{key} is missing"
        elif not _same_kind(config[key], value):
            yield f"{prefix}{key} = {config[key]!r}: must be {_KINDS[type(value)]}"
        elif isinstance(value, ConfigDict) and key != "evals":
            yield from _structure(config[key], value, f"{prefix}{key}.")


_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a tuple",
    ConfigDict: "a group of fields",
}


def _same_kind(value: object, reference: object) -> bool:
    if type(reference) is float:
        return type(value) in (int, float)
    return type(value) is type(reference)


def _image_size(config: ConfigDict) -> Iterator[str]:
    _, sizes = IMAGE_ENCODERS.get(config.model.image.arch, (None, None))
    wrong = sizes.wrong_size(config.data.image_size) if sizes else ""
    if wrong:
        yield f"data.image_size = {config.data.image_size}: {wrong}"
    elif config.data.image_size > LARGEST_IMAGE:
        yield f"data.image_size = {config.data.image_size}: must be at most {LARGEST_IMAGE}"


def _tuples(config: ConfigDict) -> Iterator[str]:
    for field, length in (("data.mean", 3), ("data.std", 3), ("model.logit_scale_range", 2)):
        value = get(config, field)
        if not isinstance(value, tuple) or len(value) != length or not all(_number(v) for v in value):
            yield f"{field} = {value!r}: must be {length} numbers"
        elif field == "data.std" and min(value) <= 0:
            yield f"data.std = {value!r}: must be above 0"
        elif field == "model.logit_scale_range" and value[0] > value[1]:
            yield f"{field} = {value!r}: the lower end comes first"
    for group in config.optim.groups:
        if not (isinstance(group, tuple) and len(group) == 3 and isinstance(group[0], str)):
            yield f"optim.groups: {group!r} must be (regex, learning-rate factor, weight-decay factor)"
        elif not all(_number(v) and v >= 0 for v in group[1:]):
            yield f"optim.groups: the factors of {group[0]!r} must be numbers of at least 0"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _evals(config: ConfigDict) -> Iterator[str]:
    for name, entry in config.evals.items():
        if not isinstance(entry, ConfigDict):
            yield f"evals.{name} = {entry!r}: must be a group of fields; use hybridclip_jax.config.add_eval"
            continue
        if entry.get("protocol") not in EVALUATORS:
            yield f"evals.{name}.protocol = {entry.get('protocol')!r}: must be one of {', '.join(EVALUATORS)}"
            continue
        fields, has = eval_defaults(entry.protocol).keys(), set(entry.keys())
        for key in [*(key for key in fields if key not in has), *sorted(has - fields)]:
            fault = "is missing" if key in fields else f"is no field of protocol {entry.protocol}"
            yield f"evals.{name}.{key} {fault}: use hybridclip_jax.config.add_eval(config, name, protocol=...)"
    metric = config.select.metric
    if metric and not all(metric.partition("/")):
        yield f"select.metric = {metric!r}: must be <evaluation>/<value>, e.g. {metric.strip('/')}/auroc/mean"
    elif metric and metric.split("/")[0] not in config.evals:
        known = ", ".join(config.evals) or "none"
        yield f"select.metric = {metric!r}: names no evaluation (known: {known})"
    elif metric and config.select.mode in CHOICES["select.mode"]:
        best, mode = ("lowest", "min") if metric.partition("/")[2].startswith(LOWER_IS_BETTER) else ("highest", "max")
        if config.select.mode != mode:
            yield (
                f"select.mode = {config.select.mode}: of {metric} the {best} is best; use --config.select.mode={mode}"
            )
    if config.evals and not metric:
        yield "select.metric is empty: name one, e.g. " + f"{next(iter(config.evals))}/auroc/mean"


def to_json(config: ConfigDict) -> str:
    """The resolved config as stable text: what `config.json` and the golden files hold."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
