"""A3C: a push by hand, staleness, workers that block, die, and are stopped; Ray."""

import collections
import functools
import json
import os
import signal
import sys
import threading
import time

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from keras import ops

import kit
from kit import a3c

LOGS = {
    "return",
    "length",
    "policy_loss",
    "value_loss",
    "entropy",
    "explained_variance",
    "staleness",
    "steps_per_second",
    "timesteps",
}
CARTPOLE = functools.partial(gymnasium.make, "CartPole-v1")


class Choice(gymnasium.Env):
    """Shows ones; action 1 earns 1, action 0 nothing; episodes have 4 steps.

    `before_step(env)` is called before each of them.
    """

    observation_space = Box(0, 1, (3,), np.float32)
    action_space = Discrete(2)

    def __init__(self, before_step=None):
        self.before_step = before_step
        self.steps = 0
        self.closed = False

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.ones(3, "float32"), {}

    def step(self, action):
        self.steps += 1
        if self.before_step:
            self.before_step(self)
        self.t += 1
        return np.ones(3, "float32"), float(action), self.t == 4, False, {}

    def close(self):
        self.closed = True


class Factory:
    """Makes such environments, and remembers them."""

    def __init__(self, before_step=None):
        self.before_step = before_step
        self.made = []

    def __call__(self):
        self.made.append(Choice(self.before_step))
        return self.made[-1]

    def workers(self):
        """The environments that workers made: the first two only were looked at."""
        return self.made[2:]


class At(keras.callbacks.Callback):
    """Calls a function with the agent after each push."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.ended = False

    def on_train_batch_end(self, batch, logs=None):
        self.function(self.model)

    def on_train_end(self, logs=None):
        self.ended = True


def networks(obs_shape=(3,), units=(4,), seed=0):
    models = [
        kit.policy_network(obs_shape, Discrete(2), units),
        kit.value_network(obs_shape, units),
    ]
    for number, model in enumerate(models):
        kit.initialize_weights(model, seed + number)
    return models


def make_agent(kind=kit.A3C, optimizer=None, obs_shape=(3,), num_steps=5, **options):
    agent = kind(*networks(obs_shape), num_steps=num_steps, **options)
    agent.compile(optimizer or keras.optimizers.RMSprop(0.01, global_clipnorm=0.5))
    return agent


def make_worker(agent, make_env, number=0):
    config, weights = agent.get_config(), agent.get_weights()
    return a3c.Worker(type(agent), config, weights, make_env, 0, number)


def push(agent, version, gradients=None, worker=0):
    if gradients is None:
        gradients = np.zeros(agent.count_params(), "float32")
    return agent.push(a3c.Push(worker, version, gradients, {}, []))


@pytest.fixture
def eager():
    """For tests of what isn't computed: nothing is compiled."""
    kit.run_eagerly()
    yield
    kit.run_eagerly(False)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() <= before


# --- A push -------------------------------------------------------------------


def test_a_push_that_is_not_stale_is_a_step_of_a2c():
    agent = make_agent(ent_coef=0.1)
    same = make_agent(kit.A2C, ent_coef=0.1)
    worker = make_worker(agent, Choice)
    agent.max_updates = 3
    for version in range(3):  # RMSprop's statistics have to follow as well
        seen, weights = agent.pull()
        assert seen == version
        worker._load(weights)
        rollout = worker.rollouts.play()
        gradients, logs = worker._differentiate(rollout, agent.numbers())
        assert push(agent, version, ops.convert_to_numpy(gradients)) == 0
        expected, _ = same._learn(rollout, np.zeros(1, "float32"))
        expected = [float(ops.convert_to_numpy(expected[name])) for name in a3c.LOGS]
        np.testing.assert_allclose(ops.convert_to_numpy(logs), expected, rtol=1e-5)
    for model, other in ((agent, same), (agent.optimizer, same.optimizer)):
        for a, b in zip(model.variables, other.variables, strict=True):
            if a.path.endswith(("state", "seed_generator_state")):
                continue  # each draws by itself
            a, b = ops.convert_to_numpy(a), ops.convert_to_numpy(b)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert agent.staleness == {0: 3}


