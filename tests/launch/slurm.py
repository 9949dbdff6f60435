"""Stands in for the program of SLURM that the first argument names.

`srun` starts tasks and ends with the highest of their codes, `squeue` tells `JOB_STATE`; what `srun` and `scontrol`
were asked is written down in the folder `RECORDS`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

name, arguments = sys.argv[1], sys.argv[2:]
if name == "squeue":
    print(os.environ["JOB_STATE"])
else:
    (Path(os.environ["RECORDS"]) / name).write_text(json.dumps(arguments))
if name == "srun":
    first = next(i for i, argument in enumerate(arguments) if not argument.startswith("--"))
    [output] = [option.removeprefix("--output=") for option in arguments[:first] if option.startswith("--output=")]
    tasks = []
    for task in range(int(os.environ["SLURM_NTASKS"])):
        with open(output.replace("%t", str(task)), "w") as file:
            environment = {**os.environ, "SLURM_PROCID": str(task)}
            tasks.append(subprocess.Popen(arguments[first:], env=environment, stdout=file, stderr=file))
    codes = [task.wait() for task in tasks]
    sys.exit(max(128 - code if code < 0 else code for code in codes))
