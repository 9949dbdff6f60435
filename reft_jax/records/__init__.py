"""What a run leaves behind, and what a person sees of it while it works.

metrics      the names of all metrics, with unit and meaning
records      JSON lines, cut back on a resume
trackers     TensorBoard, Weights & Biases, trackio
log          what the console says, with times
checkpoint   resume points and models (Orbax)
console      progress line and closing table
provenance   command, versions, platform, commit
model_card   what an export says of itself

Imports config, files and parallel.
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    checkpoint="Checkpoints restore_params run_of",
    console="ProgressDisplay print_closing_table",
    metrics="METRICS Metric",
    provenance="run_info",
    records="MetricsWriter",
)
