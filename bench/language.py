"""`python -m bench.language`: tokens a second of training the language model of SC2, beside PyTorch on two threads.

The losses of the first steps are held against one another before anything is timed. `--only dense|top-2|soft` takes one
of the models.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import npmoe
from bench.timing import Row, compare
from npmoe.calculus.memory import keep_heap
from npmoe.model.language import Recipe, train
from npmoe.model.transformer import Transformer

__all__ = ["MODELS", "main", "row"]

V, B, T = 4000, 32, 64
MODELS: dict[str, dict[str, Any]] = {"dense": {}, "top-2": {"E": 8, "k": 2}, "soft": {"E": 8, "k": 8}}
RESULTS = Path(__file__).parent / "results" / "language.json"


def model_of(name: str) -> Transformer:
    """SC2's model in float32, untrained."""
    rng = np.random.default_rng(0)
    return npmoe.init.transformer(rng, V=V, d=64, layers=3, heads=4, h=128, longest=T, dtype=np.float32, **MODELS[name])


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Words as frequent as in text (Zipf's law): a uniform draw would spare the softmax nothing, but learn nothing."""
    rng = np.random.default_rng([7, step])
    text = rng.choice(V, (B, T + 1), p=_zipf())
    return text[:, :-1], text[:, 1:]


def _zipf() -> np.ndarray:
    p = 1 / np.arange(2, V + 2)
    return p / p.sum()


def row(name: str, compiled: bool = True) -> Row:
    """One model: ours, eager, compiled."""
    from bench.peers.language_torch import steps

    recipe = Recipe(steps=10**6)

    def ours() -> Callable[[], float]:
        going = train(model_of(name), batch, recipe)
        return lambda: next(going).loss

    def theirs() -> dict[str, Callable[[], float]]:
        found = steps(model_of(name), batch, recipe)
        return found if compiled else {"torch eager": found["torch eager"]}

    want = np.array([way() for way in [ours()] for _ in range(5)])
    for peer, way in theirs().items():
        got = np.array([way() for _ in range(5)])
        np.testing.assert_allclose(got, want, rtol=2e-4, err_msg=f"{name}: {peer} gives other losses")
    size = f"V={V} d=64 3 layers {B}x{T}"
    return compare(f"language {name}", ours(), theirs(), size=size, dtype="float32", least=7, plain={"torch eager"})


def main() -> int:
    """Run the rows, print tokens a second, write them down."""
    parser = argparse.ArgumentParser(prog="python -m bench.language", description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    keep_heap()
    rows = [row(name, not args.eager) for name in ([args.only] if args.only else MODELS)]
    print(f"{'model':16}{'npmoe':>12}{'eager':>12}{'compiled':>12}   tokens a second; ratio to eager")
    for r in rows:
        rates = [B * T / ms * 1e3 for ms in (r.npmoe_ms, *r.peers.values())]
        shown = "".join(f"{rate:12,.0f}" for rate in rates)
        print(f"{r.name:16}{shown}   {r.peers['torch eager'] / r.npmoe_ms:.2f} (best peer: {r.ratio:.2f}, {r.best})")
    path = args.json or (None if args.only else RESULTS)
    if path is not None:
        path.write_text(json.dumps([r._asdict() for r in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
