"""Several runs at once: each is the run of its seed alone."""

import functools
import json

import keras
import numpy as np
import pytest
from gymnasium import spaces
from interruptions import Killed, interrupt
from keras import ops
from test_backups import every_step

import kit
import kit.envs
from kit.lab.run import mean_and_interval
from kit.rl import fused

# --- kit.vectorize --------------------------------------------------------------------


def network_and_optimizer(seed):
    network = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dropout(0.5, seed=seed),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    kit.initialize_weights(network, seed)
    optimizer = keras.optimizers.Adam(0.01 * (seed + 1), global_clipnorm=0.5)
    optimizer.build(network.trainable_variables)
    return network, optimizer


def training(network, optimizer):
    """Returns a function that makes three gradient steps."""
    variables = network.trainable_variables

    def loss_fn(x, y):
        return ops.mean(ops.square(network(x, training=True) - y))

    def steps(batch):
        return kit.scan(
            lambda _, x: (
                None,
                kit.minimize(lambda: loss_fn(*x), variables, optimizer),
            ),
            None,
            batch,
        )[1]

    return steps


def values(network, optimizer):
    variables = [*network.variables, *optimizer.variables]
    return [np.array(ops.convert_to_numpy(v.value), "float64") for v in variables]


def test_each_run_is_what_it_is_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 16, 3)).astype("float32")  # of 4 runs, in 3 steps
    y = rng.normal(size=(4, 3, 16, 1)).astype("float32")
    alone = [network_and_optimizer(seed) for seed in range(4)]
    expected = [
        ops.convert_to_numpy(kit.compiled(training(*parts))((x[r], y[r])))
        for r, parts in enumerate(alone)
    ]

    together = [network_and_optimizer(seed) for seed in range(4)]
    variables = [[*n.variables, *o.variables] for n, o in together]
    run = kit.compiled(
        lambda batch: kit.vectorize(training(*together[0]), variables)(batch)
    )
    losses = ops.convert_to_numpy(run((x, y)))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len({losses[r, 0] for r in range(4)}) == 4
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(values(*one), values(*other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def counters(*starts):
    return [keras.Variable(x, dtype="float32") for x in starts]


@pytest.mark.parametrize("eager", [False, True])
def test_what_is_not_an_array_is_the_same_in_all_runs(eager):
    first, second = counters(0.0, 10.0)

    def count(steps, name, times):
        first.assign_add(steps["by"] * times)
        return {"value": first.value, "name": name, "none": None}

    run = kit.compiled(
        lambda *args: kit.vectorize(count, [[first], [second]])(*args), eager=eager
    )
    result = run({"by": np.array([1.0, 2.0])}, "a", np.array([3.0, 3.0]))
    assert ops.convert_to_numpy(result["value"]).tolist() == [3.0, 16.0]
    assert (result["name"], result["none"]) == ("a", None)
    assert [float(ops.convert_to_numpy(v)) for v in (first, second)] == [3.0, 16.0]


def test_variables_of_no_run_are_shared():
    shared, first, second = counters(5.0, 1.0, 2.0)
    run = kit.vectorize(lambda: first.value + shared.value, [[first], [second]])
    assert ops.convert_to_numpy(kit.compiled(lambda: run())()).tolist() == [6.0, 7.0]


def test_runs_that_do_not_fit_together():
    first, second = counters(0.0, 0.0)
    wide = keras.Variable([0.0, 0.0])
    with pytest.raises(ValueError, match=r"same shapes.*number 1 has \[\(\(2,\)"):
        kit.vectorize(lambda: 0.0, [[first], [wide]])
    with pytest.raises(ValueError, match=r"is in the sets 0 and 1"):
        kit.vectorize(lambda: 0.0, [[first], [first]])
    run = kit.vectorize(lambda x: x, [[first], [second]])
    for x in (np.zeros(3, "float32"), np.float32(0)):
        with pytest.raises(ValueError, match=r"a leading axis of 2.*received"):
            kit.compiled(lambda x: run(x))(x)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="isn't seen there")
def test_what_is_shared_is_not_assigned():
    first, second, shared = counters(0.0, 0.0, 0.0)
    run = kit.vectorize(lambda: shared.assign_add(1.0), [[first], [second]])
    with pytest.raises(ValueError, match=r"`fn` assigned \['.*'\], which isn't among"):
        kit.compiled(lambda: run())()


# --- Agents ---------------------------------------------------------------------------


def on_policy_agent(kind, seed, learning_rate=1e-2, **options):
    actor = kit.policy_network((4,), spaces.Discrete(2), units=(8,))
    critic = kit.value_network((4,), units=(8,))
    seeds = kit.random.split_seed(seed)
    for network, network_seed in zip((actor, critic), seeds, strict=True):
        kit.initialize_weights(network, network_seed)
    agent = kind(actor, critic, num_steps=8, seed=seed, **options)
    agent.compile(keras.optimizers.Adam(learning_rate))
    return agent


def dqn_agent(seed, **options):
    network = kit.q_network((4,), 2, units=(8,))
    kit.initialize_weights(network, seed)
    options = {"buffer_size": 64, "batch_size": 8, "train_freq": 8} | options
    options = {"learning_starts": 40, "target_update_freq": 32} | options
    agent = kit.DQN(network, seed=seed, **options)
    agent.compile(keras.optimizers.Adam(1e-2))
    return agent


def table_agent(seed):
    agent = kit.QLearning(
        16, 4, horizon=4.0, initial_value=1.0, train_freq=8, seed=seed
    )
    agent.compile()
    return agent


AGENTS = {
    "ppo": functools.partial(on_policy_agent, kit.PPO, normalize_rewards=True),
    "a2c": functools.partial(on_policy_agent, kit.A2C, normalize_observations=True),
    "dqn": dqn_agent,
    "q_learning": table_agent,
}


def make_env(name):
    return (kit.envs.FrozenLake if name == "q_learning" else kit.envs.CartPole)(2)


def agree(histories, agents, alone):
    """Checks that agents have learned and reported what others have."""
    for history, agent, other in zip(histories, agents, alone, strict=True):
        assert history is agent.history
        expected = other.history.history
        assert history.history.keys() == expected.keys()
        for name in expected.keys() - {"steps_per_second"}:
            np.testing.assert_allclose(
                history.history[name], expected[name], 1e-4, 1e-5, err_msg=name
            )
        for a, b in zip(agent.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        state = (ops.convert_to_numpy(x.random.state).tolist() for x in (agent, other))
        assert len({tuple(x) for x in state}) == 1


@pytest.mark.variants(2)
@pytest.mark.parametrize("name", AGENTS)
def test_agents_learn_together_what_they_learn_alone(name):
    options = {"verbose": 0, "steps_per_epoch": 48}
    alone = AGENTS[name](4)
    alone.fit(make_env(name), 96, **options)
    agents = [AGENTS[name](seed) for seed in (3, 4)]
    histories = kit.fit_together(agents, make_env(name), 96, **options)
    agree(histories[1:], agents[1:], [alone])
    first, second = (agent.get_weights()[0] for agent in agents)
    assert not np.array_equal(first, second)


@pytest.mark.once
def test_numbers_and_learning_rates_may_differ():
    settings = [
        {"learning_rate": 1e-2, "gamma": 0.99},
        {"learning_rate": 1e-3, "gamma": 0.5},
    ]

    def make():
        return [on_policy_agent(kit.A2C, 0, **options) for options in settings]

    alone, agents = make(), make()
    for agent in alone:
        agent.fit(make_env("a2c"), 64, verbose=0, steps_per_epoch=32)
    histories = kit.fit_together(
        agents, make_env("a2c"), 64, verbose=0, steps_per_epoch=32
    )
    agree(histories, agents, alone)


@pytest.mark.once
def test_a_second_training_goes_on():
    agents = [dqn_agent(seed) for seed in (0, 1)]
    kit.fit_together(agents, make_env("dqn"), 64, verbose=0)
    before = agents[1].q_network.get_weights()[0]
    kit.fit_together(agents, make_env("dqn"), 64, verbose=0)
    assert not np.array_equal(before, agents[1].q_network.get_weights()[0])
    assert agents[1].act(np.zeros(4, "float32")) in (0, 1)


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        (lambda: [dqn_agent(0), dqn_agent(1, double=True)], r"`double` of the first"),
        (lambda: [dqn_agent(0), dqn_agent(1, batch_size=4)], "`batch_size`"),
        (lambda: [AGENTS["ppo"](0), AGENTS["a2c"](0)], "`class` of the first is PPO"),
        (lambda: [dqn_agent(0)] * 2, "is in the sets 0 and 1"),
        (lambda: [on_policy_agent(kit.A3C, 0)], "A3C: its workers"),
    ],
)
def test_agents_that_do_not_fit_together(agents, message):
    with pytest.raises(ValueError, match=message):
        kit.fit_together(agents(), make_env("dqn"), 64, verbose=0)


