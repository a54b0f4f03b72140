"""Files as their owners write them, through the command line, against the torch models they were written from."""

# B batch, H W image sides, T tokens

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import parity
import published as owners
import pytest
import torch
import transformers
from flax import nnx

import hybridclip_jax as hc
from converters import __main__ as command
from converters import published, statistics
from converters.layouts import LAYOUTS as LAYOUT_TABLE
from converters.statistics import STATISTICS
from hybridclip_jax import modelfolder, models
from hybridclip_jax.errors import UserError
from hybridclip_jax.inference import LoadedModel
from hybridclip_jax.models.clip_resnet import CLIP_RESNET_SIZES, ClipResNetConfig, ModifiedResNet
from hybridclip_jax.models.clip_text import CLIP_TEXT_SIZES, ClipText, ClipTextConfig
from hybridclip_jax.models.clip_vit import CLIP_VIT_SIZES, ClipVit, ClipVitConfig
from hybridclip_jax.models.dinov3 import DINOV3_SIZES, DinoV3, DinoV3Config

TOLERANCE = 2e-5
SMALL = DinoV3Config(width=64, depth=2, heads=2, mlp_hidden=128)
DINOS = {
    "test": SMALL,
    "test_gated": DinoV3Config(width=64, depth=2, heads=2, mlp_hidden=128, gated=True),
    "test_no_bias": DinoV3Config(width=64, depth=2, heads=2, mlp_hidden=192, gated=True, qv_bias=False),
}
RESNET = ClipResNetConfig(width=8, depths=(1, 2, 1, 1), heads=4, image_size=64)
VIT = ClipVitConfig(width=64, depth=2, heads=1, mlp_hidden=256, patch=16, image_size=48)
TEXT = ClipTextConfig(width=64, depth=2, heads=2, mlp_hidden=128, vocab_size=owners.VOCABULARY)


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small sizes join the tables; what stands for a tower that a folder lacks is small too, to be traced soon."""
    monkeypatch.setitem(models.IMAGE_ENCODERS, "dinov3_vitb16", (DinoV3, SMALL))
    monkeypatch.setitem(models.TEXT_ENCODERS, "clip_text_b", (ClipText, TEXT))
    for name, sizes in DINOS.items():
        monkeypatch.setitem(DINOV3_SIZES, name, sizes)
        monkeypatch.setitem(models.IMAGE_ENCODERS, name, (DinoV3, sizes))
    monkeypatch.setitem(CLIP_VIT_SIZES, "test_vit", VIT)
    monkeypatch.setitem(models.IMAGE_ENCODERS, "test_vit", (ClipVit, VIT))
    monkeypatch.setitem(CLIP_RESNET_SIZES, "test_rn", RESNET)
    monkeypatch.setitem(models.IMAGE_ENCODERS, "test_rn", (ModifiedResNet, RESNET))
    monkeypatch.setitem(CLIP_TEXT_SIZES, "test_text", TEXT)
    monkeypatch.setitem(models.TEXT_ENCODERS, "test_text", (ClipText, TEXT))


def run(*words: object) -> int:
    return command.main([str(word) for word in words])


def convert(src: object, out: Path, *flags: str) -> LoadedModel:
    assert run("to-jax", src, "--out", out, *flags) == 0
    return hc.load(out, batch_size=2)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def images(height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)


def ids(context: int = 24) -> np.ndarray:
    """End tokens last, first and in between; one row holds two."""
    found = np.random.default_rng(1).integers(1, owners.VOCABULARY - 2, (4, context)).astype(np.int32)
    for row, places in enumerate([(context - 1,), (0,), (7,), (5, 9)]):
        found[row, list(places)] = owners.VOCABULARY - 1
    return found


def to_torch(image_BHWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image_BHWC).permute(0, 3, 1, 2)


def worst(a: Any, b: Any) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))


def dino_reference(model: transformers.DINOv3ViTModel, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(to_torch(x)).pooler_output.numpy()


# --- every layout, through its own file


def write(layout: str, model: Any, folder: Path) -> Path:
    """The model's file or folder in this layout."""
    folder.mkdir()
    if layout == "hub":
        model.save_pretrained(folder)
        return folder
    if layout == "hub, sharded":
        model.save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
        return folder
    if layout == "memory":
        torch.save(model.state_dict(), folder / "model.pth")
        return folder / "model.pth"
    if layout == "meta":
        torch.save(owners.dinov3_meta(model), folder / "dinov3.pth")
        return folder / "dinov3.pth"
    return owners.safetensors(owners.dinov3_timm(model), folder / "model.safetensors")


LAYOUTS = ("hub", "hub, sharded", "memory", "meta", "timm")


