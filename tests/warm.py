"""What the fork server imports: every process forked from it has composed, and holds what a run imports late."""

import quick

import alignrun.launch.build
import alignrun.launch.train
import alignrun.reports.run
import alignrun.training.trainer  # noqa: F401
from alignrun.launch.compose import compose

quick.install()
compose(["experiment=smoke"])
