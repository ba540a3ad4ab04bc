"""Results of tournaments and sweeps as plain values, for reports and JSON."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its confidence interval; both ends equal the number if it is exact or has no interval."""

    value: float
    low: float
    high: float
    prompts: int | None = None
    """The number of prompts; None if the number is exact, or its interval is over something else."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on the gain of a best response to a policy, P(best response ≻ π) − ½ in its simplest form."""

    gain: Estimate
    """The true value may be larger; the interval is that of the bound."""
    proposals: int
    """The number of completions per prompt from which the strongest was chosen; 0 if the value is exact."""
    curve: tuple[tuple[int, float], ...] = ()
    """The bound with fewer of them, (proposals, gain), in increasing order."""


@dataclass(frozen=True, slots=True)
class PlayerResult:
    """One policy of a tournament. Values that could not be measured are None."""

    name: str
    source: str
    """The run, checkpoint or model it was loaded from."""
    step: int | None
    """The optimiser step of its checkpoint; None for a model that was not trained here."""
    win_rate: Estimate | None
    """P(policy ≻ its reference) under the tournament's preference; None for a reference."""
    training_preference: str | None
    """The preference that it was trained with."""
    training_win_rate: Estimate | None
    """P(policy ≻ its reference) under that preference; None if it is the tournament's, or there is none."""
    hacking_gap: Estimate | None
    """`training_win_rate` − `win_rate`: by how much the training preference likes it better than the judge does."""
    average: Estimate
    """The mean of its row of the matrix: how often it beats the others."""
    share: Estimate
    """Its probability in the equilibrium of the win matrix."""
    rating: Estimate
    """Elo: 400/ln 10 times the Bradley-Terry strength; 0 for the common reference, or on average without one."""
    exploitability: Bound | None
    """max over responses of P(response ≻ policy) − ½."""
    regularised: Bound | None
    """max over responses of P_τ(response ≻ policy) − ½, half the duality gap at `kl_tau`."""
    kl: Estimate | None
    """KL(π‖μ) to its reference, nats per completion; None if they have different tokenizers, or there is none."""
    length: Estimate | None
    """Mean tokens per completion, in its own tokenizer."""
    words: Estimate | None
    """Mean words per completion: comparable between tokenizers."""
    eos_rate: Estimate | None
    """Share of completions that end before the length limit."""
    distinct: tuple[float, ...]
    """distinct-1, distinct-2, distinct-3: different n-grams of words over all n-grams (arXiv 1510.03055)."""
    reference: str | None = None
    """The player that KL and win rate refer to, itself for a reference; None if unknown."""
    deviation: float | None = None
    """Deviation rating: the gain of playing it against the equilibrium: 0 in its support, below 0 elsewhere."""
    alpha_rank: float | None = None
    """Its share in the stationary distribution of α-rank."""
    by_ability: Estimate | None = None
    """Elo as `rating`, with the members of a panel weighed by their abilities; None without a panel."""
    hill_rating: float | None = None
    """What always playing it gains against the equilibrium with the prompts as a third player, 0 at best."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A member of the panel that judges a tournament."""

    name: str
    ability: Estimate
    """θ in P(i ≻ j) = σ(θ(R_i − R_j)), 1 on average; negative if it prefers the worse policy."""


@dataclass(frozen=True, slots=True)
class SeparatingPrompt:
    """A prompt in the equilibrium with the prompts as a third player."""

    prompt: str
    separation: float
    """The mean of |2P(i ≻ j) − 1| over the policies that are played."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt with a completion of each of two players, to read."""

    prompt: str
    first_player: str
    second_player: str
    first: str
    second: str
    preference: float
    """P(first ≻ second | prompt)."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A player's completion, to read."""

    player: int
    """The player's index."""
    text: str
    ended: bool
    """Whether it ends before the length limit."""
    preferences: tuple[float | None, ...]
    """P(this ≻ each player's completion of the same index | prompt); None for itself."""


@dataclass(frozen=True, slots=True)
class Answers:
    """All completions of a prompt, grouped by player in the order of the players."""

    prompt: str
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class TournamentResult:
    """The results of a tournament."""

    players: tuple[PlayerResult, ...]
    matrix: tuple[tuple[Estimate, ...], ...]
    """[n, n], entry [row, column] = P(row ≻ column); ½ on the diagonal."""
    value: float
    """The value of the matrix game for its row player, ½ in any antisymmetric game."""
    misfit: float
    """The largest |P(row ≻ column) − P_BT(row ≻ column)|, which no rating can express."""
    cycles: tuple[tuple[str, str, str], ...]
    """Triples a ≻ b ≻ c ≻ a of names, each beating the next with an interval above ½."""
    reference: str | None
    """The player that all KLs, win rates and ratings refer to; None if there is no common one."""
    preference: str
    """A short description of the judge."""
    prompts: int
    samples_per_prompt: int
    """0 if probabilities are exact."""
    confidence: float
    temperature: float
    kl_tau: float | None
    """τ of `regularised`."""
    comparisons: tuple[Comparison, ...]
    """Examples to read."""
    notes: tuple[str, ...]
    """Notes for the reader: skipped prompts, and which figures are missing and why."""
    command: str
    """The command line that repeats it."""
    config: str
    """The whole configuration, as YAML."""
    versions: dict[str, str | None] = field(default_factory=dict)
    judges: tuple[Judge, ...] = ()
    """The members of a panel that judges, with their abilities."""
    separating: tuple[SeparatingPrompt, ...] = ()
    """The prompts that separate the policies most where they are a third player, most first."""


@dataclass(frozen=True, slots=True)
class Point:
    """A policy at one evaluation of its run."""

    step: int
    kl: float
    win_rate: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run of a sweep."""

    name: str
    """Its folder below the sweep's."""
    setting: str
    """Its overrides without the seed, as typed."""
    seed: int | None
    exit_code: int
    summary: dict[str, float]
    """The final metrics; empty if the run failed."""
    trajectory: tuple[Point, ...]
    """Its evaluations with both a KL and a win rate, in order of steps; empty without a preference."""
    pruned: int | None = None
    """The step at which the sweep stopped it because it fell behind; it then also has an exit code."""
    overrides: tuple[str, ...] = ()
    """The overrides of `setting` one by one: a value may contain spaces."""


@dataclass(frozen=True, slots=True)
class SettingResult:
    """The runs of a sweep that differ only in the seed."""

    setting: str
    runs: tuple[str, ...]
    failed: int
    """The number of failed runs, which are excluded below."""
    metrics: dict[str, Estimate]
    """Means of the final metrics over seeds, with intervals if there are enough seeds."""
    matched: Estimate | None
    """Mean over seeds of the win rate at the sweep's matched KL, interpolated in √KL along each run's evaluations."""
    pruned: int = 0
    """The number of runs stopped because they fell behind, which are also excluded."""
    overrides: tuple[str, ...] = ()
    """The overrides of `setting` one by one: a value may contain spaces."""
    single: int = 0
    """The number of runs whose win rate at the matched KL rests on a single evaluation."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A sweep, best setting first."""

    directory: str
    settings: tuple[SettingResult, ...]
    runs: tuple[RunResult, ...]
    matched_kl: float | None
    """The largest KL(π‖μ) reached by every finished run that left the reference; None if there is none."""
    ranked_by: str
    """The criterion of the order, in words."""
    command: str
    confidence: float
    settled: bool = False
    """Whether the first setting's interval over seeds lies on the better side of all others."""
    notes: tuple[str, ...] = ()
    """Notes for the reader of the table: excluded runs, and which intervals are missing and why."""
