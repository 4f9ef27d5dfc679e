"""Writing token by token: sampling, greedy and beam search against enumeration."""

import itertools

import numpy as np
import pytest
from keras import ops

import kit
from kit import decoding, random

V, H, LENGTH = 4, 3, 3
START, END = 1, 2


class TinyModel:
    """A random recurrent model whose logits hang on all tokens and the position."""

    def __init__(self, seed, batch_size):
        rng = np.random.default_rng(seed)
        self.embeddings = rng.normal(size=(V, H)).astype("float32")
        self.recurrent = rng.normal(size=(H, H)).astype("float32")
        self.places = rng.normal(size=(LENGTH + 2, H)).astype("float32")
        self.output = 2 * rng.normal(size=(H, V)).astype("float32")
        self.state = rng.normal(size=(batch_size, H)).astype("float32")

    def step(self, token, state, position):
        h = ops.tanh(
            ops.take(self.embeddings, token, axis=0)
            + ops.matmul(state["h"], self.recurrent)
            + ops.take(self.places, position, axis=0)
        )
        return ops.matmul(h, self.output), {"h": h}

    def log_probs(self, example, tokens):
        """Of each next token after `tokens`, in NumPy."""
        h = self.state[example]
        for position, token in enumerate([START, *tokens]):
            h = self.embeddings[token] + h @ self.recurrent + self.places[position]
            h = np.tanh(h)
        logits = h @ self.output
        return logits - np.log(np.exp(logits).sum())

    def all_sequences(self, example):
        """Every sequence that can be written: (tokens, log-probability, length)."""
        for tokens in itertools.product(range(V), repeat=LENGTH):
            if END in tokens:
                length = tokens.index(END) + 1
                if any(tokens[length:]):
                    continue
            else:
                length = LENGTH
            parts = [
                self.log_probs(example, tokens[:i])[tokens[i]] for i in range(length)
            ]
            yield tokens, sum(parts), length

    def search(self, beam_width, length_penalty=0.0):
        @kit.compiled
        def run(state):
            state = {"h": ops.repeat(state, beam_width, axis=0)}
            return decoding.beam_search(
                self.step,
                state,
                len(self.state),
                LENGTH,
                START,
                END,
                beam_width,
                length_penalty,
            )

        return tuple(map(ops.convert_to_numpy, run(self.state)))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_beam_of_all_beginnings_finds_what_enumeration_finds(seed, length_penalty):
    model = TinyModel(seed, batch_size=2)
    tokens, scores = model.search(V**LENGTH, length_penalty)
    assert tokens.dtype == np.int32
    for example in range(2):
        expected = sorted(
            model.all_sequences(example), key=lambda s: -s[1] / s[2] ** length_penalty
        )
        count = len(expected)  # 40 = 1 + 3 + 9 with an end, 27 without
        np.testing.assert_array_equal(tokens[example, :count], [s[0] for s in expected])
        log_probs = [s[1] for s in expected]
        np.testing.assert_allclose(scores[example, :count], log_probs, rtol=1e-4)
        assert np.all(scores[example, count:] < -1e29)  # nothing else can be written
        assert np.exp(scores[example].astype("float64")).sum() == pytest.approx(
            1, abs=1e-4
        )


@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
@pytest.mark.parametrize("beam_width", [1, 2, 3])
def test_a_narrow_beam_is_the_textbooks(beam_width, length_penalty):
    model = TinyModel(seed=3, batch_size=4)
    tokens, scores = model.search(beam_width, length_penalty)
    for example in range(4):
        beams = [((), 0.0, 0, False)]  # tokens, log-probability, length, ended
        for _ in range(LENGTH):
            candidates = []
            for written, score, length, ended in beams:
                if ended:
                    candidates.append(((*written, 0), score, length, True))
                    continue
                log_probs = model.log_probs(example, written)
                candidates += [
                    ((*written, t), score + log_probs[t], length + 1, t == END)
                    for t in range(V)
                ]
            candidates.sort(key=lambda c: -c[1] / c[2] ** length_penalty)
            beams = candidates[:beam_width]
        np.testing.assert_array_equal(tokens[example], [b[0] for b in beams])
        np.testing.assert_allclose(scores[example], [b[1] for b in beams], rtol=1e-4)


def markov(table):
    """A step whose next token hangs on the last one alone."""

    def step(token, state, position):
        return ops.take(ops.log(ops.convert_to_tensor(table)), token, axis=0), state

    return step


# Greedy goes 3 (0.6), then 2 (0.4): 0.24. Better: 0 (0.4), then 2 (0.9): 0.36.
GARDEN_PATH = np.array(
    [
        [0.03, 0.03, 0.9, 0.04],
        [0.3999, 0.0001, 0.0001, 0.5999],
        [0.25, 0.25, 0.25, 0.25],
        [0.3, 0.2, 0.4, 0.1],
    ],
    "float32",
)


def test_beam_search_comes_back_from_a_path_that_only_began_well():
    for beam_width, expected in ((1, [3, 2, 0, 0]), (2, [0, 2, 0, 0])):
        state = ops.zeros((beam_width, 1))
        tokens, scores = decoding.beam_search(
            markov(GARDEN_PATH), state, 1, 4, START, END, beam_width
        )
        np.testing.assert_array_equal(ops.convert_to_numpy(tokens)[0, 0], expected)
        best = 0.24 if beam_width == 1 else 0.36
        assert float(ops.exp(scores[0, 0])) == pytest.approx(best, rel=1e-3)