def test_optimizers_that_do_not_fit_together():
    agents = [dqn_agent(0), dqn_agent(1)]
    agents[1].compile(keras.optimizers.Adam(1e-2, beta_1=0.5))
    with pytest.raises(ValueError, match=r"`optimizer 1` of the first.*agents\[1\]"):
        kit.fit_together(agents, make_env("dqn"), 64, verbose=0)


@pytest.mark.once
def test_the_first_loss_that_is_not_finite_ends_all_trainings():
    agents = [on_policy_agent(kit.A2C, seed) for seed in (5, 6)]
    agents[1].optimizer.learning_rate = 1e38
    with pytest.raises(kit.finite.DivergenceError, match=r"A2C: `\w+` is") as caught:
        kit.fit_together(agents, make_env("a2c"), 640, verbose=0)
    assert caught.value.__notes__ == ["fit_together: in agents[1], seed 6."]
    assert all(np.isfinite(x).all() for x in agents[1].get_weights())


def fit_pair(name, folder=None, seeds=(3, 4), callbacks=(), **options):
    agents = [AGENTS[name](seed) for seed in seeds]
    callbacks = [*callbacks, *([every_step(folder)] if folder else [])]
    options = {"verbose": 0, "steps_per_epoch": 32, "callbacks": callbacks} | options
    return kit.fit_together(agents, make_env(name), 96, **options), agents


