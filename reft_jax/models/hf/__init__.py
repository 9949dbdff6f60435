"""Hugging Face checkpoints, both ways.

load      where a checkpoint is, the decoder's shape, and its weights, each device's share by itself
configs   each family's `config.json` to a `DecoderConfig`
tensors   where each family keeps the decoder's parameters
files     tensors in safetensors and torch files
export    the decoder's parameters to a checkpoint
adapters  PEFT's files, both ways
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    adapters="load_adapters save_adapters",
    export="save_decoder",
    load="decoder_config load_decoder_params resolve resolve_model",
)