@pytest.mark.parametrize("variant", ["plain", "gated", "no_bias"])
def test_dinov3_of_every_layout_equals_torch(variant: str, tmp_path: Path) -> None:
    """Of one layout by what it computes, of the others by being the same parameters to the last bit."""
    hidden = 192 if variant == "no_bias" else 128
    model = owners.dinov3(gated=variant != "plain", biased=variant != "no_bias", intermediate_size=hidden)
    found = convert(write("hub", model, tmp_path / "source"), tmp_path / "out")
    for sides in ((32, 48), (224, 224)):
        x = images(*sides)
        difference = worst(found.image_features(x), dino_reference(model, x))
        print(f"{variant} {sides}: {difference:.1e}")
        assert difference < TOLERANCE
    for layout in LAYOUTS[1:]:
        assert run("to-jax", write(layout, model, tmp_path / f"{layout} source"), "--out", tmp_path / layout) == 0
        assert_same_model(tmp_path / layout, tmp_path / "out")


def assert_same_model(found: Path, wanted: Path) -> None:
    """To the last bit, and with the same cards but for where it came from."""
    (params, card), (others, other) = modelfolder.load(found), modelfolder.load(wanted)
    assert params.keys() == others.keys()
    assert all(np.array_equal(params[name], others[name]) for name in params), found.name
    assert dataclasses.replace(card, source={}) == dataclasses.replace(other, source={})


def test_a_timm_file_without_biases_has_zeros_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = owners.dinov3()
    with torch.no_grad():
        for layer in model.model.layer:
            layer.attention.q_proj.bias.zero_()
            layer.attention.v_proj.bias.zero_()
    state = {
        name: value for name, value in owners.dinov3_timm(model).items() if not name.endswith(("q_bias", "v_bias"))
    }
    found = convert(owners.safetensors(state, tmp_path / "timm.safetensors"), tmp_path / "out")
    assert worst(found.image_features(images()), dino_reference(model, images())) < TOLERANCE
    assert "filled with zeros: image/blocks/0/attn/q/bias and 3 like it" in capsys.readouterr().out


MISTAKES = {
    "keys before queries": ("blocks.0.attn.qkv.weight", lambda w: torch.cat([w[64:128], w[:64], w[128:]])),
    "patches turned": ("patch_embed.proj.weight", lambda w: w.transpose(2, 3)),
    "a norm's channels turned round": ("blocks.0.norm1.weight", lambda w: w.flip(0)),
    "an output layer transposed": ("blocks.1.attn.proj.weight", lambda w: w.T),
    "LayerScale left out": ("blocks.0.ls1.gamma", torch.ones_like),
}


@pytest.fixture(scope="module")
def seen() -> Callable[[Path], np.ndarray]:
    """What a folder of a small DINOv3 gives for `images()`; compiled once for all of them."""
    compute = parity.towers(lambda: DinoV3(SMALL, models.Numerics(), nnx.Rngs(0)))

    def pooled(folder: Path) -> np.ndarray:
        params = {name.removeprefix("image/"): value for name, value in modelfolder.load(folder)[0].items()}
        return np.asarray(compute(params, images())[-1])

    return pooled


@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_a_mistake_in_the_mapping_would_be_seen(
    mistake: str | None, tmp_path: Path, seen: Callable[[Path], np.ndarray]
) -> None:
    model = owners.dinov3()
    state = owners.dinov3_meta(model)
    if mistake is not None:
        name, wrong = MISTAKES[mistake]
        state[name] = wrong(state[name]).contiguous()
    torch.save(state, tmp_path / "dinov3.pth")
    assert run("to-jax", tmp_path / "dinov3.pth", "--out", tmp_path / "out") == 0
    difference = worst(seen(tmp_path / "out"), dino_reference(model, images()))
    assert difference < TOLERANCE if mistake is None else difference > 10 * TOLERANCE


# torch's own advice to those who trace: OpenAI's files are such archives.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
QUICK = ("--activation", "quick_gelu")


