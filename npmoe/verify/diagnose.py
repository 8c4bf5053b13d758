"""Where a difference shows, and what it looks like: known faults and changes of parameters held against the answer.

n tokens, d width, h hidden, o output width, E experts, k experts a token. Nothing here changes a verdict. An
explanation is named only if it fits every token, those that agree as well as those that are off; where several fit, all
are named. The faults are a table, `npmoe.verify.faults`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from npmoe.model.layers import Stack
from npmoe.model.moe import MoE
from npmoe.model.routing import mask
from npmoe.verify.changes import ALL, Found, changed, leaf_words
from npmoe.verify.faults import Fault, faults, inside, joined
from npmoe.verify.fitting import (
    EXPLAINED,
    FAR,
    LOOSE,
    Seen,
    asked,
    fit,
    in_several,
    left_by,
    rows_of,
    rows_off,
    seen_of,
    tried,
    unit,
    worst_first,
)
from npmoe.verify.judge import FINE, Part, listed
from npmoe.verify.reference import ROWWISE, Reference, kind_of

__all__ = ["Clue", "clues"]

Array = np.ndarray

_MOST_TOLD = 4  # explanations that fit equally well; more of them say nothing
_ROUGH = 1e-4  # eps beyond which limits are so wide that other maps may fit


class Clue(NamedTuple):
    """`kind` is "where" or "looks like"; `answer` the name of the answer; `says` the words."""

    kind: str
    answer: str
    says: str


def clues(refs: Mapping[str, Reference], parts: Sequence[Part], answers: Mapping[str, Array]) -> list[Clue]:
    """Clues for the parts that are off; `refs` and `answers` by the names of all parts that could be judged."""
    with np.errstate(all="ignore"):  # a fault may overflow, an answer may be NaN
        wrong = [part for part in parts if part.verdict in ("doubtful", "differs")]
        found = [clue for part in wrong for clue in _where(refs[part.name], part, answers[part.name])]
        if not wrong:
            return []
        judged = [part for part in parts if part.name in refs and len(part.status) and kind_of(part.name) in ROWWISE]
        seen = [seen_of(refs[part.name], part, answers[part.name]) for part in judged]
        looks = _looks(seen, _named)
        looks = looks or [clue for part in wrong if (clue := _factor(refs[part.name], part, answers[part.name]))]
        looks = looks or _looks(seen, changed)
        if max(part.eps for part in wrong) > _ROUGH:
            looks = [rough for clue in looks if (rough := _roughly(clue))]
        return found + looks


def _roughly(clue: Clue) -> Clue | None:
    """A clue in half precision, whose limits many a map comes near: no sizes of changes, and a caveat."""
    named = [words for words in clue.says.split(", or ") if "a relative change of" not in words]
    return clue._replace(says=f"{', or '.join(named)} (as far as half precision can tell)") if named else None


def _s(values: Array, word: str) -> str:
    return f"{word}{'' if len(values) == 1 else 's'} {listed(values)}"


# ---- where ---------------------------------------------------------------------------------------------------------


def _where(ref: Reference, part: Part, array: Array) -> Iterator[Clue]:
    """Rows, entries and experts in which a part is off."""
    off, kind = rows_off(part), kind_of(part.name)
    if not len(off):
        return
    if kind not in ROWWISE:
        rows = "" if len(part.status) == 1 else f"{_s(off, 'row')} of {len(part.status)}"
        leaf = "" if kind == "mean_jacobian" else leaf_words(kind)
        yield Clue("where", part.name, ", ".join(filter(None, [leaf if leaf != kind else "", rows])) or "all of it")
        return
    says = f"{len(off)} of {len(part.status)} tokens"
    if len(off) <= 6 or len(off) < len(part.status):
        says += f" ({listed(off)})"
    allowed = ref.allowed(part.name)
    far = ~(np.abs(rows_of(array, part)[off] - allowed.want[off]) <= allowed.usual[off])  # NaN is far off
    axis = {"gates": "expert", "scores": "expert", "gradient": "input"}.get(kind, "output")
    columns = np.flatnonzero(far.any(axis=tuple(i for i in range(far.ndim) if i != 1)))
    if len(columns) < far.shape[1]:
        says += f", {_s(columns, axis)} of {far.shape[1]}"
    yield Clue("where", part.name, says + _whose(ref, part))


def _mixtures(layer: Any, x: Array, path: str = "") -> Iterator[tuple[str, MoE, Array]]:
    """Every mixture inside a layer, with its path and what reaches it."""
    if isinstance(layer, MoE):
        yield path, layer, x
        return
    for key, inner, _ in inside(layer):
        yield from _mixtures(inner, x, joined(path, key))
        if isinstance(layer, Stack):
            x = inner.forward(x)[0]


def _visits(layer: Any, x: Array) -> dict[str, Array]:
    """Who visits whom in each mixture, (n, E), by its path."""
    return {path: mask(moe.route(read)[1], len(moe.experts)) for path, moe, read in _mixtures(layer, x)}


def _whose(ref: Reference, part: Part) -> str:
    """The experts that the tokens which are off visit, and none or few of the others; tokens on a tie do not count."""
    decided = ~ref.undecided
    off = np.isin(np.arange(len(decided)), rows_off(part)) & decided
    fine = (part.status == FINE) & decided
    if not off.any() or not fine.any():
        return ""
    among, others = ("all tokens", "no others") if decided.all() else ("all decided tokens", "no other decided ones")
    only, shared, visited = [], [], []
    for path, on in _visits(ref.layer, ref.x).items():
        if on.all():  # everyone visits everyone
            continue
        of = f" of {path}" * bool(path)
        everywhere, elsewhere = on[off].all(axis=0), on[fine].any(axis=0)
        if len(e := np.flatnonzero(everywhere & ~elsewhere)):
            only.append(f"; {among} that visit {_s(e, 'expert')}{of}, and {others}")
        elif len(e := np.flatnonzero(everywhere)):
            shared.append(f"; all of them visit {_s(e, 'expert')}{of}")
        elif len(e := np.flatnonzero(on[off].any(axis=0) & ~elsewhere)):
            visited.append(f"; the experts{of} that only they visit: {listed(e)}")
    return "".join(only or shared or visited)


# ---- what is said --------------------------------------------------------------------------------------------------


def _looks(seen: list[Seen], explain: Callable[[Seen], tuple[Found, str]]) -> list[Clue]:
    """One clue for all answers where one explanation fits them all, else one for each of the first three."""
    clues = []
    for part in [part for part in seen if part.off.any()][:3]:
        found, else_ = explain(part)
        against = [(square, fault, _against(seen, part, fault)) for square, fault in found]
        agreed = [(square, fault) for square, fault, names in against if not names]
        if agreed and (says := _or(agreed, part)):
            return [Clue("looks like", part.name, says)]
        if found and not agreed and (says := _or(found, part)):
            most = min((names for _, _, names in against), key=len)
            clues.append(Clue("looks like", part.name, f"{says}; but {', '.join(most)} {_does(most)} not fit that"))
        elif else_:
            clues.append(Clue("looks like", part.name, else_))
    return list({clue.says: clue for clue in reversed(clues)}.values())[::-1]


def _does(names: list[str]) -> str:
    return "does" if len(names) == 1 else "do"


def _against(seen: list[Seen], part: Seen, fault: Fault) -> list[str]:
    """The other answers that an explanation does not fit."""
    names = []
    for other in seen:
        if other is not part and other.used.any():
            rows = np.flatnonzero(other.used)
            left = left_by(other, rows, asked(other, rows, fault.layer))
            if left is not None and not (left <= 2).all() and fit(other, rows, fault.layer) is None:
                names.append(other.name)
    return names


def _or(found: Found, part: Seen) -> str:
    """The explanations that fit about equally well, in words; none where there are so many that they say nothing."""
    best = min(square for square, _ in found)
    limit = 2 * best + 0.02 * part.got[part.used].size  # rounding is some tenths of what is usual
    words = list(dict.fromkeys(fault.words for square, fault in found if square <= limit))
    if len(words) > _MOST_TOLD:
        return ""
    if all(text.endswith(ALL) for text in words):
        return ", or ".join(text.removesuffix(ALL) for text in words) + ALL
    return ", or ".join(words)


# ---- faults that have a name ---------------------------------------------------------------------------------------


def _named(seen: Seen) -> tuple[Found, str]:
    """The faults under which our answer would be the candidate's, in all rows."""
    rows, every = tried(seen, worst_first(seen)), np.flatnonzero(seen.used)
    layer = seen.ref.layer
    visits = {path: on[seen.off].all(axis=0) for path, on in _visits(layer, seen.ref.x).items()}
    found = []
    for fault in faults(layer, "", visits):
        if fit(seen, rows, fault.layer) is None or (square := fit(seen, every, fault.layer)) is None:
            continue
        if fault.alone and not in_several(seen, every, fault.alone):
            continue
        found.append((square, fault))
    was = float((((seen.want[every] - seen.got[every]) / unit(seen, every, seen.want[every])) ** 2).sum())
    if found and min(square for square, _ in found) > LOOSE * was:
        found += changed(seen)[0]  # limits are so wide that something else may fit better
    return found or _named_in_part(seen, visits), ""


