"""Every setting of a run: frozen dataclasses with types, defaults and help."""

import dataclasses
from typing import Any, Literal

from reft_jax.config.ranges import (
    AutoPositiveFloat,
    AutoUnitInterval,
    Buckets,
    ClosedUnitInterval,
    DualClip,
    FiniteFloat,
    GreedyOrTemperature,
    HalfOpenUnitInterval,
    IdRanges,
    LocalPath,
    LocalPaths,
    MeshAxis,
    ModelPath,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
    Probability,
    ProjectName,
    RewardFunctions,
    Seed,
    StopTexts,
    Temperature,
    TemplateVariables,
    Trackers,
)

Dtype = Literal["float32", "bfloat16", "float64"]
AttentionKind = Literal["auto", "plain", "recomputed", "cudnn"]
CotKind = Literal["program", "text"]
Remat = Literal["none", "dots", "full"]
SamplingLayout = Literal["auto", "sharded", "replicated"]
Split = Literal["train", "dev", "test"]
Overlong = Literal["error", "drop", "truncate"]
BadRows = Literal["error", "drop"]
Answer = Literal["auto", "number", "choice", "latex", "text"]
Rules = Literal["lenient", "reference"]
Containment = Literal["contained", "unsafe"]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder-only transformer, and all that tells one family from another.

    With `model.path` these come from the checkpoint's `config.json`; without, they describe a model made from scratch.
    """

    vocab_size: NonNegativeInt = 0
    """Number of tokens; 0 takes the tokenizer's."""
    vocab_multiple: PositiveInt = 1
    """The embedding table is padded to a multiple of this many rows; padding is never predicted."""
    unused_ids: IdRanges = ()
    """Ids that the tokenizer has no token for, as [first, last + 1]: they are never predicted. Filled at the start."""
    embed_dim: PositiveInt = 64
    """Width of the residual stream."""
    num_layers: PositiveInt = 3
    """Number of blocks."""
    num_heads: PositiveInt = 4
    """Number of query heads."""
    num_kv_heads: PositiveInt = 4
    """Number of key and value heads (grouped-query attention when fewer than `num_heads`)."""
    head_dim: PositiveInt = 16
    """Features of one head."""
    mlp_dim: PositiveInt = 256
    """Hidden features of the MLP."""
    max_positions: PositiveInt = 2048
    """Longest sequence in tokens: the rows of a learned position table, or the sliding window where one is shorter."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance in every norm."""
    norm_affine: bool = True
    """Whether norms have weights (Galactica's do not)."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    """MLP non-linearity."""
    gated_mlp: bool = True
    """Whether the activation multiplies a second projection (Llama) or stands alone (GPT-2)."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections."""
    attention_out_bias: bool = False
    """Bias on the attention output projection."""
    mlp_bias: bool = False
    """Biases in the MLP."""
    lm_head_bias: bool = False
    """Bias on the output projection (CodeGen)."""
    qk_norm: bool = False
    """RMSNorm over each query and key head (Qwen3)."""
    qk_norm_whole: bool = False
    """The norm of `qk_norm` is over all heads together (OLMo 2)."""
    post_norm: bool = False
    """Norms stand behind attention and MLP, before their outputs are added, instead of before them (OLMo 2)."""
    tie_embeddings: bool = True
    """Whether the output projection is the embedding table."""
    parallel_block: bool = False
    """Attention and MLP read the same norm (CodeGen)."""
    rotary_dim: NonNegativeInt = 16
    """Features of a head that are rotated by position; 0 means a learned position table."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary frequencies."""
    rope_interleaved: bool = False
    """Rotary pairs are neighbours (CodeGen) instead of the two halves (Llama)."""
    rope_scaling_factor: PositiveFloat = 1.0
    """Llama 3 frequency scaling: the factor for long wavelengths; 1 switches it off."""
    rope_low_freq_factor: PositiveFloat = 1.0
    """Llama 3 frequency scaling: wavelengths above original/low are scaled fully."""
    rope_high_freq_factor: PositiveFloat = 4.0
    """Llama 3 frequency scaling: wavelengths below original/high are left alone."""
    rope_original_positions: PositiveInt = 8192
    """Llama 3 frequency scaling: the context length before scaling, in tokens."""
    no_rope_every: NonNegativeInt = 0
    """Every so many layers one does not rotate its heads (SmolLM3: 4); 0 is none."""
    position_offset: NonNegativeInt = 0
    """First row used of a learned position table (2 in OPT)."""
    scale_attention: bool = True
    """Attention scores are divided by sqrt(head_dim)."""
    scale_attention_by_layer: bool = False
    """Attention scores are further divided by the 1-based layer number (Codeparrot)."""
    initializer_range: NonNegativeFloat = 0.02
    """Standard deviation of freshly initialised weights."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation: small matrices beside frozen weights (Hu et al. 2021)."""

    rank: NonNegativeInt = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: PositiveFloat = 16.0
    """Adapters are multiplied by `alpha` / `rank`."""
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """Linear maps of a block that have one; `gate` only where the MLP is gated."""
    path: ModelPath = ""
    """PEFT adapter that is merged into `model.path` at the start, whatever `rank` says."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is computed."""

    path: ModelPath = ""
    """Hugging Face directory or hub id to start from; empty makes a fresh model of the shape in `decoder`."""
    revision: str = "main"
    """Hub revision of `path`."""
    tokenizer: ModelPath = ""
    """Directory or hub id of the tokenizer; empty takes `path`'s; `embedded` builds the embedded problems' own."""
    decoder: DecoderConfig = DecoderConfig()
    """Shape of the model; filled from the checkpoint when `path` is given."""
    lora: LoraConfig = LoraConfig()
    """Adapters, in SFT and PPO; the reference is the model with PPO's adapters off."""
    dtype: Dtype = "float32"
    """Type that activations and matrix products are computed in."""
    param_dtype: Dtype = "float32"
    """Type that parameters and optimizer moments are kept in."""
    remat: Remat = "none"
    """What the backward pass computes again: nothing; all but the outputs of matrix products (`dots`, a third of the
    memory at little cost); or whole blocks (`full`, least memory, a third more compute)."""
    scan_layers: bool = True
    """One compiled block looped over the layers (fast to compile), or all layers unrolled (faster on CPU)."""
    attention: AttentionKind = "auto"
    """Attention over whole rows: `plain` keeps the scores of every layer for the backward pass, `recomputed` makes them
    again, `cudnn` never has them (NVIDIA GPUs from Ampere on, bfloat16, rows of even length). `auto` takes cudnn on a
    GPU where model and rows suit it, else recomputed on accelerators and plain on a CPU."""
    logits_chunk: NonNegativeInt = 0
    """Response tokens whose [tokens, vocabulary] logits exist at once in training; 0 takes all together."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where problems are read from."""

    kind: Literal["none", "reft_json", "gsm8k", "mathqa", "jsonl", "hub", "generated", "reasoning_gym"] = "none"
    """Layout: the reference's JSON list, GSM8K's JSONL, MathQA's JSON list, any JSONL, a hub data set, the embedded
    problems, or a task of reasoning-gym, which scores answers itself. All files may be Parquet instead."""
    path: str = ""
    """File, or hub id (`hub`; `mathqa` where it does not end as a file does); for `generated` `train`, `test` or
    `pretrain`. As every path: a relative one is taken from where the command runs, and `~` is your home."""
    name: str = ""
    """Configuration of a hub data set, such as `main`; the task of `reasoning_gym`, such as `countdown`."""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Parameters of the task of `reasoning_gym`, such as `{min_numbers: 3, max_numbers: 4}`."""
    seed: Seed = 0
    """Of `reasoning_gym`: item i depends on task, parameters, seed and i alone, and most tasks make it of seed + i."""
    split: str = "train"
    """Split of a hub data set."""
    revision: str = ""
    """Revision of a hub data set; empty takes the newest."""
    id_field: str = "id"
    """Field with the id (`jsonl`, `hub`); rows are numbered where it is missing. This field and the next three may be
    paths into a row, such as `extra_info.index` or `messages[-1].content`."""
    question_field: str = "question"
    """Field with the question (`jsonl`, `hub`), or several: `Body,Question`. A field that lists texts, as AQuA's
    `options` does, has a line for each."""
    answer_field: str = "answer"
    """Field with the gold answer (`jsonl`, `hub`); reasoning that ends in `#### N` is taken apart as GSM8K's. Rows may
    lack it where `reward.functions` alone are the reward."""
    answer_pattern: str = ""
    """`boxed`, where an answer's field (`jsonl`, `hub`) is a solution: the answer is in its last `\\boxed{...}`, the
    chain of thought is all of it. Or a regular expression for the whole field, with a group `(?P<answer>...)` and,
    where it has reasoning too, `(?P<cot>...)`; `.` is any character. Empty leaves it at `#### N`."""
    cot_field: str = "cot"
    """Field with the chain of thought (`jsonl`, `hub`); rows may lack it, and are for reinforcement alone then."""
    limit: NonNegativeInt = 0
    """Read only this many rows from the start; 0 reads all. `reasoning_gym` makes this many items."""
    cot_limit: NonNegativeInt = 0
    """Take only this many chains of thought, the first ones, and leave the other questions to reinforcement alone; 0
    takes all."""

    @property
    def boxed(self) -> bool:
        """Whether answers are the last boxes of solutions."""
        return self.answer_pattern == "boxed"

    @property
    def is_file(self) -> bool:
        """Whether `path` is a file on this machine, rather than a hub id or a generated split."""
        named = self.path.endswith((".json", ".jsonl", ".parquet"))
        return self.kind in ("reft_json", "gsm8k", "jsonl") or (self.kind == "mathqa" and named)


@dataclasses.dataclass(frozen=True)
class TemplateConfig:
    """The strings around question, chain of thought and answer; the defaults are the paper's.

    Of kind `chat` the strings of the prompt are those of the tokenizer's chat template, filled in at the start.
    """

    instruction: str = "Question:\n"
    """Before the question."""
    cot_trigger: str = "\nAnswer reasoning:\n"
    """Between the question and the chain of thought."""
    answer_trigger: str = "\nTherefore, the answer is: "
    """Between a chain of thought in prose and its answer."""
    program_header: str = 'def solution():\n    """{question}"""\n'
    """What a generated program is made to begin with, in PPO and evaluation, behind a chat template's prompt too;
    `{question}` is replaced."""
    kind: Literal["strings", "chat"] = "strings"
    """Prompts are made of the strings here, or by the tokenizer's chat template, of one user message, the question.
    `data.templates: chat` is short for that. It gives `instruction`, `cot_trigger`, `target_prefix` and `target_end`,
    which are left out then."""
    system: str = ""
    """System message of the chat template; empty sends none."""
    variables: TemplateVariables = dataclasses.field(default_factory=dict)
    """Variables of the chat template, such as `{enable_thinking: false}`. Today is 26 Jul 2024 in all templates, lest
    a run's prompts change overnight."""
    bos: bool | Literal["auto"] = "auto"
    """Whether prompts begin with the tokenizer's BOS token: `yes`, once; `no`; or `auto`, as the strings or the chat
    template have it, with a warning where the tokenizer itself would add one."""
    answer_suffix: str = ""
    """After the answer in targets of prose, such as the `}` of an `answer_trigger` that ends in `\\boxed{`."""
    target_prefix: str = ""
    """What targets of prose begin with, such as a template's empty `<think>` block."""
    target_end: str = ""
    """What targets end with; its last token, a special one, ends responses too. Empty is the tokenizer's EOS token."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The problems and how they become text."""

    cot: CotKind = "program"
    """Chains of thought are Python programs (P-CoT) or prose (N-CoT)."""
    train: SourceConfig = SourceConfig()
    """Problems to train on: SFT learns those that have a chain of thought, reinforcement asks all."""
    dev: SourceConfig = SourceConfig()
    """Problems that checkpoints are chosen on; of kind `none` they are taken out of `train`."""
    test: SourceConfig = SourceConfig()
    """Problems read once, at the end of the run."""
    dev_fraction: OpenUnitInterval = 0.1
    """Share of the training problems, drawn by a hash of the question, that is kept as dev where `dev` has none."""
    answer: Answer = "auto"
    """How answers are read and compared, see docs/answers.md: as a `number`, a letter of a `choice`, mathematics
    (`latex`, by math-verify) or `text`; `auto` is number or choice, by the data set's name, else by its answers."""
    templates: TemplateConfig = TemplateConfig()
    """Prompt and target strings."""
    overlong: Overlong = "error"
    """What happens to a prompt or target longer than the largest bucket; counted and reported."""
    bad_rows: BadRows = "error"
    """What happens to rows, of all sources, that cannot be used (no question, an answer that cannot be read, an id
    twice): all of them are told in one error, or they are dropped and told."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping and a schedule, as in the paper."""

    learning_rate: ClosedUnitInterval = 1e-5
    """Peak learning rate."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the ramp: linearly to 0 at the schedule's end, or constant."""
    lr_warmup_fraction: ClosedUnitInterval = 0.1
    """Share of the schedule's steps over which the learning rate rises from 0."""
    beta1: HalfOpenUnitInterval = 0.9
    """AdamW first-moment decay."""
    beta2: HalfOpenUnitInterval = 0.999
    """AdamW second-moment decay."""
    eps: PositiveFloat = 1e-8
    """AdamW epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of matrices; biases and norms are left out."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""


def _take_whole(stage: Any, whole: int) -> None:
    """Puts the whole batch in the place of a microbatch of 0, so that no reader of a config meets the 0."""
    if stage.microbatch_size == 0:
        object.__setattr__(stage, "microbatch_size", whole)


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """What the supervised stages share."""

    batch_size: PositiveInt = 48
    """Sequences per optimizer step."""
    microbatch_size: NonNegativeInt = 48
    """Sequences per forward and backward pass; gradients are accumulated over the batch. 0 takes the whole batch."""
    prompt_buckets: Buckets = (1024,)
    """Padded prompt lengths in tokens; a batch takes the smallest that fits. `auto`, here and in other buckets, makes
    some of the data's lengths when a run begins, which hold 50, 90, 99 % and all of the rows that fit the model."""
    response_buckets: Buckets = (1024,)
    """Padded target lengths in tokens, end token included; a batch takes the smallest that fits. Or `auto`."""
    loss_aggregation: Literal["token_mean", "microbatch_mean"] = "token_mean"
    """Loss: mean over the batch's target tokens, or (the reference) mean of the micro-batches' token means."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer of this stage."""

    def __post_init__(self) -> None:
        _take_whole(self, self.batch_size)


