"""SC1: F. Liu, "Mixture-of-Experts as Soft Clustering: A Dual Jacobian-PCA Spectral Geometry Perspective".

`config`: how a model is made, and the axes; `measure`: what is measured on it; `runs`: what was measured, read by name;
`ways`: statistics, margins and nulls; `claims`: what the paper says, and which ways measure it;
`plan`: which runs are needed, and how they become claims; `figures`: the paper's figures as data.
"""

from pathlib import Path

import npmoe

#: What decides a run's numbers: its id changes when one of these does.
SOURCES = tuple(
    Path(npmoe.__file__).parent / part
    for part in (
        "calculus",
        "model",
        "geometry",
        "probe",
        "data",
        "reproduce/soft_clustering/config.py",
        "reproduce/soft_clustering/measure.py",
    )
)
