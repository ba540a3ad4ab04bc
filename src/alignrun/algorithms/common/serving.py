"""The policy on a rollout server: write its adapter, load it there, and unload it once it is outdated."""

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
    """Sample the policy from a server with the same base. Raises like `RolloutServer.connect`."""

    def __init__(self, policy: Policy, config: GenerationConfig) -> None:
        self._policy = policy
        self._server = RolloutServer.connect(config)
        self._version = 0
        try:
            # Delete the files and unload the adapter together with this object, even if the run ends in an error.
            weakref.finalize(self, self._server.close)
            self._written = tempfile.TemporaryDirectory(prefix="alignrun-adapters-", dir=config.server_adapter_folder)
            Path(self._written.name).chmod(0o755)  # the server may run as another user
        except OSError as error:
            raise RunError(
                f"generation.server_adapter_folder={config.server_adapter_folder} cannot be written "
                f"({one_line(error, 120)}): name a folder that this machine can write and the server can read"
            ) from None

    def sample(
        self, prompts: PromptBatch, temperatures: Sequence[float], sampling: Sampling, seed: int
    ) -> list[Completions]:
        """One stream of completions [B, T] per temperature, from the current policy.

        Raises:
            RunError: the server fails, or returns tokens outside the policy's vocabulary.
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
        """Load the current adapter under a new name, since weights may also revert to earlier values."""
        before, self._version = self._path, self._version + 1
        self._policy.save_adapter(self._path)
        self._server.load_adapter(self._path, self._version)
        shutil.rmtree(before, ignore_errors=True)

    @property
    def _path(self) -> Path:
        return Path(self._written.name) / f"adapter-{self._version}"
