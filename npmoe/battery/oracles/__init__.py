"""Oracles: derivatives of the forward map alone, by three routes that share no closed form with the package.

One scalar program (`program`) is run by mpmath at any number of digits (`exact`), with complex numbers for the complex
step and with floats for central differences (`steps`); `measured` says how far we are from them.
"""

from npmoe.battery.oracles.exact import Exact, answers, balance, gradients, jacobian, output, terms, ulps
from npmoe.battery.oracles.measured import Case, Elementary, OwnError, elementary, handful, own_error
from npmoe.battery.oracles.program import Field
from npmoe.battery.oracles.steps import complex_step, richardson, room

__all__ = ["Case", "Elementary", "Exact", "Field", "OwnError", "answers", "balance", "complex_step", "elementary"]
__all__ += ["gradients", "handful", "jacobian", "output", "own_error", "richardson", "room", "terms", "ulps"]
