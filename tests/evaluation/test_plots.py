import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from alignrun.evaluation.calibration import Reliability, reliability
from alignrun.evaluation.intervals import wilson_interval
from alignrun.evaluation.plots import as_svg, reliability_plot

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def result() -> Reliability:
    rng = np.random.default_rng(0)
    true = rng.random(300)
    return reliability(true, np.where(rng.random(300) < true, 1.0, 0.0))


def test_the_plot_shows_the_bins(result: Reliability) -> None:
    figure = reliability_plot(result, "held-out pairs")
    top, below = figure.axes
    diagonal, model = top.lines[0], top.containers[0]
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(model.lines[0].get_xydata(), [(b.predicted, b.label) for b in result.bins])
    whiskers = [segment[:, 1] for segment in model.lines[2][0].get_segments()]
    np.testing.assert_allclose(whiskers, [wilson_interval(b.label, b.count, 0.95) for b in result.bins])
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in below.patches]
    np.testing.assert_allclose(bars, [(b.low, b.high - b.low, b.count) for b in result.bins])
    assert figure.get_suptitle() == "held-out pairs"
    assert top.get_title() == f"calibration error {result.ece:.3f}, 300 pairs in both orders"
    for label in (top.get_ylabel(), below.get_xlabel(), below.get_ylabel()):
        assert label


def test_the_text_is_readable_and_the_same_each_time(result: Reliability) -> None:
    title = "reward_model at $5 or $6 a pair & <half> unseen"
    svg = as_svg(reliability_plot(result, title))
    assert svg == as_svg(reliability_plot(result, title))
    tree = ElementTree.fromstring(svg)
    texts = ["".join(node.itertext()).strip() for node in tree.iter(f"{SVG}text")]
    assert title in texts
    assert "predicted probability that the first completion is preferred" in texts
    assert "perfectly calibrated" in texts
    assert not list(tree.iter(f"{SVG}image"))


@pytest.mark.parametrize("predicted", [[0.5], [1.0, 0.0], [0.9999]])
def test_one_bin_or_a_share_of_one_can_be_drawn(predicted: list[float]) -> None:
    assert as_svg(reliability_plot(reliability(predicted, [1.0] * len(predicted)), "few"))


def test_a_long_title_is_broken(result: Reliability) -> None:
    title = reliability_plot(result, "long " * 30).get_suptitle()
    assert max(map(len, title.splitlines())) <= 54
    assert title.split() == ["long"] * 30


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never() -> None:
    code = """
import sys
from alignrun.evaluation.calibration import reliability
from alignrun.evaluation.plots import as_svg, reliability_plot
assert "matplotlib" not in sys.modules
as_svg(reliability_plot(reliability([0.7], [1.0]), "x"))
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
