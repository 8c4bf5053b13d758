"""Text as ids that a language model trains on: corpora, vocabularies, streams of tokens, and baselines of counts."""

from npmoe.data.text.corpus import Corpus, Document, open_corpus
from npmoe.data.text.ngram import kneser_ney, unigram
from npmoe.data.text.stream import Stream, batches, stream, windows
from npmoe.data.text.vocabulary import BytePair, Vocabulary

__all__ = ["BytePair", "Corpus", "Document", "Stream", "Vocabulary", "batches", "kneser_ney", "open_corpus", "stream"]
__all__ += ["unigram", "windows"]
