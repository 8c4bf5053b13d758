"""The claims of MY as numbers T or exact statements, as `docs/verdicts.md` fixes them; T > 0 is what the claim says."""

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

import numpy as np

from npmoe.ledger import CORRELATION, RATIO, SHARE, Statement
from npmoe.reproduce.experiment import Axis, Experiment, Models, Spec, Statistic, Way
from npmoe.reproduce.routing_reflects_geometry.config import BASE, QUICK
from npmoe.reproduce.routing_reflects_geometry.measure import BOUNDS, COMPARED, MODELS, PAIRED, TOP

__all__ = ["CELLS", "EXPERIMENT", "SPECS", "WEIGHTS"]

Array = np.ndarray
START, END = 0, 1

WEIGHTS = (0.0, 1e-3, 1e-2, 1e-1)
USUAL = 1e-2  # the coefficient of Fedus et al., section 2.2: primary in MY.3 and MY.4
CELLS = ("trained, topics", "frozen, topics", "trained, isotropic", "frozen, isotropic")
TOLERANCE = 0.05 + SHARE  # "no greater" is read as: by less than 0.05, the whole interval

ROLES: dict[str, Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]] = {
    "base": {"detail": True},
    "soft": lambda base: {"k": base.E},
    "trained, topics": {"detail": True},  # the run of `base`
    "frozen, topics": {"router": "frozen"},
    "trained, isotropic": {"inputs": "isotropic"},
    "frozen, isotropic": {"inputs": "isotropic", "router": "frozen"},
    **{f"weight {w:g}": {"common": 1.0, "weight": w} for w in WEIGHTS},
    **{
        f"{'mixed' if mixed else 'one topic'}, weight {w:g}": {"common": 1.0, "batch": 32, "mixed": mixed, "weight": w}
        for w in (0.0, 0.01, 0.1)
        for mixed in (True, False)
    },
    "mixed again, weight 0.01": {"common": 1.0, "batch": 32, "weight": 0.01, "order": 1},
    "mixed again, weight 0.1": {"common": 1.0, "batch": 32, "weight": 0.1, "order": 1},
    "models": {"models": 3},
}
SITES = ("base", "soft", *(role for role in ROLES if role not in ("base", "soft", CELLS[0], "models")))  # each once


# ---- MY.1a and MY.1b: exact statements -------------------------------------------------------------------------------

_SAYS = {
    "lipschitz, soft gates": "|g(x) - g(y)| <= 1/2 |C W (x - y)|",
    "lipschitz by sigma_1, soft gates": "|g(x) - g(y)| <= 1/2 sigma_1(C W) |x - y|",
    "total variation, soft gates": "TV(g(x), g(y)) <= tanh(span(W (x - y))/4)",
    "lipschitz, one set": "the first bound for the gates in use, where both tokens chose one set",
    "total variation, one set": "the third bound for the gates in use, where both tokens chose one set",
    "hilbert, soft gates": "Hilbert distance of g(x) and g(y) = span(W (x - y)): gates and C W x determine one another",
    "row part, soft gates": "|Pi (x - y)| <= |C (log g(x) - log g(y))| / sigma_min+(C W), Pi on row(C W)",
    "radius, inside": "no step of 0.999 r(x), along the nearest wall's normal or at random, changes the chosen set",
    "radius, beyond": "a step of (1 + 1e-6) r(x) along that normal changes it",
}
_NECESSARY = ("hilbert, soft gates", "row part, soft gates")


def _counted(seeds: Sequence[Models], name: str, beside: bool = False) -> Statement:
    """One statement over all Sites of all seeds."""
    rows = np.array([m[role]["bounds"][BOUNDS.index(name)] for m in seeds for role in SITES])
    checked, violations = rows[:, :2].sum(axis=0).astype(int)
    return Statement(name, _SAYS[name], int(checked), int(violations), float(rows[:, 2].max()), beside=beside)


