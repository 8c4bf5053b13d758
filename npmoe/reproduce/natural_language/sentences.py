"""The claims of SC2, and of MY on a language model, told in sentences. T is as `ways` defines it."""

from math import exp

from npmoe.ledger.told import Amount, Telling, Told, signed
from npmoe.reproduce.natural_language.routing_ways import EQUAL, TOLERANCE

__all__ = ["TELLINGS"]


def _sc2_1(t: Told) -> str:
    return (
        f"At a token of text, the top-2 feed-forward's Jacobian has a leading singular value {t.amount.text('times')} "
        f"the dense model's, mean over blocks; before training {t.null('untrained').text('times')}."
    )


def _sc2_2(t: Told) -> str:
    return (
        f"Soft experts' mean Jacobians are aligned {t.amount.text('times')} as strongly as those of top-2 experts; "
        f"with shuffled gates {t.null('shuffled gates').text('times')}, before training "
        f"{t.null('untrained').text('times')}."
    )


def _sc2_3(t: Told) -> str:
    return (
        f"A top-2 expert's tokens need {t.amount.text('times')} as many components as the dense model's for 90 % of "
        f"the variance; with shuffled gates {t.null('shuffled gates').text('times')}, and the dense model's on as few "
        f"effective tokens {t.null('dense at the same n_eff').text('times')}."
    )


def _sc2_4(t: Told) -> str:
    def fewer(found: Amount) -> str:
        return f"{found.size()} {signed(found.mean, 'fewer', 'more')}"

    return (
        f"Top-2 experts need {fewer(t.amount)} components than soft experts for 90 % of the variance; with shuffled "
        f"gates {fewer(t.null('shuffled gates'))}. Soft experts on as few effective tokens need "
        f"{fewer(t.null(FEW_TOKENS))}."
    )


FEW_TOKENS = "soft at top-2's n_eff"


def _my_1d(t: Told) -> str:
    return (
        f"In the middle block, similarity of hidden states and similarity of expert usage have a Mantel correlation of "
        f"{t.amount.text()}; with a random router {t.null('random router').text()}, before training "
        f"{t.null('untrained').text()}."
    )


def _my_1e(t: Told) -> str:
    counted = f"{t.violations} on trained language models."
    if t.refuted:
        return f"Nearby hidden states of text are not always routed alike within the bounds: {counted}"
    return f"Nearby hidden states of text are routed alike, within exact bounds: {counted}"


def _my_3b(t: Told) -> str:
    return (
        "With a balance loss of weight 0.01 the routers respond to the mean hidden state "
        f"{t.amount.text('times')} as strongly as without one; to random directions of the same length "
        f"{t.null('random directions of equal norm').text('times')} as strongly."
    )


def _my_4b(t: Told) -> str:
    def more(found: Amount) -> str:
        return f"{found.size('%')} {signed(found.mean, 'less', 'more')}"

    less = t.amount
    return (
        "With a balance loss of weight 0.01, one topic a batch leaves topics "
        f"{less.size('%')} {signed(less.mean, 'less', 'more')} to say of the choice of experts than all topics in each "
        f"batch; without a balance loss {more(t.null('without a balance loss'))}."
    )


def _my_11(t: Told) -> str:
    def more(found: Amount) -> str:
        return f"{found.size('percentage points')} {signed(found.mean, 'more', 'less')}"

    return (
        f"Beyond chance, the token explains {more(t.amount)} of the choice of experts than the topic of its document "
        "does; "
        f"before training {more(t.null('untrained'))}."
    )


def _my_7(t: Told) -> str:
    def more(found: Amount) -> str:
        return f"{found.size()} {signed(found.mean, 'more', 'less')}"

    floor = more(t.null("two halves of one sequence"))
    return (
        f"Beyond chance, sequences of different documents share {more(t.amount)} of their experts (Jaccard of top-80 % "
        f"sets) in the last block than in the first; two halves of one sequence share {floor}."
    )


