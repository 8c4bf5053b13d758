"""`npmoe language`: train a mixture-of-experts language model on text, evaluate it, and let it write."""

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from npmoe.data.text import (
    BytePair,
    Corpus,
    Stream,
    Vocabulary,
    batches,
    kneser_ney,
    open_corpus,
    stream,
    unigram,
    windows,
)
from npmoe.files import write
from npmoe.language import folder as kept
from npmoe.language.shown import page
from npmoe.model import init
from npmoe.model.balance import Balance
from npmoe.model.language import Progress, Recipe, evaluate, sample, train
from npmoe.model.saved import save

__all__ = ["main", "parser"]

PROG = "python -m npmoe.language"
DONE, WRONG, INTERRUPTED = 0, 2, 130
MOST = 512  # held-out sequences that a perplexity is taken on
EVERY = 30.0  # seconds between two writes of the progress


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The options, as `--help` shows them."""
    p = argparse.ArgumentParser(
        prog=prog, description="Train a mixture-of-experts language model in NumPy, and use it."
    )
    what = p.add_subparsers(dest="what", required=True, metavar="train | evaluate | sample | show")
    t = what.add_parser("train", help="train on text; the same call goes on where it stopped")
    t.add_argument("--corpus", type=Path, metavar="PATH", help="WikiText's files, a text file or a folder of them")
    t.add_argument("--output", type=Path, default=Path("language"), metavar="DIR", help="where it is kept (language)")
    sizes = (
        ("vocabulary", 4000, "words"),
        ("width", 64, "of the hidden states"),
        ("layers", 3, "blocks"),
        ("heads", 4, "of attention"),
        ("hidden", 128, "hidden units of an expert"),
        ("experts", 8, "in each block; 1 for a dense model"),
        ("k", 2, "experts a token"),
        ("context", 64, "tokens that a sequence holds"),
        ("batch", 32, "sequences a step"),
        ("steps", 400, "steps"),
        ("seed", 0, "of weights and batches"),
    )
    for name, value, words in sizes:
        t.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{words} ({value})")
    t.add_argument("--mixtral", action="store_true", help="RMSNorm, rotary positions, SwiGLU experts, untied head")
    t.add_argument(
        "--byte-pairs", action="store_true", help="byte pairs in the place of words (pip install npmoe[text])"
    )
    t.add_argument("--lr", type=float, default=6e-3, metavar="X", help="largest step size of Adam (0.006)")
    t.add_argument("--balance", type=float, default=0.0, metavar="X", help="weight of Switch's balance loss (0)")
    t.add_argument("--z-loss", type=float, default=0.0, metavar="X", help="weight of the router's z-loss (0)")
    for name, words in (
        ("evaluate", "held-out perplexity, beside counts of words"),
        ("sample", "let it write"),
        ("show", "a page that shows which experts each token of a text goes to, block by block"),
    ):
        q = what.add_parser(name, help=words)
        q.add_argument("folder", type=Path, metavar="DIR", help="where it is kept")
        if name == "evaluate":
            q.add_argument("--corpus", type=Path, metavar="PATH", help="the text, unless it is found by itself")
        else:
            q.add_argument("--prompt", default="", metavar="TEXT", help="how it begins")
            q.add_argument("--tokens", type=int, default=50, metavar="N", help="how many to write (50)")
            q.add_argument("--temperature", type=float, default=0.8, metavar="X", help="0 takes the likeliest (0.8)")
            q.add_argument("--top-p", type=float, default=0.95, metavar="X", help="among the likeliest (0.95)")
            q.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (0)")
        if name == "show":
            q.add_argument("--page", type=Path, metavar="FILE", help="where the page goes (DIR/text.html)")
    return p


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Parse a call, carry it out, and return its exit status; `prog` is how it was called."""
    p = parser(prog)
    args = p.parse_args(argv)
    try:
        return {"train": _train, "evaluate": _evaluate, "sample": _sample, "show": _show}[args.what](args)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        print(f"{p.prog}: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        where = f"; the progress is in {args.output}, and the same call goes on" if args.what == "train" else ""
        print(f"\ninterrupted{where}", file=sys.stderr)
        return INTERRUPTED


# ---- train -----------------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    corpus = open_corpus(args.corpus)
    vocabulary = (BytePair if args.byte_pairs else Vocabulary).train(corpus, args.vocabulary)
    data, heldout = stream(corpus.train, vocabulary), stream(corpus.heldout, vocabulary)
    model = init.transformer(
        np.random.default_rng(args.seed),
        V=len(vocabulary),
        d=args.width,
        layers=args.layers,
        heads=args.heads,
        h=args.hidden,
        E=args.experts,
        k=args.k,
        dtype=np.float32,
        **_architecture(args),
    )
    balances = [Balance("switch", weight=args.balance)] * bool(args.balance)
    balances += [Balance("z", weight=args.z_loss)] * bool(args.z_loss)
    recipe = Recipe(args.steps, args.lr, max(1, args.steps // 20), balances=tuple(balances))
    batch = batches(data, args.batch, args.context, args.seed)
    kept.begin(args.output, _settings(args, corpus), vocabulary)
    print(f"text: {corpus.name} ({len(data.ids):,} tokens, {vocabulary.unknown(data.ids):.1%} unknown)")
    print(f"model: {model!r}")
    start, losses = kept.progress_of(args.output) or (None, np.zeros(0))
    if start is not None:
        print(f"going on from step {start.step} of {recipe.steps}")
    model = _run(args, model, batch, recipe, start, list(losses))
    save(model, args.output / "model.npz")
    print(_perplexity(model, heldout, args.context)[1])
    print(f"kept in {args.output}; let it write: npmoe language sample {args.output} --prompt 'The'")
    return DONE


def _architecture(args: argparse.Namespace) -> dict[str, Any]:
    if args.mixtral:
        groups = 2 if args.heads % 2 == 0 else 1
        return {"norm": "rms", "expert": "swiglu", "rotary": 1e4, "groups": groups, "tied": False}
    return {"longest": args.context}


def _settings(args: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """All that the result depends on."""
    words = hashlib.sha256()
    for document in (*corpus.train, *corpus.heldout):
        words.update(document.text.encode() + b"\0")
    named = {key: value for key, value in vars(args).items() if key not in ("what", "output", "corpus")}
    return {**named, "text": corpus.name, "licence": corpus.licence, "digest": words.hexdigest()[:16]}


def _run(
    args: argparse.Namespace, model: Any, batch: Any, recipe: Recipe, start: Progress | None, losses: list[float]
) -> Any:
    """Train in pieces, each of which ends with the progress on disk, behind a line with loss and tokens a second."""
    piece = max(1, recipe.steps // 20)
    done = 0 if start is None else start.step
    written = time.monotonic()
    bar = tqdm(total=recipe.steps, initial=done, unit=" steps", disable=None, file=sys.stderr, dynamic_ncols=True)
    with bar:
        while True:
            until = min(recipe.steps, done + piece)
            begun = time.monotonic()
            for step in train(model, batch, recipe, start, until):
                if step.progress is None:
                    losses.append(step.loss)
                    bar.update()
                    rate = args.batch * args.context * (step.step - done + 1) / (time.monotonic() - begun)
                    bar.set_postfix_str(f"loss {step.loss:.3f}, {rate:,.0f} tokens/s", refresh=False)
            start, done = step.progress, until
            if until == recipe.steps or time.monotonic() - written > EVERY:
                kept.keep(args.output, start, np.array(losses))  # type: ignore[arg-type]
                written = time.monotonic()
            if until == recipe.steps:
                return step.model


def _perplexity(model: Any, heldout: Stream, T: int) -> tuple[float, str]:
    """The held-out loss, and that in words."""
    ids, targets = windows(heldout, T)
    loss = float(evaluate(model, ids[:MOST], targets[:MOST]).mean())
    said = f"held-out perplexity {math.exp(loss):.1f} (loss {loss:.3f} nats a token, {targets[:MOST].size:,} tokens)"
    return loss, said


# ---- evaluate and sample ---------------------------------------------------------------------------------------------


def _evaluate(args: argparse.Namespace) -> int:
    model, vocabulary, settings = kept.opened(args.folder)
    corpus = open_corpus(args.corpus)
    data, heldout = stream(corpus.train, vocabulary), stream(corpus.heldout, vocabulary)
    print(f"trained on: {settings['text']}")
    print(f"text: {corpus.name} ({vocabulary.unknown(heldout.ids):.1%} of the held-out tokens unknown)")
    loss, said = _perplexity(model, heldout, settings["context"])
    print(said)
    _, targets = windows(heldout, settings["context"])
    ids = heldout.ids[: targets[:MOST].size + 1]
    V = len(vocabulary)
    counts = {
        "unigram": unigram(data.ids, ids, V),
        "Kneser-Ney bigram": kneser_ney(data.ids, ids, V, 2),
        "Kneser-Ney trigram": kneser_ney(data.ids, ids, V, 3),
    }
    for name, value in counts.items():
        print(f"  {name}: {math.exp(value):.1f}")
    best = min(counts, key=lambda name: counts[name])
    print(f"The {best} predicts better." if counts[best] < loss else "The model predicts better than all counts.")
    return DONE


def _sample(args: argparse.Namespace) -> int:
    (_, vocabulary, settings), ids, _ = _written(args)
    print(f"(trained on {settings['text']})", file=sys.stderr)
    print(vocabulary.decode(ids))
    return DONE


def _show(args: argparse.Namespace) -> int:
    (model, vocabulary, settings), ids, prompt = _written(args)
    words = [vocabulary.decode(ids[i : i + 1]) for i in range(len(ids))]
    path = args.page or args.folder / "text.html"
    title = f"{len(ids)} tokens and their experts"
    write(path, page(model, words, ids, prompt, title, settings["text"]).encode())
    print(path)
    return DONE


def _written(args: argparse.Namespace) -> tuple[kept.Kept, np.ndarray, int]:
    """The model, a prompt with what it writes after it (T,), and how many tokens the prompt has."""
    found = kept.opened(args.folder)
    prompt = found.vocabulary.encode(args.prompt)
    if not len(prompt):
        prompt = np.array([found.vocabulary.eos])
    positions = found.model.embedding.positions
    if positions is not None and len(prompt) + args.tokens > len(positions):
        raise ValueError(
            f"expected at most {len(positions)} tokens, prompt and continuation together, as this model has positions "
            f"for; got {len(prompt)} and {args.tokens}"
        )
    rng = np.random.default_rng(args.seed)
    ids = sample(found.model, prompt, args.tokens, rng, temperature=args.temperature, top_p=args.top_p)
    return found, ids[0], len(prompt)
