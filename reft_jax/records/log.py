"""`log.txt` of a run: what its console says, each line with the time; a run that goes on appends to it. No jax."""

import datetime
from pathlib import Path

LOG_FILE = "log.txt"
"""In a run's folder."""


def now() -> str:
    """The time, in UTC to the second, as ISO 8601 has it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def append_log(path: Path, text: str) -> None:
    """Appends the lines of a text, each behind the time."""
    time = now()
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(f"{time} {line}".rstrip() + "\n" for line in text.splitlines()))
