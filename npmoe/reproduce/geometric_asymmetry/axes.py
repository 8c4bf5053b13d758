"""The models of GA: the roles that its claims compare, and its *train* readings."""

from npmoe.reproduce.experiment import Across, Axis, Pair, Role
from npmoe.reproduce.geometric_asymmetry.config import Thinned
from npmoe.reproduce.trained import Apart

__all__ = ["ALONE", "BESIDE", "ROLES"]

ROLES: dict[str, Role] = {
    "top2": {"k": 2},
    "soft": lambda base: {"k": base.E},
    "independent top2": Across("top2", Apart, lambda base: base.E),  # experts of which no two come from one seed
    "soft at the n_eff of top2": Pair("soft", "top2", Thinned),
}

_CLUSTERS = Axis("clustered inputs", {"inputs": "clusters"})
_TASKS = Axis("clustered inputs, a task for each cluster", {"inputs": "clusters", "targets": "tasks"})
_TEACHER = Axis("targets of a teacher", {"targets": "teacher"})
_ALIKE = Axis("experts initialized alike", {"alike": True})
_LARGE = Axis("N = 128", {"n": 128})
_SHORT = Axis("250 steps", {"steps": 250})
_DOUBLE = Axis("trained in float64", {"dtype": "float64"})
_TEMPERATURES = tuple(
    Axis(f"top-2 at temperature {word}", {"temperature": t}, ("top2",)) for word, t in (("1/4", 0.25), ("4", 4.0))
)
_K = tuple(Axis(f"top-{k} in the place of top-2", {"k": k, "renormalize": k > 1}, ("top2",)) for k in (1, 4))
_COLDER = tuple(
    Axis(
        f"temperature 1/4 against 4, both k = {k}",
        {},
        each={"top2": {"k": k, "temperature": 0.25}, "soft": {"k": k, "temperature": 4.0}},
    )
    for k in (2, 8)
)
_INPUTS = (_CLUSTERS, _TASKS)
#: Axes of claims about one regime, and of claims that compare two.
ALONE = (*_INPUTS, _TEACHER, _ALIKE, _LARGE, _SHORT, _DOUBLE, *_K, *_TEMPERATURES)
BESIDE = (*_INPUTS, _TEACHER, _ALIKE, _LARGE, _SHORT, _DOUBLE, *_K, *_COLDER)
