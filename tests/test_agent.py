"""What all agents share: options that are set later, seeds of trainings, files."""

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from keras import ops

import kit
from kit import backend
from kit.a3c import Worker
from kit.rl.agent import Agent

KINDS = ("dqn", "q_learning", "a2c", "ppo", "a3c")


class World(gymnasium.Env):
    """Episodes of four steps, with random observations; remembers seeds and actions."""

    def __init__(self, numbered=False, start=0):
        self.numbered, self.start = numbered, start
        self.action_space = Discrete(3, start=start)
        self.observation_space = Box(-1, 1, (3,))
        if numbered:
            self.observation_space = Discrete(5, start=2 * start)
        self.seeds, self.actions = [], []

    def _observe(self):
        if self.numbered:
            return int(self.np_random.integers(5)) + 2 * self.start
        return self.np_random.uniform(-1, 1, 3).astype("float32")

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.seeds.append(seed)
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        self.actions.append(int(action))
        return self._observe(), float(action - self.start), self.t == 4, False, {}


def make_agent(kind, learning_rate=0.1, start=0, **options):
    if kind == "q_learning":
        agent = kit.QLearning(5, 3, **options)
    elif kind == "dqn":
        network = kit.q_network((3,), 3, units=(4,))
        kit.initialize_weights(network, 0)
        defaults = {"learning_starts": 1, "batch_size": 8, "train_freq": 5}
        agent = kit.DQN(network, **(defaults | options))
    else:
        networks = (
            kit.policy_network((3,), Discrete(3, start=start), (4,)),
            kit.value_network((3,), (4,)),
        )
        for network, seed in zip(networks, kit.random.split_seed(0), strict=True):
            kit.initialize_weights(network, seed)
        made = {"a2c": kit.A2C, "ppo": kit.PPO, "a3c": kit.A3C}[kind]
        options = {"num_steps": 10} | options
        if kind == "ppo":
            options = {
                "num_epochs": 2,
                "num_minibatches": 2,
                "target_kl": 9.0,
            } | options
        agent = made(*networks, **options)
    agent.compile(keras.optimizers.SGD(learning_rate))
    return agent


def fit(agent, seed=None, start=0, **options):
    """Trains for 20 steps; returns the seed of the environment and the actions."""
    worlds = []

    def make():
        worlds.append(World(isinstance(agent, kit.QLearning), start))
        return worlds[-1]

    env = make
    if isinstance(agent, kit.A3C):
        options["num_workers"] = 1
    else:
        env = make()
    agent.fit(env, 20, verbose=0, seed=seed, **options)
    played = worlds[-1]
    assert played.seeds[0] is not None and set(played.seeds[1:]) == {None}
    return played.seeds[0], played.actions


def weights_of(agent):
    return np.concatenate([np.ravel(x) for x in agent.get_weights()])


# --- Seeds ----------------------------------------------------------------------


@pytest.mark.variants
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fit_has_other_draws(kind):
    runs = []
    for _ in range(2):
        agent = make_agent(kind, learning_rate=0.0, seed=3)
        runs.append([fit(agent), fit(agent)])
    assert runs[0] == runs[1]
    (seed, actions), (next_seed, next_actions) = runs[0]
    assert seed != next_seed and actions != next_actions
    # Vector environments count up from their seed: another run's has to be far away.
    others = sorted(make_agent(kind, seed=s).env_seed(None) for s in range(4))
    assert np.diff(others).min() > 1000


@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_that_is_given_is_that_of_the_environment(kind):
    agent = make_agent(kind)
    seeds = [fit(agent, seed=7)[0] for _ in range(2)]
    expected = kit.random.split_seed(7, 1)[0] if kind == "a3c" else 7
    assert seeds == [expected, expected]


@pytest.mark.variants(2)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_agent_goes_on_with_the_draws(kind, tmp_path):
    agent = make_agent(kind)
    first = fit(agent)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.saving.load_model(tmp_path / "agent.keras")
    after = fit(loaded)
    assert after == fit(agent)
    assert after[0] != first[0]
    np.testing.assert_allclose(weights_of(loaded), weights_of(agent), rtol=1e-5)


@pytest.mark.parametrize("kind", ["dqn", "q_learning"])
def test_files_without_a_generator_load(kind):
    agent, store = make_agent(kind), {}
    agent.save_own_variables(store)
    del store["random"]
    agent.random.next()
    agent.load_own_variables(store)
    assert ops.convert_to_numpy(agent.random.state).tolist() == [0, 0, 1]


# --- Options that are set later -------------------------------------------------

