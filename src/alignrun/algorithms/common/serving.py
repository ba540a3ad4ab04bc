"""The policy on a rollout server: its adapter is written, loaded there, and forgotten when it has changed."""

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from alignrun.config import GenerationConfig
from alignrun.errors import RunError, one_line
from alignrun.generation.decode import Sampling
from alignrun.generation.server.rollout_server import RolloutServer
from alignrun.models.policy import Policy
from alignrun.types import Completions, PromptBatch


class ServedPolicy:
    """Draws the policy's completions from a server that holds the same base. Raises as `RolloutServer.connect`."""

    def __init__(self, policy: Policy, config: GenerationConfig) -> None:
        self._policy = policy
        self._server = RolloutServer.connect(config)
        self._version = 0
        try:
            # What was written, and what the server holds of it, go when this object does, also where a run ends in an
            # error.
            weakref.finalize(self, self._server.close)
            self._written = tempfile.TemporaryDirectory(prefix="alignrun-adapters-", dir=config.server_adapter_folder)
            Path(self._written.name).chmod(0o755)  # the server may run as somebody else
        except OSError as error:
            raise RunError(
                f"generation.server_adapter_folder={config.server_adapter_folder} cannot be written "
                f"({one_line(error, 120)}): name a folder that this machine can write and the server can read"
            ) from None

    def sample(
        self, prompts: PromptBatch, temperatures: Sequence[float], sampling: Sampling, seed: int
    ) -> list[Completions]:
        """One stream of completions [B, T] for each temperature, from the policy as it is now.

        Raises:
            RunError: the server fails, or draws tokens that the policy does not have.
        """
        self._load()
        streams = []
        for group, (temperature, members) in enumerate(groupby(temperatures)):
            asked = replace(sampling, temperature=temperature)
            streams += self._server.sample(prompts, len(list(members)), asked, seed * 1009 + group)
        known = self._policy.model.get_input_embeddings().num_embeddings
        largest = max(int(stream.tokens[stream.mask].max()) for stream in streams)
        if largest >= known:
            raise RunError(
                f"generation.engine=server: the server drew token {largest}, and the policy has {known}: serve the "
                "base that is trained, then `alignrun resume RUN`"
            )
        return streams

    def _load(self) -> None:
        """The adapter as it is now; a new name for each, since weights may also have gone back to what they were."""
        before, self._version = self._path, self._version + 1
        self._policy.save_adapter(self._path)
        self._server.load_adapter(self._path, self._version)
        shutil.rmtree(before, ignore_errors=True)

    @property
    def _path(self) -> Path:
        return Path(self._written.name) / f"adapter-{self._version}"