def _my_8(t: Told) -> str:
    def more(found: Amount) -> str:
        return f"{found.size('percentage points')} {signed(found.mean, 'more', 'fewer')}"

    return (
        f"Equal tokens in different sequences share {more(t.amount)} of their experts in the first block than in the "
        f"last; different tokens {more(t.null('different tokens'))}."
    )


def _my_5(t: Told) -> str:
    more = t.amount
    return (
        f"Answers of different authors to one question share {signed(more.mean, 'more', 'fewer')} experts than "
        f"answers of one author to different questions: their Jaccard overlap differs by {more.text()}."
    )


def _my_5b(t: Told) -> str:
    more = t.amount
    return (
        f"Two answers of one author to one question share {signed(more.mean, 'more', 'fewer')} experts than answers of "
        f"different authors: their Jaccard overlap differs by {more.text()}; with authors permuted by "
        f"{t.null('authors permuted').text()}."
    )


def _my_6(t: Told) -> str:
    return (
        f"How similarly two prompts are routed and how similarly their continuations are have a correlation of "
        f"{t.amount.text()}; with continuations reassigned {t.null('continuations reassigned').text()}."
    )


def _my_9(t: Told) -> str:
    def more(found: Amount) -> str:
        return f"{found.size('percentage points')} {signed(found.mean, 'more', 'less')}"

    prompts = t.size.removesuffix(" % more loss on prompts")
    return (
        "With 3 of 8 experts kept in the last block, the loss on the model's own continuations rises by "
        f"{more(t.amount)} than on prompts{f' ({prompts} %)' if prompts else ''}; with a random three by "
        f"{more(t.null('a random 3/8'))}, and in the first block by {more(t.null('the first block'))}."
    )


def _sc2_5b(t: Told) -> str:
    word = "are not always" if t.refuted else "are exactly"
    return (
        "In a language model, too, the squares of a mixture's outputs "
        f"{word} its experts' squares less their spread: {t.violations}."
    )


def _sc2_6(t: Told) -> str:
    return (
        f"The dense model's second derivatives are {t.amount.text('times')} as large as the top-2 experts'; before "
        f"training {t.null('untrained').text('times')}."
    )


TELLINGS = {
    "SC2.1": Telling(_sc2_1, lambda T: exp(-T), "leading singular value per token, top-2 over dense"),
    "SC2.2": Telling(_sc2_2, exp, "alignment of mean Jacobians, soft over top-2"),
    "SC2.3": Telling(_sc2_3, exp, "components, top-2 experts over dense"),
    "SC2.4": Telling(_sc2_4, lambda T: T, "components, soft minus top-2"),
    "SC2.5b": Telling(_sc2_5b),
    "SC2.6": Telling(_sc2_6, exp, "norm of the second derivatives, dense over top-2 experts"),
    "MY.5": Telling(_my_5, lambda T: EQUAL - T, "Jaccard overlap, one question minus other questions"),
    "MY.5b": Telling(_my_5b, lambda T: T, "Jaccard overlap, one author minus different authors"),
    "MY.6": Telling(_my_6, lambda T: TOLERANCE - T, "Mantel correlation of prompts with their rollouts"),
    "MY.9": Telling(_my_9, lambda T: 100 * T, "increase of the loss by pruning, rollouts minus prompts, in % points"),
    "MY.1d": Telling(_my_1d, lambda T: T, "Mantel correlation"),
    "MY.1e": Telling(_my_1e),
    "MY.4b": Telling(_my_4b, lambda T: 100 * T, "information of topics that one topic a batch loses, in %"),
    "MY.11": Telling(
        _my_11, lambda T: 100 * T, "explained by the token minus by the topic, in % of the choice's entropy"
    ),
    "MY.3b": Telling(_my_3b, lambda T: exp(-T), "response with the balance loss over that without it"),
    "MY.7": Telling(_my_7, lambda T: T, "Jaccard of unrelated sequences beyond chance, last block minus first"),
    "MY.8": Telling(_my_8, lambda T: 100 * T, "experts shared by equal tokens, first block minus last, in % points"),
}
