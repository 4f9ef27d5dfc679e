"""kit.random: known answers, JAX's own numbers, statistics."""

import statistics

import keras
import numpy as np
import pytest
from keras import layers, ops

from kit import random
from kit.backend import compiled, scan

BACKEND = keras.backend.backend()


def to_numpy(x):
    return ops.convert_to_numpy(x)


def signed(words):
    return np.array(words, dtype="uint32").astype("int32")


# --- Bits ---------------------------------------------------------------------

ONES = 0xFFFFFFFF
# Random123's kat_vectors, threefry2x32 with 20 rounds: key, counter, answer.
KNOWN_ANSWERS = [
    ([0, 0], [0, 0], [0x6B200159, 0x99BA4EFE]),
    ([ONES, ONES], [ONES, ONES], [0x1CB996FC, 0xBB002BE7]),
    ([0x13198A2E, 0x03707344], [0x243F6A88, 0x85A308D3], [0xC4923A9C, 0x483DF7A0]),
]


@pytest.mark.parametrize(("key", "counter", "answer"), KNOWN_ANSWERS)
def test_threefry_gives_the_known_answers(key, counter, answer):
    x = ops.convert_to_tensor(signed(counter))

    def block(key, x):
        return ops.stack(random._threefry(key, x[0], x[1]))

    for fn in (block, compiled(block)):
        found = fn(ops.convert_to_tensor(signed(key)), x)
        np.testing.assert_array_equal(to_numpy(found), signed(answer))


def draw_as_jax(key, logits):
    shape = (1000,)
    return {
        "key": key,
        "split": random.split(key, 5),
        "bits": random.bits(key, (20, 50)),
        "scalar": random.bits(key, ()),
        "categorical": random.categorical(key, logits, axis=0),
        "bernoulli": ops.cast(random.bernoulli(key, shape, 0.3), "int32"),
        "uniform": random.uniform(key, shape),
        "stretched": random.uniform(key, shape, -2.0, 3.0),
        "normal": random.normal(key, shape),
        "truncated_normal": random.truncated_normal(key, shape),
    }


@pytest.mark.parametrize("seed", [0, 42, 2**31, 2**32 - 1])
def test_the_numbers_of_jax_random(seed):
    if BACKEND != "jax":
        pytest.skip("compares with jax.random: needs the JAX backend")
    import jax

    shape, logits = (1000,), np.log(np.tile([[0.1], [0.2], [0.7]], (1, 1000)))
    key, jax_key = random.key(seed), jax.random.key(seed)
    ours, theirs = compiled(draw_as_jax)(key, logits), jax.random
    jax_bits = {
        "key": theirs.key_data(jax_key),
        "split": theirs.key_data(theirs.split(jax_key, 5)),
        "bits": theirs.bits(jax_key, (20, 50)),
        "scalar": theirs.bits(jax_key, ()),
        "categorical": theirs.categorical(jax_key, logits, axis=0),
        "bernoulli": theirs.bernoulli(jax_key, 0.3, shape),
    }
    for name, value in jax_bits.items():
        value = np.asarray(value).astype("int32")
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    np.testing.assert_array_equal(ours["uniform"], theirs.uniform(jax_key, shape))
    jax_floats = {
        "stretched": theirs.uniform(jax_key, shape, minval=-2.0, maxval=3.0),
        "truncated_normal": theirs.truncated_normal(jax_key, -2.0, 2.0, shape),
        "normal": theirs.normal(jax_key, shape),
    }
    for name, value in jax_floats.items():
        atol = 3e-5 if name == "normal" else 3e-6  # JAX's own rounding in the tails
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=atol, err_msg=name)


def draw_everything(key):
    return {
        "bits": random.bits(key, (2, 2)),
        "split": random.split(key, 2),
        "uniform": random.uniform(key, (4,), -1.0, 1.0),
        "normal": random.normal(key, (4,), mean=1.0, stddev=2.0),
        "truncated_normal": random.truncated_normal(key, (4,)),
        "bernoulli": random.bernoulli(key, (8,), 0.3),
        "randint": random.randint(key, (8,), -5, 17),
        "categorical": random.categorical(key, ops.zeros((8, 5))),
        "permutation": random.permutation(key, 8),
    }


