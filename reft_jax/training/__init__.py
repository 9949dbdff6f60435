"""A run from its config to its summary: opening, loops, and how it ends.

lifecycle      how every command begins and ends: processes, signals, exit codes
startup        from a config to a run at work
directory      the run's folder, taken up where its last resume point left it
announcements  what a run says when it begins, is stopped and is over
state          stages, progress, and the records that a run keeps
model          the model at work: devices, compiled steps, where parameters come from
slots          rows in flight: prompts into slots, tokens out of them
sampler        a model with problems: sample, judge, evaluate
completion     tokens to text, text to verdicts
evaluation     what an evaluation said
supervised     the loop of SFT
reinforcement  the loop of reinforcement
drawing        which questions an iteration learns from
collapse       whether rewards have fallen
learners       what an algorithm does with an iteration's completions
profile        JAX's trace of some steps
model_source   which model `sample`, `evaluate` and `probe` ask

Imports all rooms but preflight and reward_model.
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    completion="Completion judge",
    evaluation="Evaluation",
    lifecycle="Lifecycle",
    model="Model",
    sampler="Sampler",
    startup="Run claim_run open_run open_sampler",
    state="Records RunProgress Stage",
)
