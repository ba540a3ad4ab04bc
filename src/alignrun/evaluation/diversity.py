"""How much a policy repeats itself."""

from collections.abc import Iterable, Sequence
from itertools import islice


def distinct(texts: Iterable[str], n: int) -> float:
    """distinct-n: different word n-grams divided by all n-grams (arXiv 1510.03055); 0 if there are none.

    It falls as the amount of text grows, so compare only policies that were sampled equally often.
    """
    grams = [gram for text in texts for gram in ngrams(text.casefold().split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ngrams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """Every run of n words."""
    return zip(*(islice(words, start, None) for start in range(n)), strict=False)