def test_a_length_penalty_favours_longer_sequences():
    # "end" at once has 0.6; "3 3 3 end" has 0.4 x 0.9^3 = 0.29, and a higher mean.
    table = np.full((4, 4), 1e-6, "float32")
    table[START, END], table[START, 3] = 0.6, 0.4
    table[3, 3], table[3, END] = 0.9, 0.1
    found = [
        decoding.beam_search(markov(table), ops.zeros((2, 1)), 1, 4, START, END, 2, p)
        for p in (0.0, 1.0)
    ]
    short, long = (ops.convert_to_numpy(tokens)[0, 0] for tokens, _ in found)
    np.testing.assert_array_equal(short, [2, 0, 0, 0])
    np.testing.assert_array_equal(long, [3, 3, 3, 3])


def test_nothing_but_zeros_follows_the_end():
    model = TinyModel(seed=5, batch_size=8)
    tokens, _ = model.search(beam_width=2)
    ends = 0
    for row in tokens.reshape(-1, LENGTH):
        if END in row:
            ends += 1
            assert not row[list(row).index(END) + 1 :].any()
    assert ends


# Sampling


def counter(token, state, position):
    """Expects the position as the next token, whatever was written."""
    return 10.0 * ops.one_hot(ops.broadcast_to(position, token.shape), 9), state


def test_positions_go_on_from_the_start():
    logits = 10.0 * ops.one_hot(np.array([7, 7]), 9)
    tokens = decoding.sample(counter, (), logits, 4, None, start=3)
    # The first token is read at position 3, and what is expected then is the second.
    np.testing.assert_array_equal(tokens, [[7, 3, 4, 5], [7, 3, 4, 5]])
    assert ops.convert_to_numpy(tokens).dtype == np.int32


def test_without_temperature_the_likeliest_is_taken():
    model = TinyModel(seed=2, batch_size=3)
    state = {"h": ops.convert_to_tensor(model.state)}
    logits, state = model.step(np.full(3, START), state, 0)
    greedy = decoding.sample(model.step, state, logits, 2, None, start=1)
    for example, tokens in enumerate(ops.convert_to_numpy(greedy)):
        for i in range(2):
            expected = model.log_probs(example, tokens[:i]).argmax()
            assert tokens[i] == expected
    # The likeliest of one is the likeliest.
    top_1 = decoding.sample(
        model.step, state, logits, 2, random.key(1), 1.0, top_k=1, start=1
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(top_1), greedy)


@pytest.mark.parametrize(
    "temperature, top_k, expected",
    [
        (1.0, None, [0.1, 0.2, 0.3, 0.4]),
        (0.5, None, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        (1.0, 2, [0, 0, 3 / 7, 4 / 7]),
        (0.5, 2, [0, 0, 9 / 25, 16 / 25]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature, top_k, expected):
    table = np.tile(np.array([0.1, 0.2, 0.3, 0.4], "float32"), (4, 1))
    logits = ops.log(ops.convert_to_tensor(np.tile(table[:1], (500, 1))))
    tokens = ops.convert_to_numpy(
        decoding.sample(
            markov(table), (), logits, 20, random.key(0), temperature, top_k
        )
    )
    shares = np.bincount(tokens.ravel(), minlength=4) / tokens.size
    np.testing.assert_allclose(shares, expected, atol=0.02)  # 10,000 draws
    # Neither does one draw tell the next one, nor an example another.
    again = (tokens[:, 1:] == tokens[:, :-1]).mean()
    assert again == pytest.approx(np.square(expected).sum(), abs=0.025)
    others = (tokens[1:] == tokens[:-1]).mean()
    assert others == pytest.approx(np.square(expected).sum(), abs=0.025)


def test_another_key_draws_other_tokens_and_the_same_key_the_same():
    table = np.full((4, 4), 0.25, "float32")
    logits = ops.zeros((2, 4))
    draws = [
        ops.convert_to_numpy(
            decoding.sample(markov(table), (), logits, 20, random.key(seed))
        )
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.any(draws[0] != draws[2])


# Checks


def test_a_prompt_becomes_int32():
    prompt = decoding.check_tokens("prompt", [[0, 3], [2, 1]], 4)
    np.testing.assert_array_equal(prompt, [[0, 3], [2, 1]])
    assert "int32" in str(prompt.dtype)


@pytest.mark.parametrize(
    "prompt, message",
    [
        ([1, 2], r"`prompt` must be .* of shape \(B, T\), received \[1, 2\]"),
        (np.zeros((2, 0), "int32"), r"shape \(B, T\), received .*\(2, 0\)"),
        ([[0, 4]], "integers from 0 to 3.*from 0 to 4"),
        ([[-1, 2]], "integers from 0 to 3.*from -1 to 2"),
    ],
)
def test_a_bad_prompt_is_refused(prompt, message):
    with pytest.raises(ValueError, match=message):
        decoding.check_tokens("prompt", prompt, 4)


def test_a_number_out_of_range_is_refused():
    def check(**wrong):
        options = {"length": 2, "temperature": 1.0, "top_k": 5} | wrong
        decoding.check_generation([[1]], 5, **options)

    check(top_k=None)
    check(top_k=1)
    with pytest.raises(ValueError, match=r"`length` must be .*\[1, .*received 0"):
        check(length=0)
    with pytest.raises(ValueError, match=r"`top_k` .*in \[1, 5\] or None, received 6"):
        check(top_k=6)
    with pytest.raises(ValueError, match="`temperature`.*received nan"):
        check(temperature=float("nan"))
