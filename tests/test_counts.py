"""Counts of a real model's choices: what a file must hold, and answers that are known beforehand."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npmoe.geometry import association, overlap
from npmoe.reproduce.routing_reflects_geometry.counts import (
    INDICES,
    MEASURES,
    Counts,
    between,
    evenness,
    links,
    read,
    report,
    table,
)

EXACT = 1e-12  # the same sum of a few dozen terms, in another order
EXAMPLES = settings(max_examples=20, deadline=None)
REAL = (
    Path(os.environ.get("NPMOE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    / "routing-counts"
    / "olmoe-mixtral.npz"
)
seeds = st.integers(0, 2**32 - 1)


def routed(rng, tokens, D=3, L=3, E=6, k=2, lean=1.0):
    """Choices (D, L, tokens, k), best first, of a router with a taste of its own for each kind of text and layer."""
    scores = lean * rng.standard_normal((D, L, 1, E)) + rng.gumbel(size=(D, L, tokens, E))
    return np.argsort(-scores, axis=-1)[..., :k]


def arrays_of(choices, E, model="toy"):
    """The arrays of a file, counted one by one."""
    D, L, _, _ = choices.shape
    counts, top1 = np.zeros((2, D, L, E), int)
    tables = np.zeros((D, L - 1, E, E), int)
    for d, layer in np.ndindex(D, L):
        np.add.at(counts[d, layer], choices[d, layer].ravel(), 1)
        np.add.at(top1[d, layer], choices[d, layer, :, 0], 1)
        if layer:
            np.add.at(tables[d, layer - 1], (choices[d, layer - 1].ravel(), choices[d, layer].ravel()), 1)
    return {f"{model}_counts": counts, f"{model}_counts_top1": top1, f"{model}_crosslayer": tables}


def saved(path, **arrays):
    D, L = next(a for key, a in arrays.items() if key.endswith("_counts")).shape[:2]
    axes = {"domains": np.array([f"text {d}" for d in range(D)]), "layers": np.arange(L) * 7}
    np.savez(path, **(axes | arrays))
    return path


@pytest.fixture
def toy(rng):
    return arrays_of(routed(rng, 500), 6)


def only(arrays):
    """The one model of these arrays, without a file."""
    counts = arrays["toy_counts"]
    D, L, _ = counts.shape
    names = tuple(f"text {d}" for d in range(D))
    return Counts("toy", names, tuple(range(L)), counts, arrays["toy_counts_top1"], arrays["toy_crosslayer"], 2)


# Reading


@pytest.mark.parametrize(("E", "k"), [(6, 2), (5, 1), (8, 8)])
def test_a_file_comes_back_and_k_is_found(rng, tmp_path, E, k):
    arrays = arrays_of(routed(rng, 40, E=E, k=k), E)
    (found,) = read(saved(tmp_path / "a.npz", **arrays))
    assert (found.model, found.k, found.layers, found.domains[1]) == ("toy", k, (0, 7, 14), "text 1")
    for key, value in (("counts", found.counts), ("counts_top1", found.top1), ("crosslayer", found.crosslayer)):
        np.testing.assert_array_equal(value, arrays[f"toy_{key}"])


def test_two_models_and_what_may_be_missing(rng, tmp_path):
    one, two = arrays_of(routed(rng, 40), 6, "b"), arrays_of(routed(rng, 30, E=4), 4, "a")
    del two["a_counts_top1"], two["a_crosslayer"]
    a, b = read(str(saved(tmp_path / "a.npz", **one, **two)))
    assert (a.model, a.k, a.top1, a.crosslayer) == ("a", None, None, None)
    assert (b.model, b.k) == ("b", 2)
    text = report(tmp_path / "a.npz")
    assert "a: 4 experts, k not known (no first choices)" in text
    assert text.count("Links between choices") == 1
    with pytest.raises(ValueError, match="expected tables of a from one layer to the next; the file has none"):
        links(a, rng)


def change(key, where, by):
    def changed(arrays):
        arrays[key] = arrays[key].copy()
        arrays[key][where] += by

    return changed


def put(key, make):
    def changed(arrays):
        arrays[key] = make(arrays.get(key))

    return changed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put("extra", lambda _: np.ones(2)), r"expected the keys domains, layers, toy_counts, .*; got also extra"),
        (put("other_crosslayer", lambda _: np.ones(2)), "got also other_crosslayer"),
        (put("domains", lambda _: np.array(["a", "a", "b"])), "expected domains to be different names along one axis"),
        (put("domains", lambda _: np.arange(3)), "expected domains to be different names .*; got int64"),
        (put("domains", lambda _: np.array(["a", "b"])), r"expected toy_counts of shape \(2, 3, E\); got \(3, 3, 6\)"),
        (put("layers", lambda _: np.array([0.0, 7.0, 15.0])), "expected layers to be different whole numbers"),
        (put("toy_counts", lambda a: a[:, 0]), r"expected toy_counts of shape \(3, 6, E\); got \(3, 6\)"),
        (put("toy_counts", lambda a: a[..., :0]), r"toy_counts of shape \(3, 3, E\); got \(3, 3, 0\)"),
        (put("toy_counts", lambda a: a * 1.0), "expected toy_counts to be counts, integers; got float64"),
        (change("toy_counts", (0, 0, 1), -2000), r"expected toy_counts to be non-negative; got -\d+ at \(0, 0, 1\)"),
        (change("toy_counts", (1, 2, 0), 1), r"one positive sum .* got \[1000, 1000, 1001\] for text 1"),
        (put("toy_counts", lambda a: a * 0), r"one positive sum .* got \[0, 0, 0\] for text 0"),
        (put("toy_counts_top1", lambda a: a[..., :-1]), r"toy_counts_top1 of shape \(3, 3, 6\); got \(3, 3, 5\)"),
        (change("toy_counts_top1", (0, 1, 0), 1), "whole number k of times toy_counts_top1, .*; got 1.996.* beside 2"),
        (put("toy_counts_top1", lambda a: 0 * a), "whole number k of times toy_counts_top1"),
        (put("toy_crosslayer", lambda a: a[:, :1]), r"toy_crosslayer of shape \(3, 2, 6, 6\); got \(3, 1, 6, 6\)"),
        (
            change("toy_crosslayer", (2, 1, 3, 4), 1),
            r"whose rows add up to toy_counts; got .* at text 2, step 1, expert 3",
        ),
        (put("toy_crosslayer", lambda a: a.swapaxes(2, 3)), "whose rows add up to toy_counts"),
        (put("toy_crosslayer", lambda a: np.sort(a, axis=-1)), "whose columns add up to toy_counts"),
        (
            put("layers", lambda _: np.array([{}, 1, 2], object)),
            "'layers': expected numbers or text; got Python objects, which are never unpickled",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(toy, tmp_path, spoil, message):
    spoil(toy)
    path = saved(tmp_path / "bad.npz", **toy)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_choices_that_no_token_can_make_are_refused(tmp_path):
    def made(counts, top1):
        return saved(tmp_path / "a.npz", toy_counts=np.array([[counts]]), toy_counts_top1=np.array([[top1]]))

    assert read(made([5, 3, 2], [1, 2, 2]))[0].k == 2  # 5 tokens
    with pytest.raises(ValueError, match="than there are tokens; got 1 first choices, 6 choices, 5 tokens at"):
        read(made([6, 2, 2], [1, 2, 2]))
    with pytest.raises(ValueError, match="_top1 to be no more than toy_counts; got 4 first choices, 3 choices"):
        read(made([5, 3, 2], [1, 4, 0]))


def test_what_is_no_file_of_counts(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a file of counts \(\.npz\) at .*none\.npz; there is none"):
        read(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not a zip")
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("text.npz", "one.npy", "torn.npz", "empty.npz"):
        with pytest.raises(ValueError, match=f"{name}: expected an npz file; got"):
            read(tmp_path / name)
    np.savez(tmp_path / "none_of_it.npz", layers=np.arange(2))
    with pytest.raises(ValueError, match="expected the key domains; got layers"):
        read(tmp_path / "none_of_it.npz")
    np.savez(tmp_path / "axes.npz", layers=np.arange(2), domains=np.array(["a"]))
    with pytest.raises(ValueError, match="expected a key <model>_counts; got domains, layers"):
        read(tmp_path / "axes.npz")


# Answers


@EXAMPLES
@given(seeds)
def test_overlap_between_kinds_is_the_mean_over_pairs_one_by_one(seed):
    rng = np.random.default_rng(seed)
    c = only(arrays_of(routed(rng, 200), 6))
    found = between(c, rng, draws=3)
    for layer in range(3):
        rows = c.counts[:, layer]
        sets = overlap.top_p(rows, 0.8)
        pairs = [(0, 1), (0, 2), (1, 2)]
        chance = [overlap.jaccard_chance(sets[i].sum(), sets[j].sum(), 6) for i, j in pairs]
        together = [overlap.jaccard(sets[i], sets[j]) for i, j in pairs]
        shares = rows / rows.sum(axis=1, keepdims=True)
        expected = {"jaccard": together, "corrected": overlap.corrected(together, chance)}
        for name in ("weighted_jaccard", "total_variation", "jensen_shannon"):
            expected[name] = [overlap.MEASURES[name].function(shares[i], shares[j]) for i, j in pairs]
        for name, values in expected.items():
            defined = np.array(values)[~np.isnan(values)]  # two sets of all six have no corrected value
            value = defined.mean() if defined.size else np.nan
            assert found.measures[name].value[layer] == pytest.approx(value, abs=EXACT, nan_ok=True)
        assert found.chance[layer] == pytest.approx(np.mean(chance), abs=EXACT)
        assert found.information[layer] == pytest.approx(association.mutual_information(rows), abs=EXACT)
    np.testing.assert_array_equal(found.sizes, overlap.top_p(c.counts, 0.8).sum(axis=-1))


def test_kinds_that_share_one_usage_look_as_alike_as_the_null_says(rng):
    shares = rng.dirichlet(np.ones(12))
    counts = rng.multinomial(5000, shares, size=(4, 6))
    c = Counts("m", tuple("abcd"), tuple(range(6)), counts)
    found = between(c, rng, draws=100)
    for name in ("total_variation", "jensen_shannon", "weighted_jaccard"):
        e = found.measures[name]
        # a layer's mean over six pairs scatters by a fifth or so about its null; six layers
        np.testing.assert_allclose(
            e.value.mean(), found.same[name].mean(), rtol=0.3 if name != "weighted_jaccard" else 0.01
        )
        assert (e.low <= e.high).all()
    np.testing.assert_allclose(found.information.mean(), found.information_chance.mean(), rtol=0.4)


def test_an_interval_covers_what_independent_choices_came_from(rng):
    """Of known shares: an interval holds the true value in about 95 of 100, where choices are independent."""
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    c = Counts("m", tuple(map(str, range(200))), (0,), rng.multinomial(20_000, shares, size=(200, 1)))
    for name, e in evenness(c, rng, draws=200).indices.items():
        truth = INDICES[name](shares)
        inside = ((e.low <= truth) & (truth <= e.high)).mean()
        # 200 intervals: standard deviation 0.015; quantiles of 200 draws cost about 0.01
        assert inside > 0.95 - 5 * 0.015 - 0.01, name
        np.testing.assert_array_equal(e.value, INDICES[name](c.counts))


def test_intervals_cover_the_truth_where_sampling_biases_the_number():
    """64 experts and 2000 choices, two kinds that differ: sampling biases a number by up to twice its spread."""
    rng = np.random.default_rng(0)  # 1 and 2 pass as well
    shares = rng.dirichlet(np.ones(64), size=2)  # (2, E)
    counts = rng.multinomial(2000, np.repeat(shares[:, None], 200, axis=1))  # 200 samples, as layers
    c = Counts("m", ("a", "b"), tuple(range(200)), counts)
    one, two = (overlap.top_p(row, 0.8) for row in shares)
    truth = {name: overlap.MEASURES[name].function(*shares) for name in MEASURES[2:]}
    truth["jaccard"] = overlap.jaccard(one, two)
    estimates = {name: e for name, e in between(c, rng).measures.items() if name in truth}
    truth |= {name: index(shares)[:, None] for name, index in INDICES.items()}
    estimates |= evenness(c, rng).indices
    for name, e in estimates.items():
        inside = ((e.low <= truth[name]) & (truth[name] <= e.high)).mean()
        # at least 200 intervals: standard deviation 0.015; quantiles of 200 draws cost about 0.01; five
        # of the former leave room for the second order, 0.05 at most here (the busiest expert, a maximum of few)
        assert inside > 0.95 - 5 * 0.015 - 0.01, name
    for name in ("jensen_shannon", "entropy/log E", "Gini"):  # a planted fault: the quantiles, 2 value - the interval
        e = estimates[name]
        low, high = 2 * e.value - e.high, 2 * e.value - e.low
        assert ((low <= truth[name]) & (truth[name] <= high)).mean() < 0.8, name


def test_what_is_left_where_two_kinds_share_one_usage(rng):
    """The truth, 0, is at the end of the range. Half the bias or so is taken out, and the rest said, not hidden."""
    c = Counts("m", ("a", "b"), tuple(range(50)), rng.multinomial(2000, np.full(64, 1 / 64), size=(2, 50)))
    found = between(c, rng)
    e = found.measures["total_variation"]
    assert ((e.low >= 0) & (e.low <= e.high) & (e.high <= 1)).all()
    # two independent errors of one size add up to sqrt 2: draws are larger than the value by 0.41 of it
    np.testing.assert_allclose((e.low + e.high).mean() / 2, (2 - np.sqrt(2)) * e.value.mean(), rtol=0.05)
    np.testing.assert_allclose(found.same["total_variation"].mean(), e.value.mean(), rtol=0.03)


def test_intervals_stay_within_what_a_number_can_be(rng):
    even, lone = np.full((1, 1, 4), 5), np.array([[[9, 0, 0, 0]]])
    ends = {"CV": (0, np.sqrt(3)), "max/mean": (1, 4), "entropy/log E": (0, 1), "Gini": (0, 0.75), "Jain": (0.25, 1)}
    for counts in (even, lone):
        for name, e in evenness(Counts("m", ("a",), (0,), counts), rng).indices.items():
            assert ends[name][0] <= e.low <= e.high <= ends[name][1]
    far = between(Counts("m", ("a", "b"), (0,), np.array([[[50, 1]], [[1, 50]]])), rng).measures
    assert far["total_variation"].high <= 1
    assert far["jensen_shannon"].high <= np.log(2)


def test_single_texts_differ_at_least_as_much_as_their_sums(rng):
    """What the report's paragraph leans on: total variation and Jensen-Shannon are convex in both arguments."""
    texts = rng.multinomial(100, rng.dirichlet(np.full(8, 0.5), size=(2, 50)))  # two kinds of 50 texts of one length
    for name in ("total_variation", "jensen_shannon"):
        singly = overlap.similarities(name, texts[0], texts[1]).mean()
        assert singly >= overlap.MEASURES[name].function(*texts.sum(axis=1))


