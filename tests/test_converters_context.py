"""More positions than were published, projections that a file lacks, and CLIP's rarer files."""

# T positions or tokens, D width

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import published as owners
import pytest
import torch
import transformers
from test_converters import QUICK, convert, ids, refused, rounded_clip, run, small_sizes, worst
from test_to_hf import WITHIN, exported

from converters import positions
from hybridclip_jax import modelfolder
from hybridclip_jax.errors import UserError

__all__ = ["small_sizes"]  # the fixture that puts the small towers into the tables

POSITIONS = "text/pos_embedding"


def tower(context: int = 24) -> transformers.CLIPTextModelWithProjection:
    return owners.randomise(transformers.CLIPTextModelWithProjection(owners.text_config(context)))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text tower of 24 positions in the hub's layout."""
    folder = tmp_path_factory.mktemp("tower") / "hub"
    tower().save_pretrained(folder)
    return folder


def short_ids() -> np.ndarray:
    """Texts of at most 20 tokens."""
    found = ids()[:, : positions.KEPT].copy()
    found[0, -1] = owners.VOCABULARY - 1
    return found


# --- stretching


@pytest.mark.parametrize(("old", "new"), [(77, 512), (77, 248), (248, 512), (22, 23)])
def test_every_row_is_where_the_formula_puts_it(old: int, new: int) -> None:
    table = np.random.default_rng(0).normal(size=(old, 3)).astype(np.float32)
    found = positions.stretch(table, new)
    assert found.shape == (new, 3) and found.dtype == np.float32
    assert np.array_equal(found[:20], table[:20])
    assert np.array_equal(found[-1], table[-1])
    for j in range(20, new):
        place = 20 + Fraction((j - 20) * (old - 21), new - 21)
        before = min(int(place), old - 2)
        share = float(place - before)
        wanted = (1 - share) * table[before].astype(np.float64) + share * table[before + 1].astype(np.float64)
        np.testing.assert_allclose(found[j], wanted, rtol=0, atol=1e-6)


