"""Handles rows that cannot be encoded and rows that are too long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from alignrun.config import BadRows, TooLong
from alignrun.data.skips import Skips
from alignrun.data.values import BadRowError
from alignrun.errors import InputError
from alignrun.security.text import counted
from alignrun.types import Example

Encoded = TypeVar("Encoded")


def encode_rows(
    examples: Sequence[Example], encode: Callable[[Example], Encoded], bad_rows: BadRows
) -> tuple[list[tuple[Example, Encoded]], Skips]:
    """Every example with its encoding, and those left out because the tokenizer cannot read them.

    Raises InputError for such an example, or, if those are skipped, if none is left.
    """
    encoded: list[tuple[Example, Encoded]] = []
    bad, first = Skips(), ""
    for example in examples:
        try:
            encoded.append((example, encode(example)))
        except BadRowError as error:
            if bad_rows is BadRows.error:
                raise InputError(f"{error}; data.bad_rows=skip leaves such rows out") from error
            bad.add(str(error), example.origin)
            first = first or str(error).removeprefix("data: ")
    if not encoded:
        raise InputError(f"data: none of the {counted(len(bad), 'row')} can be read by the model; the first: {first}")
    return encoded, bad


@dataclass(frozen=True, slots=True)
class Limits:
    """Lengths in tokens."""

    prompt: int
    completion: int | None
    """None means no limit but the context."""
    context: int
    """Prompt and completion together."""
    too_long: TooLong

    def admit(self, example: Example, prompt: int, completion: int, together: int | None = None) -> bool:
        """Whether an example of these lengths is kept. Raises InputError if it is too long, unless those are skipped.

        Of several completions, `completion` is the longest. `together` is the number of tokens that the model reads, if
        a template makes it more than the sum.
        """
        for what, tokens, limit, key in (
            ("the prompt has", prompt, self.prompt, "data.max_prompt_tokens"),
            ("a completion has", completion, self.completion, "data.max_completion_tokens"),
            ("prompt and completion have", together or prompt + completion, self.context, None),
        ):
            if limit is None or tokens <= limit:
                continue
            if self.too_long is TooLong.skip:
                return False
            change = f"data.too_long=skip or another {key}" if key else "data.too_long=skip"
            raise InputError(f"data: {example.origin}: {what} {tokens} tokens, and the limit is {limit}; set {change}")
        return True

    def refuse_all(self, count: int, what: str) -> InputError:
        """The error to raise if no row is left."""
        completion = "" if self.completion is None else f", {self.completion} of a completion"
        return InputError(
            f"data: none of the {counted(count, what)} fits into the limits (tokens: {self.prompt} of a "
            f"prompt{completion}, {self.context} together); set data.max_prompt_tokens and "
            "data.max_completion_tokens, or shorten the rows"
        )
