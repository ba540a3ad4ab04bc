"""VADER's compound score (Hutto and Gilbert, ICWSM 2014) in linear rather than quadratic time.

The library copies the whole text for each word of its lexicon, and searches it again for each word after a "but".
The rules and their results are the library's own.
"""

from collections import defaultdict
from functools import cache
from heapq import heappop, heappush

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

BEFORE, AFTER = 3, 2
"""The number of words before and after a word that its rules read."""


class Analyzer(SentimentIntensityAnalyzer):  # type: ignore[misc]
    """The library's analyzer, with each rule given only the words that it reads."""

    @staticmethod
    def _negation_check(valence: float, words: list[str], start_i: int, i: int) -> float:
        first = max(0, i - BEFORE)
        checked: float = SentimentIntensityAnalyzer._negation_check(valence, words[first : i + 1], start_i, i - first)
        return checked

    @staticmethod
    def _special_idioms_check(valence: float, words: list[str], i: int) -> float:
        # The library checks from the fourth word on.
        near = words[i - BEFORE : i + AFTER + 1]
        checked: float = SentimentIntensityAnalyzer._special_idioms_check(valence, near, BEFORE)
        return checked

    @staticmethod
    def _but_check(words: list[str], sentiments: list[float]) -> list[float]:
        """For each index in turn, the first index with an equal value is halved before the first "but", else × 1.5."""
        turn = next((place for place, word in enumerate(words) if word.lower() == "but"), None)
        if turn is None:
            return sentiments
        places: dict[float, list[int]] = defaultdict(list)  # heaps, since their places are entered in order
        for place, value in enumerate(sentiments):
            places[value].append(place)
        for place in range(len(sentiments)):
            value = sentiments[place]
            first = places[value][0]
            if first != turn:
                heappop(places[value])
                sentiments[first] = value * (0.5 if first < turn else 1.5)
                heappush(places[sentiments[first]], first)
        return sentiments


@cache
def _analyzer() -> Analyzer:
    return Analyzer()


def compound(_prompt: str, completion: str) -> float:
    """The compound score in [−1, 1] of a completion; 0 for an empty one."""
    score: float = _analyzer().polarity_scores(completion)["compound"]
    return score