def clip_files(folder: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Every way in which a CLIP comes, by name: its file and the flags it needs. Weights that float16 holds exactly."""
    folder.mkdir()
    model = owners.clip()
    state = owners.halved(owners.openai(model))
    rounded = {name: value.float() for name, value in state.items()}
    torch.save(state, folder / "chexzero.pt")
    torch.save({f"module.{name}": value for name, value in rounded.items()}, folder / "parallel.pt")
    optimizer = torch.optim.Adam([torch.nn.Parameter(value.clone()) for value in rounded.values()])
    nested = {"best_epoch": 7, "state_dict": state, "optimizer_state_dict": optimizer.state_dict(), "best_loss": 0.5}
    torch.save(nested, folder / "pubmedclip.pth")
    owners.torchscript(state, folder / "openai.pt")
    return {
        "chexzero": (folder / "chexzero.pt", QUICK),
        "module.": (folder / "parallel.pt", QUICK),
        "nested": (folder / "pubmedclip.pth", QUICK),
        "torchscript": (folder / "openai.pt", ()),
    }


def rounded_clip() -> transformers.CLIPModel:
    model = owners.clip()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not any(part in name for part in ("norm", "layrnorm", "token_embedding", "position", "class", "logit")):
                value.copy_(value.half().float())
    return model


def assert_is_clip(found: LoadedModel, model: transformers.CLIPModel) -> None:
    params, card = modelfolder.load(found.folder)
    x = images(48, 48)
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(to_torch(x)).pooler_output).numpy()
        tokens = model.text_model(torch.from_numpy(ids()).long()).pooler_output
        text = model.text_projection(tokens).numpy()
    assert worst(found.image_features(x) @ params["image_projection/kernel"], image) < TOLERANCE
    assert worst(found.text_features(ids()) @ params["text_projection/kernel"], text) < TOLERANCE
    assert found.logit_scale == pytest.approx(3.0)
    assert card.preprocessing["mean"] == list(STATISTICS["clip"].mean)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel's folder, converted."""
    patch = pytest.MonkeyPatch()
    small_sizes.__wrapped__(patch)  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("clip")
    rounded_clip().save_pretrained(folder / "hub")
    assert run("to-jax", folder / "hub", "--out", folder / "out") == 0
    patch.undo()
    return folder / "out"


def test_clip_of_every_file_equals_torch(clip_folder: Path, tmp_path: Path) -> None:
    """The hub's by what it computes, the others by being the same parameters to the last bit."""
    assert_is_clip(hc.load(clip_folder, batch_size=2), rounded_clip())
    for name, (path, flags) in clip_files(tmp_path / "files").items():
        assert run("to-jax", path, "--out", tmp_path / name, *flags) == 0
        assert_same_model(tmp_path / name, clip_folder)


def test_older_hub_files_with_position_ids_and_the_old_end_token(clip_folder: Path, tmp_path: Path) -> None:
    model = rounded_clip()
    model.save_pretrained(tmp_path / "hub")
    ids_77, ids_9 = torch.arange(24)[None], torch.arange(10)[None]
    extra = {"text_model.embeddings.position_ids": ids_77, "vision_model.embeddings.position_ids": ids_9}
    owners.safetensors({**model.state_dict(), **extra}, tmp_path / "hub" / "model.safetensors")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    assert run("to-jax", tmp_path / "hub", "--out", tmp_path / "out") == 0
    assert_same_model(tmp_path / "out", clip_folder)


@pytest.mark.parametrize("context", [24, 512])
def test_a_text_tower_alone(context: int, tmp_path: Path) -> None:
    model = owners.randomise(transformers.CLIPTextModelWithProjection(owners.text_config(context)))
    model.save_pretrained(tmp_path / "hub")
    found = convert(tmp_path / "hub", tmp_path / "out")
    params, card = modelfolder.load(tmp_path / "out")
    assert card.architecture["context"] == context
    with torch.no_grad():
        text = model(torch.from_numpy(ids()).long()).text_embeds.numpy()
    assert worst(found.text_features(ids()) @ params["text_projection/kernel"], text) < TOLERANCE


@pytest.mark.parametrize(
    ("stored", "kernel"),
    [("text_projection", "text_projection/kernel"), ("visual.proj", "image_projection/kernel")],
)
def test_a_transposed_projection_would_be_seen(stored: str, kernel: str, clip_folder: Path, tmp_path: Path) -> None:
    """Square ones have the same shape either way: only what is computed with them tells."""
    state = owners.openai(rounded_clip())
    torch.save({**state, stored: state[stored].T.contiguous()}, tmp_path / "wrong.pt")
    assert run("to-jax", tmp_path / "wrong.pt", "--out", tmp_path / "out", *QUICK) == 0
    with pytest.raises(AssertionError):
        assert_same_model(tmp_path / "out", clip_folder)
    (wrong, _), (right, _) = modelfolder.load(tmp_path / "out"), modelfolder.load(clip_folder)
    assert np.array_equal(wrong[kernel], right[kernel].T)
    features = np.random.default_rng(0).normal(size=(2, 64))
    assert worst(features @ wrong[kernel], features @ right[kernel]) > 100 * TOLERANCE


# --- the fold


def normalised(pixels: np.ndarray, name: str) -> np.ndarray:
    known = STATISTICS[name]
    return ((pixels - np.array(known.mean)) / np.array(known.std)).astype(np.float32)


def test_a_folded_tower_sees_what_it_was_trained_to_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owners.dinov3().save_pretrained(tmp_path / "hub")
    plain, folded = convert(tmp_path / "hub", tmp_path / "plain"), None
    folded = convert(tmp_path / "hub", tmp_path / "folded", "--input-norm", "clip")
    pixels = np.random.default_rng(0).uniform(size=(2, 64, 48, 3))
    wanted = plain.image_features(normalised(pixels, "imagenet"))
    assert worst(folded.image_features(normalised(pixels, "clip")), wanted) < 5e-6
    assert worst(plain.image_features(normalised(pixels, "clip")), wanted) > 1e-3, "else nothing was to be folded"
    assert folded.card.preprocessing["mean"] == list(STATISTICS["clip"].mean)
    assert folded.card.source["statistics_folded_from"]["mean"] == list(STATISTICS["imagenet"].mean)
    recipe = {"mean": STATISTICS["clip"].mean, "std": STATISTICS["clip"].std}
    with pytest.raises(
        UserError, match="convert it with `python -m converters to-jax SRC --out DIR --input-norm clip`"
    ):
        modelfolder.tower(tmp_path / "plain", "image", {}, arch="test", preprocessing=recipe, tokenizer={})
    assert run("to-hf", tmp_path / "folded", "--out", tmp_path / "back") == 0
    error = refused(capsys, "to-jax", tmp_path / "back", "--out", tmp_path / "twice", "--input-norm", "clip")
    assert "already takes images of that mean and std (trained with them, or folded before)" in error
    assert not (tmp_path / "twice").exists()


def test_clip_towers_have_nothing_to_fold_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounded_clip().save_pretrained(tmp_path / "hub")
    error = refused(capsys, "to-jax", tmp_path / "hub", "--out", tmp_path / "out", "--input-norm", "imagenet")
    assert "needs a patch embedding with a bias" in error


def test_whose_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = owners.dinov3_meta(owners.dinov3())
    torch.save(state, tmp_path / "dinov3_vitl16_pretrain_sat493m.pth")
    assert run("to-jax", tmp_path / "dinov3_vitl16_pretrain_sat493m.pth", "--out", tmp_path / "sat") == 0
    assert modelfolder.load(tmp_path / "sat")[1].preprocessing["mean"] == [0.430, 0.411, 0.296]
    assert "statistics: its name (sat493m)" in capsys.readouterr().out
    owners.dinov3().save_pretrained(tmp_path / "hub")
    stated = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(stated))
    assert run("to-jax", tmp_path / "hub", "--out", tmp_path / "stated") == 0
    assert modelfolder.load(tmp_path / "stated")[1].preprocessing["std"] == [0.25, 0.25, 0.25]
    error = refused(capsys, "to-jax", tmp_path / "hub", "--out", tmp_path / "x", "--statistics", "imagenet")
    assert "preprocessor_config.json says mean [0.5, 0.5, 0.5], --statistics imagenet says [0.485" in error


