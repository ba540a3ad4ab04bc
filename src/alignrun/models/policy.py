"""One frozen base and its roles: the trained policy, the reference, and optionally an opponent.

Shape legend: B prompts, P prompt tokens, T completion tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignrun import distributed
from alignrun.config import AdapterConfig, AdapterKind, ModelConfig, ReferenceConfig, ReferenceKind
from alignrun.distributed.parts import local, to_main
from alignrun.errors import InputError, RunError
from alignrun.models import adapters
from alignrun.models.backbone import Backbone, weights_digest
from alignrun.models.cards import (
    UNTRAINED,
    AdapterCard,
    Training,
    adapter_folder,
    check_card,
    write_card,
    write_policy_readme,
)
from alignrun.models.decoding.cache import plain_attention
from alignrun.models.decoding.decoder import CachedDecoder, JoinedDecoder, check_replay
from alignrun.models.head import check_head, vocabulary_head
from alignrun.models.hidden import hidden_states, packed_hidden_states
from alignrun.models.saving import check_finite, merge, prompting_tokenizer, sampling_config, save_model
from alignrun.objectives.likelihood import token_log_probs
from alignrun.types import Completions, PackedBatch, PromptBatch, Role

_ADAPTERS = {role: role.value for role in Role}
"""The name of each role's adapter; that of a snapshot is known here only."""