def test_play_differentiates_at_the_weights_that_were_pulled():
    agent = make_agent()
    worker = make_worker(agent, Choice)
    worker.get_ready()
    weights = np.linspace(-1, 1, agent.count_params(), dtype="float32")
    result = worker.play(agent.numbers(), 7, weights)
    own = [ops.convert_to_numpy(v).ravel() for v in worker.agent.trainable_variables]
    np.testing.assert_array_equal(np.concatenate(own), weights)
    assert (result.worker, result.version) == (0, 7)
    assert result.gradients.shape == weights.shape and result.gradients.any()
    assert set(result.logs) == set(a3c.LOGS)
    # 5 steps to warm up, and these 5: two episodes of 4 steps, of which one ended
    # before, and is nobody's.
    assert [length for _, length in result.episodes] == [4]
    np.testing.assert_array_equal(  # the shared weights are as they were
        agent.pull()[1], make_agent().pull()[1]
    )


def test_gradients_are_applied_in_the_order_of_the_weights():
    agent = make_agent(optimizer=keras.optimizers.SGD(0.5))
    _, before = agent.pull()
    own = [ops.convert_to_numpy(v).ravel() for v in agent.trainable_variables]
    np.testing.assert_array_equal(before, np.concatenate(own))
    gradients = np.arange(len(before), dtype="float32")
    agent.max_updates = 1
    push(agent, 0, gradients)
    version, after = agent.pull()
    assert version == 1
    np.testing.assert_allclose(after, before - 0.5 * gradients, rtol=1e-6)
    first = ops.convert_to_numpy(agent.trainable_variables[0])
    np.testing.assert_array_equal(after[: first.size], first.ravel())


def test_staleness_counts_the_updates_in_between():
    agent = make_agent(optimizer=keras.optimizers.SGD(0.1))
    agent.max_updates = 4
    assert push(agent, 0, worker=0) == 0
    assert push(agent, 0, worker=1) == 1
    assert push(agent, 0, worker=2) == 2
    assert push(agent, 2, worker=1) == 1
    assert agent.staleness == collections.Counter({0: 1, 1: 2, 2: 1})
    assert agent.pushes == collections.Counter({0: 1, 1: 2, 2: 1})
    _, before = agent.pull()
    assert push(agent, 4, np.ones_like(before)) is None  # training is over
    np.testing.assert_array_equal(agent.pull()[1], before)
    assert agent.updates == 4


