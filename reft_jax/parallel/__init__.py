"""Many devices, many processes, and what is compiled for them.

sharding     the mesh, the table from logical to mesh axes, host arrays to global ones and back
processes    how the processes of a run find each other, agree, and end: the exit codes
compilation  the steps of a run, compiled once a bucket
dispatch     devices are kept one batch ahead of the host

Imports config.
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    compilation="CompiledSteps Step",
    dispatch="one_ahead",
    processes="Interrupted StopRequest configure_jax connect exit_with gather on_process_zero",
    sharding="RULES batch_shardings constrain make_mesh named_sharding to_global to_host",
)