def test_the_fold_is_exact_in_double_precision() -> None:
    rng = np.random.default_rng(0)
    kernel, bias, pixels = rng.normal(size=(4, 4, 3, 8)), rng.normal(size=8), rng.uniform(size=(4, 4, 3))
    own, given = STATISTICS["imagenet"], STATISTICS["clip"]
    folded, shifted = statistics.fold(kernel, bias, own, given)

    def out(kernel: np.ndarray, bias: np.ndarray, seen: statistics.Statistics) -> np.ndarray:
        x = (pixels - np.array(seen.mean)) / np.array(seen.std)
        return np.einsum("hwc,hwcd->d", x, kernel) + bias

    np.testing.assert_allclose(out(folded, shifted, given), out(kernel, bias, own), rtol=0, atol=1e-12)


# --- what is refused


def test_what_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = owners.dinov3_meta(owners.dinov3())

    def refusal(name: str, changed: dict[str, torch.Tensor], *flags: str) -> str:
        torch.save(changed, tmp_path / f"{name}.pth")
        capsys.readouterr()
        assert run("to-jax", tmp_path / f"{name}.pth", "--out", tmp_path / "out", *flags) == 2
        assert not list(tmp_path.glob("out*"))
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        return shown.out + shown.err

    said = refusal("extra", {**state, "blocks.0.attn.k_bias": torch.zeros(64)})
    assert "blocks.0.attn.k_bias  nothing   (64,)" in said
    assert "1 array is not what this layout needs" in said
    said = refusal("missing", {name: value for name, value in state.items() if name != "blocks.1.norm2.bias"})
    assert "blocks.1.norm2.bias  (64,)     missing" in said
    swapped = {**state, "blocks.0.mlp.fc1.weight": state["blocks.0.mlp.fc1.weight"].T.contiguous()}
    assert "is none of" in refusal("swapped", swapped)
    swapped = {**state, "blocks.1.mlp.fc1.weight": state["blocks.1.mlp.fc1.weight"].T.contiguous()}
    assert "blocks.1.mlp.fc1.weight  (128, 64)  (64, 128)" in refusal("swapped in block 1", swapped)
    unset = {**state, "norm.bias": torch.full((64,), torch.nan)}
    assert "norm.bias holds values that are not finite" in refusal("nan", unset)
    assert "in no known layout" in refusal("other", {"weight": torch.zeros(3)})
    assert "taken as clip-openai, but it has no token_embedding.weight" in refusal(
        "forced", state, "--layout", "clip-openai"
    )


