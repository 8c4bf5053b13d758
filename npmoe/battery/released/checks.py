"""What is compared for a family: blocks, the balance loss as the model reports it, dispatch, groups.

n tokens, d width, h hidden, E experts, k experts a token.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from npmoe.battery.released.comparison import TOLERANCE, Finding, described, finding, not_run, reason_of
from npmoe.battery.released.families import (
    CHOSEN,
    DISPATCHED,
    EXPERTS,
    FAMILIES,
    GROUPED,
    HIDDEN,
    WIDTH,
    mixture,
    state_of,
)
from npmoe.battery.released.models import class_of, config_of, filled, installed_version, mixed_part, quiet
from npmoe.calculus.scalar import softmax
from npmoe.model.balance import Balance, conventions, pooled
from npmoe.model.routing import mask as on_mask
from npmoe.model.routing import route, top_k

__all__ = ["findings", "report"]

Array = np.ndarray

_ROWS = 4  # tokens of a block


def _blocks(family: str, version: str) -> Iterator[Finding]:
    """Outputs, gradients and Jacobians of a block, router term included."""
    import torch

    entry = FAMILIES[family]
    for renormalize in entry.renormalize:
        rng = np.random.default_rng(0)
        switch: dict[str, Any] = {"norm_topk_prob": renormalize} if len(entry.renormalize) > 1 else {}
        words = f" (norm_topk_prob {renormalize})" if switch else ""
        config = config_of(family, **switch)
        module = filled(class_of(family, "modeling", entry.block)(config), rng)
        ours = mixture(state_of(module), CHOSEN, renormalize)
        x, dy = rng.standard_normal((2, _ROWS, WIDTH))
        y, trace = ours.forward(x)
        dx, _ = ours.vjp(trace, dy)

        def output(dtype: Any, module: Any = module, x: Array = x) -> Any:
            return mixed_part(module, torch.as_tensor(x, dtype=dtype))

        dtype, yt = _precise(module, output)
        xt = torch.tensor(x, dtype=dtype, requires_grad=True)
        (dxt,) = torch.autograd.grad(mixed_part(module, xt), xt, torch.as_tensor(dy, dtype=dtype))
        J = torch.autograd.functional.jacobian(lambda x, m=module: mixed_part(m, x), xt)  # (n, d, n, d)
        whole = np.zeros((_ROWS, WIDTH, _ROWS, WIDTH))
        whole[np.arange(_ROWS), :, np.arange(_ROWS)] = ours.jacobian(x)  # tokens do not see each other
        yield finding("output" + words, family, version, y, yt.detach().numpy())
        yield finding("gradient" + words, family, version, dx, dxt.numpy())
        yield finding("jacobian" + words, family, version, whole, J.numpy())
        for name in _implementations(module):
            config._experts_implementation = name
            try:
                single = module.float()
                xs = torch.tensor(x, dtype=torch.float32, requires_grad=True)
                ys = mixed_part(single, xs)
                (dxs,) = torch.autograd.grad(ys, xs, torch.as_tensor(dy, dtype=torch.float32))
                yield finding(f"output:{name}" + words, family, version, y, ys.detach().numpy())
                yield finding(f"gradient:{name}" + words, family, version, dx, dxs.numpy())
            except Exception as error:
                yield not_run(f"output:{name}" + words, family, version, reason_of(error))


def _precise(module: Any, run: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What `run` gives in float64, or in float32 where a cast in the code allows no other; and which it was."""
    import torch

    try:
        module.double()
        return torch.float64, run(torch.float64)
    except RuntimeError:
        module.float()
        return torch.float32, run(torch.float32)


def _implementations(module: Any) -> list[str]:
    """Other ways in which version 5 computes the experts of this block, of those that run on a CPU."""
    if not hasattr(getattr(module, "experts", None), "gate_up_proj"):
        return []
    try:
        known = importlib.import_module("transformers.integrations.moe").ALL_EXPERTS_FUNCTIONS
    except (ImportError, AttributeError):
        return []
    return [name for name in ("batched_mm", "grouped_mm") if name in known]


class _Reported(NamedTuple):
    """A model's balance loss, what its routers saw and hold, and its gradient on the last of them."""

    value: float
    x: list[Array]  # (n, d) each
    routers: list[Array]  # (E, d) each
    biases: list[Array]  # (E,) each
    corrections: list[Array]  # (E,) each, added to the probabilities for the choice alone; mostly none
    gradient: Array  # (E, d)

    @property
    def scores(self) -> list[Array]:
        """(n, E) of each router, from what it saw."""
        return [x @ W.T + b for x, W, b in zip(self.x, self.routers, self.biases, strict=True)]


