"""`hybridclip embed`: what the file holds, that batches and devices do not show in it, that a killed run goes on."""

# N items, E embedding

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dicom_files
import numpy as np
import pytest
from prepared import error_line, picture, save, write
from small_models import SPEC, card, weights

import hybridclip_jax as hc
from hybridclip_jax import cli, embedding, embedding_items, modelfolder
from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError, run_or_exit
from hybridclip_jax.inference import LoadedModel

ROOT = Path(__file__).parents[1]
SAME = 1e-5  # the same embeddings, by other batches or devices
# Saves behind every batch, so that a kill falls where the test wants it.
CALL = """
import sys
from hybridclip_jax import cli, embedding
embedding.SAVE_EVERY_S = float(sys.argv.pop(1))
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "dual"
    modelfolder.save(path, weights(), card())
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return hc.load(folder)


def embed(folder: Path, out: Path, *arguments: object) -> int:
    """The exit code of `hybridclip embed --model FOLDER ... --out OUT`."""
    parsed = cli.parse(["embed", "--model", str(folder), *map(str, arguments), "--out", str(out)])
    return run_or_exit(lambda: parsed.run(parsed))


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def films(folder: Path, names: Sequence[str]) -> list[Path]:
    """An image each, another by place."""
    return [save(folder / name, seed) for seed, name in enumerate(names)]


# --- what the file holds


def test_a_store_gives_its_images_under_its_ids(
    folder: Path, model: LoadedModel, phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, store = tmp_path / "val.npz", Store.open(f"{phantom_store}:val")
    assert embed(folder, out, "--data", store.spec) == 0
    said = capsys.readouterr()
    assert f"{out}: {len(store)} of {len(store)} images, 32 numbers each" in said.out
    assert "synthetic" in said.out
    assert said.err == "", "no bar off a terminal"
    found = arrays(out)
    wanted = model.encode_image(store.images(np.arange(len(store))))
    np.testing.assert_allclose(found["embedding"], wanted, atol=SAME)
    assert np.max(np.abs(np.roll(wanted, 1, axis=0) - wanted), axis=1).min() > 100 * SAME, "rows are told apart"
    assert found["embedding"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, atol=1e-6)
    assert found["id"].tolist() == store.ids
    assert found["source_row"].tolist() == store.source_rows.tolist()
    about = json.loads(str(found["card"]))
    assert about["model"]["fingerprint"] == modelfolder.stated_fingerprint(folder)
    assert about["model"]["kind"] == "dual"
    assert about["preprocessing"] == json.loads(json.dumps(card().preprocessing))
    assert about["context"] == SPEC.context
    assert about["input"] == {"kind": "store", "fingerprint": f"{store.fingerprint}:val", "count": len(store)}
    assert about["synthetic"] is True
    assert about["skipped"] == []
    assert {"hybridclip-jax", "jax", "numpy"} <= about["versions"].keys()
    assert os.listdir(tmp_path) == ["val.npz"]
    mapped = embedding.read(out)
    assert isinstance(mapped.embedding, np.memmap)
    assert not mapped.embedding.flags.writeable
    for name in ("embedding", "id", "source_row"):
        np.testing.assert_array_equal(getattr(mapped, name), found[name])
    assert mapped.card == about


def test_image_files_of_any_kind_and_what_is_none(
    folder: Path, model: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "films", tmp_path / "z.npz"
    png, jpeg, deep = films(source, ["b/Doe^Jane.png", "a.jpg", "b/c/x.png"])
    dicom = source / "d" / "film"  # without a suffix, as modalities name them
    dicom.parent.mkdir()
    dicom.write_bytes(dicom_files.raw(dicom_files.dataset(np.asarray(picture(3)), WindowCenter=128, WindowWidth=256)))
    (source / "b" / "cut.png").write_bytes(png.read_bytes()[:90])
    (source / "notes.doc").write_text("no image")
    (source / "gone.png").symlink_to("nowhere.png")
    assert embed(folder, out, "--images", f"{source}/**/*") == 0
    said = capsys.readouterr()
    found, kept = arrays(out), [jpeg, png, deep, dicom]
    assert found["id"].tolist() == ["a.jpg", "b/Doe^Jane.png", "b/c/x.png", "d/film"]
    assert found["source_row"].tolist() == [1, 2, 3, 5]
    np.testing.assert_allclose(found["embedding"], model.encode_image(kept), atol=SAME)
    assert "4 of 7 images" in said.out
    reasons = {one["source_row"]: one["reason"] for one in json.loads(str(found["card"]))["skipped"]}
    assert reasons == {
        4: "truncated or damaged image",
        6: "missing image file",
        7: "not an image of a known type",
    }
    for row, reason in reasons.items():
        assert f"{reason}: row {row}" in said.out
    for name in ("Doe", "cut.png", dicom_files.PATIENT):
        assert name not in said.out + said.err


def test_names_that_a_shell_made_of_a_pattern_are_the_same_files(tmp_path: Path) -> None:
    paths = [str(path) for path in films(tmp_path / "films", ["2.png", "1[x].png", "b/1.png"])]
    pattern = embedding_items.ImageFiles([f"{tmp_path}/films/**/*.png"])
    names = embedding_items.ImageFiles([*paths, paths[0]])
    assert names.id_N.tolist() == pattern.id_N.tolist() == ["1[x].png", "2.png", "b/1.png"]
    assert names.fingerprint == pattern.fingerprint
    save(tmp_path / "films" / "2.png", seed=9)
    assert embedding_items.ImageFiles(paths).fingerprint != names.fingerprint


def test_a_link_that_leads_upwards_gives_each_file_once(tmp_path: Path) -> None:
    films(tmp_path / "films", ["z.png", "b/1.png"])
    (tmp_path / "films" / "b" / "loop").symlink_to(tmp_path / "films")
    assert embedding_items.ImageFiles([f"{tmp_path}/films/**/*.png"]).id_N.tolist() == ["b/1.png", "z.png"]


CLOSED = """
import os, sys
from hybridclip_jax import embedding_items
from hybridclip_jax.errors import UserError
if os.geteuid() == 0:  # who may look into every folder
    os.setuid(65534)
