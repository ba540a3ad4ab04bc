"""Shortcuts that every test process takes, and every process forked from one.

They are in place before the first fixture, and so hold for runs that a whole module or session shares, too.
"""

import gc
import os

import memo
import torch
from markupsafe import Markup

from alignrun.evaluation import bootstrap, intervals, standings
from alignrun.reports import figures

drawn = figures.inline
resamples = intervals.RESAMPLES
share_draws = standings.SHARE_DRAWS
fsync = os.fsync


def install() -> None:
    """Compose each choice of groups once, draw and resample little, and trust the disk; `auto` is float32."""
    memo.install()
    torch.cpu.get_capabilities = dict  # some CPUs multiply bfloat16, and numbers would differ from those of others
    blank_figures()
    few_resamples()
    os.fsync = lambda _: None  # no test pulls the plug, and waiting for the disk is half of the time of a tiny write
    gc.set_threshold(20_000, 20, 50)  # a collection walks all that torch and transformers have made at their import


def blank_figures() -> None:
    """Reports are written with blank figures, which saves a third of a tiny run; tests/reports draws them."""
    figures.inline = blank


def few_resamples() -> None:
    """Bootstrap intervals are rough; tests/evaluation makes them as users get them."""
    intervals.RESAMPLES = bootstrap.RESAMPLES = 200
    standings.SHARE_DRAWS = 50


def draw_figures() -> None:
    figures.inline = drawn


def all_resamples() -> None:
    intervals.RESAMPLES = bootstrap.RESAMPLES = resamples
    standings.SHARE_DRAWS = share_draws


def blank(draw: object, size: object, key: str, label: str) -> Markup:
    return Markup('<svg viewBox="0 0 1 1" role="img" aria-label="{}"/>').format(label)
