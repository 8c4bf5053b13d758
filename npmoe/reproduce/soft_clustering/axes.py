"""The models of SC1: the roles that its claims compare, its *train* readings, and the settings of its own predictions.

Each axis changes one thing from the primary setting (``docs/readings.md``). What it does not concern stays as it is
there: a dense width concerns the baseline alone, a router's switch the mixtures alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

from npmoe.reproduce.experiment import Across, Axis, Pair, Role
from npmoe.reproduce.mixture import Config
from npmoe.reproduce.soft_clustering.config import Thinned
from npmoe.reproduce.trained import Apart

__all__ = ["AXES", "MODELS", "ROLES", "SETTINGS", "axes_of", "role_in"]

MIXTURES = ("top2", "soft")

AXES = (
    Axis("Xavier", {"scheme": "xavier"}),
    Axis("He", {"scheme": "he"}),
    Axis("normal(0.02)", {"scheme": "normal002"}),
    Axis("tanh-GELU", {"activation": "gelu_tanh"}),
    Axis("trained in float64", {"dtype": "float64"}),
    Axis("250 steps", {"steps": 250}),
    Axis("5000 steps", {"steps": 5000}),
    Axis("dense h = 256", {"h": 256}, ("dense",)),
    Axis("dense h = 1024", {"h": 1024}, ("dense",)),
    Axis("N = 128", {"n": 128}),
    Axis("N = 256", {"n": 256}),
    Axis("linear in front", {"front": "linear"}),
    Axis("linear + GELU in front", {"front": "gelu"}),
    Axis("residual", {"around": "residual"}),
    Axis("targets x", {"targets": "x"}),
    Axis("targets of a teacher", {"targets": "teacher"}),
    Axis("targets fresh each step", {"targets": "fresh"}),
    Axis("router bias", {"bias": True}, MIXTURES),
    Axis("one batch for all seeds", {"shared_batch": True}),
    Axis("experts initialized alike", {"alike": True}, MIXTURES),
    Axis("gates without gradient", {"frozen": ("router",)}, MIXTURES),
    *(Axis(f"k = {k}", {"k": k}, ("top2",)) for k in (1, 3, 4, 5, 6, 7, 8)),
)

#: Settings of SC1.10, the paper's own predictions of where the effects weaken; the first of each letter is primary.
SETTINGS = {
    "a": (
        Axis("temperature 4", {"temperature": 4.0}, MIXTURES),
        Axis("temperature 1/4", {"temperature": 0.25}, MIXTURES),
    ),
    "b": (Axis("residual", {"around": "residual"}), Axis("shared norm in front", {"around": "norm"})),
    "c": (Axis("labelled clusters with a task each", {"inputs": "clusters", "targets": "tasks"}),),
    "d": (Axis("two layers", {"layers": 2}),),
}


def _independent(of: str) -> Across:
    """Experts of which no two come from one seed, as many as a mixture has."""
    return Across(of, Apart, lambda base: base.E)


MODELS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "dense": lambda base: {"E": 1, "k": 1},
    "top2": lambda base: {},
    "soft": lambda base: {"k": base.E},
    # as many parameters as all experts together; a control, followed at half as many steps
    "wide": lambda base: {"E": 1, "k": 1, "h": base.E * base.h, "keep": base.keep // 2},
}


def role_in(setting: Axis, role: str) -> str:
    """The name of a role in one of the `SETTINGS`, where it is a role of its own."""
    return f"{role}, {setting.name}"


def _in_setting(setting: Axis, role: str) -> Callable[[Config], Mapping[str, Any]]:
    change = setting.change if not setting.roles or role in setting.roles else {}
    return lambda base: {**MODELS[role](base), **change, "lean": True}


#: A dense baseline is one FFN of the experts' width and surroundings. "wide" is the control of its size. A model "at
#: the n_eff" of another is thinned to as few effective tokens as that one's experts have.
ROLES: dict[str, Role] = {
    **MODELS,
    "independent top2": _independent("top2"),
    "independent soft": _independent("soft"),
    **{
        f"{of} at the n_eff of {to}": Pair(of, to, Thinned)
        for of, to in (("dense", "top2"), ("dense", "soft"), ("soft", "top2"))
    },
    **{
        role_in(setting, role): _in_setting(setting, role)
        for settings in SETTINGS.values()
        for setting in settings
        for role in ("dense", "top2", "soft")
    },
}


def axes_of(id: str, roles: tuple[str, ...]) -> Callable[[Config], tuple[Axis, ...]]:
    """The *train* axes that a claim which reads these roles has a reading for, as a function of the base."""

    def found(base: Config) -> tuple[Axis, ...]:
        concerned = [axis for axis in AXES if not axis.roles or set(axis.roles) & set(roles)]
        return tuple(axis for axis in concerned if _defined(id, axis, base))

    return found


def _defined(id: str, axis: Axis, base: Config) -> bool:
    """Left out: T is 0 by construction, not defined, or the primary's T again."""
    return not (
        (id == "SC1.2" and axis.change.get("steps", base.steps) <= 250)  # no change after step 250
        or (id in ("SC1.8", "SC1.9") and axis.change.get("k") == base.E)  # soft against soft
        or axis.change.get("k", 1) > base.E
        or (id == "SC1.6" and not {"n", "front", "shared_batch"} & set(axis.change))  # x is what it was
        or (id == "SC1.11" and "activation" in axis.change)  # the closed form is the exact GELU's
    )
