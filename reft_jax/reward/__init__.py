"""Completions in, one verdict each out. Standard library and sympy only, no jax.

answers     what a text or a program's result says, and whether it is right
numerals    a number as people, models and files write it
words       what the words beside a number do to it, as tables
typesetting answers without LaTeX, markup and other scripts' characters
parse       where a program is in a text, and what the two parsers of programs may be given
arithmetic  programs that are nothing but arithmetic, computed without a process
programs    what came out of a program, and the worker process that runs it under hard limits
pool        the workers
worker      the command that each of them is
sandbox     what the Linux kernel takes from a program
equations, sums, letters   signs of reward hacking, in prose and in programs
scorers     tasks of reasoning-gym, whose scorers run what a model wrote
functions   reward functions of the user's own
verdicts    problems and completions to verdicts

Imports config, problem and files. `python -m reft_jax.reward FILE.jsonl` audits a file of completions.
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    answers="extract_answer is_correct parse_gold",
    functions="RewardFunction load_functions",
    pool="ProgramRunner",
    programs="ProgramResult",
    verdicts="Verdict verdicts_of",
)
