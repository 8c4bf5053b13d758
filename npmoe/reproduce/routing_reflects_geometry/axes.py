"""The models of MY: the roles that its claims compare, and its *train* readings."""

from npmoe.reproduce.experiment import Axis, Role

__all__ = ["CELLS", "COMMON", "DOUBLE", "LONGER", "LOSSES", "ROLES", "SHAPES", "SITES", "SPREADS", "USUAL", "WEIGHTS"]

WEIGHTS = (0.0, 1e-3, 1e-2, 1e-1)
USUAL = 1e-2  # the coefficient of Fedus et al., section 2.2: primary in MY.3 and MY.4
CELLS = ("trained, topics", "frozen, topics", "trained, isotropic", "frozen, isotropic")

ROLES: dict[str, Role] = {
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

COMMON = Axis("topics share a direction", {"common": 1.0})
SHAPES = (
    Axis("E = 8, top-2", {"E": 8}),
    Axis("E = 32, top-4, d = 64", {"E": 32, "k": 4, "d": 64}),
    Axis("top-1", {"k": 1, "renormalize": False}),  # renormalized, one gate is 1 always, and the router never trained
    Axis("top-4", {"k": 4}),
)
LOSSES = tuple(
    Axis(f"{name} loss", {"loss": kind}) for name, kind in (("GShard", "gshard"), ("importance", "importance"))
)
SPREADS = tuple(Axis(f"spread {s}", {"spread": s}) for s in (0.25, 0.75))
LONGER = Axis("1000 steps", {"steps": 1000})
DOUBLE = Axis("trained in float64", {"dtype": "float64"})
