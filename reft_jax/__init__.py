"""reft_jax: ReFT (Reasoning with REinforced Fine-Tuning, arXiv 2401.08967) in JAX."""

__version__ = "0.1.0"
