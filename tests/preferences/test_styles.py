"""`preference=styles`: the style of a text, and the game that styles play."""

import pytest
import torch

from alignrun.errors import InputError
from alignrun.games import CYC
from alignrun.preferences.base import build_preference
from alignrun.preferences.styles import Style, Styles, StylesConfig, check

TEXTS = {
    # VADER 0.902, 5 words, 4.8 letters a word: z = (2.04, 3.40, 0.04) by the measured constants
    "brief": "Great, wonderful fun with you.",
    # 0.953, 23, 2.87: z = (2.17, −1.28, −2.66)
    "sentiment": "I love this lovely happy day and it is a joy to be out with you and all of us in the sun.",
    # 0, 19, 10.47: z = (−0.22, −0.24, 7.98)
    "formal": (
        "Administrative documentation requires considerable organisational preparation before departmental committees "
        "examine subsequent procedural recommendations concerning internal reporting arrangements within institutions."
    ),
}


def test_the_style_is_the_largest_standardised_measure() -> None:
    judge = build_preference(StylesConfig())
    assert isinstance(judge, Styles)
    found = judge.styles(["x"] * 3, [TEXTS["sentiment"], TEXTS["brief"], TEXTS["formal"]])
    assert [judge.names[style] for style in found] == ["sentiment", "brevity", "formality"]


def test_styles_play_the_game() -> None:
    """Sentiment beats brevity with 0.9, brevity formality with 0.8, formality sentiment with 0.7; equals tie."""
    judge = build_preference(StylesConfig())
    texts = [TEXTS["sentiment"], TEXTS["brief"], TEXTS["formal"]]
    ours, theirs = [one for one in texts for _ in texts], texts * 3
    played = judge(["x"] * 9, ours, theirs).view(3, 3)
    torch.testing.assert_close(played, CYC.preferences.float())
    torch.testing.assert_close(played + played.T, torch.ones(3, 3))


def test_the_shares_of_our_completions_are_metrics() -> None:
    judge = build_preference(StylesConfig())
    judge(["x"] * 4, [TEXTS["sentiment"]] * 3 + [TEXTS["formal"]], [TEXTS["brief"]] * 4)
    assert judge.drain() == {"style/sentiment": 0.75, "style/brevity": 0.0, "style/formality": 0.25}
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
