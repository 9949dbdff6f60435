"""Completions in a file, and what they say of accuracies. No jax.

file        one JSON object a completion, written in whole batches and continued after an interruption
voting      majority votes
statistics  pass@k and 95 % intervals

Imports config, problem, files and records.
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    file="Sample SampleFile left_out read_samples",
    statistics="mean_interval pass_at_k wilson_interval",
    voting="maj_at_k majority",
)