def _named_in_part(seen: Seen, visits: Mapping[str, Array]) -> Found:
    """Faults of a whole layer that fit the rows which are off, and these alone: other rows may be done otherwise."""
    off, found = np.flatnonzero(seen.off), []
    was = float((((seen.want[off] - seen.got[off]) / unit(seen, off, seen.want[off])) ** 2).sum())
    for fault in faults(seen.ref.layer, "", {path: np.zeros_like(e) for path, e in visits.items()}):
        if fault.alone or fit(seen, worst_first(seen)[:FAR], fault.layer) is None:
            continue
        if (square := fit(seen, off, fault.layer)) is not None and square <= LOOSE * was:
            found.append((square, fault._replace(words=f"{fault.words}, in the rows that are off alone")))
    return found


# ---- one number -----------------------------------------------------------------------------------------------------


def _factor(ref: Reference, part: Part, array: Array) -> Clue | None:
    """Whether the whole answer is ours times one number."""
    allowed = ref.allowed(part.name)
    want, usual, got = allowed.want, allowed.usual, array.astype(np.float64)
    if kind_of(part.name) in ROWWISE:
        used = seen_of(ref, part, array).used
        want, usual, got = want[used], usual[used], rows_of(array, part)[used]
    square = float((want * want).sum())
    if want.shape != got.shape or not np.isfinite(got).all() or not square or np.count_nonzero(want) < 2:
        return None
    c = float((want * got).sum()) / square
    left, was = np.abs(got - c * want), np.abs(got - want)
    if not (left <= 2 * max(abs(c), 1.0) * usual).all():
        return None
    if float((left**2).sum()) > EXPLAINED * float((was**2).sum()):
        return None
    n = len(ref.x)
    named = {n: "n: a sum for a mean", 1 / n: "1/n: a mean over tokens for a sum", -1.0: "-1", 0.5: "1/2", 2.0: "2"}
    names = [text for value, text in named.items() if abs(c / value - 1) < 1e-6]
    if c == 0:
        return Clue("looks like", part.name, "all of it is zero")
    return Clue("looks like", part.name, f"all of it is ours times {names[0] if names else _near_one(c)}")


def _near_one(c: float) -> str:
    return f"1 {'+' if c > 1 else '-'} {abs(c - 1):.2g}" if abs(c - 1) < 1e-3 else f"{c:.6g}"
