"""Exact measures of a policy that plays a matrix game: no sampling, no interval."""

import torch

from alignrun import games
from alignrun.data import PromptSet
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy, Role
from alignrun.types import Completions, Evaluation


class GameEvaluator:
    """Reads the policy's probabilities of all actions and compares them with the game's known solution.

    The equilibrium is the regularised one at the algorithm's own τ.
    """

    def __init__(self, policy: Policy, game: games.Game, prompts: PromptSet, kl_tau: float, temperature: float) -> None:
        self._policy, self._game, self._kl_tau, self._temperature = policy, game, kl_tau, temperature
        self._prompt = next(prompts.all_batches(1))
        ids = [policy.tokenizer.encode(action, add_special_tokens=False) for action in game.actions]
        longest = max(map(len, ids))
        pad = policy.tokenizer.pad_token_id
        self._tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
        self._mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids])
        self._equilibrium = games.equilibrium(game, kl_tau) if kl_tau > 0 else None

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

    def __call__(self) -> Evaluation:
        """Exploitability, the regularised duality gap, and KL to the equilibrium and to the reference."""
        policy, reference = self.probabilities(Role.policy), self.probabilities(Role.reference)
        metrics = {
            "win_rate": float(games.win_rate(self._game, policy, reference)),
            "kl": float(games.kl(policy, reference)),
            "exploitability": float(games.exploitability(self._game, policy)),
        }
        if self._equilibrium is not None:
            metrics["kl_equilibrium"] = float(games.kl(self._equilibrium, policy))
            metrics["duality_gap"] = float(games.duality_gap(self._game, policy, self._kl_tau))
        metrics |= {f"policy/{name}": float(p) for name, p in zip(self._game.actions, policy, strict=True)}
        mixed = ", ".join(f"{name} {float(p):.3f}" for name, p in zip(self._game.actions, policy, strict=True))
        lines = [("policy", mixed)]
        if self._policy.has_opponent:
            gains, said = self._against(policy, self.probabilities(Role.opponent))
            metrics |= gains
            lines += said
        if self._equilibrium is not None:
            target = zip(self._game.actions, self._equilibrium, strict=True)
            lines += [
                ("equilibrium", ", ".join(f"{name} {float(p):.3f}" for name, p in target)),
                ("KL(equilibrium ‖ policy)", f"{metrics['kl_equilibrium']:.5f}"),
                ("duality gap", f"{metrics['duality_gap']:.5f}"),
            ]
        lines += [
            ("exploitability", f"{metrics['exploitability']:.4f}"),
            ("win rate against the reference", f"{metrics['win_rate']:.4f} (exact)"),
            ("KL(policy ‖ reference)", f"{metrics['kl']:.4f} nats"),
        ]
        return Evaluation(metrics, lines)

    def _against(self, policy: torch.Tensor, opponent: torch.Tensor) -> tuple[dict[str, float], list[tuple[str, str]]]:
        """What the policy gains against a frozen opponent, beside the most that any could."""
        win = float(games.win_rate(self._game, policy, opponent))
        exploitability = float(games.exploitability(self._game, opponent))
        metrics = {"opponent/win_rate": win, "opponent/gain": win - 0.5, "opponent/exploitability": exploitability}
        lines = [("gain against the opponent", f"{win - 0.5:.4f} of at most {exploitability:.4f}")]
        if self._kl_tau > 0:
            gain = float(games.regularised_win_rate(self._game, policy, opponent, self._kl_tau)) - 0.5
            gap = float(games.duality_gap(self._game, opponent, self._kl_tau))
            metrics |= {"opponent/regularised_gain": gain, "opponent/duality_gap": gap}
            lines.append(("regularised gain", f"{gain:.5f} of at most {gap / 2:.5f}, half the opponent's duality gap"))
        return metrics, lines
