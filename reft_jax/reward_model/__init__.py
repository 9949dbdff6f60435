"""The outcome reward model: `python -m reft_jax.reward_model`.

__main__   the commands `train` and `rerank`
training   the run that trains it
reranking  choosing among completions

Imports training, and what that does.
"""
