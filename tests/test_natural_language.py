"""SC2, and MY on a language model: stages, what is measured by a second route, and what each statistic says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import ROUNDING, close

from npmoe import news
from npmoe.calculus import tree
from npmoe.data.text import batches, open_corpus, windows
from npmoe.geometry.spectra import k_at
from npmoe.ledger import Beside, Claim
from npmoe.model.language import evaluate, train
from npmoe.probe.function import NORMS
from npmoe.probe.language import sites
from npmoe.reproduce import __main__ as command
from npmoe.reproduce import exact
from npmoe.reproduce import natural_language as of_sc2
from npmoe.reproduce.experiment import Models, Run
from npmoe.reproduce.natural_language import SC2, measure, rollouts, trained
from npmoe.reproduce.natural_language import text as of_text
from npmoe.reproduce.natural_language.axes import texts
from npmoe.reproduce.natural_language.config import QUICK, Authors, Measured, Stage, Thinned, stages
from npmoe.reproduce.natural_language.text import found, labelled, prepared
from npmoe.reproduce.natural_language.trained import batches_of, build, held_out, model_at, recipe, stage


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Documents of different words, so that routing has something to follow."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text")
    for i in range(24):
        words = [f"w{j}" for j in rng.integers(10 * (i % 4), 10 * (i % 4) + 25, 120)]
        (path / f"{i:02d}.txt").write_text(" ".join(words))
    return found(path)


@pytest.fixture(scope="module")
def topical(tmp_path_factory):
    """Documents with topics, each of words of its own."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("topics") / "documents.json"
    documents = [
        {"topic": f"topic {i % 3}", "title": str(i), "text": " ".join("abc"[i % 3] + "defghijklm"[j] for j in words)}
        for i, words in enumerate(rng.integers(0, 10, (60, 60)))
    ]
    path.write_text(json.dumps(documents))
    return found(path)


@pytest.fixture(scope="module")
def config(text):
    return replace(QUICK, text=text, V=60, steps=12, parts=3, tokens=160, choices=20, spectra=40, held=8)


@pytest.fixture(scope="module")
def runs(config):
    """Stages and measures of top-2, soft and dense, as the sweep computes them."""
    done = {}
    for change in ({}, {"k": config.E}, {"E": 1, "k": 1}):
        model = replace(config, **change)
        for part in stages(model):
            done[part] = stage(part, {before: done[before] for before in part.reads()})
        done[Measured(model)] = measure.compute(Measured(model), done)
    return done


@pytest.fixture(scope="module")
def top2(config, runs):
    return runs[Measured(config)]


@pytest.fixture(scope="module")
def last(config, runs):
    return measure.found_sites(config, runs[stages(config)[-1]])


# ---- text and stages -------------------------------------------------------------------------------------------------


def test_the_text_is_named_by_its_words(text, tmp_path):
    assert text.name
    (tmp_path / "a.txt").write_text("one two three four five " * 40)
    one = found(tmp_path / "a.txt")
    assert one.digest != text.digest
    assert len(one.digest) == 16


def test_stages_are_one_training(config, runs):
    """Three stages, each of which reads the one before, end with the very bytes of a training at once."""
    assert [part.until for part in stages(config)] == [4, 8, 12]
    data = prepared(config)
    *steps, end = train(build(config), batches(data.train, config.B, config.T, config.seed), recipe(config))
    whole = np.concatenate([runs[part]["loss"][:-1] for part in stages(config)])
    np.testing.assert_array_equal(whole, [step.loss for step in steps])
    assert tree.flatten(end.model).tobytes() == runs[stages(config)[-1]]["theta"].tobytes()
    held = evaluate(end.model, *held_out(config))
    close(runs[stages(config)[-1]]["held"], held, ROUNDING)
    assert stages(config)[1].label == f"top-2 language model on {config.text.name}, seed 0, steps 4 to 8"


def test_a_training_says_how_far_it_is(config):
    ticks = iter([10.0, 11.0, 11.5, 12.0, 14.0])  # begin, and in front of steps 3 to 6
    with news.listening((told := []).append):
        far = trained._Far(config, 3, lambda: next(ticks))
        for step in range(3, 7):
            far.tell(step, 4.5)
    name = f"top-2 language model on {config.text.name}, seed 0"
    tokens = config.B * config.T
    assert told == [
        f"{name}: step 4 of 12, loss 4.50, {2 * tokens / 1.5:,.0f} tokens/s, 6 s left",
        f"{name}: step 6 of 12, loss 4.50, {4 * tokens / 4:,.0f} tokens/s, 6 s left",
    ]