def _routers(model: Any) -> list[Any]:
    """Modules that hold a matrix (E, d): in these models a router's alone."""
    found = [m for m in model.modules() if tuple(getattr(getattr(m, "weight", None), "shape", ())) == (EXPERTS, WIDTH)]
    if not found:
        raise LookupError("no router found in this version")
    return found


def _reported(family: str, state: str, masked: Array | None) -> _Reported:
    """Run a model of two layers on random tokens; `state` is "", "collapsed" or "corrected"."""
    import torch

    rng = np.random.default_rng(1)
    model = filled(class_of(family, "modeling", FAMILIES[family].model)(config_of(family)), rng)
    routers = _routers(model)
    corrections = [p for name, p in model.named_parameters() if name.endswith("e_score_correction_bias")]
    if state == "collapsed":
        _collapse(model, routers)
    if state == "corrected":
        if not corrections:
            raise LookupError("no correction bias in this version")
        for p in corrections:
            p.data.copy_(torch.as_tensor(0.3 * rng.standard_normal(tuple(p.shape))))
    seen: list[tuple[Any, Any]] = []
    hooks = [
        m.register_forward_pre_hook(
            lambda m, args: seen.append((m, args[0].detach().double().reshape(-1, WIDTH).numpy()))
        )
        for m in routers
    ]
    tokens = torch.as_tensor(rng.integers(3, 32, (3, 12)))
    given = {} if masked is None else {"attention_mask": torch.as_tensor(masked)}

    def run(_: Any) -> Any:
        seen.clear()
        return model(input_ids=tokens, output_router_logits=True, use_cache=False, **given).aux_loss

    _, aux = _precise(model, run)
    for hook in hooks:
        hook.remove()
    if aux is None:
        raise LookupError("no balance loss is reported in this version")
    last = seen[-1][0]
    gradient = torch.zeros_like(last.weight)
    if isinstance(aux, torch.Tensor):  # else the integer 0: no router's scores were found
        (gradient,) = torch.autograd.grad(aux, last.weight)
    return _Reported(
        float(aux),
        [x for _, x in seen],
        [m.weight.detach().double().numpy() for m, _ in seen],
        [_bias(m) for m, _ in seen],
        [p.detach().double().numpy().reshape(-1) for p in corrections],
        gradient.double().numpy(),
    )


def _bias(router: Any) -> Array:
    bias = getattr(router, "bias", None)
    return np.zeros(EXPERTS) if bias is None else bias.detach().double().numpy()


def _collapse(model: Any, routers: Sequence[Any]) -> None:
    """All tokens share a direction that the first two rows of every router read: scores near 12, 6 and 0."""
    import torch

    with torch.no_grad():
        direction = torch.as_tensor(np.where(np.arange(WIDTH) % 2, 1.0, -1.0))  # of mean 0: it survives a LayerNorm
        model.get_input_embeddings().weight.add_(30 * direction)
        for router in routers:
            router.weight.mul_(0.0)
            router.weight[0] += 12 / WIDTH * direction
            router.weight[1] += 6 / WIDTH * direction


def _balance(family: str, version: str) -> Iterator[Finding]:
    """The reported loss in Mixtral's convention: f counts choices, P the softmax of the scores, all layers pooled."""
    loss = Balance(count="per choice", pool="pooled")
    padded = np.ones((3, 12), np.int64)
    padded[1, 9:], padded[2, 5:] = 0, 0
    cases: list[tuple[str, str, Array | None]] = [("balance", "", None), ("balance:masked", "", padded)]
    cases += [("balance:collapsed", "collapsed", None)]
    if family == "ernie4_5_moe":  # the one with a bias on its softmax, for the choice alone
        cases += [("balance:corrected", "corrected", None)]
    for id, state, masked in cases:
        try:
            told = _reported(family, state, masked)
        except Exception as error:
            yield not_run(id, family, version, reason_of(error))
            continue
        weights = None if masked is None else masked.reshape(-1)
        scores = told.scores
        uncorrected = [top_k(s, CHOSEN) for s in scores]
        chosen = uncorrected
        if told.corrections:
            chosen = [top_k(softmax(s) + b, CHOSEN) for s, b in zip(scores, told.corrections, strict=True)]
        which = Balance(loss.kind, count=loss.count, pool=loss.pool, mask=weights)
        value, ds = pooled(which, scores, chosen)
        words = _explained(told.value, which, scores, chosen, uncorrected)
        yield finding(id, family, version, value, told.value, f"{told.value:.5g} for {value:.5g}: {words}")
        if id == "balance":
            dW = ds[-1].T @ told.x[-1]  # (E, d)
            ratio = np.linalg.norm(told.gradient) / np.linalg.norm(dW)
            words = f"gradient on the last router {ratio:.3g} times as long"
            yield finding("balance:gradient", family, version, dW, told.gradient, words)


