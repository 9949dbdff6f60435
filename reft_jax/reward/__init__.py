"""The reward room: completions in, one verdict each out. Standard library and sympy only, no jax.

answers   what a text or a program's result says, and whether it is right
programs  a pool of processes that run programs under hard limits
worker    the command that each of these processes is
score     problems and completions to verdicts
"""