def _sufficient(seeds: Sequence[Models]) -> tuple[Statement, ...]:
    exact = tuple(_counted(seeds, name) for name in BOUNDS if name not in _NECESSARY)
    i = BOUNDS.index("total variation, one set")
    rows = np.array([m[role]["bounds"][i] for m in seeds for role in SITES])
    whole = np.array([m[role]["bounds"][0][0] for m in seeds for role in SITES])
    broken = Statement(
        "total variation, other sets",
        "the bound of soft gates asked of top-k gates where the two tokens chose other sets: a step across a wall "
        "exchanges an expert at once",
        int((whole - rows[:, 0]).sum()),
        int(rows[:, 3].sum()),
        float("nan"),
        beside=True,
    )
    return (*exact, broken)


def _necessary(seeds: Sequence[Models]) -> tuple[Statement, ...]:
    runs = [(m, role, m[role]) for m in seeds for role in SITES]
    checked = int(sum(run["pairs"][0] for _, _, run in runs))
    same = int(sum(run["pairs"][1] for _, _, run in runs))
    m, role, least = min(runs, key=lambda item: np.nan_to_num(item[2]["pair"][1], nan=1.0))
    token, cosine, x, y, gap = least["pair"]
    example = (
        f"seed {m.seed}, {role}: token {int(token)} (|x| = {x:.3g}) and a y (|y| = {y:.3g}) with cosine {cosine:.3f} "
        f"choose the same experts, with gates that differ by {gap:.1g} at most"
    )
    refuted = Statement(
        "plain cosine",
        "only hidden states with a positive cosine are routed alike; asked of y = Pi x + v, v in ker(C W)",
        checked,
        same,
        float("inf"),
        example,
    )
    return (refuted, *(_counted(seeds, name, beside=True) for name in _NECESSARY))


# ---- MY.1c: how much in practice ------------------------------------------------------------------------------------


def _practice() -> tuple[Way, ...]:
    def way(i: int) -> Way:
        hidden, measure, of, partial = PAIRED[i]
        held = ", topic held constant" if partial else ""
        return Way(
            f"{of}: {hidden}, {measure.replace('_', ' ')}{held}",
            f"Mantel correlation over pairs of {of}: {hidden} similarity of hidden states with "
            f"{measure.replace('_', ' ')} of usage{held}",
            lambda m: float(m["base"]["mantel"][i, 0]),
            CORRELATION,
            (
                ("random router", "chance", lambda m: float(m["base"]["mantel random"][:, i].mean())),
                ("coordinates permuted", "chance", lambda m: float(m["base"]["mantel permuted"][:, i].mean())),
                ("untrained", "chance", lambda m: float(m["base"]["mantel start"][i])),
            ),
        )

    def share(m: Models, end: int = END) -> float:
        inside, chance = m["base"]["row share"][end]
        return log(inside / chance)

    seen = Way(
        "hidden variance that the router sees",
        "log of the share of hidden variance inside row(C W) over that of a random subspace, r/d",
        share,
        RATIO,
        (("untrained", "chance", lambda m: share(m, START)),),
    )
    return (*(way(i) for i in range(len(PAIRED))), seen)


# ---- MY.2: representation or router ---------------------------------------------------------------------------------


def _effects(m: Models, name: str, column: int = END) -> tuple[float, float]:
    """Main effects of the inputs and of the router on information: half the difference of two means."""
    a, b, c, d = (float(m[cell][name][column]) for cell in CELLS)
    return ((a + b) - (c + d)) / 4, ((a + c) - (b + d)) / 4


