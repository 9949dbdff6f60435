"""Command: one HTML page about one run or several, which opens from a disk without network or server. No jax.

folder       what a run left behind: settings, metrics, completions
results      accuracies with intervals, paired against the warm-up; what was chosen; time; settings
curves       metrics as lines, thinned, and their means over the runs of a method
behaviour    failures by cause, signs of reward hacking, length against correctness
completions  what the model said to the same question at the warm-up, on the way and at the end; sampled where too many
page         all of it as one file
assets/      the page's own HTML, CSS and JavaScript, and uPlot, which draws the curves, with its licence

Imports config, files, records and samples.
"""

from reft_jax import hand_out

__getattr__, __all__ = hand_out(
    __name__,
    folder="RunFolder read_run",
    page="report_page",
)
