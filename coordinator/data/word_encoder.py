"""Text to token bytes, word by word from memory: what the library gives, several times as fast.

A byte-level tokenizer cuts text into words by one regular expression (GPT-2's) and encodes each of
them by itself. Most words were met before, so a look into a dictionary is all that they cost.

Invariants:

* The result is the library's for any text. Only ASCII is cut here: which characters beyond it are
  letters depends on the version of Unicode, so lines that hold any go to the library.
* Text is divided only before the end of a line that does not end in a space: words end there,
  whatever comes before and after.
* Memory is bounded: words beyond a number, and long ones, are encoded anew each time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

_S = r"\t-\r "  # what ASCII calls white space; Python's \s has four separators more
_WORD = re.compile(
    rf"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^{_S}A-Za-z0-9]+|[{_S}]+(?![^{_S}])|[{_S}]+"
)
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_LINE_END = re.compile(r"[!-~](?=\n)")

_MOST_WORDS = 200_000
_LONGEST_WORD = 32
"""Together some 40 MB in each process."""


class WordEncoder:
    """Of one tokenizer that :func:`can_be_cut`."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[np.integer]) -> None:
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._words = _Words(tokenizer, dtype)

    def encode(self, text: str) -> bytes:
        """Token ids of a text, little-endian."""
        if text.isascii():
            return self._from_memory(text)
        pieces = list(_pieces(text))
        others = [piece for piece in pieces if not piece.isascii()]
        encodings = self._tokenizer.encode_batch_fast(others, add_special_tokens=False)
        found = (np.array(encoding.ids, self._dtype).tobytes() for encoding in encodings)
        return b"".join(
            self._from_memory(piece) if piece.isascii() else next(found) for piece in pieces
        )

    def _from_memory(self, text: str) -> bytes:
        return b"".join(map(self._words.__getitem__, _WORD.findall(text)))


def can_be_cut(tokenizer: Tokenizer) -> bool:
    """Whether words are all that a tokenizer makes of a text, and are cut as here."""
    parts = json.loads(tokenizer.to_str())
    cut = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    found = parts["pre_tokenizer"] or {}
    return (
        parts["normalizer"] is None
        and all(found.get(name) == value for name, value in cut.items())
        and all(token["special"] for token in parts["added_tokens"])  # others are found in text
        and not parts["model"].get("dropout")
    )


class _Words(dict[str, bytes]):
    """Token bytes of words."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[np.integer]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._dtype = dtype

    def __missing__(self, word: str) -> bytes:
        ids = self._tokenizer.encode(word, add_special_tokens=False).ids
        data = np.array(ids, self._dtype).tobytes()
        if len(self) < _MOST_WORDS and len(word) <= _LONGEST_WORD:
            self[word] = data
        return data


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces: lines of ASCII, and as few others as can be, in turns."""
    done = start = 0  # what lies between them is not ASCII
    while found := _BEYOND_ASCII.search(text, done):
        begins = _last_line_end(text, done, found.start())
        if begins > done:
            if start < done:
                yield text[start:done]
            yield text[done:begins]
            start = begins
        end = _LINE_END.search(text, found.end())
        done = len(text) if end is None else end.end()
    if start < done:
        yield text[start:done]
    if done < len(text):
        yield text[done:]


def _last_line_end(text: str, least: int, before: int) -> int:
    """The last place before a position where words end for certain; else ``least``."""
    place = text.rfind("\n", least + 1, before)
    while place > least and not "!" <= text[place - 1] <= "~":
        place = text.rfind("\n", least + 1, place)
    return max(place, least)
