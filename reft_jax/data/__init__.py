"""From a source on disk or the hub to padded token batches.

rows        rows of files and hub data sets, with their place
readers     rows to problems, checked, and their splits
prompts     problems to text
tokenizers  by name
encoding    text to token ids
batches     token ids to padded rows
generated   the embedded problems; generated_stories and generated_text make them
audit, audit_tokens, audit_report   what a set of problems holds, and what is wrong with it

`python -m reft_jax.data` looks at problem files, or at all that a config reads.
"""
