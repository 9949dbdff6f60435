"""The classifier: a decoder with two classes on the final state of a row's last token.

Its parameters are decoder and class head. It predicts no token, so that its decoder has no output projection, and all
of it is trained, so that it has no adapters.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from reft_jax.config import LoraConfig, ModelConfig
from reft_jax.models.decoder import Decoder
from reft_jax.models.params import Params
from reft_jax.models.policy import call
from reft_jax.parallel.sharding import WeightLayout

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

CLASSES = 2  # wrong, right


class Classifier(nn.Module):
    """Decoder and class head; its methods are reached through `policy.call`.

    The head has no bias and begins normal with the model's `initializer_range`, as transformers' sequence classifiers
    do. From zero, the body would get no gradient at first, and at the paper's learning rate of 1e-6 one below Adam's
    epsilon for long.
    """

    config: ModelConfig
    mesh: Mesh | None = None
    layout: WeightLayout = "training"
    stacked: bool | None = None
    """See `Decoder`."""

    def setup(self):
        decoder = dataclasses.replace(self.config.decoder, tie_embeddings=True, lm_head_bias=False)
        body = dataclasses.replace(self.config, decoder=decoder, lora=LoraConfig())
        self.decoder = Decoder(body, self.mesh, self.layout, self.stacked)
        init = nn.initializers.normal(decoder.initializer_range)
        self.class_head = nn.Dense(
            CLASSES,
            use_bias=False,
            dtype=jnp.promote_types(self.config.param_dtype, jnp.float32),
            param_dtype=self.config.param_dtype,
            kernel_init=nn.with_logical_partitioning(init, ("embed", "class")),
        )

    def hidden(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Final hidden states of contiguous rows of tokens."""
        return self.decoder(tokens, jnp.arange(tokens.shape[1])[None])[0]

    def classes(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n 2"]:
        """Scores of the classes, float32."""
        return self.class_head(hidden)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B 2"]:
        """Touches every parameter; for `init`."""
        return self.classes(self.hidden(tokens)[:, 0])


def class_logits(
    classifier: Classifier, params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
) -> Float[Array, "B 2"]:
    """Scores, float32, of right-padded rows of tokens that have `lengths` tokens, at least one.

    The last token is found by its length, so that what pads the rows never matters.
    """
    hidden = call(classifier, params, tokens, method="hidden")  # [B, T, D]
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return call(classifier, params, last, method="classes")
