"""Block by block through the file: mild and peaked attention, float32 and float64, a tiny tower and B/16 itself."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import parity
import published as owners
import pytest
import torch
import torch_resnet
import transformers
from flax import nnx
from test_clip_vision import (
    RESNET,
    VIT,
    rn,
    rn_arrays,
    rn_differences,
    told,
    torch_rn,
    torch_vit,
    vit,
    vit_differences,
    vit_params,
)
from test_converters import QUICK, convert, images, run, small_sizes, write
from test_models import (
    CLIP_TEXT_SIZES,
    DINO,
    ENDS,
    TEXT,
    ClipText,
    DinoV3Config,
    dino,
    dino_params,
    dino_reference,
    ids_of,
    text,
    text_params,
    text_reference,
    torch_dino,
    torch_text,
)

from hybridclip_jax import modelfolder, models, state
from hybridclip_jax.models.clip_resnet import CLIP_RESNET_SIZES, ClipResNetConfig, ModifiedResNet
from hybridclip_jax.models.clip_vit import CLIP_VIT_SIZES, ClipVit
from hybridclip_jax.models.dinov3 import DinoV3

__all__ = ["small_sizes"]  # the fixture that puts the small towers into the tables


def read(folder: Path, tower: str) -> dict[str, np.ndarray]:
    """A converted tower's parameters under the names they have within it."""
    params, _ = modelfolder.load(folder)
    return {name.removeprefix(f"{tower}/"): v for name, v in params.items() if name.startswith(f"{tower}/")}


@pytest.mark.parametrize("init", parity.TOLERANCE)
@pytest.mark.parametrize("layout", ["hub", "meta", "timm"])
def test_a_dinov3_file_gives_every_block_of_torch(layout: str, init: str, tmp_path: Path) -> None:
    convert(write(layout, torch_dino(DINO, init), tmp_path / "source"), tmp_path / "out")
    params = read(tmp_path / "out", "image")
    by_hand = dino_params(torch_dino(DINO, init))
    assert params.keys() == by_hand.keys()
    assert all(np.array_equal(params[name], by_hand[name]) for name in by_hand), "float64 parity is test_models'"
    with jax.default_matmul_precision("highest"):
        found = parity.worst(dino(DINO)(params, images()), dino_reference(DINO, init, images()))
    print(f"{layout} {init}: {', '.join(f'{d:.1e}' for d in found)}")
    assert max(found) < parity.TOLERANCE[init]


@pytest.mark.parametrize("init", parity.TOLERANCE)
def test_a_clip_text_file_gives_every_block_of_torch(
    init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLIP_TEXT_SIZES, "test_wide", TEXT)
    monkeypatch.setitem(models.TEXT_ENCODERS, "test_wide", (ClipText, TEXT))
    torch_text(TEXT, init).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out")
    params, (by_hand, projection) = read(tmp_path / "out", "text"), text_params(torch_text(TEXT, init))
    assert all(np.array_equal(params[name], by_hand[name]) for name in by_hand)
    assert np.array_equal(read(tmp_path / "out", "text_projection")["kernel"], projection)
    for case in ENDS.values():
        with jax.default_matmul_precision("highest"):
            *found, pooled = text(TEXT)(params, ids_of(*case))
        far = parity.worst([*found, pooled @ projection], text_reference(TEXT, init, ids_of(*case)))
        assert max(far) < parity.TOLERANCE[init]


def clip_of(vision: Any) -> transformers.CLIPModel:
    """A CLIPModel around an image tower with its projection."""
    text = owners.text_config().to_dict()
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision.config.to_dict(), projection_dim=owners.EMBED
    )
    model = owners.randomise(transformers.CLIPModel(config))
    model.vision_model.load_state_dict(vision.vision_model.state_dict())
    model.visual_projection.load_state_dict(vision.visual_projection.state_dict())
    return model


@pytest.mark.parametrize("init", parity.TOLERANCE)
def test_clip_vit_files_give_every_block_of_torch(init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLIP_VIT_SIZES, "test_seen", VIT)
    monkeypatch.setitem(models.IMAGE_ENCODERS, "test_seen", (ClipVit, VIT))
    vision = torch_vit(VIT, init, owners.EMBED)
    model, (by_hand, projection) = clip_of(vision), vit_params(vision)
    model.save_pretrained(tmp_path / "hub")
    torch.save(owners.openai(model), tmp_path / "openai.pt")
    for source, flags in ((tmp_path / "hub", ()), (tmp_path / "openai.pt", QUICK)):
        out = tmp_path / f"from {source.name}"
        assert run("to-jax", source, "--out", out, *flags) == 0
        params = read(out, "image")
        assert params.keys() == by_hand.keys()
        assert all(np.array_equal(params[name], by_hand[name]) for name in by_hand), source.name
        assert np.array_equal(read(out, "image_projection")["kernel"], projection)
    with jax.default_matmul_precision("highest"):
        found = vit_differences(vit(VIT), vision, images(64, 64), (params, projection))
    told(f"clip vit, {init}", found)
    assert max(found) < parity.TOLERANCE[init]