try:
    embedding_items.ImageFiles([sys.argv[1]])
except UserError as error:
    print(error)
"""


def test_a_folder_that_cannot_be_looked_into_is_said() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: pytest's folders are closed to other users
        Path(folder).chmod(0o755)
        films(Path(folder), ["a.png", "closed/b.png"])
        (Path(folder) / "closed").chmod(0)
        call = [sys.executable, "-c", CLOSED, f"{folder}/**/*.png"]
        done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
        (Path(folder) / "closed").chmod(0o755)
    assert "1 folders below it cannot be read: mend their rights" in done.stdout, done.stderr


TEXTS = ["no pneumothorax", "", "the heart is enlarged; " * 20, "a, b", "effusion", "Edema"]


def test_texts_come_back_in_order(
    folder: Path, model: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "t.txt", TEXTS)
    assert embed(folder, tmp_path / "t.npz", "--texts", source, "--batch-size", "3") == 0
    found = arrays(tmp_path / "t.npz")
    np.testing.assert_allclose(found["embedding"], model.encode_text(TEXTS), atol=SAME)
    assert found["id"].tolist() == ["1", "2", "3", "4", "5", "6"]
    assert found["source_row"].tolist() == [1, 2, 3, 4, 5, 6]
    said = capsys.readouterr().out
    assert "1 of 6 texts are cut at the context of 12 tokens" in said
    assert "1 of 6 texts are blank" in said
    assert "heart" not in said


def test_a_table_holds_the_same_texts_as_lines_do(model: LoadedModel, tmp_path: Path) -> None:
    lines = texts(model, tmp_path / "t.txt", TEXTS)
    table = texts(model, tmp_path / "t.csv", ["n,text", *(f'{n},"{text}"' for n, text in enumerate(TEXTS))])
    json_lines = texts(model, tmp_path / "t.jsonl", [json.dumps({"text": text}) for text in TEXTS])
    windows = texts(model, tmp_path / "w.txt", [f"{text}\r" for text in TEXTS])
    assert len({items.fingerprint for items in (lines, table, json_lines, windows)}) == 1
    assert texts(model, tmp_path / "o.txt", TEXTS[::-1]).fingerprint != lines.fingerprint


def texts(model: LoadedModel, path: Path, words: Sequence[str]) -> embedding_items.Texts:
    return embedding_items.Texts(model, write(path, words), lambda *_: None)


# --- going on


def interrupted(model: LoadedModel, items: embedding_items.Items, out: Path, after: int) -> None:
    """Ctrl-C when so many are done."""

    def stop(label: str, done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedding.embed(model, items, out, progress=stop)
    assert not out.exists()


def going_on(model: LoadedModel, items: embedding_items.Items, out: Path) -> list[str]:
    said: list[str] = []
    embedding.embed(model, items, out, say=said.append)
    return said


def test_an_interrupted_run_goes_on_and_another_input_starts_over(model: LoadedModel, tmp_path: Path) -> None:
    out, words = tmp_path / "t.npz", [f"{'opacity ' * (n % 9)}{n}" for n in range(300)]
    mine = texts(model, tmp_path / "a.txt", words)
    other = texts(model, tmp_path / "b.txt", [*words[:-1], "edema"])
    interrupted(model, mine, out, after=64)
    assert going_on(model, mine, out) == ["going on behind 64 of 300 texts that an earlier attempt left"]
    np.testing.assert_allclose(arrays(out)["embedding"], model.encode_text(words), atol=SAME)
    assert going_on(model, mine, out) == [f"{out} is complete already: nothing was done"]
    out.unlink()
    interrupted(model, mine, out, after=64)
    [said] = going_on(model, other, out)
    assert said == "starting over: what an earlier attempt left is of another model, input or version"
    np.testing.assert_allclose(arrays(out)["embedding"][-1], model.encode_text(["edema"])[0], atol=SAME)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half a progress file": lambda f: os.truncate(f / "progress.json", 40),
    "fewer embeddings": lambda f: os.truncate(f / "embedding.npy", 500),
    "no embeddings": lambda f: (f / "embedding.npy").unlink(),
    "a list": lambda f: (f / "progress.json").write_text("[]"),
    "another width": lambda f: np.save(f / "embedding.npy", np.zeros((150, 3), np.float32)),
    "another type": lambda f: np.save(f / "embedding.npy", np.zeros((150, SPEC.embed_dim), np.float64)),
    "more than all": lambda f: noted(f, done=151),
    "fewer than none": lambda f: noted(f, done=-1),
    "left out twice": lambda f: noted(f, skipped=[[3, "x"], [3, "x"]]),
    "left out of nowhere": lambda f: noted(f, skipped=[[150, "x"]]),
}


def noted(folder: Path, **values: object) -> None:
    path = folder / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_left_and_cannot_be_used_is_made_anew(damage: str, model: LoadedModel, tmp_path: Path) -> None:
    out, words = tmp_path / "t.npz", [f"edema {n}" for n in range(150)]
    items = texts(model, tmp_path / "a.txt", words)
    interrupted(model, items, out, after=64)
    DAMAGE[damage](tmp_path / "t.npz.partial")
    assert "starting over" in going_on(model, items, out)[0]
    np.testing.assert_allclose(arrays(out)["embedding"], model.encode_text(words), atol=SAME)


def test_too_many_unreadable_files_stop_it_and_may_be_allowed(
    folder: Path, model: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "films", tmp_path / "z.npz"
    [film] = films(source, ["0.png"])
    for n in range(1, 210):
        os.link(film, source / f"{n:03}.png")
    for n in (5, 9, 11, 200):
        (source / f"{n:03}.png").unlink()
        (source / f"{n:03}.png").write_bytes(b"broken")
    assert embed(folder, out, "--images", f"{source}/*.png") == 2
    said = error_line(capsys)
    assert "3 of the first 64 of 210 images cannot be read, above --max-skipped 0.01" in said
    assert "not an image of a known type: row 6, 10, 12" in said
    assert embed(folder, out, "--images", f"{source}/*.png", "--max-skipped", "0.05") == 0
    assert "going on behind 64 of 210 images" in capsys.readouterr().out
    found = arrays(out)
    assert found["source_row"].tolist() == [n for n in range(1, 211) if n not in (6, 10, 12, 201)]
    np.testing.assert_allclose(found["embedding"], np.repeat(model.encode_image([film]), 206, axis=0), atol=SAME)


def test_a_full_disk_is_one_line(
    folder: Path, phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "z.npz", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        code = embed(folder, out, "--data", f"{phantom_store}:val")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 4
    assert f"{out}: cannot be written: File too large" in error_line(capsys)
    assert not out.exists()


# --- killed


def start(folder: Path, store: str, out: Path, *, save_every_s: float = 0, devices: int = 1) -> subprocess.Popen[str]:
    """An embed of its own, in batches of 7 (rounded up to the devices)."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    arguments = ["embed", "--model", folder, "--data", store, "--batch-size", "7", "--out", out]
    return subprocess.Popen(
        [sys.executable, "-c", CALL, str(save_every_s), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done_so_far(out: Path) -> int:
    try:
        return int(json.loads(Path(f"{out}.partial/progress.json").read_text())["done"])
    except (FileNotFoundError, NotADirectoryError):
        return 0


def kill_behind(process: subprocess.Popen[str], out: Path, goal: int) -> int:
    """Signal 9 when `goal` images are done; how many were."""
    deadline = time.monotonic() + 120
    while done_so_far(out) < goal:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    return done_so_far(out)


def test_killed_on_one_device_in_small_batches_it_goes_on_on_eight(
    folder: Path, phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, store = tmp_path / "killed.npz", f"{phantom_store}:train"
    done = kill_behind(start(folder, store, out), out, goal=21)
    total = len(Store.open(store))
    assert 21 <= done < total
    assert done % 7 == 0
    assert not out.exists()
    left = np.load(Path(f"{out}.partial/embedding.npy"), mmap_mode="r+")
    taken = left[:done].copy()
    left[0] = mark = np.arange(SPEC.embed_dim)
    left.flush()
    assert embed(folder, out, "--data", store) == 0
    assert f"going on behind {done} of {total} images that an earlier attempt left" in capsys.readouterr().out
    assert embed(folder, tmp_path / "whole.npz", "--data", store) == 0
    found, wanted = arrays(out), arrays(tmp_path / "whole.npz")
    np.testing.assert_array_equal(found["embedding"][0], mark, "what was done is not done again")
    np.testing.assert_allclose(taken, wanted["embedding"][:done], atol=SAME)
    np.testing.assert_allclose(found["embedding"][1:], wanted["embedding"][1:], atol=SAME)
    for name in ("id", "source_row", "card"):
        np.testing.assert_array_equal(found[name], wanted[name])
    assert sorted(os.listdir(tmp_path)) == ["killed.npz", "whole.npz"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_images_survive_kills(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = tmp_path / "store", tmp_path / "killed.npz"
    words = ["prepare", "--format", "phantom", "--seed", "3", "--count", "10000", "--split", "all", "--out", str(store)]
    parsed = cli.parse(words)
    assert run_or_exit(lambda: parsed.run(parsed)) == 0
    done = [kill_behind(start(folder, str(store), out, save_every_s=0.1), out, goal) for goal in (500, 3000, 7000)]
    assert done == sorted(done)
    assert done[-1] < 10_000
    assert embed(folder, out, "--data", store) == 0
    assert f"going on behind {done[-1]} of 10000 images" in capsys.readouterr().out
    whole = tmp_path / "whole.npz"
    code, complaint = finish(start(folder, str(store), whole, devices=8))
    assert (code, complaint) == (0, "")
    found, wanted = embedding.read(out), embedding.read(whole)
    assert found.embedding.shape == (10_000, SPEC.embed_dim)
    np.testing.assert_allclose(found.embedding, wanted.embedding, atol=SAME)
    np.testing.assert_array_equal(found.id, wanted.id)
    assert found.card == wanted.card


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, complaint = process.communicate(timeout=600)
    return process.returncode, complaint


# --- refusals

Case = tuple[Callable[[Path], Sequence[object]], str]


def made(path: Path, content: bytes = b"x") -> Path:
    path.write_bytes(content)
    return path


REFUSED: dict[str, Case] = {
    "a pattern that matches nothing": (lambda t: ["--images", t / "*.png"], "/*.png: matches no file; give a pattern"),
    "a name among others": (lambda t: ["--images", made(t / "a"), t / "Doe.png"], "--images: place 2 of 2: matches no"),
    "a folder": (lambda t: ["--images", t], "is a folder; give a pattern of files in quotes"),
    "no image at all": (
        lambda t: ["--images", made(t / "Doe.png")],
        "none of the 1 images can be read (not an image of a known type: row 1)",
    ),
    "no such store": (lambda t: ["--data", t / "store"], "no such store"),
    "no such texts": (lambda t: ["--texts", t / "t.txt"], "t.txt: cannot be read: No such file"),
    "texts of another kind": (lambda t: ["--texts", made(t / "t.doc")], "t.doc: must be .txt, one text a line, or a t"),
    "a table without texts": (
        lambda t: ["--texts", made(t / "t.csv", b"report,n\nx,1\n")],
        "lacks column 'text'. It has 'report', 'n'",
    ),
    "no line": (lambda t: ["--texts", made(t / "t.txt", b"")], "t.txt: holds no text"),
    "another encoding": (lambda t: ["--texts", made(t / "t.txt", b"\xff\xfe")], "t.txt: not UTF-8 (byte 0)"),
    "no batch": (lambda t: ["--texts", made(t / "t.txt"), "--batch-size", 0], "--batch-size 0: must be from 1 to 4096"),
    "no such memory": (lambda t: ["--texts", made(t / "t.txt"), "--batch-size", 10**22], "must be from 1 to 4096"),
    "no share": (lambda t: ["--texts", made(t / "t.txt"), "--max-skipped", 2], "--max-skipped 2 is not a share"),
    "no model": (lambda t: ["--texts", made(t / "t.txt"), "--model", t], "not a model folder"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_mistake_is_one_line_and_leaves_nothing(
    refused: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, says = REFUSED[refused]
    assert embed(folder, tmp_path / "z.npz", *arguments(tmp_path)) == 2
    line = error_line(capsys)
    assert says in line
    assert "Doe" not in line
    assert not (tmp_path / "z.npz").exists()
    assert not (tmp_path / "z.npz.lock").exists()


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("z.npy", "must end in .npz"),
        ("folder.npz", "is a folder; name a file"),
        ("mine.npz", "is there already, and holds no embeddings this program can read: remove it, or name another"),
    ],
)
def test_a_file_that_cannot_be_made_is_one_line(
    out: str, says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.npz").mkdir()
    np.savez(tmp_path / "mine.npz", embedding=np.zeros(3))
    before = (tmp_path / "mine.npz").read_bytes()
    assert embed(folder, tmp_path / out, "--texts", made(tmp_path / "t.txt")) == 2
    assert says in error_line(capsys)
    assert (tmp_path / "mine.npz").read_bytes() == before


def test_a_finished_file_is_of_its_model_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modelfolder.save(tmp_path / "other", weights(seed=1), card())
    source, out = write(tmp_path / "t.txt", TEXTS), tmp_path / "t.npz"
    assert embed(folder, out, "--texts", source) == 0
    assert embed(tmp_path / "other", out, "--texts", source) == 2
    assert "t.npz is there already, made with another model: remove it, or name another --out" in error_line(capsys)
    assert embed(folder, out, "--texts", write(tmp_path / "u.txt", TEXTS[:1])) == 2
    assert "t.npz is there already, made with another input: remove it" in error_line(capsys)


def test_after_an_upgrade_it_says_which_library_is_another(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "t.txt", TEXTS), tmp_path / "t.npz"
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "jax" else installed(name))
    assert embed(folder, out, "--texts", source) == 0
    monkeypatch.undo()
    assert embed(folder, out, "--texts", source) == 2
    assert f"is there already, made with jax 0.1 (now {installed('jax')}): remove it" in error_line(capsys)


def test_killed_behind_the_last_move_it_leaves_nothing_the_next_time(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "t.txt", TEXTS), tmp_path / "new" / "folders" / "t.npz"
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "_remove", lambda _: None)  # where the kill comes
        assert embed(folder, out, "--texts", source) == 0
    assert Path(f"{out}.partial").is_dir() and out.exists()
    assert embed(folder, out, "--texts", source) == 0
    assert "is complete already" in capsys.readouterr().out
    assert not Path(f"{out}.partial").exists()


def test_files_of_others_in_a_folder_of_that_name_stay(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "t.txt", TEXTS), tmp_path / "t.npz"
    theirs = tmp_path / "t.npz.partial"
    theirs.mkdir()
    (theirs / "thesis.tex").touch()
    assert embed(folder, out, "--texts", source) == 2
    assert f"{theirs} holds files that embed did not write" in error_line(capsys)
    assert (theirs / "thesis.tex").exists()


def test_an_embedding_that_is_not_finite_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {name: np.full_like(value, np.nan) for name, value in weights().items()}
    modelfolder.save(tmp_path / "broken", broken, card())
    assert embed(tmp_path / "broken", tmp_path / "t.npz", "--texts", write(tmp_path / "t.txt", TEXTS)) == 3
    assert "row 1: the model gives an embedding that is not finite" in error_line(capsys)
    assert not (tmp_path / "t.npz").exists()


def test_two_at_once_do_not_mix(
    folder: Path, model: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "t.txt", TEXTS), tmp_path / "t.npz"
    items, codes = embedding_items.Texts(model, source, lambda *_: None), list[int]()
    embedding.embed(model, items, out, progress=lambda *_: codes.append(embed(folder, out, "--texts", source)))
    assert set(codes) == {2}
    assert "another embed is writing" in error_line(capsys)


def test_pixels_and_towers_have_to_be_the_models(
    folder: Path, phantom_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colour, image = tmp_path / "colour", tmp_path / "image"
    modelfolder.save(colour, weights(), card(colour=True))
    modelfolder.save(image, weights(), card("image"))
    assert embed(colour, tmp_path / "z.npz", "--data", f"{phantom_store}:val") == 2
    says = f"{phantom_store}:val: prepared with colour = False, but {colour} was trained on images with True"
    assert says in error_line(capsys)
    assert embed(image, tmp_path / "z.npz", "--data", f"{phantom_store}:val") == 2
    assert "holds the image tower alone; embed needs a model of two towers" in error_line(capsys)
    with pytest.raises(SystemExit):
        cli.parse(["embed", "--model", "m", "--data", "s", "--texts", "t", "--out", "z.npz"])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK"])
def test_another_file_is_no_embeddings(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"z\.npz: not embeddings that this program can read"):
        embedding.read(made(tmp_path / "z.npz", content))
