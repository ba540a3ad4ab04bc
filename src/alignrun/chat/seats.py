"""The policies that answer, each loaded and with its own conversation."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from alignrun.algorithms.common.rollout import decode_texts, sample_streams, sampling_of
from alignrun.chat.unfolding import Unfolding
from alignrun.config import SamplingConfig
from alignrun.data.completions import opened
from alignrun.data.padding import prompt_batch
from alignrun.data.rendering import Renderer
from alignrun.errors import InputError
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy
from alignrun.models.sources import context_length, vocabulary_size
from alignrun.tournament.lineup import same_reference
from alignrun.tournament.players import Loader, Player, find_player, reference_of, share_base
from alignrun.types import Example, Message, Role

MOST = 2
"""The largest number of policies, not counting their references."""


@dataclass(slots=True)
class Seat:
    """A policy in a conversation."""

    name: str
    player: Player
    policy: Policy
    role: Role
    """The weights of the loaded policy that answer."""
    config: SamplingConfig
    turns: list[Message] = field(default_factory=list)
    """The conversation so far."""
    answers: int = 0

    @property
    def remembers(self) -> bool:
        """Whether it reads earlier turns: without a chat template, each message is continued as it stands."""
        return bool(self.policy.tokenizer.chat_template)

    @property
    def max_new_tokens(self) -> int:
        """The longest answer, in tokens."""
        return self.config.max_new_tokens or self.player.max_new_tokens

    @property
    def temperature(self) -> float:
        """At which it is sampled."""
        return self.config.temperature or self.player.temperature

    def encode(self, message: str) -> list[int]:
        """The token ids of the conversation with a new message.

        Raises InputError if the template refuses it, or if it leaves no room for an answer.
        """
        model = self.policy.model.config
        said: Message = {"role": "user", "content": message}
        prompt = (*self.turns, said) if self.remembers else message
        renderer = Renderer(self.policy.tokenizer, self.player.config.model.system_prompt, rows=vocabulary_size(model))
        ids, _ = renderer.encode(Example(prompt, self.name))
        if len(ids) + self.max_new_tokens > context_length(model):
            raise InputError(
                f"{self.name} reads {context_length(model)} tokens: the conversation has {len(ids)}, and an answer may "
                f"have {self.max_new_tokens}: start over, or lower max_new_tokens"
            )
        return ids

    def answer(self, message: str, ids: list[int], show: Callable[[str], None]) -> tuple[str, bool]:
        """Answer a message that has been encoded; the text, and whether it ended by itself.

        `show` gets the text as far as it is settled, token by token. Ctrl-C ends the answer where it is.
        """
        policy, config = self.policy, self.config
        generator = torch.Generator(device=policy.device).manual_seed(self._seed())
        sampling = sampling_of(policy, self.max_new_tokens, self.temperature, config.top_k, config.top_p)
        batch = batch_to(prompt_batch([message], [ids], sampling.pad_id), policy.device)
        unfolding = Unfolding(policy.tokenizer, opened(policy.tokenizer))
        self.answers += 1
        try:
            (drawn,) = sample_streams(
                policy, batch, [self.role], sampling, generator, watch=lambda tokens: show(unfolding(int(tokens[0])))
            )
            text, ended = decode_texts(policy, drawn)[0], bool(policy.ends(drawn)[0])
        except KeyboardInterrupt:
            text, ended = unfolding.whole, True
        said: tuple[Message, Message] = {"role": "user", "content": message}, {"role": "assistant", "content": text}
        self.turns += said if self.remembers and text else ()
        return text, ended

    def start_over(self) -> None:
        """Forget the conversation."""
        self.turns.clear()

    def _seed(self) -> int:
        """A different one for each answer and each seat."""
        named = f"{self.config.seed} {self.name} {self.answers}"
        return int(hashlib.sha256(named.encode()).hexdigest()[:15], 16)


def seats(sources: Sequence[str], reference: bool, config: SamplingConfig) -> list[Seat]:
    """Load the policies, and their references if asked to. Those on the same base share it.

    Raises InputError if one is not available, if there are too many, or if a model has no reference.
    """
    if len(sources) > MOST:
        raise InputError(f"alignrun chat: {len(sources)} policies: name one or two")
    players = [find_player(source) for source in sources]
    names = [player.name for player in players]
    if len(set(names)) < len(names):
        players = [replace(player, name=player.source) for player in players]
    if len({player.name for player in players}) < len(players):
        raise InputError(f"alignrun chat: {players[0].name} is named twice: leave one out")
    references = [reference_of(player) for player in players] if reference else []
    found = _loaded(players, config)
    for place, one in enumerate(references):
        if place and same_reference(references[0].config, one.config):
            continue
        alone = len(references) == 1 or same_reference(references[0].config, references[-1].config)
        named = replace(one, name="reference" if alone else one.name)
        if players[place].checkpoint is None:  # its own reference plays that role
            policy = Loader(config.device, config.dtype).load(named)
        else:
            policy = found[place].policy
        found.append(Seat(named.name, named, policy, Role.reference, config))
    return found


def _loaded(players: Sequence[Player], config: SamplingConfig) -> list[Seat]:
    loader = Loader(config.device, config.dtype)
    first = players[0]
    policy, role = loader.load(first), first.role
    if len(players) == 1:
        return [Seat(first.name, first, policy, role, config)]
    second = players[1]
    if share_base(first.config, second.config):
        if role is Role.policy:  # the second one's weights take the place of its own
            policy.snapshot(Role.anchor)
            role = Role.anchor
    else:
        loader = Loader(config.device, config.dtype)
    return [
        Seat(first.name, first, policy, role, config),
        Seat(second.name, second, loader.load(second), second.role, config),
    ]
