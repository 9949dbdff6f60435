"""Jitted steps: an algorithm is a loss and what it needs; arrays in, arrays out.

train_state    parameters and optimizer as one pytree; one step of it, accumulated over micro-batches
rollout        sampling
sft            likelihood of annotations
ppo            PPO, GRPO and RLOO: a rollout becomes experience, experience an update
self_training  likelihood of right completions
classification the reward model's loss
gradient_noise what a minibatch knows of the policy gradient
self_checks    what must hold before the first update
steps          all of them by name, for a config

Imports config, losses, data, models and parallel.
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    ppo="Experience make_experience objective",
    rollout="Rollout SamplingParams generate",
    self_training="SelfTrainingBatch",
    train_state="TrainState accumulate init_params init_state make_optimizer optimizer_step",
)
