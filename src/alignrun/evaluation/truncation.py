"""What cannot be measured where sampling is truncated.

`top_k` and `top_p` keep the most likely tokens of each policy. The supports of two truncated policies differ, so that
KL(π‖μ) between them may be infinite, and log π/μ of the whole distributions says nothing of it: KL, the regularised
game and all that is read at a KL are left out.
"""


def truncation(top_k: int, top_p: float) -> str:
    """The settings that truncate, as they are typed; empty where none does."""
    found = [f"top_k={top_k}"] if top_k > 0 else []
    found += [f"top_p={top_p:g}"] if top_p < 1 else []
    return " and ".join(found)


def truncation_note(top_k: int, top_p: float) -> str:
    """What is left out and why, as a sentence; empty where nothing is."""
    settings = truncation(top_k, top_p)
    return settings and (
        f"No KL and no regularised game: completions were sampled with {settings}, and truncated policies may have an "
        "infinite KL."
    )
