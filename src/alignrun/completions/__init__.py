"""`alignrun generate`: the completions of a policy in a file."""
