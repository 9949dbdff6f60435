"""Host memory of loading a checkpoint: a fresh 1B Llama in two files, read by one process and by two.

    python -m benchmarks.loading [--folder DIR] [--devices 8]

Each process reads what its (fake) devices hold and no more. Its peak, beyond what it used before, is compared with what
it keeps, its share of the parameters, plus 1.3 times the largest file.
"""

import json
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jsonargparse
import rich.console
import rich.table

from reft_jax.config import DecoderConfig, MeshConfig, ModelConfig

SHAPE = DecoderConfig(
    vocab_size=32_000,
    embed_dim=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    rotary_dim=64,
    mlp_dim=8192,
    tie_embeddings=True,
)


def make(folder: Path) -> None:
    """Writes the checkpoint."""
    import jax

    from reft_jax.algorithms.train_state import init_params
    from reft_jax.models.hf.export import fresh_fields, save_decoder
    from reft_jax.models.policy import Policy
    from reft_jax.parallel.sharding import make_mesh

    mesh = make_mesh(MeshConfig(), jax.devices())
    params = init_params(Policy(ModelConfig(decoder=SHAPE), mesh), mesh, jax.random.key(0), value_head=False)["decoder"]
    save_decoder(folder, params, SHAPE, fresh_fields(SHAPE), dtype="float32", shard_bytes=2_200_000_000)


def peak() -> float:
    """The most memory this process has had so far, in GB; files that it maps count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def load(folder: Path, devices: int, processes: int, process: int, port: int) -> None:
    """Loads the checkpoint as one of several processes and prints what it took, as JSON."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices // processes)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)

    from reft_jax.algorithms.train_state import abstract_params
    from reft_jax.models.hf.load import decoder_config, load_decoder_params
    from reft_jax.models.policy import Policy
    from reft_jax.parallel.sharding import make_mesh

    mesh = make_mesh(MeshConfig(), jax.devices())
    config = ModelConfig(decoder=decoder_config(folder))
    abstract = abstract_params(Policy(config, mesh), mesh, value_head=False)["decoder"]
    before, start = peak(), time.perf_counter()
    params = load_decoder_params(folder, config, jax.tree.map(lambda x: x.sharding, abstract))
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    shards = [shard.data for x in jax.tree.leaves(params) for shard in x.addressable_shards]
    share = sum(shard.nbytes for shard in shards) / 1e9
    print(json.dumps({"peak": peak() - before, "share": share, "seconds": seconds}))


def run(*arguments: object) -> "subprocess.Popen[str]":
    """This script again, as a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loading", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def measure(folder: Path, devices: int) -> None:
    """Makes the checkpoint where it is missing, loads it by one process and by two, and prints a table."""
    if not (folder / "config.json").exists() and run("make", folder).wait():
        sys.exit("the checkpoint could not be made")
    largest = max(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    table = rich.table.Table("processes", "process", "share GB", "largest file GB", "peak GB", "allowed GB", "seconds")
    for processes in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [run("load", folder, devices, processes, i, port) for i in range(processes)]
        for i, child in enumerate(children):
            figures = json.loads(child.communicate()[0].splitlines()[-1])
            allowed = figures["share"] + 1.3 * largest
            numbers = (figures["share"], largest, figures["peak"], allowed, figures["seconds"])
            table.add_row(str(processes), str(i), *(f"{number:.2f}" for number in numbers))
    rich.console.Console().print(table)


def main() -> None:
    """The command, and what it starts."""
    match sys.argv[1:]:
        case ["make", folder]:
            make(Path(folder))
        case ["load", folder, *numbers]:
            load(Path(folder), *map(int, numbers))
        case _:
            parser = jsonargparse.ArgumentParser(description=__doc__)
            parser.add_argument("--folder", type=str, default="", help="for the checkpoint; without, a temporary one")
            parser.add_argument("--devices", type=int, default=8, help="fake CPU devices, of all processes together")
            options = parser.parse_args()
            with tempfile.TemporaryDirectory() as temporary:
                measure(Path(options.folder or temporary), options.devices)


if __name__ == "__main__":
    main()
