"""Losses and everything they are made of. Arrays and scalars in, arrays out; no model, no config, no state.

arrays      types, masks, means, whitening
likelihood  log-probs, entropy, negative log-likelihood
kl          estimators of the KL, and the KL as a part of the loss
rewards     what a response earned, action by action
advantages  baselines, scales, weights, GAE
policy      surrogate losses, by the ratio of new to old policy
values      the critic's loss, and how good it is

Conventions (B batch, R response, V vocabulary; log-probs, KL and entropy in nats):

- Arrays [B, R] are response-aligned: index t is the action that emits response token t. Its log-prob and value belong
  to the state before that token; the state after the last action is terminal and worth 0.
- `mask` [B, R], bool, is True on the first `length` actions of each row, the end token's included (`t < length`). A row
  with length 0 is filler: it yields 0 everywhere. What the mask hides never matters, not even if it is nan.
- Results have the dtype of the inputs, but float32 at least: bfloat16 and integers are raised, float64 stays.
- An array of the wrong shape, rank or mask dtype raises `AssertionError` when the function is traced.
"""

from reft_jax.losses.advantages import (
    adaptive_lambda,
    gae,
    group_deviations,
    group_means,
    leave_one_out_means,
    mixed_groups,
    sign_weighted,
)
from reft_jax.losses.arrays import masked_mean, whiten
from reft_jax.losses.kl import kl_k1, kl_k3, kl_loss
from reft_jax.losses.likelihood import entropy, masked_nll, token_log_probs
from reft_jax.losses.policy import (
    cispo_policy_loss,
    clip_fraction,
    effective_sample_size,
    importance_ratio,
    ppo_policy_loss,
    reinforce_policy_loss,
    sampler_weights,
    topr_policy_loss,
)
from reft_jax.losses.rewards import kl_penalised_rewards, overlong_penalty, place_reward
from reft_jax.losses.values import explained_variance, ppo_value_loss, within_part

__all__ = [
    "adaptive_lambda",
    "cispo_policy_loss",
    "clip_fraction",
    "effective_sample_size",
    "entropy",
    "explained_variance",
    "gae",
    "group_deviations",
    "group_means",
    "importance_ratio",
    "kl_k1",
    "kl_k3",
    "kl_loss",
    "kl_penalised_rewards",
    "leave_one_out_means",
    "masked_mean",
    "masked_nll",
    "mixed_groups",
    "overlong_penalty",
    "place_reward",
    "ppo_policy_loss",
    "ppo_value_loss",
    "reinforce_policy_loss",
    "sampler_weights",
    "sign_weighted",
    "token_log_probs",
    "topr_policy_loss",
    "whiten",
    "within_part",
]