# After the first turn, in the middle, and after the last turn of an epoch.
@pytest.mark.once
@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_a_resumed_training_of_several_is_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setattr(fused, "STEPS_PER_CALL", 16)  # two turns in an epoch
    expected, undisturbed = fit_pair(name)
    for after in (1, 2, 1):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            interrupt(patch, after)
            fit_pair(name, tmp_path)
    for _ in range(2):  # the second time, it has finished
        histories, agents = fit_pair(name, tmp_path)
        for a, b in zip(histories, expected, strict=True):
            for column in b.history.keys() - {"steps_per_second"}:
                np.testing.assert_array_equal(a.history[column], b.history[column])
        for a, b in zip(agents, undisturbed, strict=True):
            for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
                np.testing.assert_array_equal(x, y)


@pytest.mark.once
def test_a_backup_of_other_agents_is_refused(tmp_path):
    fit_pair("a2c", tmp_path)
    with pytest.raises(ValueError, match=r"of another training: `trainings` was.*4"):
        fit_pair("a2c", tmp_path, seeds=(3, 5))
    with pytest.raises(ValueError, match="`trainings`"):
        fit_pair("a2c", tmp_path, seeds=(3, 4, 5))
    with pytest.raises(ValueError, match="`steps_per_turn` was 32, and is 96"):
        fit_pair("a2c", tmp_path, steps_per_epoch=96)


@pytest.mark.once
def test_callbacks_see_the_first_agent_and_may_stop_all():
    seen = []

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.seed)
            self.model.stop_training = epoch == 1

    histories, agents = fit_pair("a2c", callbacks=[Stop()])
    assert seen == [3, 3]
    assert [len(h.history["return"]) for h in histories] == [2, 2]
    histories, _ = fit_pair("a2c", steps_per_epoch=48)
    assert [len(h.history["return"]) for h in histories] == [2, 2]


# --- Pictures and the recipe ----------------------------------------------------------


def test_mean_and_interval_by_hand():
    nan = np.nan
    returns = [[nan, 1.0, 2.0, nan, 4.0], [9.0, nan, 4.0, 3.0, 4.0]]
    x, y, mean, half = mean_and_interval([10, 20, 30, 40, 50], returns)
    assert x.tolist() == [20, 30, 40, 50]
    assert y.tolist() == [[1, 2, 3, 4], [6.5, 4, 3, 4]]
    assert mean.tolist() == [3.75, 3, 3, 4]
    # Student's t with one degree of freedom: 12.706 standard errors.
    np.testing.assert_allclose(half, 12.7062 * np.array([2.75, 1, 0, 0]), rtol=1e-5)


def test_no_curve_where_a_run_has_ended_no_episode():
    x, y, mean, half = mean_and_interval([1, 2], [[1.0, 2.0], [np.nan, np.nan]])
    assert (len(x), y.shape, len(mean), len(half)) == (0, (2, 0), 0, 0)


@pytest.mark.once
def test_the_recipe_trains_several_seeds(load_recipe, tmp_path):
    options = {"total_timesteps": 600, "units": (8,), "num_epochs": 2}
    record = load_recipe("fused").main(
        seed=4, seeds=2, output_dir=tmp_path, verbose=0, eval_episodes=2, **options
    )
    names = {"model-4.keras", "model-5.keras", "history.csv", "learning_curve.png"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert metrics == record["metrics"]
    returns = [metrics[f"eval_return_seed_{seed}"] for seed in (4, 5)]
    assert metrics["eval_return"] == pytest.approx(np.mean(returns))
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert rows[0].startswith("seed,epoch,")
    assert {row.split(",")[0] for row in rows[1:]} == {"4", "5"}
    agent = keras.saving.load_model(tmp_path / "model-5.keras")
    assert agent.seed == 5
