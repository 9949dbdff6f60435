"""Stands in for `python -m reft_jax.train`: writes down how it was called, then does what it was told.

`RECORDS` is the folder it writes to. `ACTS` has a word for each process, the last one for all that follow: `exit=3`
ends with code 3, `stop` waits for a signal and ends with 75, `deaf` stays whatever comes. The last two have a child.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

if sys.argv[1] == "-c":  # somebody needs the interpreter itself
    exec(sys.argv[2])
    sys.exit()

told = re.search(r"--distributed\.process_id[ =](\d+)", " ".join(sys.argv))
index = int(told[1] if told else os.environ.get("SLURM_PROCID", "0"))
acts = os.environ.get("ACTS", "exit=0").split()
act = acts[min(index, len(acts) - 1)]
path = Path(os.environ["RECORDS"]) / f"{index}.json"
signals: list[int] = []
record = {
    "arguments": sys.argv[1:],
    "platforms": os.environ.get("JAX_PLATFORMS"),
    "signals": signals,
    "pids": [os.getpid()],
}


def write() -> None:
    path.with_suffix(".new").write_text(json.dumps(record))
    path.with_suffix(".new").replace(path)


print(f"process {index} speaks", flush=True)
if act.startswith("exit="):
    write()
    sys.exit(int(act.removeprefix("exit=")))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL if act == "early" else lambda number, _: signals.append(number))
record["pids"].append(subprocess.Popen(["sleep", "60"]).pid)
end = time.monotonic() + 60
while time.monotonic() < end and (act == "deaf" or not signals):
    write()
    time.sleep(0.02)
time.sleep(0.3)  # time for a second signal that should not come
write()
sys.exit(75)
