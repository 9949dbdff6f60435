"""The reward room: completions in, one verdict each out. Standard library and sympy only, no jax.

answers     what a text or a program's result says, and whether it is right
arithmetic  programs that are nothing but arithmetic, computed without a process
parse       what may be parsed, and whether texts are programs or prose
programs    a pool of processes that run the others under hard limits
worker      the command that each of these processes is
sandbox     what the Linux kernel takes from a program
equations, sums, letters   signs of reward hacking, in prose and in programs
functions   reward functions of the user's own
verdicts    problems and completions to verdicts

`python -m reft_jax.reward FILE.jsonl` audits a file of completions.
"""
