"""Words from memory are what the library makes of a text, which is divided only where it may be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from coordinator.data import word_encoder
from coordinator.data.tokenizer import EOS_TOKEN, load
from coordinator.data.word_encoder import WordEncoder, can_be_cut

DTYPE = np.dtype("<u2")


def _trained(size: int = 400) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    text = "it's the theme they'll hear\n\n\n    def there(self):  # 12345\n\u00e9t\u00e9 \u65e5\n"
    tokenizer.train_from_iterator([text] * 40, trainer)
    return load(tokenizer.to_str().encode())


TOKENIZER = _trained()
ENCODER = WordEncoder(TOKENIZER, DTYPE)

# What the expression tells apart, in ASCII and beyond: letters, numbers, spaces, marks, neither.
_CHARACTERS = (
    "ast'lre \n\r\t\x0b\x0c\x1c\x1f\x00\x7f!~09_"
    "\u00e9\u00a0\u2028\u0085\u3000\u0660\u00b2\u0301\u65e5\U0001f600"
)
TEXTS = st.one_of(
    st.text(_CHARACTERS, max_size=60),
    st.text(st.characters(max_codepoint=127), max_size=60),
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["it's", " 've", "'ll", "\n", "\n\n", "  ", " \n", "x", "\u00e9", EOS_TOKEN]
        )
    ).map("".join),
)


def _by_the_library(text: str) -> bytes:
    return np.array(TOKENIZER.encode(text, add_special_tokens=False).ids, DTYPE).tobytes()


@given(text=TEXTS)
@settings(max_examples=600)
def test_the_same_tokens(text: str) -> None:
    assert ENCODER.encode(text) == _by_the_library(text)
    assert "".join(word_encoder._pieces(text)) == text


@given(lines=st.lists(TEXTS, max_size=12))
@settings(max_examples=200)
def test_the_same_tokens_of_lines(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert ENCODER.encode(text) == _by_the_library(text)


def test_every_pair_of_ascii_characters() -> None:
    characters = [chr(code) for code in range(128)]
    text = "".join(
        f"{first}{second}{first}\n{second}" for first in characters for second in characters
    )
    assert ENCODER.encode(text) == _by_the_library(text)


def test_only_lines_beyond_ascii_go_to_the_library() -> None:
    texts = {
        "plain\nlines": ["plain\nlines"],
        "a\n\u00e9 b\nc\nd": ["a", "\n\u00e9 b", "\nc\nd"],
        "\u00e9 \na\nb\n\u00e9": ["\u00e9 \na", "\nb", "\n\u00e9"],  # spaces may go on
        "a\n\u00e9b\n\u00e9c\nd": ["a", "\n\u00e9b\n\u00e9c", "\nd"],
    }
    for text, pieces in texts.items():
        assert list(word_encoder._pieces(text)) == pieces


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_encoder, "_MOST_WORDS", 3)
    encoder = WordEncoder(TOKENIZER, DTYPE)
    text = " ".join(f"{chr(97 + number % 26) * (number % 40 + 1)}" for number in range(200))
    assert encoder.encode(text) == _by_the_library(text)
    assert len(encoder._words) == 3
    assert max(map(len, encoder._words)) <= word_encoder._LONGEST_WORD


def test_other_tokenizers_are_left_to_the_library() -> None:
    assert can_be_cut(TOKENIZER)

    def changed(**parts: object) -> Tokenizer:
        tokenizer = load(TOKENIZER.to_str().encode())
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        return tokenizer

    assert not can_be_cut(changed(normalizer=normalizers.NFC()))
    assert not can_be_cut(changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert not can_be_cut(
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    )
    assert not can_be_cut(changed(pre_tokenizer=pre_tokenizers.Whitespace()))
    without = load(TOKENIZER.to_str().encode())
    without.add_tokens([AddedToken("the")])
    assert not can_be_cut(without)
    empty = Tokenizer(models.BPE())
    assert not can_be_cut(empty)
    assert not can_be_cut(Tokenizer(models.BPE(dropout=0.1)))
