"""The policy and the other roles on a rollout server: their adapters are loaded there, and unloaded once outdated."""

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from alignrun.config import GenerationConfig
from alignrun.errors import RunError, one_line
from alignrun.generation.decode import Sampling
from alignrun.generation.server.protocol import Ask, Drawn
from alignrun.generation.server.rollout_server import RolloutServer
from alignrun.models.policy import Policy
from alignrun.types import Completions, PromptBatch, Role

FROZEN = (Role.reference, Role.opponent)
"""Roles that never change, so that their adapters are loaded once."""


class ServedPolicy:
    """Sample a policy's roles from a server with the same base. Raises like `RolloutServer.connect`."""

    def __init__(self, policy: Policy, config: GenerationConfig) -> None:
        self._policy = policy
        self._server = RolloutServer.connect(config)
        self._versions: dict[Role, int] = {}
        try:
            # Delete the files and unload the adapters together with this object, even if the run ends in an error.
            weakref.finalize(self, self._server.close)
            self._written = tempfile.TemporaryDirectory(prefix="alignrun-adapters-", dir=config.server_adapter_folder)
            Path(self._written.name).chmod(0o755)  # the server may run as another user
        except OSError as error:
            raise RunError(
                f"generation.server_adapter_folder={config.server_adapter_folder} cannot be written "
                f"({one_line(error, 120)}): name a folder that this machine can write and the server can read"
            ) from None

    def load(self, roles: Iterable[Role]) -> None:
        """Load the current adapters of these roles. Raises RunError if the server cannot."""
        for role in roles:
            version = self._versions.get(role, 0)
            if self._policy.is_base(role) or (role in FROZEN and version):
                continue
            # Under a new name each time, since weights may also revert to earlier values.
            self._versions[role] = version + 1
            self._policy.save_factors(self._path(role, version + 1), role)
            self._server.load_adapter(self._path(role, version + 1), version + 1, role.value)
            shutil.rmtree(self._path(role, version), ignore_errors=True)

    def sample(
        self, prompts: PromptBatch, role: Role, temperatures: Sequence[float], sampling: Sampling, seed: int
    ) -> list[Completions]:
        """One stream of completions [B, T] per temperature, from what was loaded last as a role.

        Raises:
            RunError: the server fails, or returns tokens outside the policy's vocabulary.
        """
        streams: list[Completions] = []
        for group, temperature in enumerate(dict.fromkeys(temperatures)):
            asked = replace(sampling, temperature=temperature)
            samples = temperatures.count(temperature)
            streams += self._server.sample(prompts, samples, asked, seed * 1009 + group, self._slot(role))
        self._check_vocabulary(max(int(stream.tokens[stream.mask].max()) for stream in streams))
        # In the order of the temperatures, equal ones in the order in which they were drawn.
        order = [place for one in dict.fromkeys(temperatures) for place, t in enumerate(temperatures) if t == one]
        return [stream for _, stream in sorted(zip(order, streams, strict=True), key=lambda pair: pair[0])]

    def draw(self, asks: Sequence[Ask], role: Role, sampling: Sampling) -> list[Drawn]:
        """One completion of each text, from what was loaded last as a role. Raises RunError like `sample`."""
        drawn = [one for (one,) in self._server.draw(asks, sampling, self._slot(role))]
        self._check_vocabulary(max(token for one in drawn for token in one.tokens))
        return drawn

    def _slot(self, role: Role) -> str | None:
        """Where the server holds the role's adapter; None for the bare base."""
        return None if self._policy.is_base(role) else role.value

    def _path(self, role: Role, version: int) -> Path:
        return Path(self._written.name) / f"{role.value}-{version}"

    def _check_vocabulary(self, largest: int) -> None:
        known = self._policy.model.get_input_embeddings().num_embeddings
        if largest >= known:
            raise RunError(
                f"generation.engine=server: the server drew token {largest}, and the policy has {known}: serve the "
                "base that is trained, then `alignrun resume RUN`"
            )
