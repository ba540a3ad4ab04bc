"""What `alignrun VERB --help` prints; imports nothing heavy."""

from alignrun.config import GenerateConfig, SamplingConfig
from alignrun.config.keys import keys

RUNS = """\
alignrun runs [DIR…] [--sort KEY] [--reverse]

The runs at or below DIR (default: runs), a row for each: name, algorithm, model, steps done and to do, win rate against
the reference and KL of the last evaluation, and state: finished, running, stopped, failed or damaged. Links are not
followed.

  --sort KEY    name (default), algorithm, model, steps, win_rate, accuracy, kl or state; or a key of the configuration
                or a metric of evaluations, which then has a column: --sort algo.kl_tau, --sort length. The first row is
                the highest win rate or accuracy, the most steps, and the lowest of all others.
  --reverse     the other way round; runs without a value stay last
"""

DIFF = """\
alignrun diff A B [--all]

What differs between two runs: configuration, inputs (digests of data and models), environment, and the results of their
last evaluations with the difference B − A.

  --all         also what is the same
"""

CHAT = """\
alignrun chat POLICY [POLICY] [--reference] [key=value …]

Talk to a run, a checkpoint (RUN/checkpoints/step-N) or a model, or to two of them at once: each answers to its own
conversation, through its chat template and with its run's length and temperature. Answers appear token by token.
Messages come from the terminal or, one a line, from standard input. /new starts over, /exit or Ctrl-D ends.

  --reference   the reference of each run answers too
  --trust       for other people's runs that execute code or contact a server
"""

GENERATE = """\
alignrun generate POLICY out=FILE [--reference] [key=value …]

Completions of a run, a checkpoint, a model or a hub id for the prompts of its data, or of data=NAME. The file appears
when it is complete, and an existing one is never replaced. An interrupted command continues when it is repeated.

  --reference   sample the run's reference
  --trust       for other people's runs that execute code or contact a server

data=NAME and preference=NAME take data.KEY=… and preference.KEY=… as a run does (docs/config.md).

format=pairs draws several completions of each prompt and keeps the best and the worst by a preference, for algo=dpo:

  alignrun generate runs/A format=pairs out=pairs.jsonl preference=sentiment
  alignrun algo=dpo data=jsonl data.path=pairs.jsonl reference=adapter reference.path=runs/A
"""

WITH_KEYS = {"chat": (CHAT, SamplingConfig), "generate": (GENERATE, GenerateConfig)}


def help_of(verb: str) -> str | None:
    """The help of a command; None if it has none of its own."""
    if verb not in WITH_KEYS:
        return {"runs": RUNS, "diff": DIFF}.get(verb)
    text, section = WITH_KEYS[verb]
    lines = [f"  {key.name:<16}{_meaning(key.meaning, list(key.choices))}" for key in keys(section)]
    return "\n".join([text, "Keys:", *lines, ""])


def _meaning(meaning: str, choices: list[str]) -> str:
    return f"{meaning} One of {', '.join(choices)}." if choices else meaning
