"""Data for the recipes: images and text that need no download.

`kit.data.vision` has labelled images, `kit.data.corpus` running text and a vocabulary
of characters, `kit.data.subwords` one of subwords, `kit.data.texts` short labelled
texts, `kit.data.speech` spoken sentences.
"""

from kit.data import speech, texts
from kit.data.corpus import Characters, english_text, load_text
from kit.data.subwords import Subwords
from kit.data.vision import DATASETS, Split, images

__all__ = [
    "DATASETS",
    "Characters",
    "Split",
    "Subwords",
    "english_text",
    "images",
    "load_text",
    "speech",
    "texts",
]
