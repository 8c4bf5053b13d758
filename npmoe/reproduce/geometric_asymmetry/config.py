"""A run of GA: what is measured on one trained mixture. Its models are those of SC1, `npmoe.reproduce.mixture`."""

from dataclasses import dataclass

from npmoe.reproduce import mixture

__all__ = ["BASE", "QUICK", "Measured"]


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


BASE, QUICK = mixture.PRIMARY, mixture.QUICK
