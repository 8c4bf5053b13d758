"""The claims of SC2, and those of MY that need a language model: what each says, which models it reads, its ways."""

from typing import Any

from npmoe.reproduce.experiment import Experiment, Spec
from npmoe.reproduce.natural_language import routing_ways, ways
from npmoe.reproduce.natural_language.axes import ROLES, texts
from npmoe.reproduce.natural_language.config import BASE, QUICK, Measured
from npmoe.reproduce.natural_language.measure import EXPLAINS

__all__ = ["EXPERIMENT", "MODELS", "PERPLEXITY", "SPECS"]

_MODELS = ("dense", "top2", "soft")

PERPLEXITY = "held-out perplexity, "
MODELS = ("dense", "top-2", "soft")  # of which this is beside SC2.1, next to counts of words

_PERPLEXITIES = tuple(
    (f"{PERPLEXITY}{words}", "on the same tokens for all", statistic)
    for words, statistic in (
        ("dense", ways.perplexity("dense")),
        ("top-2", ways.perplexity("top2")),
        ("soft", ways.perplexity("soft")),
        ("unigram", ways.baseline(0)),
        ("Kneser-Ney bigram", ways.baseline(1)),
        ("Kneser-Ney trigram", ways.baseline(2)),
    )
)


def _explained(role: str, what: tuple[str, ...]) -> tuple[Any, ...]:
    """What labels explain of the choice, and by chance."""
    return tuple(
        (
            f"share of the choice that the {label} {how}, {where}",
            words,
            routing_ways.explained(role, label, name, layer),
        )
        for label in what
        for where, layer in (("first block", 0), ("last block", -1))
        for how, words, name in (
            ("explains", "information over the entropy of the experts' masks", "explained"),
            ("explains by chance", "permuted or turned round", "explained null"),
        )
    )