# Under JAX, key(1234); the other two have to give the same.
GOLDEN = {
    "bits": [[-579783829, -833444887], [1578076316, -653489275]],
    "split": [[1264997412, -1776851121], [-1417863909, 1697627890]],
    "uniform": [0.7300169467926025, 0.6118967533, -0.26515102386, 0.69569516181],
    "normal": [3.2062032222747803, 2.72612452507, 0.3226352334, 3.05449151992],
    "truncated_normal": [1.02959740161, 0.81347692012, -0.32271185517, 0.96218013763],
    "bernoulli": [False, False, False, False, True, False, False, False],
    "randint": [14, 13, 13, -3, -3, 0, -1, 14],
    "categorical": [0, 1, 3, 4, 0, 2, 1, 3],
    "permutation": [5, 6, 1, 3, 0, 4, 2, 7],
}
SEEDS = [1857591733, 1730761204]
GOLDEN_ORTHOGONAL = [[1.985121011734, 0.24350436031], [0.24350436031, -1.985121011734]]


@pytest.mark.parametrize(
    "transform", [lambda fn: fn, compiled], ids=["plain", "compiled"]
)
def test_golden_values(transform):
    found = transform(draw_everything)(random.key(1234))
    assert found.keys() == GOLDEN.keys()
    for name, value in GOLDEN.items():
        np.testing.assert_allclose(
            to_numpy(found[name]), value, rtol=0, atol=2e-6, err_msg=name
        )
        if np.issubdtype(to_numpy(found[name]).dtype, np.integer):
            assert keras.backend.standardize_dtype(found[name].dtype) == "int32"
    np.testing.assert_allclose(
        to_numpy(random.orthogonal(random.key(1234), (2, 2), gain=2.0)),
        GOLDEN_ORTHOGONAL,
        atol=1e-6,
    )


def test_the_first_keys_of_a_split_do_not_depend_on_how_many_there_are():
    key = random.key(5)
    few, many = to_numpy(random.split(key, 3)), to_numpy(random.split(key, 100))
    np.testing.assert_array_equal(few, many[:3])
    assert len(np.unique(many, axis=0)) == 100


def test_seeds_of_one_seed_are_independent_of_those_of_the_next():
    assert random.split_seed(1234, 2) == SEEDS
    assert random.split_seed(1234, 40)[:2] == SEEDS
    # Those of 50 runs: none twice, and none the seed of a run.
    seeds = [seed for run in range(50) for seed in random.split_seed(run, 40)]
    assert len({*seeds, *range(50)}) == 2050
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)
    generator = random.Generator(3)
    drawn = [random.split_seed(generator, 1) for _ in range(3)]
    assert len(set(map(tuple, drawn))) == 3
    assert to_numpy(generator.state).tolist() == [0, 3, 3]


# --- Distributions --------------------------------------------------------------

MANY = 100_000


def chi_square(values, probabilities):
    """The statistic of Pearson's test over its expectation, in standard deviations."""
    expected = np.asarray(probabilities) * len(values)
    counts = np.bincount(values, minlength=len(expected))
    freedom = len(expected) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / (
        2 * freedom
    ) ** 0.5


