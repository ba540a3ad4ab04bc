"""What cannot be measured if sampling is truncated.

`top_k` and `top_p` keep the most likely tokens of each policy. The supports of two truncated policies differ, so
KL(π‖μ) between them may be infinite, and log π/μ of the full distributions does not estimate it: KL, the regularised
game and everything that depends on a KL are omitted.
"""


def truncation(top_k: int, top_p: float) -> str:
    """The settings that truncate, as typed; empty if none does."""
    found = [f"top_k={top_k}"] if top_k > 0 else []
    found += [f"top_p={top_p:g}"] if top_p < 1 else []
    return " and ".join(found)


def truncation_note(top_k: int, top_p: float) -> str:
    """A sentence that says what is omitted and why; empty if nothing is."""
    settings = truncation(top_k, top_p)
    return settings and (
        f"No KL and no regularised game: completions were sampled with {settings}, and truncated policies may have an "
        "infinite KL."
    )
