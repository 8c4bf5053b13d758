"""Balance losses: the losses, which convention made a number, and their law near uniform scores."""

from npmoe.model.balance.convention import Conventions, Match, conventions
from npmoe.model.balance.losses import Balance, RouterGradient, gradients, pooled
from npmoe.model.balance.uniform import UniformLaw, batch_term, uniform_law

__all__ = ["Balance", "Conventions", "Match", "RouterGradient", "UniformLaw", "batch_term", "conventions"]
__all__ += ["gradients", "pooled", "uniform_law"]
