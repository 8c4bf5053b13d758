"""The runs of SC1: what is measured on one trained mixture, and on one thinned to the effective size of another.

Their models are those of `npmoe.reproduce.mixture`.
"""

from dataclasses import dataclass

from npmoe.reproduce import mixture

__all__ = ["BASE", "QUICK", "Measured", "Thinned"]


@dataclass(frozen=True)
class Measured:
    """SC1's measures on the model that a training run left; of a lean one, what primary readings need."""

    model: mixture.Config

    def reads(self) -> tuple[mixture.Config, ...]:
        """The training run."""
        return (self.model,)

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        return f"{self.model.label}, measured for SC1"


@dataclass(frozen=True)
class Thinned:
    """A model on random subsets of its tokens, whose mean n_eff over the experts is that of another model."""

    model: mixture.Config
    to: mixture.Config

    def reads(self) -> tuple[mixture.Config, mixture.Config]:
        """Both training runs."""
        return self.model, self.to

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        return f"{self.model.label}, at the n_eff of {self.to.label}"


BASE, QUICK = mixture.PRIMARY, mixture.QUICK
