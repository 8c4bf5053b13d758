"""A checkpoint on disk as a model: its weights read when they are needed, its mixtures as Sites.

n tokens, d width, V words, E experts; c width of a head.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from npmoe.checkpoint.families import Family, Sizes, family_of
from npmoe.checkpoint.tensors import Tensors, bfloat16
from npmoe.files import FileError, read_json
from npmoe.model.attention import Attention, frequencies
from npmoe.model.expert import SwigluExpert
from npmoe.model.layers import RMSNorm
from npmoe.model.moe import MoE
from npmoe.model.transformer import Block, Embedding, Transformer
from npmoe.probe.language import sites
from npmoe.probe.site import Site

__all__ = ["Checkpoint", "open"]

Array = np.ndarray

ROTARY = ("checkpoint", "exact")


@dataclass(frozen=True)
class Checkpoint:
    """A released language model on disk. Made by `open`.

    Attributes
    ----------
    folder, config : where it lies, and what config.json says.
    family : such as "mixtral".
    sizes : its shape.
    tensors : all of them by name, read when asked for.
    rotary : "checkpoint" or "exact": see `open`.
    """

    folder: Path
    config: Mapping[str, Any]
    row: Family
    sizes: Sizes
    tensors: Tensors
    rotary: str = "checkpoint"

    @property
    def family(self) -> str:
        """What config.json calls it."""
        return self.row.name

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of its mixture layers."""
        return tuple(range(self.sizes.layers))

    @cached_property
    def model(self) -> Transformer:
        """The whole model; reads every tensor."""
        names, tied = self.row.names, self.sizes.tied
        blocks = tuple(self.block(i) for i in range(self.sizes.layers))
        head = None if tied else self._read(names.head, (self.sizes.V, self.sizes.d))
        embedding = Embedding(self._read(names.embedding, (self.sizes.V, self.sizes.d)))
        return Transformer(embedding, blocks, self._norm(names.norm), head)

    def block(self, i: int) -> Block:
        """One block; reads its tensors."""
        s, names = self.sizes, self.row.names
        rows = (s.heads * s.head, s.groups * s.head, s.groups * s.head)
        shapes = [*((n, s.d) for n in rows), (s.d, s.heads * s.head)]
        weights = [self._read(name.format(i=i), shape) for name, shape in zip(names.attention, shapes, strict=True)]
        q, k, v, o = weights
        attention = Attention(q, k, v, o, s.heads, s.groups, self._rotary())
        return Block(self._norm(names.norm1, i), attention, self._norm(names.norm2, i), self.mixture(i))

    def mixture(self, i: int) -> MoE:
        """The mixture of one layer; reads its tensors."""
        if i not in self.layers:
            raise ValueError(f"expected a mixture layer among 0..{self.sizes.layers - 1}; got {i}")
        s, names = self.sizes, self.row.names
        router = next((name.format(i=i) for name in names.router if name.format(i=i) in self.tensors), None)
        if router is None:
            raise FileError(f"{self.folder}: expected {' or '.join(names.router).format(i=i)}; it has neither")
        return MoE(self._read(router, (s.E, s.d)), self._experts(i), s.k)

    def _experts(self, i: int) -> tuple[SwigluExpert, ...]:
        s, names = self.sizes, self.row.names
        fused = names.fused_gate_up.format(i=i)
        if fused in self.tensors:
            gate_up = self._read(fused, (s.E, 2 * s.h, s.d))  # gate's rows, then up's
            down = self._read(names.fused_down.format(i=i), (s.E, s.d, s.h))
            return tuple(SwigluExpert(gu[: s.h], gu[s.h :], dn) for gu, dn in zip(gate_up, down, strict=True))
        shapes = (s.h, s.d), (s.h, s.d), (s.d, s.h)
        return tuple(
            SwigluExpert(
                *(self._read(name.format(i=i, e=e), shape)
                  for name, shape in zip((names.gate, names.up, names.down), shapes, strict=True))
            )
            for e in range(s.E)
        )  # fmt: skip

    def _norm(self, name: str, i: int = 0) -> RMSNorm:
        return RMSNorm(self._read(name.format(i=i), (self.sizes.d,)), self.sizes.eps)

    def _rotary(self) -> float | tuple[float, ...]:
        dtype = self.config.get("dtype") or self.config.get("torch_dtype")
        if self.rotary == "exact" or dtype not in ("bfloat16", "float16"):
            return self.sizes.theta
        rate = frequencies(self.sizes.theta, self.sizes.head).astype(np.float32)
        halves = bfloat16(rate).astype(np.uint32) << 16
        rounded = rate.astype(np.float16) if dtype == "float16" else halves.view(np.float32)
        return tuple(float(value) for value in rounded)

    def _read(self, name: str, shape: tuple[int, ...]) -> Array:
        if name not in self.tensors:
            raise FileError(f"{self.folder}: expected a tensor {name!r}, as a {self.family} model has; it is missing")
        if self.tensors.shape(name) != shape:
            raise FileError(
                f"{self.folder}: expected {name!r} of shape {shape}, by config.json; got {self.tensors.shape(name)}"
            )
        return self.tensors[name]

    def forward(self, ids: Any) -> Array:
        """Logits (n, V) of the next token, for one sequence (T,) or several (B, T), n = B T."""
        return self.model.forward(ids)

    def sites(self, ids: Any, labels: Mapping[str, Array] | None = None) -> Iterator[Site]:
        """One Site for each mixture layer, labelled by token, sequence, position and layer: see `npmoe.sites`."""
        return sites(self.model, ids, labels)

    def tokenize(self, text: str) -> Array:
        """Token numbers (n,) of a text, by the folder's tokenizer.json and the package tokenizers.

        Raises
        ------
        ImportError, FileNotFoundError : where one of the two is missing.
        """
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, ids: Any) -> str:
        """The text of token numbers."""
        return str(self._tokenizer.decode(np.asarray(ids).ravel().tolist()))

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError("reading a tokenizer needs tokenizers: pip install 'npmoe[checkpoint]'") from error
        path = self.folder / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(f"expected tokenizer.json in {self.folder}; there is none")
        return tokenizers.Tokenizer.from_file(str(path))

    @property
    def coverage(self) -> "Coverage":
        """Every tensor of the files: used as what, or why not."""
        used = dict(self._uses())
        return Coverage({name: used.get(name, "not used: no part of the model reads it") for name in self.tensors})

    def _uses(self) -> Iterator[tuple[str, str]]:
        names, s = self.row.names, self.sizes
        yield names.embedding, "embedding"
        yield names.norm, "last norm"
        yield names.head, "not used: the head is the embedding" if s.tied else "head"
        for i in range(s.layers):
            yield names.norm1.format(i=i), f"block {i}: norm in front of attention"
            yield names.norm2.format(i=i), f"block {i}: norm in front of the mixture"
            yield from ((name.format(i=i), f"block {i}: attention {part}")
                        for name, part in zip(names.attention, ("Wq", "Wk", "Wv", "Wo"), strict=True))  # fmt: skip
            routers = [name.format(i=i) for name in names.router if name.format(i=i) in self.tensors]
            yield from ((name, f"block {i}: router") for name in routers[:1])  # as `mixture` and `_experts` read them
            yield from ((name, f"not used: {routers[0]} is") for name in routers[1:])
            if names.fused_gate_up.format(i=i) in self.tensors:
                yield names.fused_gate_up.format(i=i), f"block {i}: Wg and Wu of all experts"
                yield names.fused_down.format(i=i), f"block {i}: Wd of all experts"
                continue
            for e in range(s.E):
                for name, part in ((names.gate, "Wg"), (names.up, "Wu"), (names.down, "Wd")):
                    yield name.format(i=i, e=e), f"block {i}: expert {e}, {part}"

    def __repr__(self) -> str:
        s = self.sizes
        return (
            f"Checkpoint({self.folder.name!r}: {self.family}, {s.layers} layers of {s.E} experts, top {s.k}, width "
            f"{s.d}, read as {self.tensors.dtype})"
        )


