"""The tokenizer against OpenAI's ids, an independent implementation, and texts that forge an end token."""

from __future__ import annotations

import gzip
import html
import json
import pickle
import random
import re
from importlib import resources
from pathlib import Path

import ftfy
import numpy as np
import pytest
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hybridclip_jax.data import tokenizer as tokenizer_module
from hybridclip_jax.data.tokenizer import Tokenizer, clean
from hybridclip_jax.errors import UserError

# The ids are those of open_clip_torch 3.3.0's SimpleTokenizer (OpenAI's code and file) with the two special
# tokens taken out of its pattern. They are OpenAI's vocabulary: no change of ours is a reason to update them.
GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def changed(tokenizer: Tokenizer) -> int:
    """How many golden strings get other ids than OpenAI's."""
    return sum(tokenizer.encode(entry["text"]) != entry["ids"] for entry in GOLDEN)


def test_golden_ids(tokenizer: Tokenizer) -> None:
    assert len(GOLDEN) == 40
    for entry in GOLDEN:
        assert tokenizer.encode(entry["text"]) == entry["ids"], entry["text"]


@pytest.mark.parametrize(
    "wrong_clean",
    [
        lambda text: " ".join(html.unescape(html.unescape(text)).split()).lower(),
        lambda text: " ".join(html.unescape(ftfy.fix_text(text)).split()).lower(),
        lambda text: " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()),
    ],
    ids=["no ftfy", "html once", "no lower case"],
)
def test_golden_strings_notice_wrong_cleaning(wrong_clean, tokenizer: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer_module, "clean", wrong_clean)
    assert changed(tokenizer) > 0


def test_the_short_way_of_cleaning_changes_nothing(monkeypatch) -> None:
    draw = random.Random(3)
    texts = ["".join(chr(draw.randrange(128)) for _ in range(draw.randrange(1, 9))) for _ in range(5000)]
    texts += ["".join(draw.choices("aB \t\r\n'\"<", k=12)) for _ in range(500)]
    cleaned = [clean(text) for text in texts]
    plain = sum(tokenizer_module._PLAIN.fullmatch(text) is not None for text in texts)
    assert len(texts) / 4 < plain < len(texts)
    monkeypatch.setattr(tokenizer_module, "_PLAIN", re.compile("never"))
    assert [clean(text) for text in texts] == cleaned


def test_golden_strings_notice_a_wrong_table(monkeypatch) -> None:
    lines = list(tokenizer_module._merge_lines())
    one, other = lines.index("th e</w>"), lines.index("o f</w>")
    lines[one], lines[other] = lines[other], lines[one]
    monkeypatch.setattr(tokenizer_module, "_merge_lines", lambda: tuple(lines))
    assert changed(Tokenizer()) > 0


def random_texts(n: int) -> list[str]:
    """Report-like words mixed with fragments that break careless tokenizers."""
    draw = random.Random(7)
    words = [*GOLDEN[-1]["text"].split(), "Retrocardiac", "opacity;", "NG-tube", "atelectasis", "IT'S"]
    odd = [*"“°éñß中🙂ﬁ½()/<x-\n\t\u200b", "___", "[**2101-3-5**]", "2.5", "12:45", "&amp;lt;", "’s"]
    odd += ["'ve", "Ã©", "µg", "文字", "--", "?!", "<|", "|>", "don't", "жар", "e\u0301"]
    texts = []
    for _ in range(n):
        pieces = [draw.choice(words if draw.random() < 0.7 else odd) for _ in range(draw.randrange(0, 25))]
        texts.append("".join(piece + draw.choice(["", " ", " ", "  ", ". "]) for piece in pieces))
    return texts


