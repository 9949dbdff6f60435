"""What a compiled program does, read from its optimized HLO text: collectives by kind, and which inputs it overwrites.

The text has the body of a loop once, however often it runs. Here everything is weighted by the trip counts of the loops
around it; a loop that ends on its data, like sampling until every row has ended, is told by the turn.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
"""The operations that move data between devices."""
# libtpu spreads an asynchronous collective over fusions, with the same instruction in each: one starts it, some go on
# with it beside a matrix product, one waits for it. The first counts. Its reduce-scatter is an all-reduce and a slice.
TPU_MIDDLE, TPU_DONE, TPU_REDUCE_SCATTER = "async_collective_fusion", "async-collective-done", "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind."""

    count: int = 0  # executions
    bytes: int = 0  # of the arrays they work on, on each device: see `collectives`

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.count + other.count, self.bytes + other.bytes)


@dataclasses.dataclass
class Collectives:
    """What one run of a program executes, by kind."""

    once: dict[str, Traffic]  # outside of loops of unknown length
    per_turn: dict[str, Traffic]  # in one turn of each loop of unknown length
    open_loops: int = 0  # how many such loops there are


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: str
    attributes: str
    is_root: bool

    @property
    def operand_names(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.operands)

    def attribute(self, pattern: str) -> str:
        """What the group of `pattern` matches in the attributes, empty where nothing does."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


def collectives(text: str) -> Collectives:
    """The collectives that a program executes.

    The bytes of one are those of the whole array that it works on: what a device holds after a gather, a reduction or
    an exchange, and what it holds before a reduce-scatter. Of branches, the one that moves most counts. One that XLA
    has spread over several instructions counts once. Channels tell nothing: those of unrolled layers are the same.

    Args:
        text: of the compiled program, such as `compiled.as_text()`.
    """
    return _Counter(_computations(text)).count()


def aliased_inputs(text: str) -> frozenset[str]:
    """Names of the inputs whose buffers the program reuses for its outputs, such as `state.params['embed']`."""
    header = text.partition("\n")[0]
    numbers = set(re.findall(r"\((\d+), \{[\d, ]*\}, (?:may|must)-alias\)", header))
    found = []
    for line in text.partition("\nENTRY ")[2].splitlines():
        match = re.search(r' parameter\((\d+)\).*op_name="((?:[^"\\]|\\.)*)"', line)
        if match and match[1] in numbers:
            found.append(re.sub(r"\\(.)", r"\1", match[2]))
    return frozenset(found)


def type_bytes(type_text: str) -> int:
    """Size of a type, such as `bf16[8,128]{1,0}` or a tuple of types; tokens and opaque values have none."""
    total = 0
    for name, dims in re.findall(r"\b([a-z]+\w*)\[([\d,]*)\]", type_text):
        bits = re.search(r"\d+", name)
        width = 8 if name == "pred" else int(bits[0]) if bits else 0
        total += math.ceil(width * math.prod(int(dim) for dim in dims.split(",") if dim) / 8)
    return total


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one that `text` begins with."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in HLO text: {text[:80]!r}")


def _elements(type_text: str) -> list[str]:
    """The types in a tuple type."""
    parts, depth, start = [], 0, 1
    for match in re.finditer(r"[(){}\[\],]", type_text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        if depth == (1 if match[0] == "," else 0):
            parts.append(type_text[start : match.start()])
            start = match.end()
    return parts


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if match is None:
        return None
    rest = line[match.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    opcode, _, _ = rest[end + 1 :].partition("(")
    call = rest[end + 1 + len(opcode) :]
    close = _closing(call)
    return Instruction(match[2], rest[:end], opcode, call[1:close], call[close + 1 :], bool(match[1]))


def _computations(text: str) -> dict[str, dict[str, Instruction]]:
    """The instructions of each computation by name; the entry is also called `ENTRY`."""
    found: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = found.setdefault(head[2], {})
            if head[1]:
                found["ENTRY"] = current
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    return found


class _Counter:
    """Walks a module from its entry."""

    def __init__(self, computations: dict[str, dict[str, Instruction]]) -> None:
        self._computations = computations
        self._found = Collectives({}, {})

    def count(self) -> Collectives:
        self._walk("ENTRY", 1, self._found.once)
        return self._found

    def _walk(self, computation: str, times: int, into: dict[str, Traffic]) -> None:
        for instruction in self._computations[computation].values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                size = _collective_bytes(kind, instruction)
                kind = "reduce-scatter" if computation.startswith(TPU_REDUCE_SCATTER) else kind
                into[kind] = into.get(kind, Traffic()) + Traffic(times, times * size)
            elif instruction.opcode == "conditional":
                branches = [self._of_branch(called, times) for called in _called(instruction)]
                for kind, traffic in max(branches, key=lambda found: sum(x.bytes for x in found.values())).items():
                    into[kind] = into.get(kind, Traffic()) + traffic
            elif instruction.opcode == "while":
                self._walk_loop(computation, instruction, times, into)
            elif not instruction.opcode.endswith(("-done", "-update")) and not instruction.name.startswith(TPU_DONE):
                for called in _called(instruction):
                    if not called.startswith(TPU_MIDDLE):
                        self._walk(called, times, into)

    def _of_branch(self, computation: str, times: int) -> dict[str, Traffic]:
        found: dict[str, Traffic] = {}
        self._walk(computation, times, found)
        return found

    def _walk_loop(self, computation: str, loop: Instruction, times: int, into: dict[str, Traffic]) -> None:
        turns = self._trip_count(computation, loop)
        if turns is None:
            self._found.open_loops += 1
            times, turns, into = 1, 1, self._found.per_turn
        self._walk(loop.attribute(r"body=%?([\w.\-]+)"), times * turns, into)
        self._walk(loop.attribute(r"condition=%?([\w.\-]+)"), times * turns, into)

    def _trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Turns of a loop: as XLA says, else (on TPU) for `while counter < bound: counter += step`."""
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        condition, body = (loop.attribute(rf"{role}=%?([\w.\-]+)") for role in ("condition", "body"))
        test, carry = (_root(self._computations[name]) for name in (condition, body))
        if test.opcode != "compare" or "direction=LT" not in test.attributes or carry.opcode != "tuple":
            return None
        counter, bound = (self._resolve(condition, name) for name in test.operand_names)
        index = counter.attribute(r"index=(\d+)")
        initial = self._resolve(computation, loop.operand_names[0])
        if not index or initial.opcode != "tuple":
            return None
        first = self._constant(computation, initial.operand_names[int(index)])
        step = self._step(body, carry.operand_names[int(index)])
        last = self._constant(condition, bound.name)
        return None if None in (first, step, last) else math.ceil((last - first) / step)  # type: ignore[operator]

    def _step(self, body: str, name: str) -> int | None:
        """The constant that the new counter is the old one plus."""
        new = self._resolve(body, name)
        if new.opcode != "add":
            return None
        terms = [self._constant(body, term) for term in new.operand_names]
        return next((term for term in terms if term), None)

    def _constant(self, computation: str, name: str) -> int | None:
        found = self._resolve(computation, name)
        return int(found.operands) if found.opcode == "constant" and re.fullmatch(r"-?\d+", found.operands) else None

    def _resolve(self, computation: str, name: str) -> Instruction:
        """The instruction behind copies."""
        found = self._computations[computation][name]
        while found.opcode in ("copy", "bitcast", "convert"):
            found = self._computations[computation][found.operand_names[0]]
        return found


