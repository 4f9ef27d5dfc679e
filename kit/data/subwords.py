"""A vocabulary of subwords, by byte-pair encoding.

Words are too many to number, and most of them are rare; letters are few, but make long
sequences. Subwords are between the two: byte-pair encoding begins with single bytes,
and joins the pair of neighbours that occurs most often in the training texts, again and
again, until the vocabulary is full. Frequent words become one token; rare words are
several: "translations" may be " transl" + "ations".

Since every text consists of bytes, there is no unknown token, and decoding returns the
text as it was. The package tokenizers does the work.

Paper: Sennrich et al., 2016, https://arxiv.org/abs/1508.07909; of bytes: Radford et
al., 2019 (GPT-2).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from kit import checks

NUM_BYTES = 256
ACCEPTED = {
    "texts": checks.sequence(checks.TEXT, least=1),
    "size": checks.SIZE,
    "special": checks.sequence(checks.TEXT),
    "text": checks.TEXT,
    "json": checks.TEXT,
    "path": checks.PATH,
}


class Subwords:
    """A vocabulary of subwords, numbered from 1; 0 is padding.

    It has the methods of `kit.data.corpus.Characters`.

    Args:
        json: The tokenizer as the package tokenizers writes it. Use `learn` or `load`.

    Raises:
        ImportError: If the package tokenizers isn't installed.
        ValueError: If `json` isn't such a text.

    Example:

    ```python
    subwords = Subwords.learn(["low lower lowest"] * 9, size=260)
    tokens = subwords.encode("slower")
    subwords.decode(tokens)  # 'slower'
    ```
    """

    def __init__(self, json: str):
        checks.check(self, locals(), ACCEPTED)
        try:
            self.tokenizer = _tokenizers().Tokenizer.from_str(json)
        except Exception as error:  # the package raises nothing more specific
            if isinstance(error, ImportError):
                raise
            raise ValueError(
                f"Subwords: `json` must be what the package tokenizers writes: {error}"
            ) from error

    @classmethod
    def learn(
        cls, texts: Iterable[str], size: int, special: Sequence[str] = ()
    ) -> "Subwords":
        """Learns a vocabulary.

        Args:
            texts: Texts to count pairs of neighbours in.
            size: Size of the vocabulary, at least 257 and the number of `special`. It
                is smaller if the texts have too few pairs.
            special: Texts that are one token each, numbered from 1.

        Raises:
            ImportError: If the package tokenizers isn't installed.
            TypeError: If an argument has the wrong type.
            ValueError: If `texts` is empty, or `size` too small.
        """
        if not isinstance(texts, str) and isinstance(texts, Iterable):
            texts = list(texts)
        checks.check("Subwords.learn", locals(), ACCEPTED)
        if size < (least := 1 + len(special) + NUM_BYTES):
            raise ValueError(
                f"Subwords.learn: `size` must be at least {least}, for padding, "
                f"{len(special)} special texts and {NUM_BYTES} bytes, received {size}."
            )
        library = _tokenizers()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(
            add_prefix_space=False
        )
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=["\0", *special],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    @classmethod
    def load(cls, path: str | Path) -> "Subwords":
        """Loads a vocabulary that `save` wrote."""
        checks.check("Subwords.load", locals(), ACCEPTED)
        return cls(Path(path).read_text(encoding="utf-8"))

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, which the package tokenizers can read, too."""
        checks.check("Subwords.save", locals(), ACCEPTED)
        Path(path).write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")

    def encode(self, text: str) -> np.ndarray:
        """Converts a text to the numbers of its subwords, int32."""
        checks.check("Subwords.encode", locals(), ACCEPTED)
        return np.array(self.tokenizer.encode(text).ids, "int32")

    def decode(self, tokens: Iterable[int]) -> str:
        """Converts numbers to a text."""
        places = checks.array("T", "integers", f"[0, {len(self) - 1}]")
        if isinstance(tokens, Iterable):
            tokens = np.array([int(x) for x in tokens], "int32")
        checks.check("Subwords.decode", locals(), {"tokens": places})
        ids = [int(i) for i in tokens if i]
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def __len__(self) -> int:
        """Size of the vocabulary, including padding."""
        return self.tokenizer.get_vocab_size()


def _tokenizers():
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise ImportError(
            "Subwords needs the package tokenizers, which isn't installed: "
            "`python -m pip install tokenizers`."
        ) from error
    return tokenizers
