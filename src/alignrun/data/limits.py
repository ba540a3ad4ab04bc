"""How long a prompt with its completions may be, and what becomes of one that is longer."""

from dataclasses import dataclass

from alignrun.config import TooLong
from alignrun.errors import InputError
from alignrun.types import Example


@dataclass(frozen=True, slots=True)
class Limits:
    """Lengths in tokens."""

    prompt: int
    completion: int | None
    """Nothing but the context where it is None."""
    context: int
    """Prompt and completion together."""
    too_long: TooLong

    def admit(self, example: Example, prompt: int, completion: int, together: int | None = None) -> bool:
        """Whether an example of these lengths is kept. Raises InputError if it is too long, unless those are skipped.

        Of several completions, `completion` is the longest. `together` is what the model reads, where a template makes
        that more than the sum.
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
            mend = f"data.too_long=skip or another {key}" if key else "data.too_long=skip"
            raise InputError(f"data: {example.origin}: {what} {tokens} tokens, and the limit is {limit}; set {mend}")
        return True

    def refuse_all(self, count: int, what: str) -> InputError:
        """What to raise when nothing is left."""
        completion = "" if self.completion is None else f", {self.completion} of a completion"
        return InputError(
            f"data: none of the {count} {what} fits into the limits (tokens: {self.prompt} of a prompt{completion}, "
            f"{self.context} together); set data.max_prompt_tokens and data.max_completion_tokens, or shorten the rows"
        )
