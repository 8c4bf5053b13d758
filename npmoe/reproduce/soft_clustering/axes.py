"""The axes of SC1: each *train* reading changes one thing from the primary setting (``docs/readings.md``)."""

from typing import Any, NamedTuple

__all__ = ["AXES", "Axis"]


class Axis(NamedTuple):
    """One *train* reading: its name, what it changes, and which models it concerns ("dense", "moe" or "both")."""

    name: str
    change: dict[str, Any]
    concerns: str = "both"


#: One axis at a time from the primary. A dense width concerns the baseline alone, a router's switch the mixtures alone.
AXES = (
    Axis("Xavier", {"scheme": "xavier"}),
    Axis("He", {"scheme": "he"}),
    Axis("normal(0.02)", {"scheme": "normal002"}),
    Axis("tanh-GELU", {"activation": "gelu_tanh"}),
    Axis("250 steps", {"steps": 250}),
    Axis("5000 steps", {"steps": 5000}),
    Axis("dense h = 256", {"h": 256}, "dense"),
    Axis("dense h = 1024", {"h": 1024}, "dense"),
    Axis("N = 128", {"n": 128}),
    Axis("N = 256", {"n": 256}),
    Axis("linear in front", {"front": "linear"}),
    Axis("linear + GELU in front", {"front": "gelu"}),
    Axis("residual", {"around": "residual"}),
    Axis("targets x", {"targets": "x"}),
    Axis("targets of a teacher", {"targets": "teacher"}),
    Axis("targets fresh each step", {"targets": "fresh"}),
    Axis("router bias", {"bias": True}, "moe"),
    Axis("one batch for all seeds", {"shared_batch": True}),
    Axis("experts initialized alike", {"alike": True}, "moe"),
    Axis("gates without gradient", {"frozen": ("router",)}, "moe"),
    *(Axis(f"k = {k}", {"k": k}, "moe") for k in (1, 3, 4, 5, 6, 7, 8)),
)
