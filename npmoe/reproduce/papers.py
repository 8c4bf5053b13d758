"""Every paper that can be reproduced, in the order of the page."""

from npmoe.reproduce.geometric_asymmetry import GA
from npmoe.reproduce.natural_language import SC2
from npmoe.reproduce.paper import Paper
from npmoe.reproduce.routing_reflects_geometry import MY
from npmoe.reproduce.soft_clustering import SC1

__all__ = ["PAPERS", "TIES"]

PAPERS: tuple[Paper, ...] = (SC1, GA, MY, SC2)

#: Questions to which claims of several papers speak.
TIES = (
    {"says": "Are experts' Jacobians hardly aligned, beyond what independent ones give?", "claims": ["SC1.3", "GA.1"]},
    {"says": "Does top-k separate what experts do more than soft routing?", "claims": ["SC1.9", "GA.4a"]},
    {"says": "What do sparse gates do to what experts see?", "claims": ["SC1.7", "SC1.8", "GA.2a", "GA.4b"]},
    {"says": "Is it the inputs or the router that specializes?", "claims": ["SC1.10c", "GA.3", "MY.1c", "MY.2"]},
)