def _owed() -> tuple[Way, ...]:
    def size(m: Models, name: str = "information") -> float:
        inputs, router = _effects(m, name)
        return inputs - abs(router)

    def variance(m: Models, name: str = "information") -> float:
        inputs, router = _effects(m, name)
        return inputs * abs(inputs) - router**2

    def within(m: Models, column: int = 2) -> float:
        a, b, c, d = (1 - float(m[cell]["usage"][END, column]) for cell in CELLS)
        return ((a + b) - (c + d)) / 4 - abs((a + c) - (b + d)) / 4

    return (
        Way(
            "size of the effects",
            "effect of the inputs (topics over isotropic) on the information between expert and topic, in shares of "
            "the topics' entropy, minus the size of that of the router (trained or frozen); half differences of means",
            size,
            SHARE,
            (("permuted topics", "chance", lambda m: size(m, "information null")),),
        ),
        Way(
            "variance",
            "the same in squares: variance of the information owed to inputs minus that owed to the router",
            variance,
            SHARE,
            (("permuted topics", "chance", lambda m: variance(m, "information null")),),
        ),
        Way(
            "entropy within topics",
            "as the first, for 1 minus the entropy of usage within a topic over log E",
            within,
            SHARE,
            (("permuted topics", "chance", lambda m: within(m, 3)),),
        ),
    )


def _informed(cell: str) -> Statistic:
    return lambda m: float(m[cell]["information"][END])


SWITCH, _, TASK, _, RANDOM = range(5)  # rows of the array "gradient"


# ---- MY.3 and MY.4: balance -----------------------------------------------------------------------------------------


def _response(m: Models, role: str, column: int) -> float:
    """|C W v|/|v| along random directions (2) or the data less its mean (3)."""
    return float(m[role]["size"][END] * m[role]["response"][END, column])


def _suppressed() -> tuple[Way, ...]:
    def response(weight: float) -> Way:
        role = f"weight {weight:g}"

        def T(m: Models) -> float:
            return log(m["weight 0"]["response"][END, 0] / m[role]["response"][END, 0])

        def elsewhere(column: int) -> Statistic:
            return lambda m: log(_response(m, "weight 0", column) / _response(m, role, column))

        return Way(
            f"response, weight {weight:g}",
            f"log of |C W mu|, the router's response along the mean hidden state, without the loss over "
            f"weight {weight:g}",
            T,
            RATIO,
            (
                ("response along random directions", "chance", elsewhere(2)),
                ("response along the data less its mean", "chance", elsewhere(3)),
            ),
        )

    def along(m: Models, row: int) -> float:
        return float(m["weight 0"]["gradient"][0, row, 0]) - 1 / m["weight 0"].config.d

    def against(m: Models, row: int) -> float:
        return float(m["weight 0"]["gradient"][0, row, 1])

    def entropy(m: Models) -> float:
        return float(m["weight 0.01"]["usage"][END, 0] - m["weight 0"]["usage"][END, 0])

    def information(m: Models) -> float:
        return float(m["weight 0.01"]["information"][END] - m["weight 0"]["information"][END])

    def gradient(name: str, words: str, T: Callable[[Models, int], float], margin: float) -> Way:
        """A way that reads the Switch gradient, beside those of the task and of random cotangents."""
        nulls: tuple[tuple[str, str, Statistic], ...] = (
            ("gradient of the task", "chance", lambda m: T(m, TASK)),
            ("random cotangents", "chance", lambda m: T(m, RANDOM)),
        )
        return Way(name, words, lambda m: T(m, SWITCH), margin, nulls)

    return (
        response(USUAL),
        response(1e-3),
        response(1e-1),
        gradient(
            "gradient along the mean",
            "share of the Switch gradient on the untrained router that lies along the mean hidden state, less 1/d",
            along,
            SHARE,
        ),
        gradient(
            "gradient against the response",
            "cosine of G mu and C W mu, G the Switch gradient on the untrained router: a step against G shrinks the "
            "response along mu where it is positive",
            against,
            CORRELATION,
        ),
        Way(
            "diversity of use",
            "entropy of usage over log E, weight 0.01 minus weight 0",
            entropy,
            SHARE,
            (("untrained", "chance", lambda m: 0.0),),
        ),
        Way(
            "specialization kept",
            "information between expert and topic in shares of the topics' entropy, weight 0.01 minus weight 0",
            information,
            SHARE,
            (
                (
                    "permuted topics",
                    "chance",
                    lambda m: float(m["weight 0.01"]["information null"][END] - m["weight 0"]["information null"][END]),
                ),
            ),
        ),
    )


