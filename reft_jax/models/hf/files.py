"""The weight files of a Hugging Face directory as tensors by name, of which slices are read when asked for.

Safetensors, or the pickles of torch that older models still have, in one file or those of an index. Below `hf`, which
knows what the tensors are for.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PICKLE_FILE, PICKLE_INDEX_FILE = "pytorch_model.bin", "pytorch_model.bin.index.json"
FLOATS = ("F64", "F32", "BF16", "F16")


class _View(Protocol):
    """A tensor in a file: shape and type at once, entries by slicing."""

    def get_shape(self) -> Any: ...
    def get_dtype(self) -> str: ...
    def __getitem__(self, index: tuple[slice, ...], /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """One tensor of a file."""

    path: Path
    name: str
    pickle: "_Pickle | None" = None

    def read(self, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """A slice of the tensor, after a check of its shape and type.

        A file of safetensors is opened for it and closed again: what has been read of a mapped file counts as this
        process's memory until then, and would add up to the whole checkpoint. Torch's are too slow to open for that.

        Raises:
            ValueError: shape or type is another than expected; names file and tensor.
        """
        with contextlib.nullcontext(self.pickle) if self.pickle else _open(self.path) as file:
            view = file.get_slice(self.name)
            found, dtype = tuple(view.get_shape()), view.get_dtype()
            if found != shape:
                raise ValueError(f"{self.path}: tensor {self.name} has shape {found}, expected {shape}")
            if dtype not in FLOATS:
                raise ValueError(f"{self.path}: tensor {self.name} is {dtype}; readable are {', '.join(FLOATS)}")
            return view[index]


def list_tensors(directory: Path) -> dict[str, FileTensor]:
    """All tensors of a checkpoint by name.

    Raises:
        FileNotFoundError: a file of the index, or any weights at all, are missing.
        ValueError: a file is truncated or corrupt, takes torch to be read where there is none, or lacks a tensor that
            its index says is there; names file and tensor.
    """
    forms = ((WEIGHTS_FILE, INDEX_FILE), (PICKLE_FILE, PICKLE_INDEX_FILE))
    present = [name for form in forms for name in form if (directory / name).exists()] or [WEIGHTS_FILE]
    listed: dict[str, str] = {}
    files = present[:1]
    if present[0].endswith(".json"):
        listed = json.loads((directory / present[0]).read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(listed.values()))
    tensors: dict[str, FileTensor] = {}
    for path in (directory / file for file in files):
        with _open(path) as file:
            pickle = file if isinstance(file, _Pickle) else None
            tensors |= {name: FileTensor(path, name, pickle) for name in file.keys()}  # noqa: SIM118 (not a dict)
    for name, file in listed.items():
        if name not in tensors or tensors[name].path.name != file:
            raise ValueError(f"{directory / present[0]}: tensor {name} should be in {file}, but is not there")
    return tensors


def _open(path: Path) -> contextlib.AbstractContextManager[Any]:
    """The file, with `keys` and `get_slice`, to be used in a `with`."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; the weights are missing or not all downloaded")
    if path.suffix == ".bin":
        return contextlib.nullcontext(_Pickle(_load_pickle(path)))
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or corrupt ({error}); fetch it again") from error


def _load_pickle(path: Path) -> Mapping[str, Any]:
    """The tensors of a file of `torch.save`, which stay on the disk until they are used where its format allows it."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path}: torch's own format, which takes torch to read: `pip install torch` (any build, for CPU too), or "
            "convert the model to safetensors once"
        ) from None
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format of torch before 1.6
    except (RuntimeError, EOFError, UnpicklingError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: truncated, corrupt, or with more in it than tensors ({reason})") from error


class _Pickle:
    """The tensors of a pickle, by the interface of safetensors."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_slice(self, name: str) -> _View:
        return _PickleView(self._tensors[name])


class _PickleView:
    """A tensor of torch, sliced into arrays of NumPy."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def get_shape(self) -> tuple[int, ...]:
        return tuple(self._tensor.shape)

    def get_dtype(self) -> str:
        name = str(self._tensor.dtype).removeprefix("torch.")
        return {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}.get(name, name)

    def __getitem__(self, index: tuple[slice, ...], /) -> np.ndarray:
        import torch

        piece = self._tensor[index].detach()
        if piece.dtype == torch.bfloat16:  # which NumPy does not know
            return piece.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return piece.numpy()
