"""Exact measures of a policy that plays a matrix game: no sampling, no interval."""

from collections.abc import Callable
from dataclasses import replace

import torch

from alignrun import games
from alignrun.data.prompts import PromptSet
from alignrun.errors import RunError
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy
from alignrun.types import Completions, Evaluation, Role


def played(game: games.Game, reference: torch.Tensor) -> games.Game:
    """The game with the reference that is actually played: at temperature T, ∝ μ^(1/T). [n] -> game.

    An action whose probability underflows at this temperature keeps the smallest probability with a finite logarithm.
    """
    positive = reference.clamp(min=torch.finfo(reference.dtype).tiny)
    return replace(game, reference=(positive / positive.sum()).to(game.preferences))


class GameEvaluator:
    """Reads the policy's probabilities of all actions and compares them with the solution of the game it plays.

    Both roles are read at one temperature, and the game's reference is what the reference plays at it. The equilibrium
    is the regularised one at the algorithm's current τ, its KL weight; without a τ there is none. Raises RunError if
    the first τ is too small to compute it.
    """

    def __init__(
        self,
        policy: Policy,
        game: games.Game,
        prompts: PromptSet,
        temperature: float,
        kl_tau: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._policy, self._temperature, self._kl_tau = policy, temperature, kl_tau
        self._prompt = next(prompts.all_batches(1))
        ids = [policy.tokenizer.encode(action, add_special_tokens=False) for action in game.actions]
        longest = max(map(len, ids))
        pad = policy.tokenizer.pad_token_id
        self._tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
        self._mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids])
        self._game = game
        self._solved: tuple[float, torch.Tensor] | None = None
        if (first := kl_tau()) > 0:
            self._equilibrium(played(game, self.probabilities(Role.reference)), first)

    def probabilities(self, role: Role) -> torch.Tensor:
        """[n] probabilities of the actions, normalised over them, in float64."""
        prompt = batch_to(self._prompt, self._policy.device)
        prompts = type(prompt)(
            prompt.texts * len(self._tokens),
            prompt.input_ids.repeat(len(self._tokens), 1),
            prompt.attention_mask.repeat(len(self._tokens), 1),
        )
        actions = Completions(self._tokens.to(self._policy.device), self._mask.to(self._policy.device))
        with torch.no_grad():
            log_probs = self._policy.log_probs(role, prompts, actions, self._temperature).sum(1)
        return log_probs.double().cpu().softmax(0)

    def _equilibrium(self, game: games.Game, kl_tau: float) -> torch.Tensor:
        """Computed once per τ: the reference does not change."""
        if self._solved is None or self._solved[0] != kl_tau:
            self._solved = kl_tau, games.equilibrium(game, kl_tau)
        return self._solved[1]

    def __call__(self) -> Evaluation:
        """Exploitability, the regularised duality gap, and KL to the equilibrium and to the reference."""
        policy, kl_tau = self.probabilities(Role.policy), self._kl_tau()
        game = played(self._game, self.probabilities(Role.reference))
        equilibrium, problem = None, ""
        try:
            equilibrium = self._equilibrium(game, kl_tau) if kl_tau > 0 else None
        except RunError as error:  # a τ that has decayed during training must not end the run
            problem = str(error)
        metrics = {
            "win_rate": float(games.win_rate(game, policy, game.reference)),
            "kl": float(games.kl(policy, game.reference)),
            "exploitability": float(games.exploitability(game, policy)),
        }
        if equilibrium is not None:
            metrics["kl_equilibrium"] = float(games.kl(equilibrium, policy))
            metrics["duality_gap"] = float(games.duality_gap(game, policy, kl_tau))
        metrics |= {f"policy/{name}": float(p) for name, p in zip(game.actions, policy, strict=True)}
        mixed = ", ".join(f"{name} {float(p):z.3f}" for name, p in zip(game.actions, policy, strict=True))
        lines = [("policy", mixed)]
        if self._policy.has_opponent:
            gains, said = _against(game, policy, self.probabilities(Role.opponent), kl_tau)
            metrics |= gains
            lines += said
        if equilibrium is not None:
            target = zip(game.actions, equilibrium, strict=True)
            lines += [
                ("equilibrium", ", ".join(f"{name} {float(p):z.3f}" for name, p in target)),
                ("KL(equilibrium ‖ policy)", f"{metrics['kl_equilibrium']:z.5f}"),
                ("duality gap", f"{metrics['duality_gap']:z.5f}"),
            ]
        elif problem:
            lines.append(("equilibrium", problem))
        lines += [
            ("exploitability", f"{metrics['exploitability']:z.4f}"),
            ("win rate against the reference", f"{metrics['win_rate']:z.4f} (exact)"),
            ("KL(policy ‖ reference)", f"{metrics['kl']:z.4f} nats"),
        ]
        return Evaluation(metrics, lines)


def _against(
    game: games.Game, policy: torch.Tensor, opponent: torch.Tensor, kl_tau: float
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """The policy's gain against a frozen opponent, and the largest gain that any policy could have."""
    win = float(games.win_rate(game, policy, opponent))
    exploitability = float(games.exploitability(game, opponent))
    metrics = {"opponent/win_rate": win, "opponent/gain": win - 0.5, "opponent/exploitability": exploitability}
    lines = [("gain against the opponent", f"{win - 0.5:z.4f} of at most {exploitability:z.4f}")]
    if kl_tau > 0:
        gain = float(games.regularised_win_rate(game, policy, opponent, kl_tau)) - 0.5
        gap = float(games.duality_gap(game, opponent, kl_tau))
        metrics |= {"opponent/regularised_gain": gain, "opponent/duality_gap": gap}
        lines.append(("regularised gain", f"{gain:z.5f} of at most {gap / 2:z.5f}, half the opponent's duality gap"))
    return metrics, lines
