"""`preference=styles`: the style of a text, and the game that styles play."""

import pytest
import torch

from alignrun.errors import InputError
from alignrun.games import CYC
from alignrun.preferences.base import build_preference
from alignrun.preferences.styles import Style, Styles, StylesConfig, check

TEXTS = {
    # VADER 0, 2 words, LIX 2: z = (−0.08, 2.88, 1.44) by the measured constants
    "brief": "Rain again.",
    # 0.953, 23, 23: z = (2.62, −5.98, 0.21)
    "sentiment": "I love this lovely happy day and it is a joy to be out with you and all of us in the sun.",
    # 0, 11, 2.75: z = (−0.08, −0.92, 1.39)
    "easy": "It is so. We go on. He is in. I am up.",
}


def test_the_style_is_the_largest_standardised_measure() -> None:
    judge = build_preference(StylesConfig())
    assert isinstance(judge, Styles)
    found = judge.styles(["x"] * 3, [TEXTS["sentiment"], TEXTS["brief"], TEXTS["easy"]])
    assert [judge.names[style] for style in found] == ["sentiment", "brevity", "readability"]


def test_styles_play_the_game() -> None:
    """Sentiment beats brevity with 0.9, brevity readability with 0.8, readability sentiment with 0.7; equals tie."""
    judge = build_preference(StylesConfig())
    texts = [TEXTS["sentiment"], TEXTS["brief"], TEXTS["easy"]]
    ours, theirs = [one for one in texts for _ in texts], texts * 3
    played = judge(["x"] * 9, ours, theirs).view(3, 3)
    torch.testing.assert_close(played, CYC.preferences.float())
    torch.testing.assert_close(played + played.T, torch.ones(3, 3))


def test_the_shares_of_our_completions_are_metrics() -> None:
    judge = build_preference(StylesConfig())
    judge(["x"] * 4, [TEXTS["sentiment"]] * 3 + [TEXTS["easy"]], [TEXTS["brief"]] * 4)
    assert judge.drain() == {"style/sentiment": 0.75, "style/brevity": 0.0, "style/readability": 0.25}
    assert judge.drain() == {}


@pytest.mark.parametrize(
    ("styles", "message"),
    [
        ({"brevty": {"centre": 0, "scale": 1}}, "no measure brevty"),
        ({"brevity": {"centre": 0}}, "must be {centre: number, scale: number}"),
        ({"brevity": {"centre": 0, "scale": 0}}, "preference.styles.brevity.scale must be positive"),
        ({"brevity": {"centre": True, "scale": 1}}, "must be {centre: number, scale: number}"),
        ({"brevity": {"centre": float("nan"), "scale": 1}}, "must be {centre: number, scale: number}"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(styles: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StylesConfig(styles=styles)


def test_every_action_needs_a_measure() -> None:
    with pytest.raises(InputError, match="one measure for each of the 3 actions of cyc"):
        check(StylesConfig(styles={"brevity": {"centre": 0, "scale": 1}}))


def test_a_stored_configuration_is_read_again() -> None:
    styles = {name: Style(0.0, 1.0) for name in ("sentiment", "relevance", "diversity")}
    assert StylesConfig(styles=styles).styles == styles


def test_null_leaves_a_style_out() -> None:
    measured = StylesConfig().styles
    changed = StylesConfig(styles=measured | {"brevity": None, "relevance": {"centre": 0.1, "scale": 0.2}})
    assert list(changed.styles) == ["sentiment", "readability", "relevance"]
    check(changed)