def test_a_training_tells_of_itself(config, monkeypatch):
    monkeypatch.setattr(trained._Far, "tell", lambda far, step, loss: told.append((far.start, step, loss)))
    told = []
    found = trained.stage(stages(config)[0])
    assert [step for _, step, _ in told] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal([loss for *_, loss in told], found["loss"])


def test_each_batch_is_of_one_topic_where_that_is_asked_for(topical):
    data = prepared(replace(QUICK, text=topical, V=60))
    words = np.array([word[0] if word[0] in "abc" else "-" for word in data.vocabulary.words])
    seen = set()
    for step in range(20):
        ids, targets = batches_of(replace(QUICK, text=topical, V=60, one_topic=True))(step)
        (topic,) = set(words[np.concatenate([ids, targets])].ravel()) - {"-"}
        seen.add(topic)
    assert seen == {"a", "b", "c"}
    ids, _ = batches_of(replace(QUICK, text=topical, V=60))(0)
    assert len(set(words[ids].ravel()) - {"-"}) == 3


def test_a_text_without_topics_gives_way_to_one_with_them_where_there_is_one(text, topical, monkeypatch):
    assert topical.topics
    assert not text.topics
    assert labelled(topical) == topical
    assert texts(replace(QUICK, text=topical)) == ()
    monkeypatch.setattr(of_text, "introductions", lambda: None)
    assert labelled(text) == text
    assert texts(replace(QUICK, text=text)) == ()
    monkeypatch.setattr(of_text, "introductions", lambda: open_corpus(topical.path))
    of_text._found.cache_clear(), of_text._opened.cache_clear()
    other = labelled(text)
    (axis,) = texts(replace(QUICK, text=text))
    of_text._found.cache_clear(), of_text._opened.cache_clear()
    assert (other.name, other.digest, other.topics) == (topical.name, topical.digest, True)
    assert axis.change == {"text": other}


def test_models_of_a_seed_see_the_same_batches_and_mixtures_start_alike(config):
    top, soft = build(config), build(replace(config, k=config.E))
    assert tree.flatten(top).tobytes() == tree.flatten(soft).tobytes()
    assert tree.flatten(build(replace(config, seed=1))).tobytes() != tree.flatten(top).tobytes()


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_held_out_sequences_come_from_all_of_the_text(config, last):
    documents = np.unique(last[0].labels["document"])
    assert len(documents) > 1
    assert last[0].n <= config.tokens
    sequences = last[0].labels["token"].reshape(-1, config.T)
    every = windows(prepared(config).heldout, config.T)[0]
    assert all((every == row).all(axis=1).any() for row in sequences)


