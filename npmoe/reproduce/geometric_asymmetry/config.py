"""The runs of GA: what is measured on one trained mixture, and on one thinned to the effective size of another.

Their models are those of SC1, `npmoe.reproduce.mixture`.
"""

from dataclasses import dataclass

from npmoe.reproduce import mixture

__all__ = ["BASE", "QUICK", "Measured", "Thinned"]


@dataclass(frozen=True)
class Measured:
    """GA's measures on the model that a training run left."""

    model: mixture.Config

    def reads(self) -> tuple[mixture.Config, ...]:
        """The training run."""
        return (self.model,)

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        return f"{self.model.label}, measured for GA"


@dataclass(frozen=True)
class Thinned:
    """Subspaces of a mixture on random subsets of its tokens, whose mean n_eff over experts is another mixture's."""

    model: mixture.Config
    to: mixture.Config

    def reads(self) -> tuple[mixture.Config, mixture.Config]:
        """Both training runs."""
        return self.model, self.to

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        return f"subspaces of {self.model.label}, at the n_eff of {self.to.label}"


BASE, QUICK = mixture.PRIMARY, mixture.QUICK
