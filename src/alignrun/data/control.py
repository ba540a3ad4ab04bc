"""Encodes texts such that the name of a control token spelled out in a text stays text.

A template and the texts that it wraps form one string, in which the template's `<|im_end|>` is a token and a user's
`<|im_end|>` must not be one. A `Guard` breaks the names in the texts before the template is filled in; the encoder then
reads broken names letter by letter and whole ones as tokens.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PRIVATE = range(0xE000, 0xF900)
"""Private-use characters of Unicode, one of which is inserted to break a name."""
_STAND_INS = 0x10F000
"""Private-use characters too: the k-th stands for the k-th special token while names are read as text."""
_ANCHORS = ("\n", "a", ".")
"""Texts to put before another one, so that it is encoded as a continuation and not as the start of a text."""


_THOUGHTS = re.compile(r"</?(think|thinking|thought|reasoning)>")
"""Tags that are part of an answer's text, even if a vocabulary lists them as special tokens."""


class UnreadableTextError(Exception):
    """A text that this tokenizer cannot encode; the caller knows its row."""


class Guard:
    """Distinguishes the names of control tokens from the tokens, for texts that go into one string."""

    def __init__(self, names: re.Pattern[str] | None, texts: Iterable[str]) -> None:
        held = set().union(*texts)
        self._names = names
        self.mark = next(chr(code) for code in _PRIVATE if chr(code) not in held)

    def hide(self, value: Any) -> Any:
        """A text with a mark inside every name; in lists and mappings, all texts."""
        if isinstance(value, str):
            return value if self._names is None else self._names.sub(lambda found: found[0] + self.mark, value)
        if isinstance(value, Mapping):
            return {key: self.hide(part) for key, part in value.items()}
        return [self.hide(part) for part in value] if isinstance(value, Sequence) else value

    def show(self, text: str) -> str:
        """The original text."""
        return text.replace(self.mark, "")


class TextEncoder:
    """A tokenizer that reads only a template's tokens as control tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str = "", rows: int | None = None) -> None:
        """Special tokens in `written`, all that a chat template writes by itself, are control tokens.

        `rows` is the number of the model's embeddings, if known.
        """
        self.tokenizer = tokenizer
        self._rows = rows
        self._special = {
            token.content: (int(index), token)
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        named = {getattr(tokenizer, role, None) for role in _ROLES}
        self._control = {
            name for name in self._special if name in named or (name in written and not _THOUGHTS.fullmatch(name))
        }

    def guard(self, texts: Iterable[str]) -> Guard:
        """A guard for texts that go into one string."""
        return Guard(self._names, texts)

    def encode(self, text: str, guard: Guard, *, opens: bool = False) -> list[int]:
        """The token ids of a text whose parts `guard` has hidden; with `opens` after the tokens that open any text.

        Raises UnreadableTextError if a name cannot be spelled out, and for a token that the model does not have.
        """
        if guard.mark in text:
            ids = self._spelled(text, guard, opens)
        else:
            ids = list(self.tokenizer(text, add_special_tokens=opens)["input_ids"])
        # Some tokenizers end every text with EOS, after which a model generates nothing.
        return self.checked(ids[:-1] if opens and ids and ids[-1] == self.tokenizer.eos_token_id else ids)

    def checked(self, ids: list[int]) -> list[int]:
        """The token ids, unchanged. Raises UnreadableTextError for one without an embedding in the model."""
        if self._rows is not None and ids and (beyond := max(ids)) >= self._rows:
            name = self.tokenizer.convert_ids_to_tokens(beyond)
            raise UnreadableTextError(
                f"the token {name} has id {beyond}, and the model's embedding has {self._rows} rows; take it out of "
                "the text, or save the model with resize_token_embeddings(len(tokenizer))"
            )
        return ids

    def follow(self, before: str, ids: Sequence[int], after: str, guard: Guard, *, opens: bool = False) -> list[int]:
        """The token ids of `after` following `before`, whose ids are `ids`.

        The difference of two encodings. If the tokenizer merges characters across the border, which a model that
        continues `before` cannot do, `after` is encoded as the continuation of another text.
        """
        for place, lead in enumerate((before, *_ANCHORS)):
            alone = self.encode(lead, guard) if place else list(ids)
            whole = self.encode(lead + after, guard, opens=opens and not place)
            rest = whole[len(alone) :]
            # An unknown token may have swallowed the start of `after`.
            apart = alone and alone[-1] != self.tokenizer.unk_token_id
            if apart and whole[: len(alone)] == alone and (rest or not after.strip()):
                return rest
        return self.encode(after, guard)

    @cached_property
    def _names(self) -> re.Pattern[str] | None:
        names = _any_of(name for name in self._control if len(name) > 1)
        # The first letter of every name, including overlapping ones.
        return re.compile(f"(?s)(?={names}).") if names else None

    @cached_property
    def _speller(self) -> tuple[Any, dict[int, int], dict[str, str]]:
        """A tokenizer without special tokens, and the replacement of each, by id and by name."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UnreadableTextError("this tokenizer cannot read the name of a control token as text; remove it")
        backend = copy.deepcopy(backend)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        ids, letters = {}, {}
        for place, (name, (index, token)) in enumerate(self._special.items()):
            letters[name] = chr(_STAND_INS + place)
            options = {option: getattr(token, option) for option in ("lstrip", "rstrip", "normalized", "single_word")}
            backend.add_tokens([AddedToken(letters[name], special=False, **options)])
            ids[backend.token_to_id(letters[name])] = index
        return backend, ids, letters

    def _spelled(self, text: str, guard: Guard, opens: bool) -> list[int]:
        backend, ids, letters = self._speller
        if any(letter in text for letter in letters.values()):
            raise UnreadableTextError("the text spells a control token and has a private-use character; remove one")
        tokens = re.sub(_any_of(letters), lambda found: letters[found[0]], text)
        encoding = backend.encode(guard.show(tokens), add_special_tokens=opens)
        control = {self._special[name][0]: name for name in self._control}
        found: list[int] = []
        for index, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
            # Some vocabularies also contain control tokens as ordinary pieces.
            found += self._letters(control[index]) if index in control and not added else [ids.get(index, index)]
        return found

    def _letters(self, name: str) -> list[int]:
        unknown = {None, self.tokenizer.unk_token_id}
        spelled = [self.tokenizer.convert_tokens_to_ids(letter) for letter in name]
        if unknown.intersection(spelled):
            raise UnreadableTextError(f"this tokenizer cannot read {name} as text; remove it")
        return spelled


def _any_of(names: Iterable[str]) -> str:
    """A pattern for any of the names, the longest first, as tokenizers match them."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
