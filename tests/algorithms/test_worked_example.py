"""One rollout batch worked from tokens to loss, twice: by our functions, and step by step in the reference's layout.

The worked side is float64 numpy and plain loops over *state* index t in [0, T), where t chooses token t + 1, prompt
included, following the order of the ReFT implementation (mask, score, KL, advantages, whitening, losses). Ours is
response-aligned, [B, R], with a filler row that the worked side does not have.
"""

import dataclasses

import jax
import numpy as np
import pytest

from reft_jax import losses

pytestmark = pytest.mark.compiles

PAD, EOS = 0, 9
PROMPT = 3  # P, padded on the left; T = 8, R = 5
KL_COEF, DISCOUNT, GAE_LAMBDA, CLIP_RANGE, VF_COEF = 0.05, 1.0, 0.95, 0.2, 5.0

TOKENS = np.array(
    [
        [PAD, 4, 5, 6, 7, EOS, PAD, PAD],  # right, and ended
        [3, 4, 5, 8, 6, 7, EOS, PAD],  # wrong, and ended
        [3, 3, 5, 8, 8, 6, 7, 6],  # cut short by the length limit, yet an answer is there
    ]
)
SCORES = np.array([1.0, 0.1, 0.1])
RESPONSE_LENGTHS = np.array([3, 4, 5])  # the end token included, where there is one

# Entry [b, t] belongs to state t: the log-prob of token t + 1, the value of having read tokens 0 to t. The 9s stand
# where a real model has numbers too (prompt, padding), which must not matter.
REFERENCE_LOG_PROBS = np.array(
    [
        [9, 9, -0.70, -0.40, -0.20, 9, 9, 9],
        [9, 9, -1.10, -0.60, -0.90, -0.30, 9, 9],
        [9, 9, -0.50, -1.30, -0.80, -0.10, -0.90, 9],
    ]
)
OLD_LOG_PROBS = np.array(
    [
        [9, 9, -0.50, -0.60, -0.10, 9, 9, 9],
        [9, 9, -1.40, -0.20, -0.70, -0.50, 9, 9],
        [9, 9, -0.50, -1.00, -1.20, -0.30, -0.40, 9],
    ]
)
NEW_LOG_PROBS = np.array(
    [
        [9, 9, -0.20, -0.55, -0.45, 9, 9, 9],
        [9, 9, -1.80, -0.25, -0.30, -0.52, 9, 9],
        [9, 9, -0.55, -0.60, -1.50, -0.28, -0.75, 9],
    ]
)
OLD_VALUES = np.array(
    [
        [9, 9, 0.30, 0.50, 0.80, 9, 9, 9],
        [9, 9, 0.40, 0.20, 0.30, 0.10, 9, 9],
        [9, 9, -0.10, 0.20, 0.00, 0.30, 0.60, 9],
    ]
)
NEW_VALUES = np.array(
    [
        [9, 9, 0.65, 0.55, 0.45, 9, 9, 9],
        [9, 9, 0.10, 0.25, 0.55, 0.12, 9, 9],
        [9, 9, 0.05, -0.15, 0.10, 0.70, 0.55, 9],
    ]
)


@dataclasses.dataclass(frozen=True)
class Worked:
    """Arrays are [3, 8], by state."""

    mask: np.ndarray
    rewards: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray
    whitened: np.ndarray
    policy_loss: np.floating
    value_loss: np.floating
    total: np.floating


def worked_mask():
    """True from the state that ends the prompt to the one before the last; False at and after the end token."""
    mask = np.zeros(TOKENS.shape, bool)
    mask[:, PROMPT - 1 : -1] = True
    for b, row in enumerate(TOKENS):
        for t in range(PROMPT, len(row)):
            if row[t] == EOS:
                mask[b, t:] = False
                break
    return mask


