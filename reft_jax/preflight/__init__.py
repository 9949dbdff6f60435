"""Does a run fit devices that are not here? `python -m reft_jax.preflight`.

__main__  the command
steps     compiles the steps of `algorithms.steps` for the target, in a process of its own
devices   targets: GPUs, TPUs and CPUs that the compiler knows
hlo       what a compiled step moves between devices
bill      what a run takes: seconds, hours and device-hours
report    what is in memory together, and what to change

Imports config, models, algorithms and what these do.
"""