class Policy:
    """The policy π and the reference μ.

    With adapters, both share one base: π uses the trained adapter, μ none or a frozen one. Without adapters, all
    weights are trained and μ is a frozen copy of the initial ones.
    """

    def __init__(self, backbone: Backbone, ends: Sequence[int] = (), training: Training = UNTRAINED) -> None:
        self.backbone = backbone
        self._ends = ends
        self.training = training
        """Training metadata, written next to the weights."""
        self.model = backbone.model
        self.tokenizer = backbone.tokenizer
        check_head(self.model, vocabulary_head(self.model))
        self._whole: dict[Role, PreTrainedModel] = {}
        """Without adapters, a separate model for each role except the policy."""
        if backbone.peft is None:
            self.snapshot(Role.reference)
        present = () if backbone.peft is None else backbone.peft.peft_config
        self._reference_adapter = adapters.REFERENCE if adapters.REFERENCE in present else None
        self.has_opponent = adapters.OPPONENT in present
        """Whether there is a frozen opponent."""

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        adapter: AdapterConfig,
        reference: ReferenceConfig,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        ends: Sequence[int] = (),
        opponent: str | None = None,
        training: Training = UNTRAINED,
    ) -> "Policy":
        """Load the base and its adapters, and move them to the device.

        `ends` are end tokens in addition to those of the tokenizer and the model. `opponent` is a run or an adapter
        folder; it gets its own role, and the policy starts as its copy. `training` is the metadata written to the
        policy's files.

        Raises:
            InputError: the model, the adapter or the device is not available.
        """
        backbone = Backbone.load(config, adapter, tokenizer, seed)
        start: tuple[Path, str] | None = None
        for role, path, key in (
            (adapters.REFERENCE, reference.path if reference.name is ReferenceKind.adapter else None, "reference.path"),
            (adapters.OPPONENT, opponent, "algo.opponent"),
        ):
            if path is None:
                continue
            if adapter.name is AdapterKind.none:
                raise InputError(f"{key}={path} needs adapter=lora or qlora: all weights are trained here")
            start = adapter_folder(path), key
            check_card(backbone, start[0], "policy", key)
            backbone.read(role, start[0], trainable=False, key=key)
        if start is not None:
            backbone.read(adapters.POLICY, start[0], trainable=True, key=start[1])
        elif adapter.name is not AdapterKind.none:
            backbone.add(adapters.POLICY, adapter)
        return cls(backbone, ends, training)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.backbone.device

    @property
    def stop_ids(self) -> list[int]:
        """The end tokens of completions: those of the tokenizer, the model and the chat template."""
        own = self.model.generation_config.eos_token_id
        listed = own if isinstance(own, list) else [own]
        return sorted({token for token in [*listed, self.tokenizer.eos_token_id, *self._ends] if token is not None})

    def ends(self, completions: Completions) -> Tensor:
        """[B] bool: whether the completion has an end token, rather than reaching the length limit."""
        stop = torch.tensor(self.stop_ids, device=completions.tokens.device)
        return (torch.isin(completions.tokens, stop) & completions.mask).any(1)

    def fingerprint(self, role: Role) -> str:
        """A digest of a role's adapter and base weights; empty if the base has none."""
        if self.backbone.peft is None:
            return weights_digest(self._module(role), rounded=False)
        adapter = self._adapter(role)
        if adapter is None or not self.backbone.fingerprint:
            return self.backbone.fingerprint
        return self.backbone.fingerprint + adapters.fingerprint(self.backbone.layers, adapter)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in a fixed order."""
        return self.backbone.trainable(adapters.POLICY)

    def snapshot(self, role: Role) -> None:
        """Keep a frozen copy of the current policy under the given role."""
        if self.backbone.peft is None:
            self._whole[role] = self.backbone.frozen_copy()
        else:
            self.backbone.copy(adapters.POLICY, _ADAPTERS[role])

    @torch.no_grad()
    def lerp_towards(self, role: Role, rate: float) -> None:
        """Move a snapshot towards the policy, θ̄ ← θ̄ + rate·(θ − θ̄); rate 1 makes it the current policy.

        With LoRA, θ are the factors, so the product of averages is not exactly the average of the products.
        """
        torch._foreach_lerp_(_parts(self.snapshot_weights(role)), _parts(self.trainable()), rate)

    @torch.no_grad()
    def copy_snapshot(self, source: Role, target: Role) -> None:
        """Make one snapshot equal to another."""
        torch._foreach_copy_(_parts(self.snapshot_weights(target)), _parts(self.snapshot_weights(source)))

    def snapshot_weights(self, role: Role) -> dict[str, Tensor]:
        """The weights of a snapshot, in the order of `trainable`; the names are those of no other role."""
        if self.backbone.peft is None:
            return {f"{role.value}.{name}": weight for name, weight in self._whole[role].named_parameters()}
        return {name: weight.detach() for name, weight in self.backbone.trainable(_ADAPTERS[role]).items()}

    def decoder(self, prompts: PromptBatch, roles: Sequence[Role], new_tokens: int) -> CachedDecoder | JoinedDecoder:
        """A decoder for at most `new_tokens` tokens, with one block of rows per role and one row per prompt."""
        names = [self._adapter(role) for role in roles]
        replay = new_tokens if self._replays else None
        if self.backbone.peft is not None:
            return CachedDecoder(self.model, prompts, names, replay)
        parts = [CachedDecoder(self._module(role), prompts, [None], replay) for role in roles]
        return parts[0] if len(parts) == 1 else JoinedDecoder(parts, len(prompts))

    @property
    def rereads(self) -> bool:
        """Whether a decoder can read drafts and go on after a part of them: `CachedDecoder.read` and `hide`."""
        return (
            plain_attention(self.model.config) and not distributed.sharded()
        )  # sharded: passes would differ in number

    @cached_property
    def _replays(self) -> bool:
        """Whether to record and replay decoding steps."""
        wanted = self.backbone.config.cuda_graphs
        if not wanted or self.device.type != "cuda" or distributed.sharded():  # sharded: not recordable
            return False
        try:
            check_replay(self.model)
        except (InputError, RunError):
            if wanted is True:
                raise
            return False  # `auto` decodes such a model eagerly
        return True

    def log_probs(self, role: Role, prompts: PromptBatch, completions: Completions, temperature: float = 1.0) -> Tensor:
        """[N, T] log π(y_n | x, y_<n) of every completion token, zero on padding.

        The policy's carry a gradient if gradients are enabled. Those of other roles never do: the reference and the
        opponents are constants of the objective. Only completion positions reach the vocabulary head, and a prompt is
        encoded once for all its completions.

        Args:
            role: the role to score with.
            prompts: B prompts.
            completions: N = K·B completions; those of prompt b are rows b·K to b·K + K − 1.
            temperature: divides the logits.
        """
        module = self._module(role)
        with self._as(role):
            # The last token is only a target.
            hidden = hidden_states(module, prompts, completions.tokens[:, :-1], completions.mask[:, :-1])
            log_probs = token_log_probs(hidden, vocabulary_head(module), completions.tokens, temperature=temperature)
        return log_probs * completions.mask

    @torch.no_grad()
    def logits(
        self, roles: Sequence[Role], prompts: PromptBatch, completions: Completions
    ) -> Callable[[Role, Tensor], Tensor]:
        """[n, V] logits under one of the roles at n tokens of completions, which are given as indices row·T + token.

        The texts are read once per role; the vocabulary head runs on the tokens that are asked for. No gradients.
        Arguments are those of `log_probs`.
        """
        hidden = {}
        for role in roles:
            with self._as(role):
                read = hidden_states(self._module(role), prompts, completions.tokens[:, :-1], completions.mask[:, :-1])
            hidden[role] = read.flatten(0, 1)

        return lambda role, places: self.head_logits(role, hidden[role][places])

    @torch.no_grad()
    def head_logits(self, role: Role, hidden: Tensor) -> Tensor:
        """[n, V] logits of hidden states [n, D] under a role, without a gradient."""
        with self._as(role):
            return vocabulary_head(self._module(role))(hidden)

    def packed_log_probs(self, batch: PackedBatch) -> Tensor:
        """[M] log π(y_n | x, y_<n) of the M target tokens of packed demonstrations, in order, with their gradient."""
        hidden = packed_hidden_states(self.model, batch)[:, :-1]
        targets = batch.targets[:, 1:]
        return token_log_probs(hidden[targets], vocabulary_head(self.model), batch.input_ids[:, 1:][targets])

    def save_adapter(self, folder: Path, role: Role = Role.policy) -> None:
        """Write a role's PEFT adapter, or the whole model without adapters, as safetensors with its description.

        With sharded weights all processes call it together, and the main one writes.

        Raises:
            RunError: weights that are not finite.
        """
        if self.backbone.peft is None:
            module, weights = self._module(role), None
            if self.backbone.outline is not None:
                weights = to_main(module.state_dict(keep_vars=True))
                if not distributed.is_main():
                    return
            save_model(module, self.sampling, folder, weights)
        else:
            self.backbone.save_adapter(_ADAPTERS[role], folder)
            write_card(folder, AdapterCard("policy", self.backbone.fingerprint))
        self.describe(folder, role)

    def save_factors(self, folder: Path, role: Role) -> None:
        """Write what a server loads of a role's adapter: weights and PEFT configuration. Raises like `save_adapter`."""
        self.backbone.save_adapter(_ADAPTERS[role], folder)
        self.backbone.describe_adapter(_ADAPTERS[role], folder)

    def is_base(self, role: Role) -> bool:
        """Whether a role is the bare base, without an adapter."""
        return self._adapter(role) is None and self.backbone.peft is not None

    def save_merged(self, folder: Path) -> None:
        """Merge the adapter into the base and write one model (safetensors); the policy cannot be used afterwards.

        Raises:
            InputError: this model family cannot represent the merged weights.
            RunError: weights that are not finite.
        """
        peft = self.backbone.peft
        if peft is not None:
            check_finite(self.trainable().items())
            self.model, self.backbone.peft = merge(peft, adapters.POLICY), None
        save_model(self.model, self.sampling, folder)
        self.describe(folder)

    def describe(self, folder: Path, role: Role = Role.policy) -> None:
        """Write the files of `save_adapter` other than the weights: tokenizer, sampling settings and README.

        Before training, this checks that the libraries can write them.
        """
        whole = self.backbone.peft is None
        if whole:
            self._module(role).config.save_pretrained(folder)
        else:
            self.backbone.describe_adapter(_ADAPTERS[role], folder)
        prompting_tokenizer(self.tokenizer, self.backbone.config.system_prompt).save_pretrained(folder)
        self.sampling.save_pretrained(folder)
        write_policy_readme(folder, self.backbone, self.training, whole=whole)

    @property
    def sampling(self) -> GenerationConfig:
        """The sampling settings of the trained policy, for transformers and vLLM."""
        return sampling_config(self.model, self.tokenizer, self.stop_ids, self.training.temperature)

    def _adapter(self, role: Role) -> str | None:
        if role is Role.opponent and not self.has_opponent:
            raise ValueError("this policy was loaded without an opponent")
        if self.backbone.peft is None:
            return None
        return self._reference_adapter if role is Role.reference else _ADAPTERS[role]

    def _module(self, role: Role) -> PreTrainedModel:
        return self._whole.get(role, self.model)

    @contextmanager
    def _as(self, role: Role) -> Iterator[None]:
        if role is Role.policy:
            yield
            return
        with self.backbone.frozen(self._adapter(role)):
            yield


def _parts(weights: Mapping[str, Tensor]) -> list[Tensor]:
    return [local(weight) for weight in weights.values()]
