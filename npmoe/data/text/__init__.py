"""Text as ids that a language model trains on: corpora, vocabularies, streams of tokens, and baselines of counts."""

from npmoe.data.text.corpus import Corpus, Document, open_corpus
from npmoe.data.text.ngram import kneser_ney, unigram
from npmoe.data.text.stream import Stream, batches, batches_of_one_topic, stream, windows
from npmoe.data.text.vocabulary import BytePair, Vocabulary

__all__ = ["BytePair", "Corpus", "Document", "Stream", "Vocabulary", "batches", "batches_of_one_topic", "kneser_ney"]
__all__ += ["open_corpus", "stream", "unigram", "windows"]