SCHEDULE = keras.optimizers.schedules.PolynomialDecay(1e-3, 100, 0.0)
# Kind, options at first, those to set, and whether the program stays as it is.
LATER = [
    ("dqn", {}, {"gamma": 0.1}, True),
    ("dqn", {"gradient_steps": 20}, {"double": True}, False),
    ("q_learning", {"horizon": 3.0}, {"gamma": 0.1, "horizon": 0.5}, True),
    ("q_learning", {"horizon": 3.0}, {"horizon": None}, False),
    ("q_learning", {"horizon": 3.0}, {"algorithm": "expected_sarsa"}, False),
    ("a2c", {}, {"gamma": 0.1, "gae_lambda": 0.5, "ent_coef": 3.0, "vf_coef": 3.0}, 1),
    ("a2c", {}, {"normalize_advantages": True}, False),
    ("a3c", {}, {"ent_coef": 3.0}, False),  # workers compile in each `fit`
    ("ppo", {}, {"gamma": 0.1, "gae_lambda": 0.5, "ent_coef": 3.0, "vf_coef": 3.0}, 1),
    ("ppo", {}, {"clip_coef": 1e-3, "target_kl": 0.0}, True),
    ("ppo", {}, {"num_epochs": 1, "num_minibatches": 1}, False),
    # Whether a program is made anew is decided in Python.
    *(
        pytest.param("ppo", *case, False, marks=pytest.mark.once)
        for case in (
            ({"target_kl": 0.0}, {"target_kl": None}),
            ({}, {"clip_coef": SCHEDULE}),
            ({}, {"clip_value_loss": False, "normalize_advantages": False}),
        )
    ),
]


@pytest.mark.once
@pytest.mark.parametrize(
    ("kind", "options", "later", "same_program"),
    LATER,
    ids=lambda x: "-".join(x) if isinstance(x, dict) else str(x),
)
def test_options_that_are_set_after_fit_count(
    kind, options, later, same_program, monkeypatch
):
    traces = []
    original = backend._Compiled._trace

    def trace(*args):
        traces.append(args)
        return original(*args)

    monkeypatch.setattr(backend._Compiled, "_trace", trace)
    agent = make_agent(kind, **options)
    fit(agent)
    variables = [*agent.variables, *agent.optimizer.variables]
    state = [ops.convert_to_numpy(v).copy() for v in variables]
    results = []
    for step in ("without", "set", "compile"):  # each from the same state
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)
        if step == "set":
            for name, value in later.items():
                setattr(agent, name, value)
        if step == "compile":
            agent.compile(agent.optimizer)
        traces.clear()
        fit(agent)
        if step == "set":
            assert bool(traces) != same_program
        results.append(weights_of(agent))
    without, found, expected = results
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(found, without, rtol=1e-3)


def test_a_callback_changes_what_workers_learn_by(monkeypatch):
    agent, seen = make_agent("a3c"), []
    original = Worker.play

    def play(worker, numbers, version, weights):
        with worker.agent.using(numbers):
            seen.append(float(ops.convert_to_numpy(worker.agent.ent_coef)))
        return original(worker, numbers, version, weights)

    monkeypatch.setattr(Worker, "play", play)

    def set_entropy(batch, logs):
        agent.ent_coef = 0.5

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=set_entropy)
    agent.fit(World, 100, num_workers=1, callbacks=[callback], verbose=0)
    assert seen[0] == pytest.approx(0.01) and seen[-1] == 0.5


def test_workers_differentiate_by_the_numbers_of_their_agent():
    agent = make_agent("a3c")
    worker = Worker(*agent.for_workers(World, 0), 0)
    rollout = worker.rollouts.play()
    gradients = {}
    for ent_coef in (0.01, 2.0):
        agent.ent_coef = ent_coef
        found, _ = worker._differentiate(rollout, agent.numbers())
        gradients[ent_coef] = ops.convert_to_numpy(found)
    other = Worker(*agent.for_workers(World, 0), 0)
    expected, _ = other._differentiate(rollout, other.agent.numbers())
    np.testing.assert_allclose(
        gradients[2.0], ops.convert_to_numpy(expected), rtol=1e-4, atol=1e-6
    )
    assert not np.allclose(gradients[2.0], gradients[0.01], rtol=1e-2)


WRONG = [
    ("dqn", "gamma", 1.5),
    ("dqn", "gamma", "high"),
    ("dqn", "tau", 0.0),
    ("dqn", "double", 1),
    ("dqn", "train_freq", 2.5),
    ("q_learning", "horizon", -1.0),
    ("q_learning", "horizon", "long"),
    ("q_learning", "algorithm", "td"),
    ("q_learning", "algorithm", 3),
    ("a2c", "ent_coef", -0.1),
    ("a2c", "ent_coef", float("nan")),
    ("a2c", "num_steps", 0),
    ("a3c", "gae_lambda", 2.0),
    ("ppo", "clip_coef", 0.0),
    ("ppo", "clip_coef", None),
    ("ppo", "target_kl", -1.0),
    ("ppo", "normalize_advantages", "no"),
    ("ppo", "normalize_rewards", "no"),
]


