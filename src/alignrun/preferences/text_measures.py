"""Published measures of a text, each a scalar s(x, y): what `preference=measure` may name.

They are exact formulas over words and sentences, without a network, a model or a syllable dictionary (textstat fetches
one from the internet for Flesch's measures), and finite for every text. A word is a run of letters, with the
apostrophes and hyphens inside it; numbers and signs do not count. A sentence ends at . ! ? : … before a space (closing
quotes and brackets may stand between), at 。！？, or with its line.

Adding one: a function of prompt and completion with its source in the docstring, under `@text_measure(spread=...)`.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

Score = Callable[[str, str], float]


@dataclass(frozen=True, slots=True)
class TextMeasure:
    """A measure and the size of its differences."""

    score: Score
    """s(x, y) of a prompt and a completion: larger is better."""
    spread: float
    """A typical difference, in the units of the score: the median |s(x, y) − s(x, y')| between two completions."""


TEXT_MEASURES: dict[str, TextMeasure] = {}


def text_measure(*, spread: float) -> Callable[[Score], Score]:
    """Register a measure under the name of its function.

    The spreads below are rounded medians over the pairs of 8 completions of 48 tokens that SmolLM2-135M-Instruct gave,
    at temperature 1, to each of 24 of the bundled training prompts.
    """

    def register(score: Score) -> Score:
        TEXT_MEASURES[score.__name__] = TextMeasure(score, spread)
        return score

    return register


_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?:…]+[\"'”’)\]]*\s|[。！？]|\n")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _letters(word: str) -> int:
    return sum(map(str.isalpha, word))


@text_measure(spread=0.4)
def sentiment(prompt: str, completion: str) -> float:
    """VADER's compound score in [−1, 1] (Hutto and Gilbert, ICWSM 2014), as `preference=sentiment` has it."""
    from alignrun.preferences.vader import compound  # configurations need only the names here

    return compound(prompt, completion)


@text_measure(spread=11.0)
def readability(_prompt: str, completion: str) -> float:
    """−LIX: words per sentence + 100 · the share of words of more than six letters (Björnsson, Läsbarhet, 1968).

    Easy texts have a LIX below 30, hard ones above 50. A text without words gets −100.
    """
    words = _words(completion)
    if not words:
        return -100.0
    sentences = sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(completion))
    long_words = sum(_letters(word) > 6 for word in words)
    return -(len(words) / sentences + 100 * long_words / len(words))


@text_measure(spread=0.5)
def diversity(_prompt: str, completion: str) -> float:
    """Guiraud's R = V/√N, of N words V different (Guiraud, Les caractères statistiques du vocabulaire, 1954).

    Unlike V/N it does not give a one-word answer the highest score, and it needs no minimum length, as MTLD and HD-D
    do.
    """
    words = _words(completion)
    return len(set(words)) / math.sqrt(max(1, len(words)))


@text_measure(spread=0.12)
def relevance(prompt: str, completion: str) -> float:
    """ROUGE-1 recall (Lin, ACL 2004 workshop): the share of the prompt's words that the completion takes up."""
    asked = Counter(_words(prompt))
    return (asked & Counter(_words(completion))).total() / max(1, asked.total())


@text_measure(spread=0.5)
def formality(_prompt: str, completion: str) -> float:
    """Letters per word: the long words of informational prose (Biber, Variation across Speech and Writing, 1988)."""
    words = _words(completion)
    return sum(map(_letters, words)) / max(1, len(words))


_CLOSED_CLASSES = """
    a an the this that these those each every either neither some any no all both half such what which whose
    i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself
    we us our ours ourselves they them their theirs themselves who whom one
    about above across after against along among around as at before behind below beneath beside between beyond by
    despite down during except for from in inside into like near of off on onto out outside over past since than
    through throughout till to toward towards under until up upon via with within without
    and but or nor so yet if because although though unless while whereas whether when where why how
    am is are was were be been being have has had having do does did doing will would shall should can could may
    might must ought cannot not there here then too very just also only
"""
_FUNCTION_WORDS = frozenset(_CLOSED_CLASSES.split())


def _is_function_word(word: str) -> bool:
    """A contraction counts by its first part (it's, you'll), and an auxiliary with n't counts too."""
    stem = re.split("['’]", word)[0]
    return stem in _FUNCTION_WORDS or word.endswith(("n't", "n’t"))


@text_measure(spread=0.08)
def spokenness(_prompt: str, completion: str) -> float:
    """1 − lexical density: the share of English function words, over 60% in speech and under in writing (Ure, 1971)."""
    words = _words(completion)
    return sum(map(_is_function_word, words)) / max(1, len(words))


@text_measure(spread=6.0)
def brevity(_prompt: str, completion: str) -> float:
    """−the number of words: the counterweight to judges who favour length (arXiv 2404.04475). Silence is briefest."""
    return -float(len(_words(completion)))
