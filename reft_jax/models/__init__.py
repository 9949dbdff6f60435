"""Flax modules: the decoder, the policy made of it, and the way from and to Hugging Face checkpoints."""
