"""python jax_answers.py DIR [float32]: what JAX answers to the golden cases in DIR. It does not import npmoe."""

import json
import pathlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
folder, dtype = pathlib.Path(sys.argv[1]), (sys.argv[2:] or ["float64"])[0]
ACT = {"gelu": lambda z: jax.nn.gelu(z, approximate=False), "gelu_tanh": jax.nn.gelu, "silu": jax.nn.silu}


def expert(w, at, act, x):
    if at + "Wg" in w:
        return (jax.nn.silu(x @ w[at + "Wg"].T) * (x @ w[at + "Wu"].T)) @ w[at + "Wd"].T
    return act(x @ w[at + "W1"].T + w[at + "b1"]) @ w[at + "W2"].T + w[at + "b2"]


def layer(w, of, x):  # x (d,): one token
    if "router" not in w:
        return expert(w, "", ACT[of["activation"]], x)
    s = (x @ w["router"].T + w.get("bias", 0)) / of["temperature"]
    on = jnp.zeros(of["E"], bool).at[jax.lax.top_k(s, of["k"])[1]].set(True)
    g = jax.nn.softmax(jnp.where(on, s, -jnp.inf)) if of["renormalize"] else jax.nn.softmax(s) * on
    return sum(g[e] * expert(w, f"experts.{e}.", ACT[of["activation"]], x) for e in range(of["E"]))


def answer(of, w, x, dy, weights):
    def one(w, x):
        return layer(w, of, x)

    batch = jax.vmap(one, in_axes=(None, 0))
    jacobian = jax.vmap(jax.jacfwd(one, argnums=1), in_axes=(None, 0))(w, x)  # (n, o, d)
    dw, dx = jax.grad(lambda w, x: (dy * batch(w, x)).sum(), argnums=(0, 1))(w, x)
    mean = jnp.einsum("n,nod->od", weights / weights.sum(), jacobian)
    return {"output": batch(w, x), "gradient": dx, "jacobian": jacobian, "mean_jacobian": mean, **dw}


(folder / "answers").mkdir(exist_ok=True)
for case in json.loads((folder / "manifest.json").read_text())["cases"]:
    w = {k[3:]: jnp.asarray(a, dtype) for k, a in np.load(folder / case["file"]).items() if k[:3] == "in/"}
    given = [w.pop(k) for k in ("x", "dy", "weights")]
    answers = jax.jit(partial(answer, case["layer"]))(w, *given)
    np.savez(folder / "answers" / case["file"], **answers)
