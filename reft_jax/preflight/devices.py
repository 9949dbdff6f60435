"""The devices that a config can be compiled for where they are not: memory, topology, and the wheels that it takes.

`parse_target` reads a name such as `cpu:8`, `a100:1x1x8` or `tpu:v5e:4x4`; `Target.environment` must be set before JAX
is imported, and `Target.devices` then gives devices that can be compiled for and nothing else.
"""

import dataclasses
import importlib.metadata
import math
import os
import re
import shutil
from collections.abc import Mapping
from typing import Any, Literal

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A card, by what the compiler asks of it; from NVIDIA's data sheets and the CUDA programming guide's limits."""

    name: str
    memory: float  # bytes that CUDA reports
    flops: float  # operations/s in bfloat16, dense
    bandwidth: float  # bytes/s
    link: float  # bytes/s to the other cards, each way
    capability: tuple[int, int]
    multiprocessors: int
    fpus: int  # float32 lanes of each multiprocessor
    shared_memory: int  # bytes of each multiprocessor
    l2_cache: int
    clock_ghz: float

    def target_config(self) -> str:
        """XLA's description of the device, a text protocol buffer."""
        return f"""
            gpu_device_info {{
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              core_count: {self.multiprocessors} fpus_per_core: {self.fpus}
              shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared_memory - 1024}
              shared_memory_per_core: {self.shared_memory}
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              memory_bandwidth: {self.bandwidth:.0f} l2_cache_size: {self.l2_cache} clock_rate_ghz: {self.clock_ghz}
              device_memory_size: {self.memory:.0f}
              cuda_compute_capability {{ major: {self.capability[0]} minor: {self.capability[1]} }}
            }}
            platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            device_description_str: "{self.name}" """


_AMPERE: dict[str, Any] = {
    "capability": (8, 0),
    "multiprocessors": 108,
    "fpus": 64,
    "shared_memory": 164 * 1024,
    "l2_cache": 40 * 2**20,
    "clock_ghz": 1.41,
}
_HOPPER: dict[str, Any] = {
    "capability": (9, 0),
    "multiprocessors": 132,
    "fpus": 128,
    "shared_memory": 228 * 1024,
    "l2_cache": 50 * 2**20,
    "clock_ghz": 1.98,
}
GPUS: Mapping[str, Gpu] = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 85.0e9, 312e12, 2.039e12, 300e9, **_AMPERE),
    "a100_40gb": Gpu("NVIDIA A100-SXM4-40GB", 42.3e9, 312e12, 1.555e12, 300e9, **_AMPERE),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 84.9e9, 989e12, 3.352e12, 450e9, **_HOPPER),
    "h200": Gpu("NVIDIA H200", 150.0e9, 989e12, 4.8e12, 450e9, **_HOPPER),
}
GPU_RESERVE = 4.0e9
GPU_POOL = 0.75
"""Share of a card that JAX takes for itself unless `XLA_PYTHON_CLIENT_MEM_FRACTION` says otherwise."""


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A generation of TPU, each device a whole chip: memory as libtpu states it when it refuses a program, speeds from
    Google's pages."""

    dimensions: int
    memory: float  # bytes a program may use
    flops: float  # operations/s in bfloat16
    bandwidth: float  # bytes/s
    link: float  # bytes/s to the neighbours, all together, each way
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


TPUS: Mapping[str, Tpu] = {
    # Without megacore a chip of it is two devices.
    "v4": Tpu(3, 30.75 * GIB, 275e12, 1.228e12, 300e9, {"chip_config_name": "megacore"}),
    "v5e": Tpu(2, 15.75 * GIB, 197e12, 0.819e12, 200e9),
    "v5p": Tpu(3, 95.74 * GIB, 459e12, 2.765e12, 600e9),
    "v6e": Tpu(2, 31.25 * GIB, 918e12, 1.64e12, 400e9),
}
TPU_RESERVE = 0.25e9

