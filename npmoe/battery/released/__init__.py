"""Models that others released, of the installed `transformers`, held against our closed forms.

Outputs, derivatives, balance losses, dispatch. Layers and models are tiny, drawn at random from a seed and converted by
hand; nothing is downloaded. A verdict comes from numbers alone, never from the version.
"""

from npmoe.battery.released.checks import findings, report
from npmoe.battery.released.comparison import TOLERANCE, Finding, described, finding, table
from npmoe.battery.released.families import FAMILIES, mixture
from npmoe.battery.released.softmax_twice import Collapse, collapse

__all__ = ["FAMILIES", "TOLERANCE", "Collapse", "Finding", "collapse", "described", "finding", "findings", "mixture"]
__all__ += ["report", "table"]