@dataclasses.dataclass(frozen=True)
class PretrainConfig(SupervisedConfig):
    """Supervised training on data of its own before the warm-up; off by default."""

    epochs: NonNegativeInt = 0
    """Passes over `source`; 0 switches the stage off."""
    source: SourceConfig = SourceConfig()
    """Problems with chains of thought."""


@dataclasses.dataclass(frozen=True)
class SftConfig(SupervisedConfig):
    """Supervised fine-tuning: the warm-up of PPO, and the baseline it is compared with."""

    schedule_epochs: NonNegativeInt = 40
    """Length of the learning-rate schedule in epochs; 0 switches the stage off."""
    warmup_epoch: NonNegativeInt = 2
    """The checkpoint after this epoch is where PPO starts from and what it refers to."""
    stop_epoch: NonNegativeInt = 40
    """Training ends after this epoch; equal to `warmup_epoch` it makes no SFT baseline."""
    evaluate_every: PositiveInt = 1
    """Epochs between evaluations on dev."""
    save_every: PositiveInt = 1
    """Epochs between checkpoints to resume from."""


@dataclasses.dataclass(frozen=True)
class SelfTrainingConfig:
    """Online self-training, `rl.algorithm: self_training`: likelihood of right completions and of annotations."""

    gold_weight: ClosedUnitInterval = 0.5
    """Share of the loss on the annotated chains of thought of the same questions; the rest is on right completions."""
    gold_limit: NonNegativeInt = 0
    """Annotations are cut where prompt and target come to this many tokens (300 in the reference); 0 cuts none."""


