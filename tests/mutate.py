"""Damaged files of every kind that npmoe reads: each must end in a result or in one sentence, in bounded memory.

    python tests/mutate.py [--count 2000] [--seed 0] [KIND ...]

writes sound files of runs, golden answers, routing counts and saved models, damages each COUNT times (bits, runs of
bytes, ends, insertions, swapped and doubled members, headers that claim other sizes, kinds and orders, bombs) and reads
it. The table says how many were still read and how many were refused in a sentence; anything else is an error that
nobody would understand, and the exit status is 1.
"""

import argparse
import io
import re
import struct
import sys
import tempfile
import tracemalloc
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import npmoe
from npmoe import files
from npmoe.battery.golden import check, dump
from npmoe.reproduce.routing_reflects_geometry import counts
from npmoe.sweep import sweep

BOUND = 64 * 2**20  # bytes that reading a damaged file of some hundred kilobytes may take


@dataclass(frozen=True)
class Toy:
    seed: int


def compute(toy):
    rng = np.random.default_rng(toy.seed)
    return {"x": rng.standard_normal((40, 30)), "n": np.arange(7), "names": np.array(["a", "bc"]), "on": np.eye(3) > 0}


class Run:
    """A file in runs/: a damaged one is set aside, said in one line, and the run is computed again."""

    def __init__(self, folder):
        self.folder = folder
        sweep([Toy(0)], compute, folder, source="mutate")
        (self.path,) = folder.glob("*.npz")

    def read(self):
        said = io.StringIO()
        stderr, sys.stderr = sys.stderr, said
        try:
            found = sweep([Toy(0)], compute, self.folder, source="mutate")
        finally:
            sys.stderr = stderr
        for aside in self.folder.glob("*.damaged*"):
            aside.unlink()
        assert set(found[Toy(0)]) == set(compute(Toy(0)))
        if said.getvalue():
            (line,) = said.getvalue().splitlines()
            raise files.FileError(line)


class Golden:
    """Answers to a golden case: what cannot be read is a remark, and everything else is judged."""

    def __init__(self, folder):
        dump(folder, only=["one-moe"])
        self.folder, self.path = folder, folder / "answers" / "one-moe.npz"
        with np.load(folder / "one-moe.npz") as case:
            wanted = {key.removeprefix("want/"): case[key] for key in case.files if key.startswith("want/")}
        files.write(self.path, files.pack({key: array for key, array in wanted.items() if "limit" not in key}))

    def read(self):
        found = check(self.folder)
        words = [why for _, why in found.unread]
        words += [remark for report in found.reports for part in report.parts for remark in part.remarks]
        if words:
            raise files.FileError(words[0])


class Counts:
    """Routing counts of a model."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        chosen = rng.permuted(np.tile(np.arange(8), (2, 3, 200, 1)), axis=-1)[
            ..., :2
        ]  # (kinds of text, layers, tokens, k)
        on = chosen[..., None] == np.arange(8)
        arrays = {"domains": np.array(["code", "news"]), "layers": np.array([0, 7, 15])}
        arrays |= {"toy_counts": on.sum(axis=(2, 3)), "toy_counts_top1": on[..., 0, :].sum(axis=2)}
        self.path = files.write(folder / "counts.npz", files.pack(arrays))

    def read(self):
        counts.read(self.path)


class Model:
    """A saved model."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        moe = npmoe.init.gelu_moe(rng, E=3, d=4, h=5, k=2, bias=True)
        self.path = npmoe.save(npmoe.Residual(npmoe.Stack((npmoe.RMSNorm(np.ones(4)), moe))), folder / "model.npz")

    def read(self):
        npmoe.load(self.path)


KINDS = {"runs": Run, "golden answers": Golden, "routing counts": Counts, "saved models": Model}


# ---- mutations: of the bytes, or of the members ----------------------------------------------------------------------


def flip(rng, data):
    data = bytearray(data)
    for at in rng.integers(len(data), size=rng.integers(1, 6)):
        data[at] ^= 1 << rng.integers(8)
    return bytes(data)


def scribble(rng, data):
    at, length = rng.integers(len(data)), rng.integers(1, 40)
    return data[:at] + rng.bytes(length) + data[at + length :]


def cut(rng, data):
    return data[: rng.integers(len(data))]


def insert(rng, data):
    at = rng.integers(len(data))
    return data[:at] + rng.bytes(rng.integers(1, 40)) + data[at:]


