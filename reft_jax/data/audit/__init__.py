"""What a set of problems holds, and what is wrong with it; `python -m reft_jax.data`.

texts   duplicates, splits that overlap, annotations that miss their answer
tokens  lengths, and what does not fit
report  both, printed
"""