@dataclasses.dataclass(frozen=True)
class CollapseConfig:
    """When reinforcement ends early because it has gone wrong; the model that was best on dev is what is left."""

    window: PositiveInt = 20
    """Iterations between two looks at the rewards, and the fewest that are compared."""
    reward_share: ClosedUnitInterval = 0.5
    """End where the mean reward of the last iterations is less than this share of that of earlier ones, and the counts
    behind them say that it is no chance: of runs whose policy does not change, at most 1 % end (docs/collapse.md). 0
    never ends."""
    max_kl: NonNegativeFloat = 0.0
    """End where the KL to the reference, `rl/sequence_kl`, exceeds this many nats a response; 0 never ends."""


@dataclasses.dataclass(frozen=True)
class RlConfig:
    """The reinforcement stage."""

    algorithm: Literal["ppo", "grpo", "rloo", "reinforce", "self_training"] = "ppo"
    """PPO with a critic (ReFT); GRPO or RLOO, which compare the samples of a question with each other; REINFORCE, which
    takes the reward as it is; or likelihood of right completions. What the first four do with a reward is `baseline`
    and `advantage_scale`, which this decides where they are `auto`; all else is common to them."""
    epochs: NonNegativeInt = 300
    """Passes over the training questions; 0 switches the stage off."""
    init_from: LocalPath = ""
    """Checkpoint directory to start from; empty takes the warm-up's."""
    rollout_batch_size: PositiveInt = 32
    """Questions per iteration."""
    samples_per_question: PositiveInt = 1
    """Completions sampled for each question of an iteration; what compares them, as GRPO and RLOO do, needs two."""
    max_draws: PositiveInt = 1
    """Draw and sample questions again, up to so many times an iteration, until as many as it has are mixed: their
    responses did not all earn the same (DAPO's dynamic sampling). Where too few are, others fill it up."""
    question_choice: Literal["order", "pass_rate"] = "order"
    """Which questions are drawn: all, once an epoch, in an order by chance; or those that are right now and then, with
    chances of p (1 - p), p being the share of a question's completions that were right."""
    pass_rate_decay: Probability = 0.9
    """Each time that a question is asked, what its earlier completions count for in p is multiplied by this."""
    mastered_rate: Probability = 0.9
    """A question with p of this or more is retired, which 8 right completions of 8 reach: it is asked only where the
    others are too few. 1 retires none."""
    minibatch_size: PositiveInt = 32
    """Completions per optimizer step."""
    microbatch_size: NonNegativeInt = 32
    """Completions per forward and backward pass; gradients are accumulated over the minibatch. 0 takes the whole
    minibatch."""
    update_epochs: PositiveInt = 2
    """Passes over an iteration's completions."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-7, schedule="constant", lr_warmup_fraction=0.0)
    """Optimizer of this stage; its schedule counts optimizer steps."""
    kl_coef: NonNegativeFloat = 0.01
    """Weight of the KL to the reference; 0 does without the reference's weights and its pass over the completions,
    unless `track_kl` or `collapse.max_kl` asks for them."""
    track_kl: bool = False
    """Record the KL to the reference where its weight is 0, too."""
    kl_in: Literal["reward", "loss"] = "reward"
    """The KL is taken off the reward (ReFT), of each token in PPO and of the whole response otherwise; or added to the
    loss, weighted by the ratio of new to old policy, which makes its gradient that of the KL."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """Estimator of that KL from a sampled token: log(p/q), or q/p - 1 - log(q/p), which is never negative."""
    loss_aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = "sequence_mean"
    """Loss: mean over each response, then over the minibatch's responses; mean over all tokens of the minibatch; or sum
    over each response by `generation.max_new_tokens`, then mean over responses (Dr. GRPO)."""
    baseline: Literal["auto", "none", "group_mean", "leave_one_out", "critic"] = "auto"
    """What is taken off a reward: nothing (REINFORCE), the mean of the question's responses (GRPO), that of the others
    (RLOO), or the critic's values, token by token, by GAE (PPO); `auto` is by `algorithm`. All but the critic give the
    tokens of a response one advantage, from the sum of its rewards."""
    baseline_shift: FiniteFloat = 0.0
    """Added to a baseline that is no critic: with `none` it is a constant baseline, with `group_mean` and below 0 it is
    AsymRE's."""
    advantage_scale: Literal["auto", "none", "group_deviation", "group_mean", "whiten"] = "auto"
    """What advantages are divided by: nothing; the standard deviation of the question's rewards (GRPO); their mean
    (MaxRL); or `whiten`, which shifts and scales them to mean 0 and variance 1 over the iteration's tokens (PPO).
    `auto` is by `algorithm`, `whiten_advantages` and `scale_by_group`."""
    positive_weight: NonNegativeFloat = 1.0
    """Advantages above 0 are multiplied by this (0.1 in W-REINFORCE)."""
    negative_weight: NonNegativeFloat = 1.0
    """Advantages below 0 are multiplied by this (0 in RAFT++)."""
    only_mixed_groups: bool = False
    """Leave out questions whose responses all earned the same (Reinforce-Rej)."""
    surrogate: Literal["clip", "cispo", "topr", "reinforce"] = "clip"
    """Loss of the policy. `clip`: ratio times advantage, clipped (PPO). The others are likelihood times advantage, and
    times a weight without gradient: the clipped ratio (`cispo`); the ratio, at most 1, where the advantage is below 0
    (`topr`); or nothing (`reinforce`)."""
    ratio: Literal["token", "sequence_mean", "sequence_product"] = "token"
    """Ratio of new to old policy: of each token; of a response as the geometric mean of its tokens' (GSPO), or as their
    product (TOPR)."""
    clip_range: PositiveFloat = 0.2
    """Policy ratios are clipped to 1 +- this."""
    clip_range_high: AutoPositiveFloat = "auto"
    """They are clipped to 1 + this above; `auto` is `clip_range`."""
    dual_clip: DualClip = 0.0
    """Largest ratio that counts where the advantage is below 0 (dual-clip PPO: 3); 0 sets no limit."""
    old_log_probs: Literal["scored", "sampler"] = "scored"
    """Log-probs of the policy that sampled, which ratios and the KL are of: by a pass over the completions before their
    updates; or the sampler's own, which saves that pass and differs by what the two round otherwise (`rl/sampler_gap`).
    Where an iteration is one update, and nothing else asks for the pass, `scored` does without it too."""
    sampler_ratio_cap: NonNegativeFloat = 0.0
    """Tokens are weighted by the ratio of the trainer's to the sampler's probability, at most this (2 is usual), which
    mends what the two round otherwise; 0 does without."""
    overlong_filter: bool = False
    """Leave responses that were cut at `generation.max_new_tokens` out of the loss; they count in baselines."""
    overlong_buffer: NonNegativeInt = 0
    """Tokens before `generation.max_new_tokens` over which a response loses more and more reward; 0 does without."""
    overlong_penalty: NonNegativeFloat = 1.0
    """Reward that the longest response loses, where `overlong_buffer` is set."""
    entropy_floor: NonNegativeFloat = 0.0
    """While the mean entropy of an iteration's tokens is below this many nats, entropy is rewarded; 0 never does."""
    entropy_coef: NonNegativeFloat = 0.005
    """Weight of the entropy in the loss then."""
    positive_nll_coef: NonNegativeFloat = 0.0
    """Weight of a likelihood loss on right completions, a mean over their tokens (VAPO: 0.1)."""
    critic: Literal["shared", "detached", "separate"] = "shared"
    """The critic's values come from a head on the policy's body; from one whose loss does not reach the body; or from
    one on a decoder of its own that starts as a copy of it."""
    vf_coef: NonNegativeFloat = 5.0
    """PPO: weight of the value loss."""
    value_clip_range: PositiveFloat = 0.2
    """PPO: new values are clipped to the old ones +- this."""
    discount: ClosedUnitInterval = 1.0
    """PPO: reward discount per token."""
    gae_lambda: ClosedUnitInterval = 0.95
    """PPO: decay of generalised advantage estimation."""
    gae_length_alpha: NonNegativeFloat = 0.0
    """PPO: the decay of a response of l tokens is 1 - 1 / (this * l) where that is above `gae_lambda` (VAPO: 0.05, over
    thousands of tokens); 0 does without."""
    value_lambda: AutoUnitInterval = "auto"
    """PPO: decay in what values are fitted to, 1 for the rewards that came; `auto` is as in the advantages."""
    value_start: Literal["zero", "mean_reward"] = "zero"
    """What the critic says before it has learned: 0, or the mean reward of the first iteration."""
    critic_warmup: NonNegativeInt = 0
    """Iterations at the start in which the policy stays as it is and values are fitted to the rewards that came; a
    critic on the policy's body trains its head alone then."""
    critic_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.0, schedule="constant", lr_warmup_fraction=0.0)
    """Optimizer of the critic's own parameters, its head and a decoder of its own, with its own clipping and moments;
    with a learning rate of 0 `optimizer` has these too. Its schedule begins with `critic_warmup`, that of `optimizer`
    behind it."""
    whiten_advantages: bool = True
    """PPO: advantages are shifted and scaled to mean 0 and variance 1 over the iteration's tokens."""
    scale_by_group: bool = True
    """GRPO: advantages are divided by the standard deviation of the rewards of their question."""
    self_training: SelfTrainingConfig = SelfTrainingConfig()
    """Online self-training."""
    collapse: CollapseConfig = CollapseConfig()
    """When to end early."""
    evaluate_every: NonNegativeInt = 10
    """Iterations between evaluations on dev; 0 evaluates at the end of each epoch."""
    save_every: NonNegativeInt = 10
    """Iterations between checkpoints to resume from; 0 saves at the end of each epoch."""
    check_tolerance: PositiveFloat = 1e-3
    """Largest difference of log-probs (nats) allowed in the checks before the first update; between two programs, such
    as sampler and trainer, on average over tokens. bfloat16 needs about 0.05."""

    def __post_init__(self) -> None:
        _take_whole(self, self.minibatch_size)

    @property
    def completions_per_iteration(self) -> int:
        """Completions that one iteration samples, judges and learns from."""
        return self.rollout_batch_size * self.samples_per_question

    def minibatches(self, completions: int) -> int:
        """Minibatches of a pass over so many completions."""
        return -(-completions // self.minibatch_size)

    def updates(self, questions: int) -> int:
        """Optimizer steps of an iteration of so many questions."""
        return self.update_epochs * self.minibatches(questions * self.samples_per_question)

    @property
    def chosen_baseline(self) -> str:
        """`baseline`, decided."""
        own = {"ppo": "critic", "grpo": "group_mean", "rloo": "leave_one_out"}
        return own.get(self.algorithm, "none") if self.baseline == "auto" else self.baseline

    @property
    def chosen_scale(self) -> str:
        """`advantage_scale`, decided."""
        if self.advantage_scale != "auto":
            return self.advantage_scale
        if self.algorithm == "ppo" and self.whiten_advantages:
            return "whiten"
        return "group_deviation" if self.algorithm == "grpo" and self.scale_by_group else "none"

    @property
    def has_critic(self) -> bool:
        """Whether values are learned."""
        return self.algorithm != "self_training" and self.chosen_baseline == "critic"

    @property
    def scores_reference(self) -> bool:
        """Whether somebody reads what the reference says of the completions."""
        return self.algorithm != "self_training" and (self.kl_coef > 0 or self.track_kl or self.collapse.max_kl > 0)

    @property
    def scores_policy(self) -> bool:
        """Whether the policy makes a pass over the completions before it learns from them."""
        if self.algorithm == "self_training" or self.old_log_probs == "sampler":
            return False
        on_body = self.has_critic and not self.separate_critic
        again = self.updates(self.rollout_batch_size) > 1  # later updates need the log-probs of before
        return again or on_body or self.scores_reference or self.sampler_ratio_cap > 0 or self.entropy_floor > 0

    @property
    def separate_critic(self) -> bool:
        """Whether the critic has a decoder of its own, instead of a head on the policy's body."""
        return self.critic == "separate"


@dataclasses.dataclass(frozen=True)
class RewardModelConfig:
    """The outcome reward model of `python -m reft_jax.reward_model`: it tells right completions from wrong ones."""

    samples: LocalPaths = ()
    """Files of `python -m reft_jax.sample` to train on; questions of dev among them choose the model."""
    init_from: LocalPath = ""
    """Checkpoint directory to start from, such as `RUN_DIR/checkpoints/sft_best`; empty takes `model.path`."""
    epochs: NonNegativeInt = 3
    """Passes over the unique completions."""
    batch_size: PositiveInt = 24
    """Completions per optimizer step."""
    microbatch_size: NonNegativeInt = 24
    """Completions per forward and backward pass, and scored at once; gradients are accumulated over the batch. 0 takes
    the whole batch."""
    row_buckets: Buckets = (700,)
    """Padded lengths of prompt and completion together, in tokens; a batch takes the smallest that fits. Or `auto`."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    """Optimizer of this stage."""
    evaluate_every: NonNegativeInt = 1000
    """Steps between readings of dev, which is read after each epoch as well; 0 reads it then alone."""
    save_every: NonNegativeInt = 1000
    """Steps between checkpoints to resume from, of which one is written after each epoch as well; 0 writes it alone."""

    def __post_init__(self) -> None:
        _take_whole(self, self.batch_size)


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Sampling, in PPO and evaluation."""

    prompt_buckets: Buckets = (300,)
    """Padded prompt lengths in tokens, forced header included; a batch takes the smallest that fits. Or `auto`."""
    max_new_tokens: PositiveInt = 400
    """Longest response in tokens, end token included."""
    stop: StopTexts = ()
    """Texts that end a response, such as `["\\nQuestion:"]`, in training, evaluation and `sample`. Its tokens are kept
    up to the one that completes the first such text; what stands before the text is judged and recorded. Sampling
    itself goes on to the end token."""
    temperature: Temperature = 1.0
    """Divides the logits in PPO's rollouts, and in every log-prob of PPO. Evaluation is greedy."""
    slots: NonNegativeInt = 0
    """Rows in flight on each device, in training and evaluation; a row that has ended makes room for the next. 0 means
    as many as 2 GB of KV cache hold, and not more than an iteration samples: a power of two, at most 256, and on a CPU
    32 unless the model is tiny."""
    scan_layers: bool = False
    """As `model.scan_layers`, for the decode loop; unrolled is faster on every platform but compiles longer, and on a
    CPU it samples with a copy of the weights where training loops over the layers."""
    weight_layout: SamplingLayout = "auto"
    """Layout of the weights while sampling, in the compute type: heads, MLP and vocabulary `sharded` over fsdp and
    tensor together (least memory, and fastest for large models), or `replicated` to every fsdp index, which then
    samples rows of its own (fastest for small models). `auto` splits where everything divides evenly and copies
    otherwise."""


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """How completions are judged."""

    rules: Rules = "lenient"
    """Reading of answers: what a person would read, or the reference implementation to the letter."""
    correct: FiniteFloat = 1.0
    """Reward of a right answer."""
    wrong: FiniteFloat = 0.1
    """Reward of an answer that is there but wrong; 0 is the paper's ablation without partial reward."""
    no_answer: FiniteFloat = 0.0
    """Reward where no answer can be read, or the program failed."""
    tolerance: PositiveFloat = 1e-2
    """Largest absolute difference at which a number counts as right."""
    relative_tolerance: NonNegativeFloat = 0.0
    """The same as a share of the gold answer; the larger of the two holds."""
    exact_integers: bool = True
    """Gold answers that are whole numbers are compared by `tolerance` alone, however large they are."""
    program_timeout_s: PositiveFloat = 10.0
    """CPU seconds that one program may use."""
    program_memory_mb: PositiveInt = 1024
    """Megabytes of address space that one program may use beyond its worker's."""
    batch_deadline_s: PositiveFloat = 300.0
    """Seconds by the clock for all programs of a batch; keep it below any time limit of your collectives."""
    workers: PositiveInt = 2
    """Processes that run programs at the same time."""
    sandbox: Containment = "contained"
    """Programs have all containment that the kernel grants, and at least limits; or limits alone, or not even those."""
    functions: RewardFunctions = dataclasses.field(default_factory=dict)
    """Your own reward functions: import path (`my_rewards.brevity`) to weight, or to `{weight: 1, contained: true}`,
    which is called in a worker with the limits and the sandbox of programs, one completion a call. Added to the rewards
    above wherever completions are judged; with `correct`, `wrong` and `no_answer` 0 they are the reward, and rows need
    no answer."""
    function_timeout_s: PositiveFloat = 300.0
    """Seconds by the clock for one call of such a function; the run ends with its name where it takes longer. Contained
    ones have `program_timeout_s`, `program_memory_mb` and `batch_deadline_s` instead, and say nothing beyond them."""

    @property
    def by_functions_alone(self) -> bool:
        """Whether it makes no difference what is right, so that problems need no gold answer."""
        return bool(self.functions) and self.correct == self.wrong == self.no_answer


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Greedy evaluation on dev and test."""

    dev_limit: NonNegativeInt = 0
    """Use only this many dev problems; 0 uses all. Test is always read whole."""
    temperature: GreedyOrTemperature = 0.0
    """Divides the logits; 0 is greedy, which is what the paper reports."""
    top_k: NonNegativeInt = 0
    """Draw only among the k most likely tokens; 0, or more than there are, among all. Evaluation only: PPO samples from
    the whole policy."""
    top_p: Probability = 1.0
    """Draw only among the most likely tokens that together reach this probability. Evaluation only."""
    select_by: str = "auto"
    """What the best models on dev are chosen by: `accuracy`, the mean `reward`, or the mean of one of
    `reward.functions` by its name (`brevity`). `auto` is accuracy, and reward where right and wrong earn the same."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices as a grid; batches are split over data and fsdp, parameters over fsdp and tensor."""

    data: MeshAxis = 1
    """Copies of the model; -1 takes the devices that are left."""
    fsdp: MeshAxis = -1
    """Shards of parameters and optimizer state; -1 takes the devices that are left."""
    tensor: MeshAxis = 1
    """Shards of heads, MLP and vocabulary; -1 takes the devices that are left."""
    fake_cpu_devices: NonNegativeInt = 0
    """Split each process's CPU into this many devices, to try a mesh without the hardware; 0 leaves it as it is."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes of a run on several hosts; all run the same command, and see the same `run_dir`."""

    coordinator_address: str = ""
    """`host:port` of process 0, on a port that is free there; empty asks the cluster (see `detect`)."""
    num_processes: NonNegativeInt = 0
    """Number of processes, where `coordinator_address` is given."""
    process_id: NonNegativeInt = 0
    """Index of this one, from 0, where `coordinator_address` is given."""
    detect: bool = True
    """Whether to look for SLURM, Open MPI, Kubernetes and Cloud TPU, as `jax.distributed.initialize` does."""
    heartbeat_timeout_seconds: PositiveInt = 100
    """Seconds without a sign of life after which a process is taken for dead and the others stop with an error."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of the checkpoints that a run writes; when they are written is `save_every` of its stages."""

    keep_last: PositiveInt = 2
    """Resume points kept, the newest."""
    keep_best: PositiveInt = 1
    """Models kept of those read on dev, the best, for SFT and for PPO each."""


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """What is printed and written while a run works."""

    trackers: Trackers = ("tensorboard",)
    """Where the scalars of `metrics.jsonl` go besides: `tensorboard` (event files in the run's folder), `wandb` and
    `trackio` (`pip install 'reft_jax[wandb,trackio]'`). Where the last two send or keep them is said by their own
    variables, such as WANDB_MODE and TRACKIO_DIR."""
    project: ProjectName = "reft_jax"
    """What `wandb` and `trackio` call the project that the run belongs to."""
    profile: NonNegativeInt = 0
    """Iterations of reinforcement, or supervised steps where a run has no reinforcement, that JAX's profiler traces,
    once nothing is compiled any more. 0 traces none."""
    rollouts_every: NonNegativeInt = 10
    """Iterations between rollouts that are written with their verdicts; the first and the last are written too. 0
    writes none."""
    rollouts_limit: NonNegativeInt = 32
    """Completions written of such a rollout."""
    tokens_limit: NonNegativeInt = 4
    """Completions of these that are written with the value, the advantage and the KL of each token."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A run: pretrain (optional), SFT, reinforcement, then one evaluation on the test set."""

    run_dir: LocalPath = ""
    """Where everything is written; the same command with the same folder continues it."""
    seed: Seed = 42
    """Seed of initialisation, data order and sampling."""
    model: ModelConfig = ModelConfig()
    """The model."""
    data: DataConfig = DataConfig()
    """The problems."""
    pretrain: PretrainConfig = PretrainConfig()
    """Optional first stage."""
    sft: SftConfig = SftConfig()
    """Warm-up and SFT baseline."""
    rl: RlConfig = RlConfig()
    """Reinforcement."""
    reward_model: RewardModelConfig = RewardModelConfig()
    """Reward model, a run of its own."""
    generation: GenerationConfig = GenerationConfig()
    """Sampling."""
    reward: RewardConfig = RewardConfig()
    """Judging."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation."""
    mesh: MeshConfig = MeshConfig()
    """Devices."""
    distributed: DistributedConfig = DistributedConfig()
    """Processes."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    allow_changed: tuple[str, ...] = ()
    """Keys or sections, such as `rl.kl_coef`, whose values may differ from those that this run has; it goes on with the
    new ones from where it is, where that has a meaning."""
    logging: LoggingConfig = LoggingConfig()
    """Records."""
    compilation_cache_dir: LocalPath = ""
    """Folder that compiled steps are kept in between runs; empty keeps none."""

    @property
    def select_by(self) -> str:
        """`evaluation.select_by`, decided."""
        chosen = self.evaluation.select_by
        return ("reward" if self.reward.by_functions_alone else "accuracy") if chosen == "auto" else chosen

    @property
    def only_reward_model(self) -> bool:
        """Whether this is a reward model's run, which has no other stage and samples nothing."""
        stages = self.pretrain.epochs or self.sft.schedule_epochs or self.rl.epochs
        return bool(self.reward_model.samples) and not stages

    @property
    def needs_sampling(self) -> bool:
        """Whether the run, or a command that trains nothing, samples completions."""
        learns = self.sft.schedule_epochs or self.rl.epochs
        return bool(learns or not (self.pretrain.epochs or self.reward_model.samples))

    @property
    def learns_annotations(self) -> bool:
        """Whether SFT or self-training learns the chains of thought of the training problems."""
        imitates = self.rl.epochs and self.rl.algorithm == "self_training" and self.rl.self_training.gold_weight
        return bool(self.sft.schedule_epochs or imitates)
