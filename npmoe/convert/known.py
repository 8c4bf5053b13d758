"""Layouts that have a name, as data: which tensors hold which leaf of ours; a new one is a row of the table.

d width, h hidden, o output width, E experts; `e` and ``{e}`` in a place are the number of the expert.
"""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["BIASES", "EXPERT", "LAYOUTS", "LEAVES", "Layout", "of_each_expert"]

Layout = Mapping[str, str]

#: Leaves of each kind of expert with the alphabet's letters for their axes, in the order of the classes' own fields.
LEAVES: dict[str, dict[str, tuple[str, ...]]] = {
    "gelu": {"W1": ("h", "d"), "b1": ("h",), "W2": ("o", "h"), "b2": ("o",)},
    "swiglu": {"Wg": ("h", "d"), "Wu": ("h", "d"), "Wd": ("o", "h")},
}
EXPERT = "experts.{e}."
BIASES = ("b1", "b2", "bias")


def _gelu(first: str, second: str, weight: str = "weight", bias: str = "bias", turn: str = "") -> dict[str, str]:
    places = {"W1": f"{first}.{weight}{turn}", "b1?": f"{first}.{bias}"}
    return places | {"W2": f"{second}.{weight}{turn}", "b2?": f"{second}.{bias}"}


def _swiglu(gate: str, up: str, down: str, leaf: str = ".weight") -> dict[str, str]:
    return {"Wg": f"{gate}{leaf}", "Wu": f"{up}{leaf}", "Wd": f"{down}{leaf}"}


def of_each_expert(places: Layout, under: str = "experts.{e}.") -> dict[str, str]:
    return {EXPERT + leaf: under + place for leaf, place in places.items()}


def _router(name: str, weight: str = ".weight", bias: str = ".bias") -> dict[str, str]:
    return {"router": name + weight, "bias?": name + bias}


def _fused(router: str, gate_up: str = "experts.gate_up_proj", down: str = "experts.down_proj") -> dict[str, str]:
    """Gate above up in one tensor (E, 2h, d), down (E, d, h)."""
    places = {"Wg": f"{gate_up}[e, :half]", "Wu": f"{gate_up}[e, half:]", "Wd": f"{down}[e]"}
    return _router(router) | of_each_expert(places, "")


def _table() -> dict[str, dict[str, str]]:
    own_gelu = {f"{leaf}?" if leaf in BIASES else leaf: leaf for leaf in LEAVES["gelu"]}
    own_swiglu = {leaf: leaf for leaf in LEAVES["swiglu"]}
    own_router = {"router": "router", "bias?": "bias"}
    table = {
        "npmoe/gelu": own_router | of_each_expert(own_gelu),
        "npmoe/swiglu": own_router | of_each_expert(own_swiglu),
        "npmoe/dense-gelu": own_gelu,
        "npmoe/dense-swiglu": own_swiglu,
    }
    # A list of modules, each of Linear layers
    for pair in (("fc1", "fc2"), ("w1", "w2"), ("0", "2"), ("net.0", "net.2"), ("up_proj", "down_proj")):
        for router in ("router", "gate"):
            table[f"linear/{'-'.join(pair)}/{router}"] = _router(router) | of_each_expert(_gelu(*pair))
        table[f"linear/{'-'.join(pair)}/dense"] = _gelu(*pair)
    mixtral, qwen = _swiglu("w1", "w3", "w2"), _swiglu("gate_proj", "up_proj", "down_proj")
    table |= {
        "linear/w1-w3-w2/router": _router("router") | of_each_expert(mixtral),
        "linear/w1-w3-w2/dense": mixtral,
        "linear/gate_proj-up_proj-down_proj/router": _router("router") | of_each_expert(qwen),
        "linear/gate_proj-up_proj-down_proj/dense": qwen,
        # transformers 4
        "mixtral": _router("gate") | of_each_expert(mixtral),
        "qwen2_moe": _router("gate") | of_each_expert(qwen),
        "olmoe": _router("gate") | of_each_expert(qwen),
        "granitemoe": _fused("router.layer", "input_linear.weight", "output_linear.weight"),
        # transformers 5: Mixtral, Qwen, OLMoE; Granite
        "fused/gate": _fused("gate"),
        "fused/router": _fused("router"),
    }
    # Arrays with the experts along the first axis: W1 (E, h, d) as ours, or (E, d, h) for x @ W1
    for name, turn in (("stacked", ""), ("jax", ".T")):
        turned = {"router": f"router{turn}", "bias?": "bias"}
        gelu = {"W1": f"W1[e]{turn}", "b1?": "b1[e]", "W2": f"W2[e]{turn}", "b2?": "b2[e]"}
        table[f"{name}/gelu"] = turned | of_each_expert(gelu, "experts.")
        table[f"{name}/swiglu"] = turned | of_each_expert(_swiglu("Wg", "Wu", "Wd", f"[e]{turn}"), "experts.")
    # The same without "experts."; no convention says which axis of W or of the router is which, so that all are tried
    # and the shapes tell, or nobody does
    stacks = {"gelu": ("W1", "b1?", "W2", "b2?"), "swiglu": ("Wg", "Wu", "Wd")}
    for kind, leaves in stacks.items():
        for name, of_router, turn in (
            ("", "", ""),
            ("-turned", "", ".T"),
            ("-turned-router", ".T", ""),
            ("-all-turned", ".T", ".T"),
        ):
            inner = {leaf: leaf.removesuffix("?") + "[e]" + ("" if "?" in leaf else turn) for leaf in leaves}
            table[f"flat/{kind}{name}"] = {"router": f"router{of_router}", "bias?": "bias"} | of_each_expert(inner, "")
        dense = {leaf: leaf.removesuffix("?") + ("" if "?" in leaf else ".T") for leaf in leaves}
        table[f"flat/dense-{kind}-turned"] = dense
    kernels = ("Dense_0", "Dense_1", "kernel", "bias", ".T")
    stacked = {"W1": "Dense_0.kernel[e].T", "b1?": "Dense_0.bias[e]", "W2": "Dense_1.kernel[e].T"}
    stacked |= {"b2?": "Dense_1.bias[e]"}
    named = _swiglu("gate_proj", "up_proj", "down_proj", ".kernel.T")
    kernel = _router("router", ".kernel.T")
    return table | {
        "flax/gelu": kernel | of_each_expert(_gelu(*kernels), "experts_{e}."),
        "flax/gelu-vmap": kernel | of_each_expert(stacked, "experts."),
        "flax/swiglu": kernel | of_each_expert(named, "experts_{e}."),
        "flax/dense-gelu": _gelu(*kernels),
        "flax/dense-swiglu": named,
        "equinox/dense-gelu": _gelu("layers.0", "layers.1"),
    }


#: Name -> layout. The part before a "/" names a family: ``layout="linear"`` chooses among its members by the names.
LAYOUTS: Mapping[str, Layout] = MappingProxyType({name: MappingProxyType(part) for name, part in _table().items()})
