"""The claims of MY: what each says, which models it reads, its ways (the first is primary), and words."""

from npmoe.reproduce.experiment import Axis, Experiment, Spec
from npmoe.reproduce.routing_reflects_geometry import ways
from npmoe.reproduce.routing_reflects_geometry.axes import (
    CELLS,
    COMMON,
    DOUBLE,
    LONGER,
    LOSSES,
    ROLES,
    SHAPES,
    SITES,
    SPREADS,
    WEIGHTS,
)
from npmoe.reproduce.routing_reflects_geometry.config import BASE, QUICK
from npmoe.reproduce.routing_reflects_geometry.several import COMPARED, TOP
from npmoe.reproduce.routing_reflects_geometry.ways import END

__all__ = ["EXPERIMENT", "SPECS"]

SPECS = (
    Spec(
        "MY.1a",
        "Similar hidden states give similar expert usage (sufficient).",
        "no number",
        SITES,
        exact=ways.sufficient,
        note="Counted on random pairs of tokens and on small and large steps from every token, on the trained models "
        "of all roles in their primary settings. For top-k gates the bounds require that both tokens choose one set; "
        "the certified radius r(x) tells so without looking at the other token. What happens otherwise is counted too.",
        beside=(
            (
                "median certified radius over |x|",
                "how far a hidden state is from the nearest change of its set",
                lambda m: float(m["base"]["radius"][1]),
            ),
            (
                "median jump across the nearest wall over |f|",
                "beyond the radius the output jumps, which no Jacobian shows",
                lambda m: float(m["base"]["wall ends"][0]),
            ),
            (
                "median of that jump over radius times |J|_2",
                "in units of what the Jacobian allows for such a step",
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
        exact=ways.necessary,
        note="Refuted for the plain cosine: the router cannot see ker(C W), which has d - E + 1 dimensions or more. "
        "True modulo that kernel, as the further statements show.",
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
        ways.in_practice(),
        (
            COMMON,
            Axis("isotropic inputs", {"inputs": "isotropic"}),
            *SHAPES,
            *SPREADS,
            LONGER,
            DOUBLE,
            Axis("balance loss, weight 0.01", {"weight": 0.01}),
        ),
        beside=(
            (
                "p of the primary's correlation",
                "Mantel's test, whole sequences permuted (199 permutations: 0.005 is the least)",
                lambda m: float(m["base"]["mantel"][0, 1]),
            ),
        ),
        note="A random router routes by hidden states too; training adds the excess over it. Permuting the rows of a "
        "router relabels experts and changes nothing, so its coordinates are permuted instead.",
    ),
    Spec(
        "MY.2",
        "Specialization is a property of the representation, not of the router.",
        "no number",
        CELLS,
        ways.owed(),
        (COMMON, *SHAPES, *SPREADS, LONGER, DOUBLE, Axis("balance loss, weight 0.01", {"weight": 0.01})),
        note="A two-by-two design: the router is trained or frozen at random, and the inputs cluster by topic or are "
        "isotropic, with as many topics and a task for each. Information is not corrected for chance; its null model "
        "shows what chance gives.",
        beside=tuple(
            (f"information, {cell}", "between expert and topic, share of the topics' entropy", ways.informed(cell))
            for cell in CELLS
        ),
    ),
    Spec(
        "MY.3",
        "The load-balancing loss keeps diversity by suppressing shared hidden directions.",
        "no number",
        tuple(f"weight {w:g}" for w in WEIGHTS),
        ways.suppressed(),
        (
            Axis("shared direction of strength 0.5", {"common": 0.5}),
            Axis("shared direction of strength 2", {"common": 2.0}),
            *LOSSES,
            *SHAPES,
            LONGER,
            DOUBLE,
            Axis("batches of 32", {"batch": 32}),
        ),
        note="All topics share a direction that is as strong as everything else. T compares with weight 0. Near "
        "uniform scores the loss is 1 + |C W mu|^2/E, so its gradient has rank one, along mu (docs/balance.md).",
        beside=(
            (
                "cosine of G mu and C W mu, f = P, scores a tenth as large",
                "the law says 1 as scores vanish",
                lambda m: float(m["weight 0"]["gradient"][1, 1, 1]),
            ),
            (
                "share of the gradient along mu, cotangents handed to other tokens",
                "what any loss gives that pulls all tokens alike",
                lambda m: float(m["weight 0"]["gradient"][0, 3, 0]),
            ),
        ),
    ),
    Spec(
        "MY.4",
        "Without diversity in the batch specialization collapses.",
        "no number",
        tuple(role for role in ROLES if role.startswith(("mixed", "one topic"))),
        ways.collapsed(),
        (
            *(Axis(f"batches of {B}", {"batch": B}) for B in (8, 16, 64, 128, 256, 512)),
            Axis("no shared direction", {"common": 0.0}),
            *LOSSES,
            LONGER,
            DOUBLE,
        ),
        note="A test of a remark: the paper reports no experiment. Batches have 32 tokens of all topics, or of one "
        "random topic at each step. The control shows what such batches do without any balance loss.",
    ),
    Spec(
        "MY.10",
        "Ours, expert matching across seeds: two models agree no more on one query than on different queries.",
        "not measured",
        ("models",),
        ways.shared(),
        (
            COMMON,
            Axis("isotropic inputs", {"inputs": "isotropic"}),
            *SHAPES,
            Axis("frozen routers", {"router": "frozen"}),
            Axis("balance loss, weight 0.01", {"weight": 0.01}),
        ),
        note="This is no test of MY.5, which is about one router. Three models start from different weights and train "
        "on the same sequences. Each pair is matched on one half of the queries and scored on the other. A query is "
        "its topic and a part of its own. No more means: by less than 0.05 over the whole interval. A claim of "
        "equality cannot exceed a null model without anything in common.",
        beside=(
            *(
                (name, f"Jaccard of the smallest sets that hold {TOP:.0%} of a query's usage", ways.compared(name))
                for name in COMPARED
            ),
            ("random sets of these sizes", "exact", lambda m: float(m["models"]["sizes"][1])),
        ),
    ),
    Spec(
        "SC2.5",
        "Ensemble diversity (a prediction of SC2, version 2 of SC1): the ambiguity identity, on this small mixture.",
        "no number",
        SITES,
        exact=ways.ambiguity,
        note="The further numbers show how much of the experts' error is averaged away, and how aligned they are.",
        beside=(
            ("ambiguity over the experts' error, top-2", "1 where the mixture errs no more", ways.spread("base")),
            ("ambiguity over the experts' error, soft", "the same", ways.spread("soft")),
            ("rms cosine of mean Jacobians, top-2", "alignment", lambda m: float(m["base"]["ambiguity"][6])),
            ("rms cosine of mean Jacobians, soft", "alignment", lambda m: float(m["soft"]["ambiguity"][6])),
        ),
    ),
)

EXPERIMENT = Experiment(BASE, QUICK, ROLES, SPECS)
