"""The settings of a run: what there is to set, how it is read, and what is refused. No jax, no numpy.

settings     frozen dataclasses: every key with its type, range, default and help
ranges       what stands at the field of a number
paths        made absolute, and told from names of the hub
faults       all that is wrong with a command line and its files at once
files        the files that a config is made of, and those of the package
lists        settings that are lists, as people write them
invocation   what the commands are called here
changes      which settings may change in a run that has begun
load         YAML files and dotted overrides to a `Config`
renamed      what keys and values were called in earlier versions
validation   what the types allow and no run can use

Imports nothing of the package.
"""

from reft_jax.config.load import (
    CommandParser,
    SettingsParser,
    config_parser,
    differences,
    load_config,
    parse_config,
    to_dict,
)
from reft_jax.config.renamed import old_names_in_file
from reft_jax.config.settings import (
    Answer,
    AttentionKind,
    BadRows,
    CheckpointConfig,
    CollapseConfig,
    Config,
    Containment,
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
    Overlong,
    PretrainConfig,
    Remat,
    RewardConfig,
    RewardModelConfig,
    RlConfig,
    Rules,
    SamplingLayout,
    SelfTrainingConfig,
    SftConfig,
    SourceConfig,
    Split,
    SupervisedConfig,
    TemplateConfig,
)

__all__ = [
    "Answer",
    "AttentionKind",
    "BadRows",
    "CheckpointConfig",
    "CollapseConfig",
    "CommandParser",
    "Config",
    "Containment",
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
    "Overlong",
    "PretrainConfig",
    "Remat",
    "RewardConfig",
    "RewardModelConfig",
    "RlConfig",
    "Rules",
    "SamplingLayout",
    "SelfTrainingConfig",
    "SettingsParser",
    "SftConfig",
    "SourceConfig",
    "Split",
    "SupervisedConfig",
    "TemplateConfig",
    "config_parser",
    "differences",
    "load_config",
    "old_names_in_file",
    "parse_config",
    "to_dict",
]