def _root(instructions: dict[str, Instruction]) -> Instruction:
    return next(instruction for instruction in instructions.values() if instruction.is_root)


def _called(instruction: Instruction) -> Iterator[str]:
    """Computations that an instruction runs once; not the scalar functions of reductions, sorts and scatters."""
    names = instruction.attribute(r"(?:calls|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)")
    if instruction.opcode == "call":
        names += instruction.attribute(r"(to_apply=%?[\w.\-]+)").removeprefix("to_apply=")
    if instruction.opcode == "conditional":
        names += " ".join(re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes))
    yield from re.findall(r"[\w.\-]+", names)


def _collective_bytes(kind: str, instruction: Instruction) -> int:
    """Bytes of the whole array that a collective works on."""
    types = [instruction.type]
    if instruction.opcode.endswith("-start") and instruction.type.startswith("(") and kind != "all-reduce":
        types = _elements(instruction.type)[:2]  # operands and results
    if kind == "reduce-scatter":
        return type_bytes(types[0]) * (_group_size(instruction) if len(types) == 1 else 1)
    return type_bytes(types[-1])


def _group_size(instruction: Instruction) -> int:
    """Devices that take part in a collective together, from any of the ways in which HLO text lists groups."""
    mesh = instruction.attribute(r"replica_groups=mesh\[([^\]]*)\]")
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh))
        used = instruction.attribute(r"replica_groups=mesh\[[^\]]*\] \{([^}]*)\}")
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", used))
    iota = instruction.attribute(r"replica_groups=\[([\d,]+)\]<=")
    if iota:
        return int(iota.split(",")[-1])
    return len(instruction.attribute(r"replica_groups=\{\{([\d,]*)\}").split(","))