def _explained(value: float, loss: Balance, scores: list[Array], chosen: list[Array], uncorrected: list[Array]) -> str:
    """What a reported balance loss is, if it is not ours: the faults that we know, then the conventions."""
    gates = [route(s, CHOSEN).gates for s in scores]
    other = np.mean([on_mask(a, EXPERTS)[on_mask(b, EXPERTS)].mean() for a, b in zip(chosen, uncorrected, strict=True)])
    faults = {
        f"f counts the k largest scores, of which {1 - other:.1%} are not the choices made": (scores, uncorrected),
        "the loss of probabilities: softmax taken twice": ([softmax(s) for s in scores], chosen),
        "the loss of the k gates, zero elsewhere: softmax taken of gates": (gates, chosen),
        "every other router, attention's, counted twice": (
            [s for i, s in enumerate(scores) for _ in range(2 - i % 2)],
            [c for i, c in enumerate(chosen) for _ in range(2 - i % 2)],
        ),
    }
    fits = [w for w, (s, c) in faults.items() if abs(pooled(loss, s, c)[0] - value) <= TOLERANCE * abs(value)]
    if not value:
        return "no loss at all, and no gradient"
    if fits:
        return ", or ".join(fits)
    found = conventions(value, scores, chosen, mask=loss.mask, tolerance=TOLERANCE)
    return found.matches[0].words if found.matches else "no convention that we know"


def _dispatch(family: str, version: str) -> Iterator[Finding]:
    """sum_e g_e f_e(x), their experts called one by one: they have ReLU, and are none of our layers.

    Experts that answer with a unit vector each, where they have a bias, read off which gate each of them gets.
    """
    import torch

    k, renormalize = DISPATCHED[family]
    E, n = 8, 40
    sizes: dict[str, Any] = {
        "d_model": WIDTH,
        "num_experts": E,
        "expert_capacity": n,
        "router_bias": False,
        "vocab_size": 32,
    }
    sizes |= {"nllb_moe": {"moe_token_dropout": 0.0}}.get(family, {"d_ff": HIDDEN})
    rng = np.random.default_rng(2)
    config = class_of(family, "configuration", FAMILIES[family].config)(**sizes)
    args = (config, HIDDEN) if family == "nllb_moe" else (config,)
    module = filled(class_of(family, "modeling", FAMILIES[family].block)(*args), rng)  # routers of float32
    with torch.no_grad():
        x = torch.as_tensor(rng.standard_normal((n, WIDTH)), dtype=torch.float32)
        W = module.router.classifier.weight.mul_(3.0).double().numpy()
        routing = route(x.double().numpy() @ W.T, k, renormalize)
        experts = [module.experts[f"expert_{e}"] for e in range(E)]
        f = np.stack([expert(x).double().numpy() for expert in experts], axis=1)  # (n, E, d)
        y = np.einsum("ne,ned->nd", routing.gates, f)
        padding = {"padding_mask": None} if family == "nllb_moe" else {}  # None is no default in version 4
        got = _first(module(x[None], **padding)).reshape(n, WIDTH).double().numpy()
        symptom = ""
        if hasattr(experts[0], "fc2"):
            called = np.zeros(E, np.int64)  # rows that each expert is called on
            for e, expert in enumerate(experts):
                expert.fc2.weight.zero_()
                expert.fc2.bias.copy_(torch.eye(WIDTH)[e])
                expert.register_forward_pre_hook(partial(_count, called, e))
            effective = _first(module(x[None], **padding)).reshape(n, WIDTH)[:, :E].double().numpy()  # (n, E)
            symptom = _dispatched(routing.chosen, effective, called)
        yield finding("dispatch", family, version, y, got, symptom)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _count(called: Array, e: int, expert: Any, args: tuple[Any, ...]) -> None:
    """A hook: the rows (..., d) of one call of expert e, added to called (E,)."""
    called[e] += args[0].numel() // WIDTH