def repeat(rng, data):
    a, b = sorted(rng.integers(len(data), size=2))
    return data[:b] + data[a:b] + data[b:]


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def packed(pairs, how=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, content in pairs:
            archive.writestr(zipfile.ZipInfo(name), content, how)
    return out.getvalue()


def one_of(rng, found):
    return sorted(found)[rng.integers(len(found))]


def swap(rng, data):
    found = members(data)
    a, b = one_of(rng, found), one_of(rng, found)
    return packed({**found, a: found[b], b: found[a]}.items())


def double(rng, data):
    found = members(data)
    name = one_of(rng, found)
    return packed([*found.items(), (name, found[name])])


def drop(rng, data):
    found = members(data)
    name = one_of(rng, found)
    return packed((n, content) for n, content in found.items() if n != name)


def rename(rng, data):
    found = members(data)
    name = one_of(rng, found)
    other = ["\x00.npy", "../../escaped.npy", "config", "", "a" * 3000 + ".npy", name.upper()][rng.integers(6)]
    return packed((other if n == name else n, content) for n, content in found.items())


def headed(rng, data, change):
    """One member with another header, whose length fits."""
    found = members(data)
    name = one_of(rng, found)
    content = found[name]
    length = struct.unpack("<H", content[8:10])[0]
    words = change(content[10 : 10 + length].decode("latin-1")).encode("latin-1", "replace")[:60_000]
    return packed({**found, name: content[:8] + struct.pack("<H", len(words)) + words + content[10 + length :]}.items())


SHAPES = ["(10**18,)", "(1000000000000,)", "(-1,)", "(2, -3)", "(3.0,)", "()", "(1,)*40", "((((", "None", "(True,)"]
SHAPES += ["(4611686018427387904, 4)", "(" + "1, " * 50 + ")", "[2]", "'x'", "(0, 99999999999999)"]
DTYPES = ["|O", "<f3", "<f99", "<U999999999", "|V8", "<M8[s]", "f4,i4", "[('a', '<f8')]", ">f8", "<c16", "|b1", "|S4"]
DTYPES += ["\\x00", "", "O", "<i8" * 900, "<f2", "|u1"]


def shape(rng, data):
    new = SHAPES[rng.integers(len(SHAPES))]
    return headed(rng, data, lambda words: re.sub(r"'shape': \([^)]*\)", lambda _: f"'shape': {new}", words))


def kind(rng, data):
    new = DTYPES[rng.integers(len(DTYPES))]
    new = new if new.startswith("[") else repr(new)
    return headed(rng, data, lambda words: re.sub(r"'descr': '[^']*'", lambda _: f"'descr': {new}", words))


def order(rng, data):
    return headed(
        rng, data, lambda words: words.replace("False", ["True", "1", "None", "__import__('os')"][rng.integers(4)])
    )


def nonsense(rng, data):
    deep = ["(" * 9000, "{" * 500, "-" * 5000 + "1", "{'descr': " * 200, "\\" * 50, "", "1" * 9000, "'" * 3]
    return headed(rng, data, lambda words: deep[rng.integers(len(deep))])


def bomb(rng, data):
    """Zeros that pack a thousandfold, behind a header that claims them or not."""
    found = members(data)
    name = one_of(rng, found)
    n = 3 * 10**7
    words = repr({"descr": "<f8", "fortran_order": False, "shape": (n // 8,) if rng.integers(2) else (2,)}).encode()
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words
    return packed({**found, name: head + bytes(n)}.items(), zipfile.ZIP_DEFLATED)


MUTATIONS = [flip, scribble, cut, insert, repeat, swap, double, drop, rename, shape, kind, order, nonsense]


def mutated(rng, data):
    """The data damaged once or twice; a bomb now and then, which takes a while."""
    if rng.integers(200) == 0:
        return bomb(rng, data)
    for _ in range(rng.integers(1, 3)):
        try:
            data = MUTATIONS[rng.integers(len(MUTATIONS))](rng, data) or b""
        except Exception:
            break  # already so broken that it has no members
    return data


# ---- what becomes of them --------------------------------------------------------------------------------------------


def outcome(reader):
    """Whether a file was read, refused in a sentence, or what else happened."""
    try:
        reader.read()
    except (files.FileError, ValueError) as error:
        words = str(error)
        sentence = "expected" in words and "\n" not in words and len(words) < 1000
        return "refused" if sentence else f"unclear: {words[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "read"


def tried(kind, folder, count, seed):
    """Outcomes of so many damaged files of a kind, and the most memory that reading one took."""
    reader, found, most = KINDS[kind](folder), Counter(), 0
    sound = reader.path.read_bytes()
    assert outcome(reader) == "read", outcome(reader)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = mutated(rng, sound)
        reader.path.write_bytes(data)
        tracemalloc.start()
        what = outcome(reader)
        most = max(most, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        found[what] += 1
    reader.path.write_bytes(sound)
    return found, most


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; all unless given")
    p.add_argument("--count", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    bad = 0
    print(f"{'kind':16} {'files':>6} {'read':>6} {'refused':>8} {'else':>5} {'peak memory':>12}")
    for kind in args.kinds or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found, most = tried(kind, Path(folder), args.count, args.seed)
        others = {what: n for what, n in found.items() if what not in ("read", "refused")}
        bad += sum(others.values()) + (most > BOUND)
        row = f"{kind:16} {args.count:6} {found['read']:6} {found['refused']:8} {sum(others.values()):5}"
        print(f"{row} {most / 2**20:9.1f} MB", flush=True)
        for what, n in sorted(others.items()):
            print(f"    {n} x {what}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