def test_workers_have_all_weights_and_draw_each_their_own():
    actor, critic = networks((4,))
    actor.layers[0].trainable = False
    normalization = keras.layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(size=(50, 4)))
    critic = keras.Sequential([keras.Input((4,)), normalization, critic])
    agent = kit.A3C(actor, critic, num_steps=5)
    first, second = (make_worker(agent, CARTPOLE, number) for number in (0, 1))
    for worker in (first, second):
        for a, b in zip(agent.get_weights(), worker.agent.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert worker.agent.actor is not agent.actor
    a, b = first.rollouts.play(), second.rollouts.play()
    assert not np.allclose(a["obs"], b["obs"])
    noise = [ops.convert_to_numpy(w.rollouts.draw()) for w in (first, second)]
    assert not np.allclose(*noise)
    seeds = [worker.envs.env.unwrapped.np_random_seed for worker in (first, second)]
    assert seeds[0] != seeds[1]
    first.close()
    second.close()


def test_another_fit_has_other_draws():
    agents = [kit.A3C(*networks((3,))) for _ in range(2)]
    seeds = [
        [agent.for_workers(Choice, 0)[1]["seed"] for _ in "ab"] for agent in agents
    ]
    assert seeds[0] == seeds[1] and seeds[0][0] != seeds[0][1]


# --- Training -----------------------------------------------------------------


def test_fit_learns_which_action_earns():
    agent = make_agent(optimizer=keras.optimizers.RMSprop(0.02))
    history = agent.fit(Choice, 1500, num_workers=2, verbose=0).history
    assert set(history) == LOGS
    assert all(len(column) == 50 for column in history.values())
    assert history["timesteps"][-1] == 1500
    assert agent.updates == agent.staleness.total() == agent.pushes.total() == 300
    assert agent.restarts == 0
    assert int(ops.convert_to_numpy(agent.optimizer.iterations)) == 300
    assert agent.act(np.ones(3, "float32")) == 1
    assert np.nanmean(history["return"][-10:]) > 3.5
    assert agent.evaluate(Choice(), 2)["return"] == 4


def test_no_worker_waits_for_another(eager):
    """One is kept from playing while the other pushes five times."""
    at_work, released, pushed = (threading.Event() for _ in range(3))
    roles = iter(["slow", "fast"])
    role = collections.defaultdict(lambda: next(roles))

    def before_step(env):  # 5 steps warm up
        if role[env] == "slow" and env.steps == 6:
            at_work.set()
            assert released.wait(60)
        if role[env] == "fast" and env.steps == 6:
            assert at_work.wait(60)
        if role[env] == "fast" and env.steps == 6 + 5 * 5:
            released.set()
            assert pushed.wait(60)

    agent = make_agent()
    callback = At(lambda agent: agent.updates == 6 and pushed.set())
    agent.fit(Factory(before_step), 30, num_workers=2, callbacks=[callback], verbose=0)
    assert agent.staleness == {0: 5, 5: 1}
    assert sorted(agent.pushes.values()) == [1, 5]


@pytest.mark.once
def test_environments_with_several_inside_count_all_their_steps():
    agent = make_agent(obs_shape=(4,))
    make_env = functools.partial(gymnasium.make_vec, "CartPole-v1", num_envs=3)
    history = agent.fit(make_env, 61, num_workers=1, verbose=0)
    assert history.history["timesteps"][-1] == 75  # five rollouts of 3 x 5
    assert agent.updates == 5


@pytest.mark.once
def test_nobody_pushes_while_callbacks_run(eager):
    weights = []

    def look(agent):
        if len(weights) < 3:
            before = agent.pull()[1]
            time.sleep(0.05)
            weights.append((before, agent.pull()[1]))

    agent = make_agent()
    agent.fit(Choice, 200, num_workers=2, callbacks=[At(look)], verbose=0)
    for before, after in weights:
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(weights[0][0], weights[2][0])


@pytest.mark.once
def test_callbacks_can_end_it(eager):
    agent = make_agent()

    def stop(agent):
        agent.stop_training = agent.updates >= 4

    factory, callback = Factory(), At(stop)
    agent.fit(factory, 10**9, num_workers=2, callbacks=[callback], verbose=0)
    assert callback.ended
    assert agent.updates == agent.staleness.total()
    assert all(env.closed for env in factory.made)
    # And it can go on.
    history = agent.fit(factory, 20, num_workers=1, verbose=0)
    assert agent.updates == 4 and history.history["timesteps"][-1] == 20


@pytest.mark.variants
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_errors_end_the_workers(eager, error):
    def fail(agent):
        raise error

    factory = Factory()
    with pytest.raises(error):
        make_agent().fit(factory, 10**6, callbacks=[At(fail)], verbose=0)
    assert len(factory.workers()) <= 2
    assert all(env.closed for env in factory.made)


# --- Workers that die -----------------------------------------------------------


def test_a_worker_that_dies_is_replaced(eager):
    fuse = iter([True])

    def before_step(env):
        if env.steps == 18 and next(fuse, False):  # in its third rollout
            raise OSError("boom")

    agent, factory = make_agent(), Factory(before_step)
    with pytest.warns(RuntimeWarning, match="a worker died and is replaced.*boom"):
        agent.fit(factory, 50, num_workers=1, verbose=0)
    assert agent.restarts == 1
    assert agent.pushes == {0: 2, 1: 8}
    assert len(factory.workers()) == 2
    assert all(env.closed for env in factory.made)


def test_workers_that_always_die_end_it(eager):
    def before_step(env):
        raise OSError("boom")

    agent, factory = make_agent(), Factory(before_step)
    with pytest.raises(RuntimeError, match="1 workers died, `max_restarts` is 0.*boom"):
        agent.fit(factory, 50, max_restarts=0, verbose=0)
    assert all(env.closed for env in factory.made)
    with (
        pytest.warns(RuntimeWarning, match="boom"),
        pytest.raises(RuntimeError, match="3 workers died, `max_restarts` is 2"),
    ):
        agent.fit(Factory(before_step), 50, max_restarts=2, verbose=0)


# --- The contract ---------------------------------------------------------------


def test_a_saved_agent_is_the_same_and_learns_on(tmp_path, eager):
    agent = make_agent(gamma=0.9, ent_coef=0.02, seed=3)
    agent.fit(Choice, 20, num_workers=1, verbose=0)
    agent.save(tmp_path / "a3c.keras")
    loaded = keras.saving.load_model(tmp_path / "a3c.keras")
    assert type(loaded) is kit.A3C
    config = agent.get_config()
    assert "normalize_rewards" not in config
    names = ("gamma", "gae_lambda", "num_steps", "ent_coef", "vf_coef", "seed")
    assert {x: loaded.get_config()[x] for x in names} == {x: config[x] for x in names}
    np.testing.assert_array_equal(agent.pull()[1], loaded.pull()[1])
    obs = np.random.default_rng(0).uniform(size=(20, 3)).astype("float32")
    np.testing.assert_array_equal(agent.act(obs), loaded.act(obs))
    for a, b in zip(agent.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    loaded.fit(Choice, 20, num_workers=1, verbose=0)
    assert int(ops.convert_to_numpy(loaded.optimizer.iterations)) == 8


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"env": Choice()}, TypeError, "`env` must be a function.*lambda.*Choice"),
        ({"env": lambda: 1}, TypeError, "must be a gymnasium.Env.*received 1"),
        ({"env": CARTPOLE}, ValueError, r"shape \(4,\), `actor` takes \(3,\)"),
        ({"num_workers": 0}, ValueError, r"`num_workers` must be an integer in \[1,"),
        ({"num_workers": 1.5}, TypeError, "`num_workers` must be an integer"),
        (
            {"max_restarts": -1},
            ValueError,
            r"`max_restarts` must be an integer in \[0,",
        ),
        ({"engine": "mpi"}, ValueError, "`engine`.*'threads', 'ray', received 'mpi'"),
        ({"address": "auto"}, ValueError, "`address`.*'auto' with engine='threads'"),
        (
            {"total_timesteps": 0},
            ValueError,
            r"`total_timesteps` must be a number in \[1,",
        ),
    ],
)
def test_fit_refuses(options, error, message):
    options = {"env": Choice, "total_timesteps": 10, "verbose": 0, **options}
    with pytest.raises(error, match=message):
        make_agent().fit(**options)