@dataclass(frozen=True)
class Coverage:
    """Tensor by tensor what it is used as; prints as a table."""

    uses: Mapping[str, str]

    @property
    def unused(self) -> tuple[str, ...]:
        """Tensors that no part of the model reads."""
        return tuple(name for name, use in self.uses.items() if use.startswith("not used"))

    def __str__(self) -> str:
        wide = max(map(len, self.uses), default=0)
        lines = [f"{name:{wide}}  {use}" for name, use in self.uses.items()]
        return "\n".join([*lines, f"{len(self.uses) - len(self.unused)} of {len(self.uses)} tensors used"])

    def __repr__(self) -> str:
        return f"Coverage({len(self.uses)} tensors, {len(self.unused)} not used)"


def open(path: str | Path, dtype: str = "float32", rotary: str = "checkpoint") -> Checkpoint:
    """A released language model from a folder with config.json and safetensors files, without PyTorch.

    Nothing is read before it is needed, and one layer can be read by itself.

    Parameters
    ----------
    path : the folder.
    dtype : "float32" or "float64": in which weights are read, and all is computed.
    rotary : frequencies of the rotary positions. "checkpoint": rounded to the dtype that config.json names, as in a
        model that was cast to it as a whole (``model.to(torch.bfloat16)``). "exact": in float32, as ``from_pretrained``
        keeps them. For a checkpoint in float32 both are the same.

    Raises
    ------
    FileNotFoundError : where the folder or a file of it is missing.
    ValueError : for a config that is no JSON, of a family that is not known, or with facts that are not supported. A
        `FileError`, which is one, for files that are damaged or tensors that do not fit the config.

    Examples
    --------
    >>> open("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: expected a folder with a checkpoint; there is none at no/such/folder
    """
    folder = Path(path)
    if np.dtype(dtype) not in (np.dtype("float32"), np.dtype("float64")):
        raise ValueError(f"expected a dtype among float32, float64; got {dtype!r}")
    if rotary not in ROTARY:
        raise ValueError(f"expected rotary among {', '.join(ROTARY)}; got {rotary!r}")
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder with a checkpoint; there is none at {folder}")
    where = folder / "config.json"
    if not where.exists():
        raise FileNotFoundError(f"expected config.json in {folder}; there is none")
    config = read_json(where)
    if not isinstance(config, dict):
        raise FileError(f"{where}: expected a JSON object; got {type(config).__name__}")
    row = family_of(config, where)
    try:
        sizes = row.sizes(config)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from None
    tensors = Tensors(folder, np.dtype(dtype).name)
    tensors.places  # noqa: B018  headers are checked now, tensors read later
    return Checkpoint(folder, config, row, sizes, tensors, rotary)