@pytest.mark.parametrize(("change", "term"), [({}, 0), ({}, 1), ({"E": 1, "k": 1}, 0)])
def test_layer_norms_are_those_of_the_jacobians(change, term, config, runs):
    model = replace(config, **change)
    found = runs[Measured(model)]["layer norms"]
    for at, part in enumerate((None, *stages(model))):
        whole = model_at(model, None if part is None else runs[part])
        for i, site in enumerate(measure.found_sites(model, None if part is None else runs[part])):
            some = np.unique(np.linspace(0, site.n - 1, config.spectra).astype(int))
            assert len(np.unique(some // config.T)) == site.n // config.T, "tokens of every sequence"
            x, feed = site.x[some], whole.blocks[i].feed
            J = feed.jacobian(x) if term or model.E == 1 else feed.expert_jacobian(x)
            sigma = np.linalg.svd(J, compute_uv=False)[:, 0]
            close(found[at, i, term, NORMS.index("sigma token")], sigma.mean(), 1e-9)
            close(found[at, i, term, NORMS.index("frob token")], np.linalg.norm(J, axis=(1, 2)).mean(), 1e-9)


def test_components_and_usage_are_those_of_the_sites(config, top2, last):
    for i, site in enumerate(last):
        for e in range(config.E):
            g = site.gates[:, e]
            if not g.any():
                continue
            x = site.x - np.average(site.x, axis=0, weights=g)
            C = (x * g[:, None]).T @ x / g.sum()
            assert top2["k90"][-1, 0, i, e] == k_at(np.maximum(np.linalg.eigvalsh(C), 0)[::-1])
        counts = np.bincount(site.chosen.ravel(), minlength=config.E)
        close(top2["share"][i], counts / counts.sum(), ROUNDING)


def test_unrelated_sequences_by_hand(config, top2, last):
    """Jaccard of top-80 % sets, pair by pair, first tokens left out."""
    for i, site in enumerate(last):
        chosen = site.chosen.reshape(-1, config.T, config.k)[:, 1:]
        document = site.labels["document"].reshape(-1, config.T)
        sets = []
        for row in chosen:
            counts = np.bincount(row.ravel(), minlength=config.E)
            order = sorted(range(config.E), key=lambda e: (-counts[e], e))
            kept, mass = set(), 0
            for e in order:
                if mass >= 0.8 * counts.sum() - 1e-9:
                    break
                kept.add(e)
                mass += counts[e]
            sets.append(kept)
        found = [
            len(sets[a] & sets[b]) / len(sets[a] | sets[b])
            for a in range(len(sets))
            for b in range(a)
            if not {document[a, 0], document[a, -1]} & {document[b, 0], document[b, -1]}
        ]
        close(top2["unrelated"][i, 0], np.mean(found), 1e-12)
        assert 0 < top2["unrelated"][i, 1] < 1


def test_pairs_of_tokens_are_what_they_are_called(config, last):
    i, j, a, b = measure._pairs_of_tokens(last[0], config)
    token, sequence, position = (last[0].labels[name] for name in ("token", "sequence", "position"))
    assert (token[i] == token[j]).all()
    assert (token[a] != token[b]).all()
    for one, other in ((i, j), (a, b)):
        assert (sequence[one] != sequence[other]).all()
        assert (position[one] > 0).all()
        assert (position[other] > 0).all()
    assert len({(t, s) for t, s in zip(token[i], sequence[i], strict=True)}) == len(i), "no word counts twice"


def test_a_choice_that_follows_the_token_is_explained_by_it(config, last):
    site = last[0]
    labels = {name: np.asarray(of) for name, of in site.labels.items()}
    token = labels["token"]
    chosen = np.stack([token % config.E, (token + 1) % config.E], axis=1)
    explained = measure._explained(chosen, labels, config.E)
    null = measure._by_chance(chosen, labels, config.E, np.random.default_rng(0))
    close(explained[0], 1.0, 1e-9)  # all of it, though two experts are chosen at once
    assert null[0] < explained[0]
    close(explained[4], 0.0, 1e-9)  # and the topic adds nothing to what the token says
    close(sum(explained[i] for i in (0, 4)), measure._information(token * 99 + labels["topic"], chosen, config.E), 1e-9)


def test_topics_are_permuted_among_documents_by_chance(config):
    """A choice that follows the document: permuted tokens would call any topics far more than chance."""
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(40), 30)
    labels = {
        "document": document,
        "topic": document % 4,
        "token": np.zeros(1200, int),
        "position": np.zeros(1200, int),
    }
    chosen = rng.integers(0, 4, (40, 1))[document]  # of the document, whatever its topic
    explained = measure._explained(chosen, labels, 4)[3]
    chance = np.mean([measure._by_chance(chosen, labels, 4, rng)[3] for _ in range(50)])
    tokens = np.mean([measure._explained(chosen[rng.permutation(1200)], labels, 4)[3] for _ in range(5)])
    assert tokens < 0.01
    assert 0.5 < explained / chance < 2


def test_where_the_text_has_topics_they_are_counted_and_elsewhere_undefined(topical, top2):
    config = replace(QUICK, text=topical, V=60, steps=2, parts=1, tokens=96, choices=40)
    (only,) = stages(config)
    counted = measure._choice(config, stage(only))
    for name in ("explained", "explained null"):
        told = np.broadcast_to(counted["mask entropy"][:, None] > 0, counted[name].shape)
        np.testing.assert_array_equal(np.isfinite(counted[name]), told)  # who always chooses the same says nothing
        assert np.isnan(top2[name][:, 3:]).all()
        told = np.broadcast_to(top2["mask entropy"][:, None] > 0, top2[name].shape)[:, :3]
        np.testing.assert_array_equal(np.isfinite(top2[name][:, :3]), told)
    _, labels = next(iter(measure._choices(config, None)))
    topics = prepared(config).heldout.topics
    assert [sorted(set(topics))[t] for t in labels["topic"]] == [topics[d] for d in labels["document"]]


def test_exact_statements_are_counted_on_every_mixture(config, runs, top2):
    for model in (config, replace(config, k=config.E)):
        found = runs[Measured(model)]
        assert found["bounds"].shape == (len(exact.BOUNDS), 4)
        walls = model.k < model.E
        assert found["bounds"][:7, 0].all()
        assert found["bounds"][7:, 0].all() == walls, "a soft mixture has no walls"
        assert not found["bounds"][:, 1].any()
        assert found["ambiguity"].shape == (3, 7)
        assert not found["ambiguity"][:, 4].any()
    whole = model_at(config, runs[stages(config)[-1]])
    for i, site in enumerate(measure.found_sites(config, runs[stages(config)[-1]])):
        outputs = np.stack([expert.forward(site.x)[0] for expert in site.experts])  # (E, n, d)
        mean = (site.gates.T[..., None] * outputs).sum(axis=0)
        close(mean, whole.blocks[i].feed.forward(site.x)[0], 1e-12)
        squares = (site.gates.T * (outputs**2).sum(axis=2)).sum(axis=0)
        close(top2["ambiguity"][i, 1], squares.mean(), 1e-12)
        close(top2["ambiguity"][i, 2], (squares - (mean**2).sum(axis=1)).mean(), 1e-9)


def test_a_page_shows_prompts_and_what_was_written_with_each_tokens_experts(config, runs, top2):
    model = model_at(config, runs[stages(config)[-1]])
    ids = top2["shown ids"]
    assert ids.shape[0] == rollouts.SHOWN
    for i, site in enumerate(sites(model, ids)):
        shown = top2["shown experts"][i].reshape(-1, config.k)
        np.testing.assert_array_equal(np.sort(shown, axis=1), np.sort(site.chosen, axis=1))
        gates = np.take_along_axis(site.gates, shown, axis=1)
        assert (gates[:, 0] >= gates[:, 1]).all()


def test_thinned_models_have_the_n_eff_that_was_aimed_at(config, runs):
    dense = replace(config, E=1, k=1)
    thin = measure.thin(Thinned(dense, config), {part: runs[part] for part in Thinned(dense, config).reads()})
    for aimed, site in zip(thin["n_eff"], measure.found_sites(config, runs[stages(config)[-1]]), strict=True):
        g = site.gates[:, site.gates.any(axis=0)]
        every = np.zeros(site.E)
        every[site.gates.any(axis=0)] = g.sum(axis=0) ** 2 / (g**2).sum(axis=0)
        close(aimed, every.mean(), 1e-12)
    same = measure.thin(Thinned(dense, dense), {part: runs[part] for part in Thinned(dense, dense).reads()})
    close(same["k90"], runs[Measured(dense)]["k90"][-1, 0, :, 0], 1e-12)  # thinned to its own n_eff it is whole
    assert (thin["n_eff"] < same["n_eff"]).all()


# ---- prompts and rollouts --------------------------------------------------------------------------------------------


def test_a_pruned_model_uses_what_is_kept_and_nothing_else(config, runs):
    model = model_at(config, runs[stages(config)[-1]])
    kept = {1: np.array([0, 2]), 2: np.array([1, 3])}
    pruned = rollouts._kept(model, kept)
    x = np.random.default_rng(0).standard_normal((50, config.d))
    with np.errstate(under="ignore"):
        for i, experts in kept.items():
            gates, chosen = pruned.blocks[i].feed.route(x)
            assert set(chosen.ravel()) <= set(experts.tolist())
            close(gates.sum(axis=1), np.ones(50), 1e-12)
    assert pruned.blocks[0] is model.blocks[0]
    ids = rollouts.prompts_of(config, 6, 8)
    whole = rollouts._losses(model, ids, 4)
    every = rollouts._kept(model, {i: np.arange(config.E) for i in range(3)})
    close(rollouts._losses(every, ids, 4), whole, 1e-12)
    losses = evaluate(model, ids[:, :-1], ids[:, 1:])
    close(whole, (losses[:, :3].mean(), losses[:, 3:].mean()), 1e-12)


def test_prompts_are_of_the_held_out_text_and_do_not_overlap(config):
    prompts = rollouts.prompts_of(config, 8, 5)
    ids = prepared(config).heldout.ids
    at = [next(s for s in range(0, len(ids), 5) if (ids[s : s + 5] == p).all()) for p in prompts]
    assert len(set(at)) == 8


def test_kinds_of_pairs_of_texts_by_hand():
    rng = np.random.default_rng(1)
    sets = rng.random((2, 12, 5)) < 0.6
    sets[:, :, 0] = True
    q, a = np.tile(np.arange(2), 6), np.repeat(np.arange(3), 4)
    found = rollouts._by_kind(sets, q, a)
    for layer in range(2):
        want = {kind: [] for kind in ((True, True), (True, False), (False, True), (False, False))}
        for i in range(12):
            for j in range(i):
                both, either = sets[layer, i] & sets[layer, j], sets[layer, i] | sets[layer, j]
                want[q[i] == q[j], a[i] == a[j]].append(both.sum() / either.sum())
        close(found[layer], [np.mean(values) for values in want.values()], 1e-12)
    for label, within in ((q, a), (a, q)):
        again = rollouts._permuted(label, within, rng)
        for value in np.unique(within):
            assert sorted(again[within == value]) == sorted(label[within == value])


def test_authors_write_and_the_first_reads(config, runs):
    other = replace(config, seed=1)
    done = dict(runs)
    for part in stages(other):
        done[part] = stage(part, {before: done[before] for before in part.reads()})
    authors = Authors((config, other))
    found = rollouts.authors(authors, {part: done[part] for part in authors.reads()})
    assert found["authors"].shape == (3, 4)
    assert found["authors null"].shape == (config.draws, 3, 4)
    assert ((found["authors"] > 0) & (found["authors"] <= 1)).all()
    assert ((found["authors chance"] > 0) & (found["authors chance"] <= 1)).all()


# ---- statistics ------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(config, runs):
    """One seed's runs by role, whose arrays a test may change."""
    dense, soft = replace(config, E=1, k=1), replace(config, k=config.E)
    of = {"top2": config, "soft": soft, "dense": dense, "balanced": config, "wide": dense}
    found = {role: Run(model, dict(runs[Measured(model)])) for role, model in of.items()}
    for role in ("labelled", "labelled balanced", "one topic", "one topic balanced"):
        arrays = dict(found["top2"].arrays)
        explained = {"explained": np.full((2, 5, 3), 0.3), "explained null": np.full((2, 5, 3), 0.1)}
        found[role] = Run(config, arrays | explained)
    for role, model, to in (("dense", dense, config), ("soft", soft, config)):
        thin = Thinned(model, to)
        arrays = measure.thin(thin, {part: runs[part] for part in thin.reads()})
        found[f"{role} at the n_eff of top2"] = Run(None, arrays)
    for name in ("mantel", "predicts"):  # so small a model uses all experts alike: there is no correlation
        found["top2"].arrays[name] = np.full_like(found["top2"].arrays[name], 0.3)
    table = np.full((3, 4), 0.5)
    found["authors"] = Run(
        None,
        {
            "authors": table,
            "authors null": np.array([table] * 2),
            "authors swapped": np.array([table] * 2),
            "authors chance": table[:, 0],
        },
    )
    return Models(0, found)


def primary(id):
    return next(spec for spec in SC2.experiment.specs if spec.id == id).ways[0]


@pytest.mark.parametrize(
    ("id", "role", "array", "change", "moves"),
    [
        ("SC2.1", "top2", "layer norms", lambda a: a / 2, np.log(2)),
        ("SC2.1", "dense", "layer norms", lambda a: a * 3, np.log(3)),
        ("SC2.2", "top2", "cosines", lambda a: a / 2, np.log(2)),
        ("SC2.3", "top2", "k90", lambda a: a * 2, np.log(2)),
        ("SC2.4", "top2", "k90", lambda a: a - 1, 1.0),
        ("SC2.6", "top2", "curvature", lambda a: a / 2, np.log(2)),
        ("MY.1d", "top2", "mantel", lambda a: a + 0.1, 0.1),
        ("MY.11", "labelled", "explained", lambda a: a + np.eye(5)[0][:, None] / 10, 0.1),
        ("MY.11", "labelled", "explained", lambda a: a + np.eye(5)[3][:, None] / 10, -0.1),
        ("MY.4b", "one topic balanced", "explained", lambda a: a - np.eye(5)[3][:, None] * 0.05, 0.25),
        ("MY.4b", "one topic balanced", "mask entropy", lambda a: a / 2, 0.5),
        ("MY.4b", "labelled balanced", "mask entropy", lambda a: a * 2, 0.5),
        ("MY.3b", "balanced", "response", lambda a: a / 2, np.log(2)),
        ("MY.6", "top2", "predicts", lambda a: a + 0.1, -0.1),
        ("MY.7", "top2", "unrelated", lambda a: a + np.array([[0, 0], [0, 0], [0.1, 0]]), 0.1),
        ("MY.7", "top2", "unrelated", lambda a: a + np.array([[0, 0], [0, 0], [0.1, 0.1]]), 0.0),
        ("MY.8", "top2", "same token", lambda a: a + np.array([0.1, 0, 0]), 0.1),
        ("MY.9", "top2", "pruned", lambda a: a + np.array([[0.0, 0, 0, 0], [0, 0.1, 0, 0]]) * a[1, 0], 0.1),
        ("MY.5", "authors", "authors", lambda a: a + np.array([0, 0.1, 0, 0]), -0.1),
        ("MY.5b", "authors", "authors", lambda a: a + np.array([0.1, 0, 0, 0]), 0.1),
    ],
)
def test_a_statistic_moves_as_its_claim_says(id, role, array, change, moves, models):
    way = primary(id)
    before = way.T(models)
    models[role].arrays[array] = change(models[role].arrays[array])
    assert abs(way.T(models) - before - moves) < 1e-9


def test_at_equal_loss_a_norm_is_read_between_stages(models):
    way = next(w for w in SC2.experiment.specs[0].ways if "equal held-out loss" in w.name and "top-2" in w.name)
    top, dense = models["top2"].arrays, models["dense"].arrays
    top["loss"], dense["loss"] = np.array([4.0, 3.0, 2.0, 1.0]), np.array([4.0, 3.5, 3.0, 2.5])
    norms = np.ones_like(top["layer norms"])
    norms[1], norms[2] = 2.0, 8.0
    top["layer norms"], dense["layer norms"] = norms, np.full_like(norms, 16.0)
    close(way.T(models), np.log(16 / 4.0), 1e-12)  # half-way between losses 3 and 2: the root of 2 times 8
    top["loss"], dense["loss"] = np.array([4.0, 3.9, 3.8, 3.7]), np.array([4.0, 3.8, 3.6, 3.4])
    dense["layer norms"] = norms * 2  # the dense one passes 3.7 half-way between 3.8 and 3.6
    close(way.T(models), np.log(2 * 4.0 / norms[-1, 0, 0, 0]), 1e-12)


def test_every_claim_is_told_and_has_models_of_its_own(config):
    for spec in SC2.experiment.specs:
        assert spec.id in SC2.tellings
        assert set(spec.reads(True)) <= set(SC2.experiment.roles)


def test_the_command_runs_it_by_name_alone(text, tmp_path, capsys):
    assert "sc2" not in [paper.word for paper, _ in command.claims_of([])]
    assert [paper.word for paper, _ in command.claims_of(["all"])] == ["sc1", "ga", "my", "sc2"]
    out = tmp_path / "out"
    call = ["sc2", "--quick", "--executor", "serial", "--output", str(out), "--corpus", text.path]
    assert command.main(call) == 0
    told = capsys.readouterr().err
    assert re.search(
        rf"top-2 language model on {re.escape(text.name)}, seed 0: held-out perplexity \d+ after {QUICK.steps} steps",
        told,
    )
    ledger = json.loads((out / "results.json").read_text())
    assert {claim["verdict"] for claim in ledger["claims"]} <= {"no verdict", "not tested"}
    assert any(text.name in note for note in ledger["papers"][0]["notes"])
    drawn = {"sc2-loss", "sc2-sensitivity", "sc2-experts", "sc2-usage", "sc2-text"}
    topics = {"sc2-topics"} if texts(replace(QUICK, text=text)) else set()  # introductions are installed
    assert set(ledger["papers"][0]["figures"]) == drawn | topics
    assert "written by the model" in (out / "figures" / "sc2-text.html").read_text()
    assert ledger["papers"][0]["text"] == text.name
    runs = {path.name: path.read_bytes() for path in (out / "runs").glob("*.npz")}
    ledger = (out / "results.json").read_bytes()
    for path in sorted((out / "runs").glob("*.npz"))[::3]:
        path.unlink()  # as if it had been killed
    assert command.main(call) == 0
    again = {path.name: path.read_bytes() for path in (out / "runs").glob("*.npz")}
    assert again.items() <= runs.items(), "the same bytes; stages that nothing reads any more stay away"
    assert (out / "results.json").read_bytes() == ledger
    capsys.readouterr()
    assert command.main(["sc1", "--corpus", text.path, "--list"]) == 2
    assert "expected --corpus with a paper that reads text" in capsys.readouterr().err
    assert command.main(["sc2", "--corpus", str(tmp_path / "none"), "--output", str(out)]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_a_stage_alone_is_named():
    assert Stage(QUICK, QUICK.steps).label.startswith("top-2 language model on text, seed 0, steps 12 to 24")


def test_a_check_says_where_the_recorded_text_was_another(capsys):
    claims = [{"id": "SC2.1", "verdict": "undecided", "readings": []}]
    known = {"papers": [{"word": "sc2", "text": "WikiText-2", "claims": ["SC2.1"]}], "claims": claims}
    for text, said in (("WikiText-2", False), ("Notes", True)):
        assert command._check([{"word": "sc2", "text": text, "claims": claims}], known) == 0
        told = capsys.readouterr().out
        assert ("sc2 was recorded on WikiText-2, and this call read Notes" in told) == said


def test_mixtrals_layers_are_measured_by_the_same_code(config):
    mixtral = replace(config, kind="mixtral", steps=2, parts=1)
    (only,) = stages(mixtral)
    model = model_at(mixtral, stage(only))
    block = model.blocks[0]
    assert (model.embedding.positions, block.attention.groups, type(block.norm2).__name__) == (None, 1, "RMSNorm")
    found = measure.compute(Measured(mixtral), {only: stage(only)})
    assert "curvature" not in found
    assert np.isfinite(found["layer norms"][..., NORMS.index("sigma token")]).all()
    assert not found["bounds"][:, 1].any()


# ---- what two reviews asked for --------------------------------------------------------------------------------------


def test_the_balance_loss_is_not_told_from_a_shorter_mean_state_by_its_null_models(models):
    """MY.3b: a mean state of half the length, the router as it was. T moves, and so do both null models."""
    way = primary("MY.3b")
    before = way.T(models), [T0(models) for _, _, T0 in way.nulls]
    arrays = models["balanced"].arrays
    response, lengths = arrays["response"].copy(), arrays["lengths"].copy()
    response[1, :, 0] /= 2
    lengths[1] /= 2
    arrays["response"], arrays["lengths"] = response, lengths
    close(way.T(models) - before[0], np.log(2), 1e-12)
    for (name, _, T0), was in zip(way.nulls, before[1], strict=True):
        assert abs(T0(models) - was - np.log(2)) < 1e-12, name
    relative = next(w for w in SC2.experiment.specs if w.id == "MY.3b").ways[1]
    assert relative.nulls == ()


def test_lengths_and_responses_are_those_of_the_states(config, top2, last):
    for i, site in enumerate(last):
        mu = site.x.mean(axis=0)
        W = site.router.matrix - site.router.matrix.mean(axis=0)
        close(top2["lengths"][1, i, 0], np.linalg.norm(mu), 1e-12)
        close(top2["lengths"][1, i, 1] ** 2, ((site.x - mu) ** 2).sum() / site.n, 1e-12)
        close(top2["response"][1, i, 0], np.linalg.norm(W @ mu), 1e-9)
        close(top2["size"][1, i], np.linalg.norm(W), 1e-12)


def test_null_models_of_hidden_states_and_usage_take_the_lesser_of_means(models):
    """MY.1d: of two draws, in which tokens and sequences take turns, each mean is 0.5 and the lesser of each draw 0."""
    way = primary("MY.1d")
    table = np.zeros((2, 2, 3))
    table[0, 0], table[1, 1] = 1.0, 1.0
    models["top2"].arrays["mantel random"] = table
    T0 = next(T0 for name, _, T0 in way.nulls if name == "random router")
    close(T0(models), 0.5, 1e-12)


def test_pruning_keeps_what_other_prompts_use_most(config, runs):
    model = model_at(config, runs[stages(config)[-1]])
    texts = rollouts.prompts_of(config, 8, 10)
    use = np.zeros((3, 8, config.E))
    use[:, ::2, [1, 3]] = 0.5  # what the first half of the prompts uses; the others, which are judged, use 0 and 2
    use[:, 1::2, [0, 2]] = 0.5
    found = rollouts._pruning(model, texts, 5, use, config)["pruned"]
    judged = texts[1::2]
    for column, part in enumerate(((), (2,), (0,), (1, 2))):
        kept = rollouts._kept(model, {i: np.array([1, 3]) for i in part})
        close(found[:, column], rollouts._losses(kept, judged, 5), 1e-12)


def test_prompts_predict_rollouts_by_the_correlation_of_their_similarities():
    rng = np.random.default_rng(0)
    one = rng.dirichlet(np.ones(5), (2, 7))
    close(rollouts._predicts(one, one), np.ones(2), 1e-12)
    other = rng.dirichlet(np.ones(5), (2, 7))
    for layer, r in enumerate(rollouts._predicts(one, other)):
        i, j = np.triu_indices(7, 1)

        def cosines(P):
            unit = P / np.linalg.norm(P, axis=1, keepdims=True)
            return (unit @ unit.T)[i, j]  # noqa: B023

        close(r, np.corrcoef(cosines(one[layer]), cosines(other[layer]))[0, 1], 1e-9)


def test_shared_experts_of_tokens_by_hand(config, top2, last):
    pairs = measure._pairs_of_tokens(last[0], config)
    for layer, site in enumerate(last):
        sets = [set(row) for row in site.chosen.tolist()]
        for name, (a, b) in (("same token", pairs[:2]), ("other token", pairs[2:])):
            shared = [len(sets[x] & sets[y]) / config.k for x, y in zip(a, b, strict=True)]
            close(top2[name][1, layer], np.mean(shared), 1e-12)


def test_the_first_model_reads_the_continuations_alone(config, runs, monkeypatch):
    other = replace(config, seed=1)
    done = dict(runs)
    for part in stages(other):
        done[part] = stage(part, {before: done[before] for before in part.reads()})
    seen = []
    inner = rollouts._visits

    def visits(model, ids, first, last=None):
        seen.append((model, first, last))
        return inner(model, ids, first, last)

    monkeypatch.setattr(rollouts, "_visits", visits)
    authors = Authors((config, other))
    rollouts.authors(authors, {part: done[part] for part in authors.reads()})
    ((reader, first, last),) = seen
    assert tree.flatten(reader).tobytes() == tree.flatten(model_at(config, done[stages(config)[-1]])).tobytes()
    assert (first, last) == (rollouts._sizes(config)[1], None)


def test_a_text_too_short_is_refused_before_anything_is_trained(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "short.txt"
    path.write_text("\n\n".join(" ".join(f"w{j}" for j in rng.integers(0, 40, 12)) for _ in range(60)))
    with pytest.raises(ValueError, match=r"expected at least [\d,]+ held-out tokens of the text 'short.txt'; got \d+"):
        SC2.plan((), full=False, quick=False, seeds=1, corpus=path)


def test_without_topics_the_claims_on_topics_are_not_tested_and_train_nothing(text, monkeypatch):
    monkeypatch.setattr(of_text, "introductions", lambda: None)
    plan = SC2.plan(("MY.4b", "MY.11", "MY.8"), full=True, quick=True, seeds=1, corpus=Path(text.path))
    assert {run.model.one_topic for run in plan.configs() if isinstance(run, Measured)} == {False}
    (collapsed, _, followed) = sorted(plan.claims({}), key=lambda claim: claim.id != "MY.4b")
    for claim in plan.claims({}):
        if claim.id != "MY.8":
            assert claim.verdict == "not tested"
            assert "pip install 'npmoe[text]'" in claim.note
    assert collapsed.id == "MY.4b"
    assert followed


def test_the_page_says_whether_counts_predict_better():
    def claim(trigram):
        values = {"dense": 150, "top-2": 140, "soft": 149, "unigram": 260, "Kneser-Ney trigram": trigram}
        beside = tuple(Beside(f"held-out perplexity, {name}", "", (value,)) for name, value in values.items())
        return Claim("SC2.1", "says", "", (), beside=beside)

    (said,) = of_sc2._best([claim(104)])
    assert said == (
        "Counting words predicts better: the lowest held-out perplexity of ours is that of the top-2 model (140), of "
        "counts that of the Kneser-Ney trigram (104)."
    )
    assert of_sc2._best([claim(180)])[0].startswith("The models predict better: ")
    assert of_sc2._best([]) == []