def test_the_activation_is_asked_for_and_never_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chexzero.pt"
    torch.save(owners.halved(owners.openai(owners.clip())), path)
    assert "nothing in it says which activation" in refused(capsys, "to-jax", path, "--out", tmp_path / "a")
    error = refused(capsys, "to-jax", path, "--out", tmp_path / "a", "--activation", "gelu")
    assert "trained with gelu; these towers compute quick_gelu alone" in error
    model = rounded_clip()
    model.config.text_config.hidden_act = model.config.vision_config.hidden_act = "gelu"
    model.save_pretrained(tmp_path / "laion")
    assert "hidden_act = 'gelu'" in refused(capsys, "to-jax", tmp_path / "laion", "--out", tmp_path / "b")


def test_sources_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    out = ("--out", tmp_path / "out")
    assert "no such file or folder" in refused(capsys, "to-jax", tmp_path / "none.pt", *out)
    assert "no model.safetensors in it, nor pytorch_model.bin" in refused(capsys, "to-jax", tmp_path, *out)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    assert f"{tmp_path}/empty.pt: " in refused(capsys, "to-jax", tmp_path / "empty.pt", *out)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert "damaged or not safetensors" in refused(capsys, "to-jax", tmp_path / "cut.safetensors", *out)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    error = refused(capsys, "to-jax", "facebook/dinov3-vitb16-pretrain-lvd1689m", *out)
    assert "no such folder here, and not fetched from the hub" in error
    owners.dinov3().save_pretrained(tmp_path / "hub")
    assert run("to-jax", tmp_path / "hub", "--out", tmp_path / "out") == 0
    assert "exists already" in refused(capsys, "to-jax", tmp_path / "hub", *out)


def test_a_published_name_promises_a_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ViT-B-32.pt", "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth"):
        torch.save(owners.dinov3_meta(owners.dinov3()), tmp_path / name)
        error = refused(capsys, "to-jax", tmp_path / name, "--out", tmp_path / "out")
        assert "the published file of that name has" in error
    digest = published.checked_sha256(Path(shutil.copy(tmp_path / "ViT-B-32.pt", tmp_path / "mine.pt")))
    model = tmp_path / f"dinov3_vitb16_pretrain_lvd1689m-{digest[:8]}.pth"
    shutil.copy(tmp_path / "mine.pt", model)
    assert run("to-jax", model, "--out", tmp_path / "out") == 0
    assert modelfolder.load(tmp_path / "out")[1].source["files"] == {model.name: digest}


# --- verify, list


def test_verify_reads_everything_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = owners.dinov3()
    model.save_pretrained(tmp_path / "hub")
    assert run("to-jax", tmp_path / "hub", "--out", tmp_path / "out", "--input-norm", "clip") == 0
    assert run("verify", tmp_path / "out", "--source", tmp_path / "hub") == 0
    said = capsys.readouterr().out
    assert "all finite" in said
    assert "gives every one of them again, to the last bit" in said
    with torch.no_grad():
        model.norm.bias[0] += 1e-6
    model.save_pretrained(tmp_path / "other")
    assert "image/norm/bias is not what" in refused(capsys, "verify", tmp_path / "out", "--source", tmp_path / "other")
    path = tmp_path / "out" / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(bytes(whole))
    assert "fingerprint differs" in refused(capsys, "verify", tmp_path / "out")


def test_list_names_every_layout_and_help_needs_nothing() -> None:
    done = subprocess.run([sys.executable, "-m", "converters", "list"], capture_output=True, text=True, check=True)
    for layout in LAYOUT_TABLE:
        assert layout in done.stdout
    assert "CheXzero" in done.stdout
