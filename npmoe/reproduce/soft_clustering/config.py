"""A run of SC1: what is measured on one trained mixture. Its models are those of `npmoe.reproduce.mixture`."""

from dataclasses import dataclass

from npmoe.reproduce import mixture

__all__ = ["BASE", "QUICK", "Measured"]


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


BASE, QUICK = mixture.PRIMARY, mixture.QUICK
