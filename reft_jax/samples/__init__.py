"""Completions in a file, and what they say of accuracies. No jax.

file        one JSON object a completion, written in whole batches and continued after an interruption
voting      majority votes
statistics  pass@k, 95 % intervals, the sign test
measures    maj@k and pass@k of a file, with their intervals
probing     what samples say of reinforcing the policy that they are of

Imports config, problem, files and records.
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    file="Sample SampleFile left_out read_samples",
    measures="Measure measure read_answers",
    statistics="mean_interval pass_at_k sign_test wilson_interval",
    voting="maj_at_k majority",
)