def test_every_bit_is_fair_and_uniform_fills_its_range():
    words = to_numpy(random.bits(random.key(0), (MANY,)))
    for bit in range(32):
        ones = ((words >> bit) & 1).sum()
        assert abs(ones - MANY / 2) < 4 * (MANY / 4) ** 0.5
    u = to_numpy(random.uniform(random.key(1), (MANY,)))
    assert u.min() >= 0.0 and u.max() < 1.0
    assert abs(chi_square((u * 256).astype(int), [1 / 256] * 256)) < 4
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / MANY**0.5
    v = to_numpy(random.uniform(random.key(1), (MANY,), -3.0, 5.0))
    np.testing.assert_allclose(v, 8.0 * u - 3.0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_uniform_stays_below_one_in_half_precision(dtype):
    u = random.uniform(random.key(0), (MANY,), dtype=dtype)
    assert keras.backend.standardize_dtype(u.dtype) == dtype
    u = to_numpy(ops.cast(u, "float32"))
    assert u.min() == 0.0 and 0.99 < u.max() < 1.0


def test_normal_has_the_moments_and_quantiles_of_a_normal_distribution():
    z = to_numpy(random.normal(random.key(0), (MANY,), mean=3.0, stddev=2.0))
    z = (z - 3.0) / 2.0
    moments = [(z**k).mean() for k in range(1, 5)]
    spread = np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / MANY)
    assert (np.abs(moments - np.array([0.0, 1.0, 0.0, 3.0])) < 4 * spread).all()
    exact = statistics.NormalDist()
    edges = [exact.inv_cdf(i / 64) for i in range(1, 64)]
    assert abs(chi_square(np.searchsorted(edges, z), [1 / 64] * 64)) < 4


def test_normal_is_the_exact_quantile_of_its_bits():
    key, exact = random.key(3), statistics.NormalDist()
    words = (to_numpy(random.bits(key, (MANY,))).view("uint32") >> 9).astype("int64")
    u = (4 * words + 1 - 2**24) / 2.0**24
    z = to_numpy(random.normal(key, (MANY,)))
    order = np.argsort(-np.abs(u))
    for i in [*order[:200], *order[-200:], *range(200)]:
        truth = exact.inv_cdf((1.0 - abs(u[i])) / 2.0) * (-1.0 if u[i] > 0 else 1.0)
        assert z[i] == pytest.approx(truth, rel=2e-6)


def test_truncated_normal_stays_within_two_standard_deviations():
    z = to_numpy(random.truncated_normal(random.key(0), (MANY,), 1.0, 3.0))
    z = (z - 1.0) / 3.0
    assert -2.0 <= z.min() < -1.99 and 1.99 < z.max() <= 2.0
    assert z.std() == pytest.approx(0.8796, abs=0.005)
    assert z.mean() == pytest.approx(0.0, abs=0.01)


def test_randint_and_bernoulli():
    drawn = to_numpy(random.randint(random.key(0), (MANY,), -5, 17))
    assert drawn.min() == -5 and drawn.max() == 16
    assert abs(chi_square(drawn + 5, [1 / 22] * 22)) < 4
    # Bounds as data, one for each element.
    drawn = to_numpy(random.randint(random.key(0), (2, MANY), 0, np.array([[3], [7]])))
    assert drawn.min() == 0 and drawn.max(axis=1).tolist() == [2, 6]
    wide = to_numpy(random.randint(random.key(0), (1000,), -(2**31), -1))
    assert wide.min() < -(2**30) and wide.max() < -1
    heads = to_numpy(random.bernoulli(random.key(0), (MANY,), 0.2))
    assert heads.dtype == bool and abs(heads.mean() - 0.2) < 4 * (0.16 / MANY) ** 0.5
    assert not to_numpy(random.bernoulli(random.key(0), (MANY,), 0.0)).any()
    assert to_numpy(random.bernoulli(random.key(0), (MANY,), 1.0)).all()


def test_categorical_draws_in_proportion_and_never_what_is_masked():
    p = np.array([0.05, 0.0, 0.25, 0.7])
    with np.errstate(divide="ignore"):
        logits = np.tile(np.log(p), (MANY, 1)).astype("float32")
    drawn = to_numpy(random.categorical(random.key(0), logits))
    assert not (drawn == 1).any()
    kept = np.where(drawn > 1, drawn - 1, drawn)
    assert abs(chi_square(kept, p[p > 0])) < 4