def worked_rewards(mask):
    """The score one before the end token, or on the last state but one; minus the KL estimate of every action."""
    rewards = np.where(mask, -KL_COEF * (OLD_LOG_PROBS - REFERENCE_LOG_PROBS), 0.0)
    for b, row in enumerate(TOKENS):
        ends = np.flatnonzero(row == EOS)
        rewards[b, ends[0] - 1 if ends.size else len(row) - 2] += SCORES[b]
    return rewards


def worked_advantages(mask, rewards):
    """Discounted sums of one-step errors over the whole row, then cut off before the prompt's last state."""
    length = TOKENS.shape[1]
    values = OLD_VALUES * mask
    deltas, advantages = np.zeros(TOKENS.shape), np.zeros(TOKENS.shape)
    for b in range(len(TOKENS)):
        for t in range(length):
            after = values[b, t + 1] if t + 1 < length else 0.0
            deltas[b, t] = rewards[b, t] + DISCOUNT * after - values[b, t]
        for t in range(PROMPT - 1, length):
            advantages[b, t] = sum((DISCOUNT * GAE_LAMBDA) ** (k - t) * deltas[b, k] for k in range(t, length))
    return advantages, advantages + values


def sequence_mean_of_token_means(entries, mask):
    return np.mean([row[shown].mean() for row, shown in zip(entries, mask)])


def worked_losses(new_log_probs, new_values, mask, whitened, returns):
    """Policy and value loss, each averaged over a response's tokens and then over the three sequences."""
    ratio = np.exp(new_log_probs - OLD_LOG_PROBS)
    policy = np.maximum(-whitened * ratio, -whitened * np.clip(ratio, 1 - CLIP_RANGE, 1 + CLIP_RANGE))
    near = np.clip(new_values, OLD_VALUES - CLIP_RANGE, OLD_VALUES + CLIP_RANGE)
    value = 0.5 * np.maximum((new_values - returns) ** 2, (near - returns) ** 2)
    return sequence_mean_of_token_means(policy, mask), sequence_mean_of_token_means(value, mask)


@pytest.fixture(scope="module")
def worked():
    mask = worked_mask()
    rewards = worked_rewards(mask)
    advantages, returns = worked_advantages(mask, rewards)
    shown = advantages[mask]
    variance = np.sum((shown - shown.mean()) ** 2) / (shown.size - 1)
    whitened = (advantages - shown.mean()) / np.sqrt(variance + 1e-8)
    policy_loss, value_loss = worked_losses(NEW_LOG_PROBS, NEW_VALUES, mask, whitened, returns)
    total = policy_loss + VF_COEF * value_loss
    return Worked(mask, rewards, advantages, returns, whitened, policy_loss, value_loss, total)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def ours(by_state, dtype, filler=9.0):
    """[3, 8] by state to [4, 5] by response token: token i is chosen in state P - 1 + i; a filler row is added."""
    aligned = by_state[:, PROMPT - 1 : -1]
    return np.concatenate([aligned, np.full_like(aligned[:1], filler)]).astype(dtype)


def our_mask():
    return np.arange(5)[None, :] < np.append(RESPONSE_LENGTHS, 0)[:, None]


def our_experience(dtype):
    """Rewards, advantages, returns and whitened advantages, [4, 5]."""
    mask = our_mask()
    scores = np.append(SCORES, 0.7).astype(dtype)
    kl = losses.kl_k1(ours(OLD_LOG_PROBS, dtype), ours(REFERENCE_LOG_PROBS, dtype))
    rewards = losses.kl_penalised_rewards(scores, kl, mask, kl_coef=KL_COEF)
    advantages, returns = losses.gae(rewards, ours(OLD_VALUES, dtype), mask, discount=DISCOUNT, gae_lambda=GAE_LAMBDA)
    return rewards, advantages, returns, losses.whiten(advantages, mask)


