"""Flax modules over dictionaries of arrays; outside of this room only `params` and functions of them are known.

decoder     one transformer for all families
policy      decoder with a value head; scoring of responses
classifier  decoder with a class head: the reward model
lora        adapters beside frozen weights
hf/         from and to Hugging Face checkpoints

Imports config, losses, data and parallel.
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    classifier="Classifier class_logits",
    decoder="Decoder KVCache empty_cache",
    lora="merge",
    policy="Policy response_values score_responses",
)
