"""The models of SC2: the roles that its claims compare, and its *train* interpretations."""

from npmoe.reproduce.experiment import Across, Axis, Pair, Role
from npmoe.reproduce.natural_language.config import Authors, Config, Thinned
from npmoe.reproduce.natural_language.text import labelled

__all__ = ["AUTHORS", "ROLES", "texts"]

AUTHORS = 3  # models that write, the reader among them

#: A dense baseline has one feed-forward of an expert's width. "wide" is the control of all experts' size, "balanced"
#: top-2 trained with Switch's balance loss, "labelled" top-2 trained on documents with topics. A model "at the n_eff"
#: of another is thinned to as few effective tokens.
ROLES: dict[str, Role] = {
    "dense": {"E": 1, "k": 1},
    "top2": {},
    "soft": lambda base: {"k": base.E},
    "wide": lambda base: {"E": 1, "k": 1, "h": base.E * base.h},
    "balanced": {"balance": 0.01},
    "labelled": lambda base: {"text": labelled(base.text)},
    "labelled balanced": lambda base: {"text": labelled(base.text), "balance": 0.01},
    "one topic": lambda base: {"text": labelled(base.text), "one_topic": True},
    "one topic balanced": lambda base: {"text": labelled(base.text), "one_topic": True, "balance": 0.01},
    "dense at the n_eff of top2": Pair("dense", "top2", Thinned),
    "soft at the n_eff of top2": Pair("soft", "top2", Thinned),
    "authors": Across("top2", Authors, lambda base: AUTHORS),
}


def texts(base: Config) -> tuple[Axis, ...]:
    """Another text: Wikipedia's introductions, where they are installed and the run does not read them anyway."""
    other = labelled(base.text)
    return () if other == base.text else (Axis(other.name, {"text": other}),)