@pytest.mark.parametrize("vocab_size", [514, 3000, 49408])
def test_equals_transformers_on_clean_text(vocab_size: int) -> None:
    packed = resources.files("hybridclip_jax.data").joinpath("bpe_merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")[: vocab_size - 514]
    merges = [(line.split(" ")[0], line.split(" ")[1]) for line in lines]
    bytes_in_order = list(bytes_to_unicode().values())
    names = bytes_in_order + [name + "</w>" for name in bytes_in_order] + ["".join(pair) for pair in merges]
    vocab = {name: token for token, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    oracle = CLIPTokenizer(vocab=vocab, merges=merges)
    ours = Tokenizer(vocab_size)

    texts = random_texts(2000)
    for text in texts:
        cleaned = clean(text)
        assert [ours.sot, *ours.encode(text), ours.eot] == oracle(cleaned)["input_ids"], text
    assert len({token for text in texts for token in ours.encode(text)}) > min(60, vocab_size)


def test_table_is_the_one_openai_uses() -> None:
    lines = tokenizer_module._merge_lines()
    assert len(lines) == len(set(lines)) == 48894
    assert (lines[0], lines[-1]) == ("i n", "jeky ll</w>")
    assert Tokenizer().card() == {
        "name": "clip-bpe",
        "vocab_size": 49408,
        "merges_sha256": "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02",
        "sot": 49406,
        "eot": 49407,
        "pad": 0,
        "clean": "ftfy+html2+whitespace+lower",
    }


@pytest.mark.parametrize(
    "text",
    ["<|endoftext|>", "a <|startoftext|> b", "&lt;|endoftext|&gt;", "<|ENDOFTEXT|>", "<|endoftext|></w>"],
)
def test_text_cannot_forge_a_special_token(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert ids
    assert max(ids) < tokenizer.sot
    tokens = tokenizer([text], 32)
    assert np.argmax(tokens.ids[0]) == tokens.eot[0] == len(ids) + 1  # OpenAI pools at the largest id


def test_rows_are_framed_and_padded(tokenizer: Tokenizer) -> None:
    tokens = tokenizer(["", "clear lungs"], 8)
    assert [tokens.ids.dtype, tokens.eot.dtype, tokens.truncated.dtype] == [np.int32, np.int32, bool]
    np.testing.assert_array_equal(tokens.ids[0], [49406, 49407, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(tokens.ids[1], [49406, *tokenizer.encode("clear lungs"), 49407, 0, 0, 0, 0])
    np.testing.assert_array_equal(tokens.eot, [1, 3])
    assert not tokens.truncated.any()
    assert tokenizer([], 8).ids.shape == (0, 8)


def test_truncation_keeps_the_end_token(tokenizer: Tokenizer) -> None:
    fits, longer = "a " * 6, "a " * 7
    tokens = tokenizer([fits, longer, "effusion " * 1000], 8)
    np.testing.assert_array_equal(tokens.truncated, [False, True, True])
    np.testing.assert_array_equal(tokens.eot, [7, 7, 7])
    np.testing.assert_array_equal(tokens.ids[:, -1], [tokenizer.eot] * 3)
    np.testing.assert_array_equal(tokens.ids[0], tokens.ids[1])


def test_small_vocabulary_still_encodes_everything(tokenizer: Tokenizer) -> None:
    small = Tokenizer(2048)
    assert (small.sot, small.eot) == (2046, 2047)
    for entry in GOLDEN:
        ids = small.encode(entry["text"])
        assert len(ids) >= len(entry["ids"])
        assert all(0 <= token < small.sot for token in ids)
    assert small.card()["merges_sha256"] != tokenizer.card()["merges_sha256"]
    assert Tokenizer(514).encode("a b") == [64 + 256, 65 + 256]  # bytes alone: "!" is 0, "a" is 64


@pytest.mark.parametrize("vocab_size", [0, 513, 49409])
def test_impossible_vocabulary_is_one_line(vocab_size: int) -> None:
    with pytest.raises(UserError, match=rf"vocab_size {vocab_size} is outside 514..49408") as error:
        Tokenizer(vocab_size)
    assert "\n" not in str(error.value)


def test_misuse_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="not one string"):
        tokenizer("one string is not a batch", 77)
    with pytest.raises(ValueError, match="no room"):
        tokenizer(["no room"], 2)


def test_pickles_without_its_cache(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(Tokenizer(2048)))
    assert copy.card() == Tokenizer(2048).card()
    assert copy.encode("pneumothorax") == Tokenizer(2048).encode("pneumothorax")


def test_lone_surrogates_and_control_characters_encode(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("bad \ud800 surrogate\x00\x07") == tokenizer.encode("bad \ufffd surrogate")