def test_a_stretched_tower_encodes_short_texts_as_before(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = convert(hub, tmp_path / "plain")
    assert "or convert with --context 512" in capsys.readouterr().out
    stretched = convert(hub, tmp_path / "stretched", "--context", "64")
    assert "24 tokens stretched to 64, the first 20 kept" in capsys.readouterr().out
    (before, _), (after, card) = modelfolder.load(tmp_path / "plain"), modelfolder.load(tmp_path / "stretched")
    assert all(np.array_equal(before[name], after[name]) for name in before if name != POSITIONS)
    assert np.array_equal(after[POSITIONS], positions.stretch(before[POSITIONS], 64))
    assert card.architecture["context"] == 64
    assert card.source["position_stretch"] == {"from": 24, "to": 64, "method": positions.METHOD}
    np.testing.assert_array_equal(stretched.text_features(short_ids()), plain.text_features(short_ids()))
    long_ids = ids()[:1]  # 24 tokens: the 22nd and later have other positions now
    assert worst(stretched.text_features(long_ids), plain.text_features(long_ids)) > 1e-3
    assert stretched.text_features(np.pad(ids(), ((0, 0), (40, 0)), constant_values=1)).shape == (4, 64)
    assert run("verify", tmp_path / "stretched", "--source", hub) == 0


def test_a_stretch_travels_to_transformers_and_back_and_is_not_done_twice(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(hub, tmp_path / "stretched", "--context", "64")
    model = exported(tmp_path / "stretched", tmp_path / "theirs", "CLIPTextModelWithProjection")
    assert model.config.max_position_embeddings == 64
    assert "Positions: stretched from 24 to 64" in (tmp_path / "theirs" / "README.md").read_text()
    found = convert(tmp_path / "theirs", tmp_path / "back")
    (params, _), (again, card) = modelfolder.load(tmp_path / "stretched"), modelfolder.load(tmp_path / "back")
    assert all(np.array_equal(params[name], again[name]) for name in params)
    assert card.source["position_stretch"] == {"from": 24, "to": 64, "method": positions.METHOD}
    whole = np.pad(ids(), ((0, 0), (40, 0)), constant_values=1)
    with torch.no_grad():
        wanted = model(torch.from_numpy(whole).long()).text_embeds.numpy()
    assert worst(found.text_features(whole) @ params["text_projection/kernel"], wanted) < WITHIN
    model.save_pretrained(tmp_path / "trained on")
    for source in ("theirs", "trained on"):
        error = refused(capsys, "to-jax", tmp_path / source, "--out", tmp_path / "twice", "--context", "128")
        assert "its positions were stretched before, as its config.json says" in error
        assert not (tmp_path / "twice").exists()


def test_a_run_of_another_context_is_led_to_it(hub: Path, tmp_path: Path) -> None:
    assert run("to-jax", hub, "--out", tmp_path / "out") == 0
    params, card = modelfolder.load(tmp_path / "out")
    either = {512: "; set model.text.context=24, or convert it again with `python -m converters to-jax SRC --out DIR "}
    for context, remedy in {**either, 16: "; set model.text.context=24"}.items():
        wanted = {**params, POSITIONS: np.zeros((context, 64))}
        with pytest.raises(UserError) as caught:
            modelfolder.tower(
                tmp_path / "out", "text", wanted, arch="test_text", preprocessing={}, tokenizer=card.tokenizer
            )
        both = f"{POSITIONS} is (24, 64) in the folder and ({context}, 64) in this model"
        end = f"--context {context}`" if context > 24 else ""
        assert str(caught.value) == f"{tmp_path / 'out'}: {both}{remedy}{end}"


def test_contexts_that_are_none(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "out")
    for context, words in ((24, "has 24 positions"), (8, "is only made longer"), (513, "must be at most 512")):
        assert words in refused(capsys, "to-jax", hub, *out, "--context", context)
    tower(21).save_pretrained(tmp_path / "short")
    error = refused(capsys, "to-jax", tmp_path / "short", *out, "--context", 64)
    assert "of 21 positions none is left to stretch after the first 20" in error
    torch.save(owners.dinov3_meta(owners.dinov3()), tmp_path / "dino.pth")
    assert "it has no text tower" in refused(capsys, "to-jax", tmp_path / "dino.pth", *out, "--context", 512)
    assert not (tmp_path / "out").exists()


def test_what_is_about_pixels_is_refused_for_a_text_tower(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (("--statistics", "chexzero"), ("--input-norm", "clip"), ("--colour",)):
        error = refused(capsys, "to-jax", hub, "--out", tmp_path / "out", *flags)
        assert f"{flags[0]} is about pixels and this is a text tower" in error
    convert(hub, tmp_path / "out")
    assert "statistics" not in capsys.readouterr().out


# --- a CLIPTextModel has no projection


def test_a_tower_without_projection_gets_one_that_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = owners.randomise(transformers.CLIPTextModel(owners.text_config()))
    model.save_pretrained(tmp_path / "hub")
    found = convert(tmp_path / "hub", tmp_path / "out")
    assert "filled with an identity matrix: text_projection/kernel (a CLIPTextModel has none" in capsys.readouterr().out
    params, card = modelfolder.load(tmp_path / "out")
    assert np.array_equal(params["text_projection/kernel"], np.eye(64, dtype=np.float32))
    assert card.architecture["embed_dim"] == 64
    assert card.source["filled"] == {"text_projection/kernel": "identity"}
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids()).long()).pooler_output.numpy()
    assert worst(found.text_features(ids()), wanted) < WITHIN
    back = exported(tmp_path / "out", tmp_path / "theirs", "CLIPTextModelWithProjection")
    with torch.no_grad():
        assert worst(back(torch.from_numpy(ids()).long()).text_embeds, wanted) < WITHIN
    assert run("verify", tmp_path / "out", "--source", tmp_path / "hub") == 0


def test_a_projection_that_was_lost_is_missed(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: value for name, value in tower().state_dict().items() if name != "text_projection.weight"}
    (tmp_path / "hub").mkdir()
    owners.safetensors(state, tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text((hub / "config.json").read_text())
    error = refused(capsys, "to-jax", tmp_path / "hub", "--out", tmp_path / "out")
    assert "config.json says CLIPTextModelWithProjection, but text_projection.weight is missing" in error


# --- CLIP's rarer files


def test_long_clips_two_tables_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = owners.clip(40)
    state = owners.openai(model)
    table = state["positional_embedding"]
    first, later = table.clone(), table.clone()
    first[20:], later[:20] = 7.0, 7.0  # what its masks put out
    torch.save({**state, "positional_embedding": first, "positional_embedding_res": later}, tmp_path / "longclip.pt")
    found = convert(tmp_path / "longclip.pt", tmp_path / "out", *QUICK)
    assert "text/pos_embedding: rows from 20 on are positional_embedding_res's" in capsys.readouterr().out
    assert np.array_equal(modelfolder.load(tmp_path / "out")[0][POSITIONS], table.numpy())
    tokens = ids(40)
    with torch.no_grad():
        wanted = model.text_model(torch.from_numpy(tokens).long()).pooler_output.numpy()
    assert worst(found.text_features(tokens), wanted) < 2e-5
    torch.save({**state, "positional_embedding_res": later[:30].clone()}, tmp_path / "other.pt")
    capsys.readouterr()
    assert run("to-jax", tmp_path / "other.pt", "--out", tmp_path / "no", *QUICK) == 2
    assert "positional_embedding_res  (40, 64)  (30, 64)" in capsys.readouterr().out


def test_a_folder_of_the_hub_from_before_safetensors(tmp_path: Path) -> None:
    model = rounded_clip()
    model.save_pretrained(tmp_path / "new")
    (tmp_path / "old").mkdir()
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    for part in ("text_config", "vision_config"):  # files of those years leave out what has its default
        for field in ("hidden_act", "layer_norm_eps", "model_type"):
            config[part].pop(field, None)
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    for source in (tmp_path / "old", tmp_path / "old" / "pytorch_model.bin"):
        out = tmp_path / f"from {source.name}"
        assert run("to-jax", source, "--out", out) == 0
        params, card = modelfolder.load(out)
        assert card.source["activation"] == "quick_gelu"
        assert list(card.source["files"]) == ["pytorch_model.bin"]
        assert np.array_equal(params["text_projection/kernel"], model.text_projection.weight.detach().numpy().T)


class Scripted(torch.nn.Module):
    """A module whose code holds constants of its own beside the weights, as CLIP's causal mask does."""

    def __init__(self, weights: torch.nn.Module) -> None:
        super().__init__()
        for name, part in weights.named_children():
            self.add_module(name, part)
        for name, value in weights.named_parameters(recurse=False):
            self.register_parameter(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.triu(torch.full((2, 2), float("-inf")), 1).nan_to_num(0.0) + self.logit_scale


def archives(folder: Path) -> dict[str, Path]:
    """TorchScript archives of one CLIP, by how they were made."""
    module = Scripted(owners.as_module(owners.openai(rounded_clip()))).eval()
    made = {
        "scripted": torch.jit.script(module),
        "traced": torch.jit.trace(module, torch.zeros(2, 2)),
        "frozen": torch.jit.freeze(torch.jit.script(module)),
    }
    for name, script in made.items():
        script.save(str(folder / f"{name}.pt"))
    return {name: folder / f"{name}.pt" for name in made}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_archives_are_read_where_their_weights_have_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = archives(tmp_path)
    error = refused(capsys, "to-jax", found.pop("frozen"), "--out", tmp_path / "no")
    assert "a TorchScript archive without named weights, as torch.jit.freeze leaves it" in error
    held = []
    for name, path in found.items():
        assert run("to-jax", path, "--out", tmp_path / f"out {name}") == 0
        held.append(modelfolder.load(tmp_path / f"out {name}")[0])
    kernel = rounded_clip().visual_projection.weight.detach().numpy().T
    for params in held:
        np.testing.assert_array_equal(params["image_projection/kernel"], kernel)