def test_fit_refuses_one_environment_for_all():
    env = Choice()
    with pytest.raises(ValueError, match="returned the same environment twice"):
        make_agent().fit(lambda: env, 10)


def test_fit_refuses_an_agent_that_is_not_compiled():
    with pytest.raises(ValueError, match="call `compile"):
        kit.A3C(*networks()).fit(Choice, 10)


def test_fit_refuses_batch_normalization():
    actor, critic = networks()
    inputs = keras.Input((3,))
    critic = keras.Sequential([inputs, keras.layers.BatchNormalization(), critic])
    agent = kit.A3C(actor, critic)
    agent.compile()
    with pytest.raises(ValueError, match="BatchNormalization.*LayerNormalization"):
        agent.fit(Choice, 10)


def test_ray_is_asked_for_only_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if not there
    with pytest.raises(ImportError, match=r'pip install "ray>=.*extra `ray`'):
        make_agent().fit(Choice, 10, engine="ray")


# --- Ray ------------------------------------------------------------------------


class Telling(gymnasium.Wrapper):
    """Writes the number of its process into a folder once it plays, and at the end."""

    def __init__(self, folder):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.folder = folder
        self.steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 1:
            (self.folder / str(os.getpid())).touch()
        time.sleep(0.02)  # leaves the cores to the processes that are still starting
        return super().step(action)

    def close(self):
        if self.steps:
            (self.folder / f"{os.getpid()}-closed").touch()
        super().close()