@pytest.mark.once
@pytest.mark.parametrize(("kind", "name", "value"), WRONG)
def test_a_wrong_option_is_refused_wherever_it_is_set(kind, name, value):
    agent = make_agent(kind)
    before = getattr(agent, name)
    with pytest.raises((TypeError, ValueError), match=f": `{name}` must ") as made:
        make_agent(kind, **{name: value})
    with pytest.raises(made.type) as later:
        setattr(agent, name, value)
    assert str(later.value) == str(made.value)
    assert getattr(agent, name) == before


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("ppo", "normalize_observations", True),
        ("a2c", "normalize_rewards", True),
        ("q_learning", "num_states", 6),
        ("q_learning", "initial_value", 1.0),
        ("dqn", "seed", 1),
    ],
)
def test_what_an_agent_is_built_by_cannot_be_changed(kind, name, value):
    agent = make_agent(kind)
    setattr(agent, name, getattr(agent, name))
    with pytest.raises(AttributeError, match=f"`{name}` can't be changed from .* to "):
        setattr(agent, name, value)


# --- What a subclass defines ----------------------------------------------------


@keras.saving.register_keras_serializable(package="test")
class Highest(Agent):
    """Does what its observation is highest in; has nothing else of its own."""

    obs_shape = (3,)

    def __init__(self, *, seed=0, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.bias = self.add_weight(shape=(3,), initializer="zeros", name="bias")
        self.build()

    def call(self, inputs, training=None):
        return ops.cast(inputs, "float32") + self.bias

    def check_spaces(self, envs):
        self.check_box(envs, "bias")

    def greedy_policy(self, envs=None):
        first = 0 if envs is None else envs.action_space.start
        return lambda obs: ops.convert_to_numpy(self(obs)).argmax(-1) + first


def test_an_agent_acts_and_plays_by_what_its_class_defines():
    agent = Highest()
    assert (agent.act([0, 3, 1]), type(agent.act([0, 3, 1]))) == (1, int)
    assert agent.act(np.eye(3)[[2, 0]]).tolist() == [2, 0]
    for shape in ((), (2,), (1, 1, 3)):
        with pytest.raises(ValueError, match=r"Highest: `obs` must have shape \(3,\)"):
            agent.act(np.zeros(shape))
    world = World(start=5)
    agent.bias.assign([0.0, 0.0, 9.0])
    assert agent.evaluate(world, 2) == {
        "return": 8.0,
        "return_std": 0.0,
        "length": 4.0,
        "episodes": 2,
    }
    assert world.actions == [7] * 8
    with pytest.raises(ValueError, match=r"Discrete\(5\) doesn't fit `bias`"):
        agent.evaluate(World(numbered=True), 1)


def test_an_agent_is_saved_with_its_optimizer(tmp_path):
    agent = Highest(seed=4)
    assert agent.get_compile_config() is None
    with pytest.raises(ValueError, match="Highest: call `compile"):
        agent.check_compiled()
    agent.compile(keras.optimizers.Adam(0.25))
    agent.check_compiled()
    agent.optimizer.build(agent.trainable_variables)
    agent.optimizer.iterations.assign(3)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.saving.load_model(tmp_path / "agent.keras")
    assert float(loaded.optimizer.learning_rate) == 0.25
    assert int(loaded.optimizer.iterations) == 3 and loaded.seed == 4


def test_what_a_class_must_define_is_named():
    agent = Agent(seed=0)
    for method in (agent.fit, agent.check_spaces, agent.greedy_policy):
        with pytest.raises(NotImplementedError, match=f"`{method.__name__}` isn't def"):
            method(None)


# --- Actions --------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
def test_an_action_is_what_the_environment_takes(kind, tmp_path):
    agent = make_agent(kind, start=5)
    _, actions = fit(agent, start=5)
    assert set(actions) <= {5, 6, 7}
    agent.save(tmp_path / "agent.keras")
    world = World(kind == "q_learning", start=5)
    batch = np.arange(10, 15) if world.numbered else np.ones((5, 3), "float32")
    for used in (agent, keras.saving.load_model(tmp_path / "agent.keras")):
        assert used.evaluate(world, 2)["length"] == 4
        action = used.act(batch[0])
        assert action in (5, 6, 7) and np.ndim(action) == 0
        several = used.act(batch)
        assert several[0] == action and set(several) <= {5, 6, 7}


def test_an_agent_that_saw_no_environment_is_told_how_actions_count():
    starts = {"state_start": 10, "action_start": 5}
    agent = kit.QLearning(5, 3, **starts)
    assert agent.act(14) == 5 and agent.act(np.array([10, 11])).tolist() == [5, 5]
    for state in (9, 15):
        with pytest.raises(ValueError, match=f"between 10 and 14, received {state}"):
            agent.act(state)
    network = kit.q_network((3,), 3, units=(4,))
    assert kit.DQN(network, action_start=5).act(np.ones(3, "float32")) in (5, 6, 7)
    assert kit.DQN(network).act(np.ones(3, "float32")) in (0, 1, 2)
    with pytest.raises(TypeError, match="`action_start` must be an integer"):
        kit.DQN(network, action_start=0.5)


# --- Compilation ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dqn", "a2c", "ppo", "q_learning"])
def test_programs_are_compiled_as_asked(kind, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "kit.rl.agent.compiled",
        lambda fn, inductor: asked.append(inductor) or backend.compiled(fn),
    )
    agent = make_agent(kind)
    for choice in (False, True):
        agent.compile(agent.optimizer, jit_compile=choice)
        assert agent._play_and_learn
    assert asked == [False, True]