def our_losses(new_log_probs, new_values, dtype):
    """(total, (policy loss, value loss)); the filler row is not one of the three sequences."""
    mask = our_mask()
    _, _, returns, whitened = our_experience(dtype)
    policy_rows = losses.ppo_policy_loss(
        new_log_probs, ours(OLD_LOG_PROBS, dtype), whitened, mask, clip_range=CLIP_RANGE
    )
    value_rows = losses.ppo_value_loss(new_values, ours(OLD_VALUES, dtype), returns, mask, clip_range=CLIP_RANGE)
    policy_loss, value_loss = policy_rows.sum() / 3, value_rows.sum() / 3
    return policy_loss + VF_COEF * value_loss, (policy_loss, value_loss)


def test_the_worked_side_by_hand(worked):
    """The first row on paper, so that both sides cannot be wrong together."""
    np.testing.assert_allclose(worked.rewards[0, 2:5], [-0.01, 0.01, 0.995])
    # deltas: -0.01 + 0.5 - 0.3 = 0.19; 0.01 + 0.8 - 0.5 = 0.31; 0.995 - 0.8 = 0.195
    np.testing.assert_allclose(worked.advantages[0, 2:5], [0.19 + 0.95 * (0.31 + 0.95 * 0.195), 0.49525, 0.195])
    np.testing.assert_allclose(worked.returns[0, 4], 0.995)
    assert worked.rewards[2, 6] == pytest.approx(0.1 - 0.05 * 0.5)  # cut short: scored on the last action


def test_experience(worked, dtype):
    mask = our_mask()
    np.testing.assert_array_equal(mask[:3], worked.mask[:, PROMPT - 1 : -1])
    rewards, advantages, returns, whitened = our_experience(dtype)
    for got, by_state in (
        (rewards, worked.rewards),
        (advantages, worked.advantages),
        (returns, worked.returns),
        (whitened, np.where(worked.mask, worked.whitened, 0)),
    ):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, ours(by_state, "float64", filler=0), atol=1e-6, rtol=0)


def test_losses_and_their_total(worked, dtype):
    total, (policy_loss, value_loss) = our_losses(ours(NEW_LOG_PROBS, dtype), ours(NEW_VALUES, dtype), dtype)
    np.testing.assert_allclose(policy_loss, worked.policy_loss, atol=1e-6, rtol=0)
    np.testing.assert_allclose(value_loss, worked.value_loss, atol=1e-6, rtol=0)
    np.testing.assert_allclose(total, worked.total, atol=1e-6, rtol=0)


def test_clipping_happens_in_this_batch(worked):
    """Otherwise the example would not show it: without clipping both losses are smaller."""
    ratio = np.exp(NEW_LOG_PROBS - OLD_LOG_PROBS)
    plain = sequence_mean_of_token_means(-worked.whitened * ratio, worked.mask)
    squares = sequence_mean_of_token_means(0.5 * (NEW_VALUES - worked.returns) ** 2, worked.mask)
    assert plain < worked.policy_loss - 0.01
    assert squares < worked.value_loss - 0.001


@pytest.mark.parametrize("which", [0, 1], ids=["log_probs", "values"])
def test_gradient_of_the_total_against_differences_of_the_worked_one(worked, which):
    inputs, step = (NEW_LOG_PROBS, NEW_VALUES), 1e-6
    expected = np.zeros(TOKENS.shape)
    for index in np.ndindex(*TOKENS.shape):
        sides = []
        for sign in (1, -1):
            moved = [x.copy() for x in inputs]
            moved[which][index] += sign * step
            policy_loss, value_loss = worked_losses(*moved, worked.mask, worked.whitened, worked.returns)
            sides.append(policy_loss + VF_COEF * value_loss)
        expected[index] = (sides[0] - sides[1]) / (2 * step)
    with jax.enable_x64(True):
        aligned = [ours(x, "float64") for x in inputs]
        gradient, _ = jax.grad(our_losses, argnums=which, has_aux=True)(*aligned, "float64")
    np.testing.assert_allclose(gradient, ours(expected, "float64", filler=0), atol=1e-8)
