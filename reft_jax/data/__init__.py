"""From a source on disk or the hub to padded token batches.

rows          rows of files and hub data sets, with their place
tasks         items of reasoning-gym's tasks as problems
readers       rows to problems, checked, and their splits
prompts       problems to text
chat          a tokenizer's chat template as the strings of prompts
chat_template prompts as other libraries make them
tokenizers    by name
encoding      text to token ids
problem_sets  the problems of a run by split, and their token ids
samples       files of samples as rows for a classifier
batches       token ids to padded rows
buckets       padded lengths made of the data's own
embedded/     the problems that need no download
audit/        what a set of problems holds, and what is wrong with it

Imports config, problem, files, reward and samples. `python -m reft_jax.data` looks at problem files, or at all that a
config reads.
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    batches="PromptBatch Sequences prompt_batches training_batch training_prompts",
    encoding="Example Prompt encode_examples encode_prompts",
    prompts="few_shot_prefix generation_prompt prompt_text target_text",
    readers="read_problems split_dev",
    tokenizers="SpecialIds load_tokenizer special_ids",
)