def _dispatched(chosen: Array, effective: Array, called: Array) -> str:
    """Where the first of the choices (n, k) went, in words, by the gates that experts received (n, E), and the rows
    that each of them was called on (E,)."""
    first, E = chosen[:, 0], effective.shape[1]
    largest = effective.argmax(axis=1)
    top = np.bincount(largest, minlength=E).argmax()
    reached = int((effective > 0).any(axis=0).sum())
    return (
        f"{(largest == first).mean():.1%} of first choices reach their expert, {(largest == top).mean():.1%} go to "
        f"expert {top}; {reached} of {E} experts are used, {len(np.unique(first))} are somebody's first choice; "
        f"experts are called on {called.sum()} rows, {called.max()} of them expert {called.argmax()}'s, for "
        f"{chosen.size} choices"
    )


def _groups(family: str, version: str) -> Iterator[Finding]:
    """Group-limited routing: a constant added to every correction bias changes no choice.

    DeepSeek-V3, arXiv 2412.19437, equations 12 to 16: sigmoid scores; experts outside the best groups are out, whatever
    the sign of score + bias.
    """
    import torch

    E, groups, kept = 8, 4, 2
    rng = np.random.default_rng(3)
    sizes: dict[str, Any] = {
        "n_routed_experts": E,
        "num_local_experts": E,
        "num_experts": E,
        "n_group": groups,
        "topk_group": kept,
    }
    sizes |= {"n_shared_experts": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0}
    module = filled(class_of(family, "modeling", FAMILIES[family].block)(config_of(family, **sizes)), rng)
    x = rng.standard_normal((40, WIDTH))
    bias = 0.1 * rng.standard_normal(E)
    state = state_of(module)
    experts = mixture({k: v for k, v in state.items() if "shared" not in k}, CHOSEN).experts
    p = 1 / (1 + np.exp(-x @ state["gate.weight"].T))  # (n, E)
    by_group = (p + bias).reshape(len(x), groups, -1)
    best = top_k(np.sort(by_group, axis=2)[:, :, -2:].sum(axis=2), kept)  # (n, kept)
    open_ = np.repeat(on_mask(best, groups), E // groups, axis=1)  # (n, E)
    chosen = top_k(np.where(open_, p + bias, -np.inf), CHOSEN)  # (n, k)
    g = np.where(on_mask(chosen, E), p, 0.0)
    g /= g.sum(axis=1, keepdims=True)
    f = np.stack([expert.forward(x)[0] for expert in experts], axis=1)  # (n, E, d)
    y = np.einsum("ne,ned->nd", g, f)
    for shift in (0.0, -1.0):
        with torch.no_grad():
            module.gate.e_score_correction_bias.copy_(torch.as_tensor(bias + shift))
            got = mixed_part(module, torch.as_tensor(x, dtype=torch.float32)).double().numpy()
        wrong = (np.abs(got - y).max(axis=1) > TOLERANCE * np.abs(y).max()).mean()
        words = f"bias shifted by {shift:g}: {wrong:.1%} of tokens go to other experts"
        yield finding(f"groups (bias {shift:+g})" if shift else "groups", family, version, y, got, words)


def findings(families: Iterable[str] | None = None) -> list[Finding]:
    """Hold the installed `transformers` against our closed forms.

    Parameters
    ----------
    families : names among `FAMILIES`; None, all.

    Returns
    -------
    list of `Finding`; a family that this version lacks is "not run", with the reason.

    Raises
    ------
    ImportError : without torch or transformers.
    ValueError : for an unknown family.

    Examples
    --------
    >>> findings(["mistral"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: expected families among mixtral, qwen2_moe, ...; got 'mistral'
    """
    names = list(FAMILIES) if families is None else list(families)
    for name in names:
        if name not in FAMILIES:
            raise ValueError(f"expected families among {', '.join(FAMILIES)}; got {name!r}")
    version = installed_version()
    found: list[Finding] = []
    with quiet():
        for name in names:
            for what, check in _checks(name):
                try:
                    found += check(name, version)
                except Exception as error:  # a class that this version lacks, or has with other arguments
                    found.append(not_run(what, name, version, reason_of(error)))
    return found


def _checks(family: str) -> Iterator[tuple[str, Callable[[str, str], Iterator[Finding]]]]:
    """What is compared for a family, by name."""
    if family in DISPATCHED:
        yield "dispatch", _dispatch
    elif family in GROUPED:
        yield "groups", _groups
    else:
        if FAMILIES[family].block:
            yield "output", _blocks
        if FAMILIES[family].model:
            yield "balance", _balance


def report(families: Iterable[str] | None = None) -> str:
    """What was found in the installed `transformers`, as text; without it, the words that say how to get it."""
    try:
        return described(findings(families))
    except ImportError as error:
        return str(error)