def test_links_are_chi_squared_and_independent_choices_give_their_chance(rng):
    c = only(arrays_of(routed(rng, 3000), 6))  # layers choose independently, given the kind of text
    found = links(c, rng, draws=40)
    for d, step in np.ndindex(3, 2):
        N = c.crosslayer[d, step]
        expected = np.outer(N.sum(axis=1), N.sum(axis=0)) / N.sum()
        chi2 = ((N - expected) ** 2 / expected).sum()
        assert (found.sigma[d, step] ** 2).sum() == pytest.approx(chi2 / N.sum(), rel=1e-9)
    # chi^2 of 25 degrees of freedom a table: 40 draws of 6 tables know the mean to 2 %
    np.testing.assert_allclose((found.chance**2).sum(axis=-1).mean(), 25 / 6000, rtol=0.15)
    assert ((found.sigma >= 0) & (found.sigma <= 1 + EXACT)).all()
    assert (np.diff(found.sigma, axis=-1) <= 0).all()
    assert (found.null_max >= found.chance[..., 0]).all()


def test_ranks_alone_link_a_pooled_table(rng):
    """First choices fall on the first half of the experts in both layers: linked tables, and independent choices."""
    first, second = rng.integers(3, size=(1, 2, 4000)), 3 + rng.integers(3, size=(1, 2, 4000))
    c = only(arrays_of(np.stack([first, second], axis=-1), 6))
    found = links(c, rng, draws=5)
    assert found.ranks[0, 0] == pytest.approx(1, abs=EXACT)
    assert found.sigma[0, 0, 0] == pytest.approx(1, abs=EXACT)
    assert found.sigma[0, 0, 1] < 0.06  # the rest is sampling: 1/sqrt(4000) times a few
    assert found.chance[0, 0, 0] < 0.06
    bare = Counts(c.model, c.domains, c.layers, c.counts, None, c.crosslayer)
    assert np.isnan(links(bare, rng, draws=1).ranks).all()