@pytest.mark.once  # arrays of NumPy go between the processes, on every backend
def test_ray_replaces_a_process_that_is_killed(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    # Workers import this file by the name that it has here.
    folders = [os.path.dirname(__file__), os.getcwd(), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
    # Ray kills workers where memory is short, as it is while other tests run beside.
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    # Ray's processes stand back (nice 15), and beside busy cores hardly ever start.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    addresses, killed = set(), []

    def kill_one(agent):
        addresses.add(ray.util.get_node_ip_address())
        # Once both play, and one of them has to go on alone until it is replaced.
        if len(agent.pushes) == 2 and not killed:
            assert agent.restarts == 0  # the one that dies is the one killed here
            killed.append(int(min(path.name for path in tmp_path.iterdir())))
            os.kill(killed[0], signal.SIGKILL)
        agent.stop_training = len(agent.pushes) == 3 or agent.updates == 10**4

    agent = make_agent(obs_shape=(4,))
    with pytest.warns(RuntimeWarning, match="a worker died and is replaced"):
        history = agent.fit(
            functools.partial(Telling, tmp_path),
            10**9,
            num_workers=2,
            engine="ray",
            steps_per_epoch=500,
            callbacks=[At(kill_one)],
            verbose=0,
        )
    assert agent.restarts == 1
    assert set(agent.pushes) == {0, 1, 2}
    assert agent.updates == agent.staleness.total()
    names = {path.name for path in tmp_path.iterdir()}
    processes = {name for name in names if "-" not in name}
    assert len(processes) == 3 and str(os.getpid()) not in processes
    assert names - processes == {
        f"{process}-closed" for process in processes if int(process) != killed[0]
    }
    assert set(history.history) == LOGS
    assert addresses == {"127.0.0.1"}  # nobody else is told
    assert not ray.is_initialized()


# --- The recipe -----------------------------------------------------------------

TINY = {
    "total_timesteps": 200,
    "units": (4,),
    "num_steps": 10,
    "worker_counts": (1,),
    "speed_frames": 40,
    "eval_episodes": 2,
    "verbose": 0,
}


def test_the_recipe_leaves_what_it_promises(load_recipe, tmp_path, capsys):
    load_recipe("a3c").main(output_dir=tmp_path, seed=1, **TINY)
    names = {
        "model.keras",
        "history.csv",
        "learning_curve.png",
        "staleness.png",
        "speed.png",
        "metrics.json",
    }
    assert names <= {path.name for path in tmp_path.iterdir()}
    record = json.loads((tmp_path / "metrics.json").read_text())
    metrics = record["metrics"]
    assert metrics["total_timesteps"] == 200
    assert metrics["staleness_mean"] >= 0
    assert metrics["restarts"] == 0
    assert metrics["steps_per_second_1_workers"] > 0
    assert set(record["baselines"]) == {"random_return", "a2c_eval_return"}
    assert record["throughput"]["unit"] == "env steps/s"
    assert capsys.readouterr().out == ""
    agent = keras.saving.load_model(tmp_path / "model.keras")
    assert type(agent) is kit.A3C
    assert agent.act(np.zeros(4, "float32")) in (0, 1)


def test_the_recipe_hands_its_flags_on(load_recipe, tmp_path, monkeypatch):
    seen = {}

    class Enough(Exception):
        pass

    def fit(self, **options):
        seen.update(options)
        raise Enough

    monkeypatch.setattr(kit.A3C, "fit", fit)
    with pytest.raises(Enough):
        load_recipe("a3c").main(
            engine="ray", address="auto", num_workers=3, output_dir=tmp_path, **TINY
        )
    assert (seen["engine"], seen["address"]) == ("ray", "auto")
    assert (seen["num_workers"], seen["total_timesteps"]) == (3, 200)


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(3))
def test_the_recipe_is_as_good_as_a2c(load_recipe, seed, tmp_path):
    record = load_recipe("a3c").main(
        seed=seed, worker_counts=(), output_dir=tmp_path, verbose=0
    )
    a2c = record["baselines"]["a2c_eval_return"]
    assert record["metrics"]["eval_return"] >= min(475, a2c)