@pytest.mark.parametrize("size", [80, 88, 96])
def test_categorical_compiles(size):  # XLA on TensorFlow: sizes that had no end
    logits = np.zeros((2, size), "float32")
    drawn = compiled(lambda key: random.categorical(key, logits))(random.key(0))
    eager = random.categorical(random.key(0), logits)
    np.testing.assert_array_equal(to_numpy(drawn), to_numpy(eager))
    along = random.categorical(random.key(0), logits[..., None], axis=1)
    np.testing.assert_array_equal(to_numpy(along)[:, 0], to_numpy(eager))


def test_permutation():
    order = to_numpy(random.permutation(random.key(0), 1000))
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    orders = [
        to_numpy(random.permutation(k, 3)) for k in random.split(random.key(0), 300)
    ]
    numbers = np.array(orders) @ [9, 3, 1]
    _, classes = np.unique(numbers, return_inverse=True)
    assert abs(chi_square(classes, [1 / 6] * 6)) < 4
    assert to_numpy(random.permutation(random.key(0), 1)).tolist() == [0]


def test_permutations():
    orders = to_numpy(random.permutation(random.key(0), 3, 300))
    np.testing.assert_array_equal(np.sort(orders), [[0, 1, 2]] * 300)
    _, classes = np.unique(orders @ [9, 3, 1], return_inverse=True)
    assert abs(chi_square(classes, [1 / 6] * 6)) < 4
    first = to_numpy(random.permutation(random.key(0), 9, 1))
    np.testing.assert_array_equal(first, [to_numpy(random.permutation([0, 0], 9))])


@pytest.mark.parametrize(
    "transform", [lambda fn: fn, compiled], ids=["plain", "compiled"]
)
def test_the_backends_argsort_is_stable_as_permutation_needs(transform):
    x = np.random.default_rng(0).integers(-3, 3, (3, 4096)).astype("int32")
    for draws in (x[0], x):
        order = to_numpy(transform(ops.argsort)(ops.convert_to_tensor(draws)))
        np.testing.assert_array_equal(order, np.argsort(draws, kind="stable"))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (3, 2, 4)])
def test_orthogonal(shape):
    q = to_numpy(random.orthogonal(random.key(0), shape)).reshape(-1, shape[-1])
    gram = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
    np.testing.assert_allclose(gram, np.eye(min(q.shape)), atol=1e-6)


# --- Generator ------------------------------------------------------------------


def test_generator_hands_out_the_keys_of_a_split():
    generator = random.Generator(7)
    keys = [to_numpy(generator.next()) for _ in range(4)]
    np.testing.assert_array_equal(keys, to_numpy(random.split(random.key(7), 4)))
    assert to_numpy(generator.state).tolist() == [0, 7, 4]
    np.testing.assert_array_equal(
        to_numpy(random.normal(random.Generator(7), (3,))),
        to_numpy(random.normal(keys[0], (3,))),
    )


def test_a_compiled_function_draws_anew_at_each_call():
    def draw(generator):
        return random.normal(generator, (3,)), random.permutation(generator, 9)

    generator, twin, looping = [random.Generator(2**32 - 1) for _ in range(3)]
    compiled_draw = compiled(lambda: draw(generator))
    calls = [[to_numpy(x) for x in compiled_draw()] for _ in range(4)]
    assert len({tuple(normals) for normals, _ in calls}) == 4
    _, looped = compiled(
        lambda: scan(lambda c, _: (c, random.bits(looping, (2,))), 0.0, length=4)
    )()
    assert len(np.unique(to_numpy(looped))) == 8
    assert to_numpy(looping.state)[2] == 4
    for normals, order in calls:
        expected_normals, expected_order = draw(twin)
        np.testing.assert_allclose(normals, to_numpy(expected_normals), atol=2e-6)
        np.testing.assert_array_equal(order, to_numpy(expected_order))


