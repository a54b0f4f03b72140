"""OpenAI's CLIP byte-pair tokenizer: the same ids for any text, but no text can forge a special token.

The table `bpe_merges.txt.gz` holds the 48,894 merges that OpenAI's vocabulary uses, one a line, in order of
rank (its licence is in NOTICE). Ids: 256 bytes, the same 256 bytes ending a word, one id a merge, start, end.
"""

# B batch, L context

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import html
import itertools
import re
from collections.abc import Sequence
from importlib import resources

import ftfy
import numpy as np
import regex

from hybridclip_jax.errors import UserError

FULL_VOCAB_SIZE = 49408
_BYTES = 256
_SPECIALS = 2

# CLIP's own pattern without its special tokens: typed in a report, they are text like any other.
_WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
_WHITESPACE = regex.compile(r"\s+")
_PLAIN = re.compile(r"[\t\n\r -%'-~]*")  # ASCII without "&" and control characters


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of a batch of texts.

    ids: int32 [B, L], start token, text, end token, then zeros.
    eot: int32 [B], index of the end token in each row.
    truncated: bool [B], rows whose text did not fit the context; their last id is still the end token.
    """

    ids: np.ndarray
    eot: np.ndarray
    truncated: np.ndarray


def clean(text: str) -> str:
    """CLIP's cleaning: mojibake repaired, html entities undone twice, single spaces, lower case."""
    if _PLAIN.fullmatch(text):  # nothing to repair: the same result ten times as fast
        return " ".join(text.split()).lower()
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _WHITESPACE.sub(" ", text.strip()).strip().lower()


class Tokenizer:
    """Text to CLIP token ids.

    vocab_size 49408 is OpenAI's vocabulary exactly. A smaller one keeps the first `vocab_size - 514` merges
    of the same table, so any text still encodes, in more tokens. The start token is `vocab_size - 2`, the end
    token `vocab_size - 1`.
    Raises UserError if vocab_size is outside 514..49408.
    """

    def __init__(self, vocab_size: int = FULL_VOCAB_SIZE) -> None:
        smallest = 2 * _BYTES + _SPECIALS
        if not smallest <= vocab_size <= FULL_VOCAB_SIZE:
            raise UserError(f"vocab_size {vocab_size} is outside {smallest}..{FULL_VOCAB_SIZE}")
        self.vocab_size = vocab_size
        self.sot = vocab_size - 2
        self.eot = vocab_size - 1
        lines = _merge_lines()[: vocab_size - smallest]
        self._merges_sha256 = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
        self._lines, (self._byte_ids, self._merged, self._names) = lines, _ids(lines)
        # Reports repeat a few thousand words, so the merges of most words are done once.
        self._encode_word = functools.lru_cache(maxsize=1 << 16)(self._merge_word)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[int]]:
        return Tokenizer, (self.vocab_size,)

    def encode(self, text: str) -> list[int]:
        """Ids of the cleaned text, of any length, without start and end tokens."""
        return [token for word in _WORD.findall(clean(text)) for token in self._encode_word(word)]

    def __call__(self, texts: Sequence[str], context: int) -> Tokens:
        """Ids of the texts, each framed by start and end token and padded with zeros to `context` tokens.

        A text that does not fit loses its tail, never the end token, which is what the text tower pools.
        Raises TypeError for a lone string, ValueError for a context without room for one token of text.
        """
        if isinstance(texts, str):
            raise TypeError("expected a sequence of texts, not one string")
        return self.frame([self.encode(text) for text in texts], context)

    def frame(self, encoded: Sequence[Sequence[int] | np.ndarray], context: int) -> Tokens:
        """The second half of a call: ids of `encode`, one sequence a text, to Tokens of width `context`."""
        if context < _SPECIALS + 1:
            raise ValueError(f"context {context} has no room for start token, text and end token")
        room = context - _SPECIALS
        ids_BxL = np.zeros((len(encoded), context), np.int32)
        eot_B = np.zeros(len(encoded), np.int32)
        truncated_B = np.zeros(len(encoded), bool)
        for row, text_ids in enumerate(encoded):
            kept = min(len(text_ids), room)
            ids_BxL[row, 0] = self.sot
            ids_BxL[row, 1 : 1 + kept] = text_ids[:kept]
            ids_BxL[row, 1 + kept] = self.eot
            eot_B[row] = 1 + kept
            truncated_B[row] = len(text_ids) > room
        return Tokens(ids_BxL, eot_B, truncated_B)

    def card(self) -> dict[str, object]:
        """What must be equal wherever weights trained with this tokenizer are used."""
        return {
            "name": "clip-bpe",
            "vocab_size": self.vocab_size,
            "merges_sha256": self._merges_sha256,
            "sot": self.sot,
            "eot": self.eot,
            "pad": 0,
            "clean": "ftfy+html2+whitespace+lower",
        }

    def vocabulary(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """(token -> id, special tokens included; merges by rank), as the files of transformers' CLIPTokenizer."""
        return {**self._names, "<|startoftext|>": self.sot, "<|endoftext|>": self.eot}, self._lines

    def _merge_word(self, word: str) -> tuple[int, ...]:
        tokens = [self._byte_ids[byte] for byte in word.encode("utf-8")]
        tokens[-1] += _BYTES  # the same byte, ending a word
        none = self.vocab_size
        # A merge's id grows with its rank, so the smallest id among the neighbours is the merge to do next.
        while len(tokens) > 1:
            found = [self._merged.get(pair, none) for pair in itertools.pairwise(tokens)]
            best = min(found)
            if best == none:
                break
            merged: list[int] = []
            place = 0
            while place < len(tokens):
                if place < len(found) and found[place] == best:
                    merged.append(best)
                    place += 2
                else:
                    merged.append(tokens[place])
                    place += 1
            tokens = merged
        return tuple(tokens)


@functools.cache
def _merge_lines() -> tuple[str, ...]:
    packed = resources.files(__package__).joinpath("bpe_merges.txt.gz").read_bytes()
    return tuple(gzip.decompress(packed).decode("utf-8").splitlines())


def _ids(lines: Sequence[str]) -> tuple[list[int], dict[tuple[int, int], int], dict[str, int]]:
    """Ids by byte value, the id of each merge by the pair of ids it joins, and all ids by name."""
    # The table writes each byte as a visible character: Latin-1's visible ones as themselves, the others from
    # U+0100 up. OpenAI numbers the visible bytes first.
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(_BYTES) if byte not in visible]
    names = [*map(chr, visible), *(chr(_BYTES + place) for place in range(len(hidden)))]
    byte_ids = [0] * _BYTES
    for token, byte in enumerate([*visible, *hidden]):
        byte_ids[byte] = token
    by_name = {name: token for token, name in enumerate([*names, *(f"{name}</w>" for name in names)])}
    merged = {}
    for token, line in enumerate(lines, start=len(by_name)):
        left, right = line.split(" ")
        merged[by_name[left], by_name[right]] = token
        by_name[left + right] = token
    return byte_ids, merged, by_name