def test_experts_that_are_never_chosen_and_full_links(rng):
    choices = np.repeat(rng.integers(3, size=(1, 1, 300, 1)), 2, axis=1)  # the next layer repeats the choice
    c = only(arrays_of(choices, 5))  # of experts 0 to 2 out of 5
    np.testing.assert_allclose(links(c, rng, draws=2).sigma[0, 0], [1, 1, 0, 0, 0], atol=1e-7)
    assert np.isfinite(evenness(c, rng, draws=5).indices["Gini"].value).all()


def test_one_kind_of_text_has_no_pairs(rng):
    c = only(arrays_of(routed(rng, 50, D=1), 6))
    with pytest.raises(ValueError, match="expected at least 2 kinds of text to compare in toy; got text 0"):
        between(c, rng)
    assert not any("two kinds" in line for line in table(c, rng))


def test_the_report_is_text_with_its_limits_and_the_same_twice(toy, tmp_path):
    path = saved(tmp_path / "a.npz", **toy)
    text = report(path)
    assert text == report(path)
    for part in (
        "toy: 6 experts, top 2; 1,000 choices a layer",
        "a lower bound",
        "first order only",
        "MY.5",
        "MY.7",
        "chance",
        "if alike",
    ):
        assert part in text
    assert "nan" not in text
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.skipif(not REAL.exists(), reason=f"no counts of OLMoE and Mixtral at {REAL}")
def test_counts_of_olmoe_and_mixtral():
    mixtral, olmoe = read(REAL)
    assert [(c.model, c.k, c.counts.shape) for c in (mixtral, olmoe)] == [
        ("mixtral", 2, (5, 3, 8)),
        ("olmoe", 8, (5, 3, 64)),
    ]
    rng = np.random.default_rng(0)
    apart = between(olmoe, rng, draws=10).measures["total_variation"].value
    # what the report shows, to the digits shown: no random number enters
    assert apart == pytest.approx([0.258, 0.439, 0.516], abs=5e-4)
    assert between(mixtral, rng, draws=10).measures["total_variation"].value == pytest.approx(
        [0.039, 0.047, 0.066], abs=5e-4
    )
