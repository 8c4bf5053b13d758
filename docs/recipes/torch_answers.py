"""python torch_answers.py DIR [float32]: what PyTorch answers to the golden cases in DIR. It does not import npmoe."""

import json
import pathlib
import sys

import numpy as np
import torch
from torch.nn import functional as F

folder, dtype = pathlib.Path(sys.argv[1]), getattr(torch, (sys.argv[2:] or ["float64"])[0])
ACT = {"gelu": F.gelu, "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"), "silu": F.silu}


def expert(w, at, act, x):
    if at + "Wg" in w:
        return (F.silu(x @ w[at + "Wg"].T) * (x @ w[at + "Wu"].T)) @ w[at + "Wd"].T
    return act(x @ w[at + "W1"].T + w[at + "b1"]) @ w[at + "W2"].T + w[at + "b2"]


def layer(w, of, x):  # x (d,): one token
    if "router" not in w:
        return expert(w, "", ACT[of["activation"]], x)
    s = (x @ w["router"].T + w.get("bias", 0)) / of["temperature"]
    on = torch.zeros_like(s).scatter(0, s.topk(of["k"]).indices, 1) > 0
    g = torch.where(on, s, -torch.inf).softmax(0) if of["renormalize"] else s.softmax(0) * on
    return sum(g[e] * expert(w, f"experts.{e}.", ACT[of["activation"]], x) for e in range(of["E"]))


def answer(of, w, x, dy, weights):
    def one(w, x):
        return layer(w, of, x)

    batch = torch.vmap(one, in_dims=(None, 0))
    jacobian = torch.vmap(torch.func.jacrev(one, argnums=1), in_dims=(None, 0))(w, x)  # (n, o, d)
    dw, dx = torch.func.grad(lambda w, x: (dy * batch(w, x)).sum(), argnums=(0, 1))(w, x)
    mean = torch.einsum("n,nod->od", weights / weights.sum(), jacobian)
    return {"output": batch(w, x), "gradient": dx, "jacobian": jacobian, "mean_jacobian": mean, **dw}


(folder / "answers").mkdir(exist_ok=True)
for case in json.loads((folder / "manifest.json").read_text())["cases"]:
    w = {k[3:]: torch.tensor(a, dtype=dtype) for k, a in np.load(folder / case["file"]).items() if k[:3] == "in/"}
    given = [w.pop(k) for k in ("x", "dy", "weights")]
    answers = answer(case["layer"], w, *given)
    np.savez(folder / "answers" / case["file"], **{k: a.numpy() for k, a in answers.items()})
