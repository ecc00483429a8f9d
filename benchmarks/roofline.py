"""Time of a compiled program on paper: bytes and products of each kernel of its optimised HLO.

Each kernel takes the longer of moving its bytes and of computing its products at the measured
ceilings of an H200. Bodies of loops count as often as they run, conditions only where the compiler
knows no number of turns: a GPU asks for no others. A call of a library counts what its
operands and results declare, whatever it moves inside; its attention counts no products.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from benchmarks import harness

# Measured on one H200: copies (read + written), and bfloat16 products of 8192 x 8192 matrices.
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 790e12

_WIDTHS = {"pred": 1, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]"?([\d,"]*)')
_NAME = re.compile(r'op_name="([^"]*)"')
# What moves nothing: names for buffers, or parts of a kernel that is counted elsewhere.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "copy-done", "async-done", "async-update", "opt-barrier", "domain", "iota",
}  # fmt: skip
_PARTS = ("dynamic-slice", "slice", "gather")
# What writes into an array in place, and its operand that is written.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @cached_property
    def bytes(self) -> int:
        return sum(
            math.prod(map(int, filter(None, sizes.split(",")))) * _width(kind)
            for kind, sizes in _SHAPE.findall(self.type)
        )

    @property
    def shape(self) -> list[int]:
        found = _SHAPE.search(self.type)
        return [] if found is None else [int(n) for n in found[2].split(",") if n]

    def called(self, attribute: str) -> str:
        found = re.search(rf"{attribute}=%?([\w.\-]+)", self.attributes)
        return "" if found is None else found[1]


@dataclass
class Cost:
    """What a program does when it runs once.

    Attributes:
        bytes: read and written by all kernels.
        flops: of matrix products.
        launches: of kernels, a command buffer counting as one.
        seconds: of all kernels, one after another.
        declared: calls of libraries.
        moved: bytes of kernels without products, by what they compute.
    """

    bytes: float = 0.0
    flops: float = 0.0
    launches: float = 0.0
    seconds: float = 0.0
    declared: float = 0.0
    moved: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Cost", times: int = 1) -> None:
        """Add another program that runs so many times."""
        for name in ("bytes", "flops", "launches", "seconds", "declared"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name, moved in other.moved.items():
            self.moved[name] += times * moved


def cost(text: str, trips: int = 1) -> Cost:
    """Count a program.

    Args:
        text: its optimised HLO.
        trips: how often a loop runs of which the compiler knows no number.
    """
    computations, entry = _parse(text)
    return _Counter(computations, trips).computation(entry)


def least_seconds(least_bytes: float, least_flops: float) -> float:
    """Time of a program that does only what it must, with bytes and products at once."""
    return max(least_bytes / BYTES_PER_SECOND, least_flops / FLOPS_PER_SECOND)


def summary(text: str, trips: int, parts: list[tuple[float, float]]) -> dict[str, Any]:
    """A row's entry: what is counted, the least possible, and the largest wasted traffic.

    Args:
        text, trips: as in `cost`.
        parts: the least bytes and products of phases that run one after another.
    """
    found = cost(text, trips)
    least = sum(least_seconds(*part) for part in parts)
    name, moved = max(found.moved.items(), key=lambda item: item[1], default=("", 0.0))
    return {
        "bytes": found.bytes,
        "flops": found.flops,
        "launches": found.launches,
        "declared_calls": found.declared,
        "seconds": found.seconds,
        "least_bytes": sum(part[0] for part in parts),
        "least_flops": sum(part[1] for part in parts),
        "least_seconds": least,
        "share": least / found.seconds if found.seconds else 1.0,
        "largest_traffic": {"of": name, "bytes": moved},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Work of each step on paper, see `benchmarks.roofline`."""
    lines = [
        [
            row["name"],
            f"{found['bytes'] / 1e9:.3g}",
            f"{found['flops'] / 1e12:.3g}",
            f"{found['launches']:,.0f}",
            harness.shown(found["seconds"]),
            f"{100 * _executed(found):.0f} %",
            f"{100 * found['share']:.0f} %",
            f"{found['largest_traffic']['of']}: {found['largest_traffic']['bytes'] / 1e9:.3g} GB",
        ]
        for row in rows
        if (found := row.get("roofline"))
    ]
    header = [
        "on paper", "GB", "TFLOP", "launches", "seconds", "executed / counted", "least / counted",
        "largest traffic without products",
    ]  # fmt: skip
    return harness.table(header, lines)


def _executed(found: dict[str, Any]) -> float:
    """Share of a step's time that its own bytes, or its own products, would take alone."""
    own = least_seconds(found["bytes"], found["flops"])
    return own / found["seconds"] if found["seconds"] else 1.0