def _collapse() -> tuple[Way, ...]:
    def information(m: Models, a: str, b: str) -> float:
        return float(m[a]["information"][END] - m[b]["information"][END])

    def entropy(m: Models, a: str, b: str) -> float:
        return float(m[b]["usage"][END, 2] - m[a]["usage"][END, 2])

    def way(name: str, words: str, T: object, weight: float) -> Way:
        mixed, one = f"mixed, weight {weight:g}", f"one topic, weight {weight:g}"
        again = f"mixed again, weight {weight:g}"
        return Way(
            f"{name}, weight {weight:g}",
            f"{words}, balance loss of weight {weight:g}",
            lambda m: T(m, mixed, one),  # type: ignore[operator]
            SHARE,
            (
                ("mixed batches in another order", "chance", lambda m: T(m, mixed, again)),  # type: ignore[operator]
                ("without a balance loss", "control", lambda m: T(m, "mixed, weight 0", "one topic, weight 0")),  # type: ignore[operator]
            ),
        )

    informed = (
        "information between expert and topic over the topics' entropy, batches of all topics minus batches of one"
    )
    spread = "entropy of usage within a topic over log E, batches of one topic minus batches of all"
    return (
        way("information", informed, information, USUAL),
        way("information", informed, information, 0.1),
        way("entropy within topics", spread, entropy, 0.01),
        way("entropy within topics", spread, entropy, 0.1),
    )


# ---- MY.5: several models -------------------------------------------------------------------------------------------

SAME, OTHER = COMPARED.index("same query"), COMPARED.index("other topics")


def _models() -> tuple[Way, ...]:
    def way(kind: str, other: str = "other topics", same: str = "same query") -> Way:
        i, j, k = MODELS.index(kind), COMPARED.index(same), COMPARED.index(other)
        numbered = same.endswith("as numbered")

        def T(m: Models, name: str = "models", j: int = j, k: int = k) -> float:
            row = m["models"][name][i]
            return TOLERANCE - float(row[j] - row[k])

        def permuted(m: Models) -> float:
            return T(m, "models", COMPARED.index("queries permuted"), COMPARED.index("other topics, queries permuted"))

        how = "experts as numbered" if numbered else "experts matched on the other half of the queries"
        # only for two models and other topics was the same statistic taken with queries permuted
        chance = (("queries permuted", "chance", permuted),) if other == "other topics" else ()
        return Way(
            f"{kind}, {other}",
            f"{TOLERANCE:g} minus how much more two models overlap on one query than on: {other}; {kind}, {how}",
            T,
            SHARE,
            (*chance, ("untrained", "chance", lambda m: T(m, "models start"))),
        )

    return (
        way(MODELS[0]),
        way(MODELS[0], "other topics, one model"),
        way(MODELS[0], "other queries of one topic"),
        way(MODELS[0], "other queries of one topic, one model"),
        way(MODELS[0], "queries permuted, as numbered", "same query, as numbered"),
        *(way(kind, other) for kind in MODELS[1:] for other in ("other topics", "other topics, one model")),
    )


def _compared(name: str) -> Statistic:
    return lambda m: float(m["models"]["models"][0, COMPARED.index(name)])


# ---- SC2.5 ----------------------------------------------------------------------------------------------------------


def _identity(seeds: Sequence[Models]) -> tuple[Statement, ...]:
    rows = np.array([m[role]["ambiguity"] for m in seeds for role in SITES])
    return (
        Statement(
            "ambiguity",
            "|f - y|^2 = sum_e g_e |f_e - y|^2 - sum_e g_e |f_e - f|^2, for every token",
            int(rows[:, 3].sum()),
            int(rows[:, 4].sum()),
            float(rows[:, 5].max()),
        ),
    )


def _spread(role: str) -> Statistic:
    return lambda m: float(m[role]["ambiguity"][2] / m[role]["ambiguity"][1])


# ---- axes and claims -------------------------------------------------------------------------------------------------

