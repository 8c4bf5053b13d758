"""The models of SC2: the roles that its claims compare. There are no *train* interpretations yet."""

from npmoe.reproduce.experiment import Across, Pair, Role
from npmoe.reproduce.natural_language.config import Authors, Thinned

__all__ = ["AUTHORS", "ROLES"]

AUTHORS = 3  # models that write, the reader among them

#: A dense baseline has one feed-forward of an expert's width. "wide" is the control of all experts' size, "balanced"
#: top-2 trained with Switch's balance loss. A model "at the n_eff" of another is thinned to as few effective tokens.
ROLES: dict[str, Role] = {
    "dense": {"E": 1, "k": 1},
    "top2": {},
    "soft": lambda base: {"k": base.E},
    "wide": lambda base: {"E": 1, "k": 1, "h": base.E * base.h},
    "balanced": {"balance": 0.01},
    "dense at the n_eff of top2": Pair("dense", "top2", Thinned),
    "soft at the n_eff of top2": Pair("soft", "top2", Thinned),
    "authors": Across("top2", Authors, lambda base: AUTHORS),
}
