"""The embedded problems: arithmetic in words with programs as annotations, made from a seed.

problems  problems by split, and their tokenizer
stories   the situations that they tell
wording   names, things and numbers
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(__name__, problems="build_tokenizer generate_problems")