class _Counter:
    """Costs of computations by their names, each counted once."""

    def __init__(self, computations: dict[str, dict[str, _Instruction]], trips: int):
        self.computations = computations
        self.trips = trips
        self.known: dict[str, Cost] = {}

    def computation(self, name: str) -> Cost:
        if name not in self.known:
            total = Cost()
            for one in self.computations.get(name, {}).values():
                total.add(*self._instruction(one, self.computations[name]))
            self.known[name] = total
        return self.known[name]

    def _instruction(self, one: _Instruction, around: dict[str, _Instruction]) -> tuple[Cost, int]:
        """What an instruction costs, and how often."""
        if one.opcode == "while":
            turn = Cost()
            turn.add(self.computation(one.called("body")))
            if trips := _TRIPS.search(one.attributes):
                return turn, int(trips[1])
            turn.add(self.computation(one.called("condition")))
            return turn, self.trips
        if one.opcode == "conditional":
            names = re.findall(r"%?([\w.\-]+)", _braced(one.attributes, "branch_computations="))
            names = names or [one.called(f"{way}_computation") for way in ("true", "false")]
            return max(map(self.computation, names), key=lambda branch: branch.seconds), 1
        if one.opcode in ("call", "async-start"):
            name = one.called("to_apply") or one.called("calls")
            inner = self.computation(name)
            if name.startswith("command_buffer"):
                inner = Cost(**{**inner.__dict__, "launches": 1.0})
            return inner, 1
        if one.opcode in _FREE:
            return Cost(), 1
        return self._kernel(one, around), 1

    def _kernel(self, one: _Instruction, around: dict[str, _Instruction]) -> Cost:
        operands = [around[name] for name in one.operands if name in around]
        moved, products = one.bytes + sum(operand.bytes for operand in operands), 0.0
        body = self.computations.get(one.called("calls"), {}) if one.opcode == "fusion" else {}
        if body:
            moved = _fused_bytes(body)
            products = sum(_flops(part, body) for part in body.values())
        elif one.opcode in _IN_PLACE:
            moved = 2 * operands[_IN_PLACE[one.opcode]].bytes
        elif one.opcode in _PARTS:
            moved = 2 * one.bytes
        else:
            products = _flops(one, around)
        seconds = max(moved / BYTES_PER_SECOND, products / FLOPS_PER_SECOND)
        library = one.opcode == "custom-call"
        found = Cost(moved, products, 1.0, seconds, float(library))
        if not products and not library:
            found.moved[_label(one)] = moved
        return found


def _fused_bytes(body: dict[str, _Instruction]) -> float:
    """Bytes that a fusion reads and writes; of parts of an array, only the parts."""
    users: dict[str, list[_Instruction]] = {name: [] for name in body}
    for one in body.values():
        for operand in one.operands:
            if operand in users:
                users[operand].append(one)

    def read(name: str, size: int) -> float:
        total = 0.0
        for user in users[name]:
            if user.opcode == "bitcast":
                total += read(user.name, size)
            elif user.opcode in _PARTS and user.operands[0] == name:
                total += user.bytes
            elif user.opcode not in _IN_PLACE or user.operands[0] != name:
                return size
        return min(total, size)

    def written(one: _Instruction) -> float:
        if one.opcode == "tuple":
            return sum(written(body[name]) for name in one.operands)
        if one.opcode == "bitcast":
            return written(body[one.operands[0]])
        if one.opcode in _IN_PLACE:
            return body[one.operands[_IN_PLACE[one.opcode]]].bytes
        return one.bytes

    inputs = (one for one in body.values() if one.opcode == "parameter")
    (root,) = (one for one in body.values() if one.root)
    return sum(read(one.name, one.bytes) for one in inputs) + written(root)


def _flops(one: _Instruction, around: dict[str, _Instruction]) -> float:
    """Operations of a matrix product; 0 for anything else."""
    product = one.opcode == "dot" or "cublas" in one.attributes
    contracted = _CONTRACTED.search(one.attributes)
    if not product or contracted is None:
        return 0.0
    axes = [int(axis) for axis in contracted[1].replace('"', "").split(",") if axis]
    left = around[one.operands[0]].shape
    return 2.0 * math.prod(one.shape) * math.prod(left[axis] for axis in axes)


def _label(one: _Instruction) -> str:
    """What a kernel computes, as the program's source names it."""
    found = _NAME.search(one.attributes)
    if found is None:
        return one.opcode
    return "/".join(re.sub(r"layers_\d+", "layers", found[1]).split("/")[-3:])


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """The instructions of all computations, and the name of the one where the program begins."""
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = None if line.startswith(" ") else _COMPUTATION.match(line)
        if head is not None:
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            one = _instruction(found[2], found[3], found[1] is not None)
            if one is not None:
                current[one.name] = one
    return computations, entry


def _instruction(name: str, rest: str, root: bool) -> _Instruction | None:
    kind, rest = _enclosed(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, bracket, _ = rest.strip().partition("(")
    if not bracket:
        return None
    operands, attributes = _enclosed(rest.strip()[len(opcode) :])
    names = tuple(re.findall(r"%([\w.\-]+)", operands))
    return _Instruction(name, kind, opcode, names, attributes, root)


def _enclosed(text: str) -> tuple[str, str]:
    """What stands in the brackets with which a text begins, and what follows them."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if not depth:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def _braced(text: str, before: str) -> str:
    start = text.find(before)
    return "" if start < 0 else _enclosed(text[start + len(before) :])[0]


def _width(kind: str) -> float:
    """Bytes of an element."""
    if kind in _WIDTHS:
        return _WIDTHS[kind]
    bits = re.match(r"[a-z]+(\d+)", kind)
    return 0 if bits is None else int(bits[1]) / 8
