"""The policy: a decoder with a value head on the same body, and the scoring of responses.

SFT and the reference use the same module without ever touching the value head: of `Params` they have the decoder alone.

Shapes: as in `decoder`; R response, T prompt and response.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from reft_jax.config import LoraConfig, ModelConfig
from reft_jax.data.batches import Sequences
from reft_jax.losses import entropy, token_log_probs
from reft_jax.models.decoder import Decoder, KVCache
from reft_jax.models.params import Params
from reft_jax.parallel.sharding import WeightLayout

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class Policy(nn.Module):
    """Decoder and value head, this on the decoder's states or on a critic's; its methods are reached through `call`."""

    config: ModelConfig
    mesh: Mesh | None = None
    separate_critic: bool = False
    layout: WeightLayout = "training"
    stacked: bool | None = None
    """See `Decoder`."""

    def setup(self):
        self.decoder = Decoder(self.config, self.mesh, self.layout, self.stacked)
        if self.separate_critic:
            config = dataclasses.replace(self.config, lora=LoraConfig())
            self.critic = Decoder(config, self.mesh, stacked=self.stacked)
        wide = jnp.promote_types(self.config.param_dtype, jnp.float32)
        self.value_head = nn.Dense(
            1,
            dtype=wide,
            param_dtype=self.config.param_dtype,
            kernel_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed", "value")),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("value",)),
        )

    def hidden(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Final hidden states of contiguous rows of tokens."""
        return self.decoder(tokens, jnp.arange(tokens.shape[1])[None])[0]

    def critic_hidden(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """As `hidden`, of the separate critic."""
        return self.critic(tokens, jnp.arange(tokens.shape[1])[None])[0]

    def step(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "#B T"], cache: tuple[KVCache, ...]
    ) -> tuple[Float[Array, "B T D"], tuple[KVCache, ...]]:
        """As `Decoder.__call__` with a cache: a prefill, or one more token a row."""
        return self.decoder(tokens, positions, cache)

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Scores of every token, float32."""
        return self.decoder.logits(hidden)

    def values(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n"]:
        """Expected return of each state, float32."""
        return self.value_head(hidden)[..., 0]

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, " B"]:
        """Touches every parameter; for `init`."""
        if self.separate_critic:
            self.critic_hidden(tokens)
        return self.values(self.hidden(tokens)[:, 0])


def call(model: nn.Module, params: Params, *args: jax.Array | tuple[KVCache, ...], method: str) -> Any:
    """The result of one of the methods of a policy or a classifier; they are pure and mutate no state."""
    variables = {"params": {name: tree for name, tree in params.items() if name != "lora"}}
    if "lora" in params:
        variables["lora"] = {"decoder": params["lora"]}
    return model.apply(variables, *args, method=method)


@struct.dataclass
class Scores:
    """What a forward pass over given responses says of them."""

    log_probs: Float[Array, "B R"]  # of the response tokens, nats
    entropy: Float[Array, "B R"]  # of the distribution each was drawn from, nats
    hidden: Float[Array, "B R D"]  # the states in which they were chosen


def response_hidden(
    policy: Policy, params: Params, sequences: Sequences, method: str = "hidden"
) -> Float[Array, "B R D"]:
    """Hidden states from which the response tokens are predicted: those one position before them."""
    hidden = call(policy, params, sequences.tokens, method=method)  # [B, T, D]
    before = sequences.prompt_lengths[:, None] - 1 + jnp.arange(sequences.responses.shape[1])[None]
    before = jnp.minimum(before, hidden.shape[1] - 1)  # beyond the row's end there is only padding, masked later
    return jnp.take_along_axis(hidden, before[:, :, None], axis=1)


def response_values(
    policy: Policy, params: Params, sequences: Sequences, hidden: Float[Array, "B R D"] | None
) -> Float[Array, "B R"]:
    """Values of the states that the response tokens were chosen in.

    Args:
        policy: the model.
        params: its parameters; with `critic` among them, that one's states are valued.
        sequences: the rows.
        hidden: the policy's own states, which a shared critic values; others need none.
    """
    if "critic" in params:
        hidden = response_hidden(policy, params, sequences, method="critic_hidden")
    assert hidden is not None
    return call(policy, params, hidden, method="values")


def score_responses(policy: Policy, params: Params, sequences: Sequences, temperature: float = 1.0) -> Scores:
    """Log-probs and entropies of the responses under softmax(logits / temperature).

    Logits are made for response positions only, and for at most `logits_chunk` of them at a time; the backward
    pass makes them again, so that no [B, T, V] array is ever kept.
    """
    hidden = response_hidden(policy, params, sequences)
    batch, length, _ = hidden.shape

    def head(
        piece: tuple[Float[Array, "B R D"], Int[Array, "B R"]],
    ) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
        states, tokens = piece
        logits = call(policy, params, states, method="logits") / temperature
        return token_log_probs(logits, tokens), entropy(logits)

    chunk = policy.config.logits_chunk
    width = max(1, chunk // batch) if chunk else length  # positions of all rows at once
    if width >= length:
        log_probs, entropies = head((hidden, sequences.responses))
        return Scores(log_probs=log_probs, entropy=entropies, hidden=hidden)
    pieces = math.ceil(length / width)
    fill = ((0, 0), (0, pieces * width - length))
    split = lambda x: x.reshape(batch, pieces, width, *x.shape[2:]).swapaxes(0, 1)
    states, tokens = split(jnp.pad(hidden, (*fill, (0, 0)))), split(jnp.pad(sequences.responses, fill))
    outputs = jax.lax.map(jax.checkpoint(head), (states, tokens))
    log_probs, entropies = (x.swapaxes(0, 1).reshape(batch, -1)[:, :length] for x in outputs)
    return Scores(log_probs=log_probs, entropy=entropies, hidden=hidden)
