"""What tournaments and sweeps have measured, as plain values: what reports show and JSON keeps."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its confidence interval; both ends equal the number where it is exact, or has no interval."""

    value: float
    low: float
    high: float
    prompts: int | None = None
    """Over how many prompts; None where the number is exact, or its interval is over something else."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on what a best response gains against a policy, P(best response ≻ π) − ½ in its simplest form."""

    gain: Estimate
    """A true value may lie above; the interval is that of the bound."""
    proposals: int
    """Among how many completions of a prompt the strongest was chosen; 0 where the value is exact."""
    curve: tuple[tuple[int, float], ...] = ()
    """The bound with fewer of them, (proposals, gain), in increasing order."""


@dataclass(frozen=True, slots=True)
class PlayerResult:
    """One policy of a tournament. What could not be measured is None."""

    name: str
    source: str
    """The run, checkpoint or model it was loaded from."""
    step: int | None
    """The optimiser step of its checkpoint; None for a model that was not trained here."""
    win_rate: Estimate | None
    """P(policy ≻ its reference) as the tournament's preference has it; None for a reference itself."""
    training_preference: str | None
    """The preference that it was trained with."""
    training_win_rate: Estimate | None
    """P(policy ≻ its reference) as that preference has it; None where it is the tournament's own, or there is none."""
    hacking_gap: Estimate | None
    """`training_win_rate` − `win_rate`: what the training preference likes and the judge does not."""
    average: Estimate
    """Mean of its row of the matrix: how often it beats the others, the mean over them."""
    share: Estimate
    """Its probability in the equilibrium of the win matrix."""
    rating: Estimate
    """Elo: 400/ln 10 times the Bradley-Terry strength, 0 for the reference of all, or else on average."""
    exploitability: Bound | None
    """max over responses of P(response ≻ policy) − ½."""
    regularised: Bound | None
    """max over responses of P_τ(response ≻ policy) − ½, half the duality gap at `kl_tau`."""
    kl: Estimate | None
    """KL(π‖μ) to its reference, nats a completion; None where they do not share a tokenizer, or there is none."""
    length: Estimate | None
    """Tokens of its own tokenizer a completion, the mean."""
    words: Estimate | None
    """Words a completion, the mean: comparable between tokenizers."""
    eos_rate: Estimate | None
    """Share of completions that end by themselves rather than at the length limit."""
    distinct: tuple[float, ...]
    """distinct-1, distinct-2, distinct-3: different n-grams of words over all n-grams (arXiv 1510.03055)."""
    reference: str | None = None
    """The name of the player that KL and win rate relate to, its own for a reference; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt with a completion of each of two players, for readers."""

    prompt: str
    first_player: str
    second_player: str
    first: str
    second: str
    preference: float
    """P(first ≻ second | prompt)."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a player has written, for readers."""

    player: int
    """Its place among the players."""
    text: str
    ended: bool
    """Whether it ends by itself rather than at the length limit."""
    preferences: tuple[float | None, ...]
    """P(this ≻ the completion of the same number of each player | prompt); None for itself."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Every completion of a prompt: those of a player together, in the order of the players."""

    prompt: str
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class TournamentResult:
    """Every policy against every other."""

    players: tuple[PlayerResult, ...]
    matrix: tuple[tuple[Estimate, ...], ...]
    """[n, n], entry [row, column] = P(row ≻ column): the row beats the column; ½ on the diagonal."""
    value: float
    """Value of the matrix game to its row player, ½ in any antisymmetric game."""
    misfit: float
    """Largest |P(row ≻ column) − P_BT(row ≻ column)|: what no rating can express."""
    cycles: tuple[tuple[str, str, str], ...]
    """Triples a ≻ b ≻ c ≻ a of names, each beating the next with an interval above ½."""
    reference: str | None
    """The name of the player that KL, win rates and ratings of all relate to; None where each has its own, or none."""
    preference: str
    """Who judged, in a few words."""
    prompts: int
    samples_per_prompt: int
    """0 where probabilities are exact."""
    confidence: float
    temperature: float
    kl_tau: float | None
    """τ of `regularised`."""
    comparisons: tuple[Comparison, ...]
    """Examples to read."""
    notes: tuple[str, ...]
    """What the reader must know: skipped prompts, figures left out and why."""
    command: str
    """The command line that repeats it."""
    config: str
    """The whole configuration, as YAML."""
    versions: dict[str, str | None] = field(default_factory=dict)


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
    """The final metrics; empty where the run failed."""
    trajectory: tuple[Point, ...]
    """Its evaluations that have both a KL and a win rate, in order of steps; empty where nothing judged."""
    pruned: int | None = None
    """The step at which the sweep stopped it, since it fell behind; it then has an exit code, too."""
    overrides: tuple[str, ...] = ()
    """Those of `setting` one by one: a value may hold spaces."""


@dataclass(frozen=True, slots=True)
class SettingResult:
    """The runs of a sweep that differ in nothing but the seed."""

    setting: str
    runs: tuple[str, ...]
    failed: int
    """How many of the runs failed; they count in nothing below."""
    metrics: dict[str, Estimate]
    """Means of the final metrics over seeds, with intervals where seeds tell them."""
    matched: Estimate | None
    """Mean over seeds of the win rate at the sweep's matched KL, interpolated in √KL along each run's evaluations."""
    pruned: int = 0
    """How many of the runs were stopped since they fell behind; they count in nothing either."""
    overrides: tuple[str, ...] = ()
    """Those of `setting` one by one: a value may hold spaces."""
    single: int = 0
    """How many of the runs were read at the matched KL off one evaluation alone."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A sweep, best setting first."""

    directory: str
    settings: tuple[SettingResult, ...]
    runs: tuple[RunResult, ...]
    matched_kl: float | None
    """The largest KL(π‖μ) that every finished run which left the reference has reached; None where there is none."""
    ranked_by: str
    """What the order is by, in words."""
    command: str
    confidence: float
    settled: bool = False
    """Whether the first setting's interval over seeds lies on the better side of every other setting's."""
    notes: tuple[str, ...] = ()
    """What a reader of the table must know: runs left out, intervals that are missing and why."""
