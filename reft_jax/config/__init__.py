"""The settings of a run: what there is to set, how it is read, and what is refused. No jax, no numpy.

settings     frozen dataclasses: every key with its type, default and help
load         YAML files and dotted overrides to a `Config`
validation   what the types allow and no run can use

Imports nothing of the package.
"""

from reft_jax.config.load import (
    config_parser,
    differences,
    load_config,
    parse_config,
    to_dict,
)
from reft_jax.config.settings import (
    AttentionKind,
    CheckpointConfig,
    CollapseConfig,
    Config,
    CotKind,
    DataConfig,
    DecoderConfig,
    DistributedConfig,
    Dtype,
    EvaluationConfig,
    GenerationConfig,
    LoggingConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    Remat,
    RewardConfig,
    RewardModelConfig,
    RlConfig,
    SamplingLayout,
    SelfTrainingConfig,
    SftConfig,
    SourceConfig,
    SupervisedConfig,
    TemplateConfig,
)

__all__ = [
    "AttentionKind",
    "CheckpointConfig",
    "CollapseConfig",
    "Config",
    "CotKind",
    "DataConfig",
    "DecoderConfig",
    "DistributedConfig",
    "Dtype",
    "EvaluationConfig",
    "GenerationConfig",
    "LoggingConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "Remat",
    "RewardConfig",
    "RewardModelConfig",
    "RlConfig",
    "SamplingLayout",
    "SelfTrainingConfig",
    "SftConfig",
    "SourceConfig",
    "SupervisedConfig",
    "TemplateConfig",
    "config_parser",
    "differences",
    "load_config",
    "parse_config",
    "to_dict",
]
