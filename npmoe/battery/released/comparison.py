"""One comparison with a released model: what was expected, what came, the verdict; and many as text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["TOLERANCE", "Finding", "described", "finding", "not_run", "reason_of", "table"]

Array = np.ndarray

#: Largest relative difference that is rounding: softmaxes and sums are in float32 even where the weights are float64.
#: A softmax is off by (span of the scores, up to 16 here, and E) eps, a mean over some 100 rows by 100 eps at worst, a
#: gradient by two such factors: under 300 eps. Faults found so far are larger by a factor of 1000 and more.
TOLERANCE = 300 * float(np.finfo(np.float32).eps)


class Finding(NamedTuple):
    """One comparison.

    id : what was compared: "output", "gradient", "jacobian", "output:<experts>" (other implementations of the experts),
        "balance", "balance:masked", "balance:collapsed", "balance:gradient", "dispatch", "groups".
    family, version : of `transformers`.
    symptom : what the numbers show, in words.
    expected, got : ours and theirs: the value of a loss, else the largest entry; None where it did not run.
    error : largest difference over the largest expected entry.
    tolerance : of the error.
    verdict : "agrees", "fault" or "not run: reason".
    repeat : the command.
    """

    id: str
    family: str
    version: str
    symptom: str
    expected: float | None
    got: float | None
    error: float | None
    tolerance: float
    verdict: str
    repeat: str


def _repeat(family: str) -> str:
    return f"python -m npmoe.verify released {family}"


def finding(
    id: str,
    family: str,
    version: str,
    expected: Any,
    got: Any,
    symptom: str = "",
    tolerance: float = TOLERANCE,
) -> Finding:
    """Finding of two arrays (or numbers) that should be one.

    Parameters
    ----------
    id, family, version : what was compared, and whose it is.
    expected, got : arrays of one shape, ours and theirs.
    symptom : words for the case that they differ; without them the difference itself.
    tolerance : of the largest difference, relative to the largest expected entry.

    Raises
    ------
    ValueError : for arrays of two shapes.

    Examples
    --------
    >>> finding("output", "mixtral", "0", [1.0, 2.0], [1.0, 2.0]).verdict
    'agrees'
    >>> finding("output", "mixtral", "0", [1.0, 2.0], [1.0, 2.5])[3:7]
    ('differs by 0.25 of the largest entry', 2.0, 2.5, 0.25)
    """
    ours, theirs = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"expected {id} of {family} of shape {ours.shape}; got {theirs.shape}")
    size = float(np.abs(ours).max())
    error = float(np.abs(ours - theirs).max()) / (size or 1.0)
    agrees = error <= tolerance  # NaN is a fault
    if not agrees and not symptom:
        symptom = f"differs by {error:.3g} of the largest entry"
    single = ours.ndim == 0
    values = (float(ours), float(theirs)) if single else (size, float(np.abs(theirs).max()))
    verdict = "agrees" if agrees else "fault"
    return Finding(id, family, version, "" if agrees else symptom, *values, error, tolerance, verdict, _repeat(family))


def not_run(id: str, family: str, version: str, reason: str) -> Finding:
    return Finding(id, family, version, "", None, None, None, TOLERANCE, f"not run: {reason}", _repeat(family))


def reason_of(error: Exception) -> str:
    """First line of an error, short enough for a table."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:90]


def table(found: Sequence[Finding]) -> str:
    """Findings as text, a line each; the error also in units of float32's eps.

    Examples
    --------
    >>> print(table([finding("balance", "mixtral", "0", 6.0, 2.9)]))
    family   what         expected         got    error   eps32  verdict
    mixtral  balance             6         2.9  5.2e-01   4e+06  fault
    """
    wide = max([len(f.family) for f in found] + [6])
    what = max([len(f.id) for f in found] + [10])
    rows = [f"{'family':{wide}}  {'what':{what}} {'expected':>10}  {'got':>10}    error   eps32  verdict"]
    for f in found:
        if f.error is None or f.expected is None or f.got is None:
            rows.append(f"{f.family:{wide}}  {f.id:{what}} {'':>10}  {'':>10}  {'':>7} {'':>7}  {f.verdict}")
            continue
        ulp = f.error / float(np.finfo(np.float32).eps)
        numbers = f"{f.expected:>10.5g}  {f.got:>10.5g}  {f.error:.1e} {ulp:>7.1g}"
        rows.append(f"{f.family:{wide}}  {f.id:{what}} {numbers}  {f.verdict}")
    return "\n".join(rows)


def described(found: Sequence[Finding]) -> str:
    """A head, the table, and each fault in words with its command.

    Examples
    --------
    >>> print(described([finding("balance", "mixtral", "5.0.0", 6.0, 2.9, "2.9 for 6: softmax taken twice")]))
    transformers 5.0.0: 0 agree, 1 at fault, 0 not run
    <BLANKLINE>
    family   what         expected         got    error   eps32  verdict
    mixtral  balance             6         2.9  5.2e-01   4e+06  fault
    <BLANKLINE>
    Faults:
      mixtral, balance: 2.9 for 6: softmax taken twice
        python -m npmoe.verify released mixtral
    """
    faults = [f for f in found if f.verdict == "fault"]
    agree = sum(f.verdict == "agrees" for f in found)
    rest = len(found) - agree - len(faults)
    version = ", ".join(dict.fromkeys(f.version for f in found))
    lines = [f"transformers {version}: {agree} agree, {len(faults)} at fault, {rest} not run", "", table(found)]
    if faults:
        lines += ["", "Faults:"]
        lines += [f"  {f.family}, {f.id}: {f.symptom}\n    {f.repeat}" for f in faults]
    return "\n".join(lines)