FORMS = (
    f"cpu:N; {'|'.join(GPUS)}:SLICESxHOSTSxGPUS, such as a100:1x1x8; "
    f"tpu:{'|'.join(TPUS)}:AxB or AxBxC in chips, such as tpu:v5e:4x4 or tpu:v5p:2x2x2"
)


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for."""

    name: str
    platform: Literal["cpu", "gpu", "tpu"]
    kind: str  # key of `GPUS` or `TPUS`
    topology: str
    count: int  # devices
    memory: float  # bytes of one device
    reserve: float  # bytes of it that are left free for what no compiler counts
    reserved_for: str
    flops: float = 0.0  # operations/s of one device in bfloat16, by its data sheet; 0 where there is none
    bandwidth: float = 0.0  # bytes/s of its memory
    link: float = 0.0  # bytes/s to other devices, each way

    @property
    def usable(self) -> float:
        """Bytes of a device that programs and their data may take."""
        return self.memory - self.reserve

    def environment(self) -> dict[str, str]:
        """What the process that compiles needs in its environment before it imports JAX."""
        flags = {
            "cpu": f"--xla_force_host_platform_device_count={self.count}",
            # Without a card there is no autotuning, and the tiles chosen without it can be impossible.
            "gpu": "--xla_gpu_enable_triton_gemm=false",
            "tpu": "",
        }[self.platform]
        return {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        }

    def devices(self) -> list[Any]:
        """The devices; needs `environment`.

        Raises:
            ValueError: the library that compiles for them makes something else of the name.
        """
        import jax
        from jax.experimental import topologies

        if self.platform == "cpu":
            found = jax.devices("cpu")
        elif self.platform == "gpu":
            config = GPUS[self.kind].target_config()
            found = topologies.get_topology_desc("", "cuda", topology=self.topology, target_config=config).devices
        else:
            options: dict[str, Any] = dict(TPUS[self.kind].options)
            if self.count < 4:  # a host has four chips unless told otherwise
                chips = [int(size) for size in self.topology.split("x")]
                options["chips_per_host_bounds"] = [*chips, 1, 1][:3]
            found = topologies.get_topology_desc(f"{self.kind}:{self.topology}", "tpu", **options).devices
        if len(found) != self.count:
            raise ValueError(f"{self.name} should have {self.count} devices, the compiler's topology has {len(found)}")
        return list(found)


def parse_target(name: str, memory_gb: float = 0.0) -> Target:
    """The target that `name` stands for.

    Args:
        name: one of `FORMS`.
        memory_gb: 10^9 bytes of one device, in place of what is known of it, nothing kept in reserve; 0 takes that.

    Raises:
        ValueError: saying which names there are.
    """
    family, _, rest = name.partition(":")
    kind, _, topology = rest.partition(":")
    if family == "cpu" and re.fullmatch(r"[1-9]\d*", rest):
        count = int(rest)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / count
        target = Target(name, "cpu", "", rest, count, memory, 0.1 * memory, "the system")
    elif family in GPUS and _is_topology(rest, 3):
        text = "CUDA context, NCCL, cuBLAS and cuDNN workspaces and fragmentation (an allowance, not measured)"
        memory = GPUS[family].memory
        speeds = GPUS[family].flops, GPUS[family].bandwidth, GPUS[family].link
        target = Target(name, "gpu", family, rest, _product(rest), memory, GPU_RESERVE, text, *speeds)
    elif family == "tpu" and kind in TPUS and _is_topology(topology, TPUS[kind].dimensions):
        text = "fragmentation (an allowance, not measured)"
        speeds = TPUS[kind].flops, TPUS[kind].bandwidth, TPUS[kind].link
        target = Target(name, "tpu", kind, topology, _product(topology), TPUS[kind].memory, TPU_RESERVE, text, *speeds)
    else:
        raise ValueError(f"there is no target {name!r}; targets are {FORMS}")
    if memory_gb:
        target = dataclasses.replace(target, memory=1e9 * memory_gb, reserve=0.0, reserved_for="")
    return target


def _is_topology(text: str, dimensions: int) -> bool:
    return bool(re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), text))


def _product(topology: str) -> int:
    return math.prod(int(size) for size in topology.split("x"))


def missing_wheels(target: Target) -> str:
    """The command that installs what compiling for the target needs and this Python lacks; empty where nothing is."""
    jax = _version("jax")
    if target.platform == "tpu" and not _version("libtpu"):
        needs = [
            need for need in importlib.metadata.requires("jax") or () if re.match(r"libtpu\b.*extra == .tpu", need)
        ]
        return f"pip install '{needs[0].split(';')[0].strip()}'" if needs else "pip install libtpu"
    if target.platform == "gpu":
        pairs = [(_version(f"jax-{cuda}-plugin"), _version(f"jax-{cuda}-pjrt")) for cuda in ("cuda12", "cuda13")]
        assembler = _version("nvidia-cuda-nvcc-cu12") or _version("nvidia-cuda-nvcc") or shutil.which("ptxas")
        cudnn = _version("nvidia-cudnn-cu12") or _version("nvidia-cudnn-cu13")
        if (jax, jax) not in pairs or not assembler or not cudnn:
            plugin = f"jax-cuda12-plugin=={jax} jax-cuda12-pjrt=={jax}"
            return f"pip install --no-deps {plugin} nvidia-cuda-nvcc-cu12 nvidia-cudnn-cu12"
    return ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