_COMMON = Axis("topics share a direction", {"common": 1.0})
_SHAPES = (
    Axis("E = 8, top-2", {"E": 8}),
    Axis("E = 32, top-4, d = 64", {"E": 32, "k": 4, "d": 64}),
    Axis("top-1", {"k": 1, "renormalize": False}),  # renormalized, one gate is 1 always, and the router never trained
    Axis("top-4", {"k": 4}),
)
_LOSSES = tuple(
    Axis(f"{name} loss", {"loss": kind}) for name, kind in (("GShard", "gshard"), ("importance", "importance"))
)
_SPREADS = tuple(Axis(f"spread {s}", {"spread": s}) for s in (0.25, 0.75))
_LONGER = Axis("1000 steps", {"steps": 1000})

SPECS = (
    Spec(
        "MY.1a",
        "Similar hidden states give similar expert usage (sufficient).",
        "no number",
        SITES,
        exact=_sufficient,
        note="Counted on random pairs and on small and large steps from every token, on the trained Sites of all roles "
        "that this paper's claims compare, in their primary settings. For top-k gates the bounds need that both "
        "tokens chose one set, which the certified radius r(x) tells without looking "
        "at the other token; the line beside counts what happens otherwise.",
        beside=(
            (
                "median certified radius over |x|",
                "how far a hidden state is from the nearest change of its set",
                lambda m: float(m["base"]["radius"][1]),
            ),
            (
                "median jump across the nearest wall over |f|",
                "beyond the radius the output jumps; no Jacobian sees it",
                lambda m: float(m["base"]["wall ends"][0]),
            ),
            (
                "median of that jump over radius times |J|_2",
                "beside what the Jacobian allows for such a step",
                lambda m: float(m["base"]["wall ends"][1]),
            ),
            ("share of tokens with a wall", "top-2", lambda m: float(m["base"]["wall ends"][2])),
        ),
    ),
    Spec(
        "MY.1b",
        "Only similar hidden states give similar usage (necessary).",
        "no number",
        SITES,
        exact=_necessary,
        note="Refuted for the plain cosine: the router cannot see ker(C W), whose dimension is d - E + 1 or more. True "
        "modulo that kernel, as the statements beside it count.",
        beside=(
            (
                "share of hidden variance inside row(C W)",
                "all that routing can reflect",
                lambda m: float(m["base"]["row share"][END, 0]),
            ),
        ),
    ),
    Spec(
        "MY.1c",
        "Similarity of hidden states explains similarity of usage in practice.",
        "no number",
        ("base",),
        _practice(),
        (
            _COMMON,
            Axis("isotropic inputs", {"inputs": "isotropic"}),
            *_SHAPES,
            *_SPREADS,
            _LONGER,
            Axis("balance loss, weight 0.01", {"weight": 0.01}),
        ),
        beside=(
            (
                "p of the primary's correlation",
                "Mantel's test, whole sequences permuted (199 permutations: 0.005 is the least)",
                lambda m: float(m["base"]["mantel"][0, 1]),
            ),
        ),
        note="A random router routes by hidden states too. What training adds is the excess over it. Permuting the "
        "rows of a router relabels experts and changes nothing, so it is its coordinates that are permuted.",
    ),
    Spec(
        "MY.2",
        "Specialization is a property of the representation, not of the router.",
        "no number",
        CELLS,
        _owed(),
        (_COMMON, *_SHAPES, *_SPREADS, _LONGER, Axis("balance loss, weight 0.01", {"weight": 0.01})),
        note="Two by two: router trained or frozen at random, inputs with topics or isotropic with as many topics to "
        "tell apart and a task for each. Information is not corrected for chance; its null is.",
        beside=tuple(
            (f"information, {cell}", "between expert and topic, share of the topics' entropy", _informed(cell))
            for cell in CELLS
        ),
    ),
    Spec(
        "MY.3",
        "The load-balancing loss keeps diversity by suppressing shared hidden directions.",
        "no number",
        tuple(f"weight {w:g}" for w in WEIGHTS),
        _suppressed(),
        (
            Axis("shared direction of strength 0.5", {"common": 0.5}),
            Axis("shared direction of strength 2", {"common": 2.0}),
            *_LOSSES,
            *_SHAPES,
            _LONGER,
            Axis("batches of 32", {"batch": 32}),
        ),
        note="Topics share a direction as strong as all the rest. Weight 0 is the control that T compares with. Near "
        "uniform scores the loss is 1 + |C W mu|^2/E, so that its gradient has rank one, along mu (docs/balance.md).",
        beside=(
            (
                "cosine of G mu and C W mu, f = P, scores a tenth as large",
                "the law says 1 as scores vanish",
                lambda m: float(m["weight 0"]["gradient"][1, 1, 1]),
            ),
            (
                "share of the gradient along mu, cotangents handed to other tokens",
                "what any loss has that pulls all tokens alike",
                lambda m: float(m["weight 0"]["gradient"][0, 3, 0]),
            ),
        ),
    ),
    Spec(
        "MY.4",
        "Without diversity in the batch specialization collapses.",
        "no number",
        tuple(role for role in ROLES if role.startswith(("mixed", "one topic"))),
        _collapse(),
        (
            *(Axis(f"batches of {B}", {"batch": B}) for B in (8, 16, 64, 128, 256, 512)),
            Axis("no shared direction", {"common": 0.0}),
            *_LOSSES,
            _LONGER,
        ),
        note="Batches of 32 tokens of all topics, or of one random topic a step. The control asks what such batches do "
        "without any balance loss.",
    ),
    Spec(
        "MY.5",
        "The overlap of experts that different models use on one query is no greater than between different questions.",
        "about 60 %",
        ("models",),
        _models(),
        (
            _COMMON,
            Axis("isotropic inputs", {"inputs": "isotropic"}),
            *_SHAPES,
            Axis("frozen routers", {"router": "frozen"}),
            Axis("balance loss, weight 0.01", {"weight": 0.01}),
        ),
        (lambda m: float(m["models"]["models"][0, SAME]), (0.55, 0.65), "(Jaccard at top-p 0.8, matched)"),
        note="Three models from different initializations on the same sequences, each pair of models matched on one "
        "half of the queries and scored on the other. A query is its topic and a part of its own. 'No greater' is "
        "read as: by less than 0.05 over the whole interval. A claim of equality cannot be beyond a null without "
        "anything in common: where it holds it ends as 'so does the null'.",
        beside=(
            *(
                (name, f"Jaccard of the smallest sets that hold {TOP:.0%} of a query's usage", _compared(name))
                for name in COMPARED
            ),
            ("random sets of these sizes", "exact", lambda m: float(m["models"]["sizes"][1])),
        ),
    ),
    Spec(
        "MY.6",
        "Routing of the prompt does not predict routing of the rollout.",
        "no number",
        note="Not tested: it waits for the language model.",
    ),
    Spec(
        "MY.7",
        "Deep layers use nearly the same experts for unrelated inputs.",
        "no number",
        note="Not tested on models of ours: it waits for the language model. What routing counts of OLMoE and Mixtral "
        "can say: python -m npmoe.reproduce my --counts FILE.",
    ),
    Spec(
        "SC2.5",
        "Ensemble diversity (of SC2, whose claims wait for the language model): the ambiguity identity on the toy.",
        "no number",
        SITES,
        exact=_identity,
        note="Beside it, how much of the experts' error the mixture averages away, and how aligned the experts are.",
        beside=(
            ("ambiguity over the experts' error, top-2", "1 where the mixture errs no more", _spread("base")),
            ("ambiguity over the experts' error, soft", "the same", _spread("soft")),
            ("rms cosine of mean Jacobians, top-2", "alignment", lambda m: float(m["base"]["ambiguity"][6])),
            ("rms cosine of mean Jacobians, soft", "alignment", lambda m: float(m["soft"]["ambiguity"][6])),
        ),
    ),
)

EXPERIMENT = Experiment(BASE, QUICK, ROLES, SPECS)