@keras.saving.register_keras_serializable(package="test")
class Noise(layers.Layer):
    def __init__(self, keep_state=False, **kwargs):
        super().__init__(**kwargs)
        self.generator = random.Generator(3)
        if keep_state:
            self.generator_state = self.generator.state

    def call(self, x):
        return x + random.uniform(self.generator, x.shape[1:])


def test_a_layer_tracks_its_generator(tmp_path):
    model = keras.Sequential([keras.Input((2,)), Noise(), layers.Dense(1)])
    state = model.layers[0].generator.state
    assert any(state is v for v in model.non_trainable_variables)
    assert not any(state is v for v in model.weights)
    first, second = to_numpy(model(np.ones((1, 2)))), to_numpy(model(np.ones((1, 2))))
    assert not np.allclose(first, second)
    model.compile("sgd", "mse")
    before = to_numpy(state)[2]
    model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=4, verbose=0)
    assert to_numpy(state)[2] == before + 2
    model.save(tmp_path / "model.keras")
    keras.saving.load_model(tmp_path / "model.keras")


def test_generator_round_trips_through_its_config():
    generator = random.Generator(11, name="dice")
    twin = random.Generator.from_config(generator.get_config())
    assert (twin.seed, twin.name) == (11, "dice")
    config = keras.saving.serialize_keras_object(generator)
    assert keras.saving.deserialize_keras_object(config).seed == 11


# --- Wrong arguments ------------------------------------------------------------

KEY = [0, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: random.key(-1), ValueError, "seed.*-1"),
        (lambda: random.key(2**32), ValueError, "seed.*4294967296"),
        (lambda: random.key(0.5), TypeError, "seed.*0.5.*float"),
        (lambda: random.key(True), TypeError, "seed.*bool"),
        (lambda: random.Generator("a"), TypeError, "seed.*str"),
        (lambda: random.bits(3, (2,)), TypeError, "key.*3.*int"),
        (
            lambda: random.bits([0, 1, 2], (2,)),
            ValueError,
            r"`key`.*\(2,\).*received \[0, 1, 2\]",
        ),
        (
            lambda: random.bits([0.0, 1.0], (2,)),
            TypeError,
            r"`key`.*int32.*received \[0\.0, 1\.0\]",
        ),
        (
            lambda: random.bits(keras.random.SeedGenerator(0), (2,)),
            TypeError,
            "kit.random.Generator",
        ),
        (lambda: random.bits(KEY, 3), TypeError, "shape.*3"),
        (lambda: random.bits(KEY, (None, 3)), TypeError, "shape.*None"),
        (lambda: random.bits(KEY, (-1,)), ValueError, r"shape.*\(-1,\)"),
        (lambda: random.bits(KEY, (2**16, 2**16)), ValueError, r"shape.*2\*\*31"),
        (lambda: random.split(KEY, 0), ValueError, "num.*0"),
        (lambda: random.split(KEY, 1.5), TypeError, "num.*float"),
        (lambda: random.split_seed(KEY), TypeError, "`seed`"),
        (lambda: random.split_seed(0, 0), ValueError, "num.*0"),
        (lambda: random.uniform(KEY, (2,), 1.0, 0.0), ValueError, "minval.*maxval=0.0"),
        (lambda: random.normal(KEY, (2,), dtype="int32"), ValueError, "dtype.*int32"),
        (
            lambda: random.bernoulli(KEY, (2,), 1.5),
            ValueError,
            r"`p`.*\[0, 1\], received 1\.5",
        ),
        (lambda: random.randint(KEY, (2,), 4, 4), ValueError, "minval=4, maxval=4"),
        (lambda: random.randint(KEY, (2,), -5, 2**31 - 1), ValueError, "difference"),
        (lambda: random.categorical(KEY, [[0.0]], 2), ValueError, "axis=2"),
        (lambda: random.permutation(KEY, 0), ValueError, "n.*0"),
        (lambda: random.permutation(KEY, 2, 1.0), TypeError, "num.*float"),
        (lambda: random.orthogonal(KEY, (3,)), ValueError, r"shape.*\(3,\)"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        call()