SPECS = (
    Spec(
        "SC2.1",
        "MoE reduces local sensitivity on natural language as well.",
        "no number",
        _MODELS,
        ways.sensitivity(),
        texts,
        note="The norm is that of the whole feed-forward's Jacobian at each token, without the router's term, as in "
        "SC1's appendix. Models are compared after equally many steps; another interpretation takes equal held-out "
        "loss.",
        beside=_PERPLEXITIES,
    ),
    Spec(
        "SC2.2",
        "Alignment between experts is lower for top-k routing than for soft routing.",
        "no number",
        ("top2", "soft"),
        ways.alignment(),
        texts,
    ),
    Spec(
        "SC2.3",
        "What an expert is given has a higher effective rank than what the dense model is given.",
        "no number",
        ("dense", "top2", "dense at the n_eff of top2"),
        ways.higher_rank(),
        texts,
        note="Fewer tokens span fewer dimensions. The dense model is therefore also measured on as few effective "
        "tokens.",
        once=("soft",),
    ),
    Spec(
        "SC2.4",
        "Top-k routing concentrates what experts are given in fewer components than soft routing does.",
        "no number",
        ("top2", "soft", "soft at the n_eff of top2"),
        ways.concentrated(),
        texts,
    ),
    Spec(
        "SC2.5b",
        "Ensemble diversity: the ambiguity identity, on a language model.",
        "no number",
        ("top2", "soft"),
        exact=ways.ambiguity,
        note="SC2.5 on text: the feed-forward's output as an ensemble's, and zero as the target. The diversity is the "
        "share of the experts' mean square that their differences cancel in the mixture.",
        beside=tuple(
            (f"{what}, {words}", says, statistic(role))
            for what, says, statistic in (
                ("diversity", "sum_e g_e |f_e - f|^2 over sum_e g_e |f_e|^2, mean over blocks", ways.diversity),
                ("rms cosine of mean Jacobians", "alignment, mean over blocks", ways.aligned),
            )
            for role, words in (("top2", "top-2"), ("soft", "soft"))
        ),
    ),
    Spec(
        "SC2.6",
        "Ours: on text, experts' second derivatives are smaller as well.",
        "not measured",
        ("dense", "top2"),
        ways.curvature(),
        texts,
        note="SC1.11 on text. The closed form is that of GELU experts.",
        once=("soft",),
    ),
    Spec(
        "MY.1d",
        "Similarity of hidden states explains similarity of expert usage in a language model.",
        "no number",
        ("top2",),
        routing_ways.in_practice(),
        texts,
        note="MY.1c on text. Tokens of the middle block are compared by the overlap of their masks, sequences by the "
        "cosine of their visit counts. First tokens are left out.",
        beside=_explained("top2", ("token", "position", "document")),
    ),
    Spec(
        "MY.1e",
        "Similar hidden states give similar expert usage in a language model (sufficient).",
        "no number",
        ("top2", "soft"),
        exact=routing_ways.sufficient,
        note="MY.1a on text: counted on pairs of held-out tokens and on small and large steps from every token, in "
        "each mixture. The further statements go the other way, from gates to hidden states.",
    ),
    Spec(
        "MY.3b",
        "In a language model the balance loss suppresses the router's response to what all tokens share.",
        "no number",
        (),
        routing_ways.suppressed(),
        note="MY.3 on text. It needs a model trained with the balance loss, which --full adds.",
    ),
    Spec(
        "MY.4b",
        "In a language model, without diversity in the batch specialization collapses.",
        "no number",
        (),
        routing_ways.collapsed(),
        note="MY.4 on text whose documents have topics: each batch of one topic, or of all. Four models are trained "
        "for it, which --full adds.",
    ),
    Spec(
        "MY.5",
        "Answers of different authors to one question share no more experts than answers to different questions.",
        "about 60 %",
        ("authors",),
        routing_ways.no_higher(),
        texts,
        note="Authors are the top-2 models of three seeds. Each answers the same held-out prompts twice, and the "
        "model of this seed reads all texts. No higher means: by less than 0.02 over the whole interval. A claim of "
        "equality cannot exceed a null model without anything in common.",
        beside=(
            *(
                (
                    f"Jaccard of top-80 % sets, {what}",
                    "mean over blocks and pairs of texts",
                    routing_ways.author_overlap(i),
                )
                for i, what in enumerate(
                    (
                        "one question, one author",
                        "one question, other authors",
                        "other questions, one author",
                        "other questions, other authors",
                    )
                )
            ),
            ("Jaccard of random sets of these sizes", "exact", routing_ways.author_chance),
        ),
    ),
    Spec(
        "MY.5b",
        "Answers of one author to one question share more experts than answers of different authors.",
        "both others far below",
        ("authors",),
        routing_ways.distinct(),
        texts,
        note="The other half of MY.5, on the same texts: whether the router tells authors apart at all.",
    ),
    Spec(
        "MY.6",
        "How similarly two prompts are routed does not predict how similarly their rollouts are.",
        "no number",
        ("top2",),
        routing_ways.unpredicted(),
        texts,
        note="A prompt against its own continuation, sampled at temperature 1. Does not predict means: a correlation "
        "below 0.1 over the whole interval. A claim of no relation cannot exceed a null model without any.",
    ),
    Spec(
        "MY.7",
        "In deep layers unrelated inputs use nearly the same experts.",
        "no number",
        ("top2",),
        routing_ways.unrelated(),
        texts,
        beside=tuple(
            (f"Jaccard of top-80 % sets, {what}, {where}", "mean over pairs", routing_ways.by_block(name, layer))
            for what, name in (
                ("sequences of different documents", "unrelated"),
                ("two halves of one", "unrelated floor"),
            )
            for where, layer in (("first block", 0), ("middle block", 1), ("last block", -1))
        ),
        note="Sets that hold more experts share more of them by chance, which is subtracted. The paper finds this on "
        "prompts, strongest with a reasoning template, and not in a model without "
        "reasoning. A plain language model in which it is absent does not contradict the paper.",
    ),
    Spec(
        "MY.8",
        "The same token in different contexts uses the same experts in the first layer only.",
        "no number",
        ("top2",),
        routing_ways.same_token(),
        texts,
    ),
    Spec(
        "MY.9",
        "Keeping only the most used experts of the last layers costs little on prompts and much on rollouts.",
        "under 10 % on prompts",
        ("top2",),
        routing_ways.pruning(),
        texts,
        (routing_ways.increase(0), (-100.0, 10.0), "% more loss on prompts"),
        "Three of eight experts are kept, those that one half of the prompts uses most; the other half is judged. The "
        "paper keeps 12 of 32 in its last two layers; of three blocks that is the last. Rollouts are the model's own "
        "continuations.",
        (("loss on rollouts, increase in %", "the same experts kept", routing_ways.increase(1)),),
    ),
    Spec(
        "MY.11",
        "Ours: the choice of experts follows tokens, not topics.",
        "not measured",
        ("labelled",),
        routing_ways.followed(),
        note="The text has documents with topics, which nobody showed to the model. By chance: the choices of tokens "
        "permuted, or the topics of documents. Beyond the token: what the topic says of the choice where the token is "
        "known already.",
        beside=_explained("labelled", EXPLAINS),
    ),
)

EXPERIMENT = Experiment(BASE, QUICK, ROLES, SPECS, Measured)