def resnet_file(visual: torch_resnet.ModifiedResNet, text: dict[str, torch.Tensor], path: Path) -> Path:
    """OpenAI's state dict of a ResNet: convolutions and linear layers in float16. `visual` is rounded alike."""
    state = visual.state_dict()
    halved = {name: v.half() if v.ndim == 4 or "_proj." in name else v for name, v in state.items()}
    visual.load_state_dict({name: v.to(state[name].dtype) for name, v in halved.items()})
    torch.save({**text, **{f"visual.{name}": v for name, v in halved.items()}}, path)
    return path


def text_of(model: transformers.CLIPModel) -> dict[str, torch.Tensor]:
    return {name: value for name, value in owners.openai(model).items() if not name.startswith("visual.")}


def assert_resnet_file_equals_torch(sizes: ClipResNetConfig, init: str, source: Path, visual: Any, out: Path) -> None:
    assert run("to-jax", source, "--out", out, *QUICK) == 0
    held, head = rn_arrays(visual)
    params, projection = read(out, "image"), read(out, "image_projection")
    assert params.keys() == held.keys()
    assert all(np.array_equal(params[name], held[name]) for name in held)
    assert all(np.array_equal(projection[part], head[f"image_projection/{part}"]) for part in ("kernel", "bias"))
    with jax.default_matmul_precision("highest"):
        found = rn_differences(rn(sizes), visual, images(sizes.image_size, sizes.image_size), (params, head))
    told(f"clip resnet {sizes.width}, {init}", found)
    assert max(found) < parity.TOLERANCE[init]


@pytest.mark.parametrize("init", parity.TOLERANCE)
def test_a_clip_resnet_file_gives_every_block_of_torch(
    init: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLIP_RESNET_SIZES, "test_seen", RESNET)
    monkeypatch.setitem(models.IMAGE_ENCODERS, "test_seen", (ModifiedResNet, RESNET))
    visual = copy.deepcopy(torch_rn(RESNET, init, owners.EMBED))
    source = resnet_file(visual, text_of(owners.clip()), tmp_path / "rn.pt")
    assert_resnet_file_equals_torch(RESNET, init, source, visual, tmp_path / "out")
    assert "num_batches_tracked and 24 like it (batches seen in training" in capsys.readouterr().out


@pytest.mark.slow
def test_a_full_size_rn50x4_file_gives_every_block_of_torch(tmp_path: Path) -> None:
    """288 px, 178 M parameters, the text tower of its own width."""
    sizes = CLIP_RESNET_SIZES["clip_rn50x4"]
    shape = {"hidden_size": 640, "num_hidden_layers": 12, "num_attention_heads": 10, "intermediate_size": 2560}
    config = owners.text_config(77, **shape, vocab_size=49408, projection_dim=640)
    vision = owners.clip().config.vision_config.to_dict()
    whole = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=config.to_dict(), vision_config=vision, projection_dim=640)
    )
    visual = torch_rn(sizes, "mild", 640)
    source = resnet_file(visual, text_of(whole), tmp_path / "RN50x4 trained on.pt")
    assert_resnet_file_equals_torch(sizes, "mild", source, visual, tmp_path / "out")
    card = modelfolder.load(tmp_path / "out")[1]
    assert card.architecture == {"image": "clip_rn50x4", "text": "clip_text_rn50x4", "context": 77, "embed_dim": 640}
    assert card.preprocessing["image_size"] == 288


# What a person waits for, and what a small machine has.
SECONDS, BYTES = 20, 2 << 30


# From a small process, as what a process is started from counts towards the most memory it had.
MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def converted_by_command(source: Path, out: Path) -> tuple[float, int]:
    """(seconds, the most memory in bytes) of the whole command."""
    words = [sys.executable, "-m", "converters", "to-jax", str(source), "--out", str(out), "--input-norm", "clip"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, check=True)
    seconds, memory = done.stdout.split()
    return float(seconds), int(memory)


@pytest.mark.slow
def test_a_full_size_b16_file_gives_every_block_of_torch_and_converts_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer on what theirs gave it, as rounding grows through twelve of peaked attention; and the whole."""
    sizes = DinoV3Config()
    monkeypatch.setitem(models.IMAGE_ENCODERS, "dinov3_vitb16", (DinoV3, sizes))
    static, _, _ = state.abstract(lambda: DinoV3(sizes, models.Numerics(), nnx.Rngs(0)))

    @jax.jit
    def outputs(params: Any, x: Any, given: Any) -> list[Any]:
        tower = state.bind(static, params)
        rotation = tower.rotation(x)
        blocks = [block(hidden, rotation) for block, hidden in zip(tower.blocks, given[:-1], strict=True)]
        return [tower.embed(x), *blocks, tower.norm(given[-1]), tower(x).pooled]

    x = images(224, 224)
    for init, tolerance in parity.TOLERANCE.items():
        model: Any = torch_dino(sizes, init)
        source, out = write("hub", model, tmp_path / init), tmp_path / f"{init} out"
        assert run("to-jax", source, "--out", out) == 0
        assert modelfolder.load(out)[1].architecture == {"image": "dinov3_vitb16"}
        wanted = dino_reference(sizes, init, x)
        with jax.default_matmul_precision("highest"):
            differences = parity.worst(outputs(read(out, "image"), x, wanted[:-2]), wanted)
        told(f"B/16, {init}", differences)
        assert max(differences) < tolerance
    seconds, memory = converted_by_command(source, tmp_path / "by command")
    print(f"B/16: {seconds:.1f} s, {memory / 2**20:.0f} MB")
    assert seconds < SECONDS
    assert memory < BYTES
