"""JAX environments of other packages in compiled loops.

`tox -e simulators` installs those packages.
"""

import importlib.util
from typing import Any, NamedTuple

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.experimental.functional import FuncEnv

import kit
import kit.envs
from kit.rl import functional

ON_JAX = keras.backend.backend() == "jax"
only_jax = pytest.mark.skipif(not ON_JAX, reason="these environments are in JAX")
to_numpy = keras.ops.convert_to_numpy


def play(env, num_steps):
    """Plays with random actions, numbers or vectors; returns the steps."""

    def whole(key):
        begin_key, noise_key, play_key = keras.ops.unstack(kit.random.split(key, 3))
        position = functional.begin(env, begin_key)
        space = env.action_space
        shape = (num_steps, env.num_envs, *space.shape)
        if isinstance(space, gymnasium.spaces.Box):
            noise = kit.random.uniform(noise_key, shape, -1.0, 1.0)
        else:
            noise = kit.random.randint(noise_key, shape, 0, int(space.n))
        return functional.play(
            env, position, lambda obs, action: action, noise, num_steps, play_key
        )[1]

    return keras.tree.map_structure(to_numpy, kit.compiled(whole)(kit.random.key(0)))


class Walk(FuncEnv):
    """A walk to 3 or -3, from a place that is drawn."""

    observation_space = gymnasium.spaces.Box(-3.0, 3.0, (1,), "float32")
    action_space = gymnasium.spaces.Discrete(2)

    def initial(self, rng, params=None):
        import jax

        return {"x": jax.random.randint(rng, (), -1, 2)}

    def transition(self, state, action, rng, params=None):
        return {"x": state["x"] + 2 * action - 1}

    def observation(self, state, rng, params=None):
        return state["x"][None] * 1.0

    def reward(self, state, action, next_state, rng, params=None):
        return next_state["x"] - state["x"]

    def terminal(self, state, rng, params=None):
        return abs(state["x"]) >= 3


@only_jax
def test_func_env():
    env = kit.envs.from_func_env(Walk(), 16, max_episode_steps=10)
    steps = play(env, 100)
    moved = steps["next_obs"][..., 0] - steps["obs"][..., 0]
    np.testing.assert_array_equal(moved, 2 * steps["action"] - 1)
    np.testing.assert_array_equal(steps["reward"], moved)
    at_an_end = np.abs(steps["next_obs"][..., 0]) == 3
    np.testing.assert_array_equal(steps["terminated"], at_an_end)
    np.testing.assert_array_equal(
        steps["ended"], at_an_end | (steps["episode_length"] == 10)
    )
    assert steps["episode_length"].max() == 10
    first = steps["obs"][1:][steps["ended"][:-1]]
    assert set(first.ravel()) == {-1.0, 0.0, 1.0}


@only_jax
@pytest.mark.skipif(
    not importlib.util.find_spec("flax"), reason="Gymnasium's own need flax"
)
def test_cart_pole_of_gymnasium():
    import jax
    from gymnasium.envs.phys2d.cartpole import CartPoleFunctional

    # Not the kit's CartPole: its moment of the pole is another one.
    theirs = CartPoleFunctional()
    move = jax.vmap(lambda state, action: theirs.transition(state, action, None))
    compare_transitions(kit.envs.from_func_env(theirs, 64, 500), move)


@only_jax
@pytest.mark.skipif(not importlib.util.find_spec("gymnax"), reason="no gymnax")
def test_cart_pole_of_gymnax_is_the_kits():
    import gymnax

    env = kit.envs.from_gymnax(*gymnax.make("CartPole-v1"), num_envs=64)
    assert env.observation_space.shape == (4,) and env.action_space.n == 2
    ours, key = kit.envs.CartPole(), kit.random.key(0)
    compare_transitions(env, lambda state, action: ours.step(state, action, key)[0])


def compare_transitions(env, move):
    steps = play(env, 100)
    assert steps["ended"].sum() > 100
    obs, action = steps["obs"].reshape(-1, 4), steps["action"].reshape(-1)
    after = to_numpy(move(obs, action))
    next_obs = steps["next_obs"].reshape(-1, 4)
    np.testing.assert_allclose(after, next_obs, rtol=1e-5, atol=1e-6)
    # Ends are where the pole fell or the cart left.
    at_an_end = (abs(after[:, 0]) > 2.4) | (abs(after[:, 2]) > np.radians(12))
    np.testing.assert_array_equal(at_an_end, steps["terminated"].ravel())


@only_jax
@pytest.mark.skipif(not importlib.util.find_spec("gymnax"), reason="no gymnax")
def test_gymnax_truncates():
    import gymnax

    env, params = gymnax.make("MountainCar-v0")
    params = params.replace(max_steps_in_episode=7)
    steps = play(kit.envs.from_gymnax(env, params, num_envs=2), 14)
    assert np.flatnonzero(steps["ended"][:, 0]).tolist() == [6, 13]
    assert not steps["terminated"].any()


class Slide:
    """An environment as Brax has them: a mass that actions push."""

    observation_size = 2
    action_size = 1

    def reset(self, rng):
        import jax

        return self.State(jax.random.uniform(rng, (2,)), 0.0, 0.0, rng)

    def step(self, state, action):
        import jax.numpy as jnp

        place, speed = state.obs
        speed = speed + 0.1 * action[0]
        obs = jnp.stack([place + 0.1 * speed, speed])
        done = jnp.where(abs(obs[0]) > 1.2, 1.0, 0.0)
        return self.State(obs, -abs(place), done, state.rng)

    class State(NamedTuple):
        obs: Any
        reward: Any
        done: Any
        rng: Any  # a key, as in MuJoCo Playground


@only_jax
def test_physics_as_in_brax():
    env = kit.envs.from_brax(Slide(), 16, max_episode_steps=20)
    assert env.observation_space.shape == (2,) and env.action_space.shape == (1,)
    steps = play(env, 60)
    before, after = steps["obs"], steps["next_obs"]
    speed = before[..., 1] + 0.1 * steps["action"][..., 0]
    np.testing.assert_allclose(after[..., 1], speed, rtol=1e-5)
    np.testing.assert_allclose(after[..., 0], before[..., 0] + 0.1 * speed, rtol=1e-5)
    np.testing.assert_allclose(steps["reward"], -abs(before[..., 0]), rtol=1e-6)
    np.testing.assert_array_equal(steps["terminated"], abs(after[..., 0]) > 1.2)
    assert steps["terminated"].any() and steps["episode_length"].max() == 20


@only_jax
def test_observations_of_brax_are_vectors():
    class Several(Slide):
        observation_size = {"state": 3, "pixels": (8, 8)}

    with pytest.raises(TypeError, match="from_brax: `env` must have vectors.*pixels"):
        kit.envs.from_brax(Several())


@only_jax
@pytest.mark.filterwarnings("ignore")  # of Brax, and of what it imports
@pytest.mark.skipif(not importlib.util.find_spec("brax"), reason="no brax")
def test_inverted_pendulum_of_brax():
    import jax
    from brax import envs

    theirs = envs.get_environment("inverted_pendulum", backend="spring")
    env = kit.envs.from_brax(theirs, 8, max_episode_steps=100)
    steps = play(env, 30)
    assert steps["terminated"].any()
    # The first episode again, by Brax itself, from the same state.
    state = env.reset(kit.random.key(5), 8)
    key = kit.random.key(6)
    action = np.linspace(-1, 1, 8, dtype="float32")[:, None]
    after, reward, terminated, truncated = env.step(state, action, key)
    before = env._unpack(state)
    expected = jax.vmap(theirs.step)(before, action)
    np.testing.assert_allclose(after["obs"], expected.obs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reward, expected.reward, rtol=1e-6)
    assert not truncated.any() and not terminated.any()


@only_jax
@pytest.mark.filterwarnings("ignore")  # of MuJoCo's packages
@pytest.mark.skipif(
    not importlib.util.find_spec("mujoco_playground"), reason="no MuJoCo Playground"
)
def test_cart_pole_of_mujoco_playground():
    import jax
    from mujoco_playground import registry

    theirs = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    env = kit.envs.from_brax(theirs, 4, max_episode_steps=10)
    steps = play(env, 20)
    ends = np.flatnonzero(steps["ended"][:, 0]).tolist()
    assert ends == [9, 19] and not steps["terminated"].any()
    state = env.reset(kit.random.key(5), 4)
    action = np.linspace(-1, 1, 4, dtype="float32")[:, None]
    after, reward, *_ = env.step(state, action, kit.random.key(6))
    expected = jax.vmap(theirs.step)(env._unpack(state), action)
    np.testing.assert_allclose(after["obs"], expected.obs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reward, expected.reward, rtol=1e-5)


@pytest.mark.skipif(ON_JAX, reason="what other backends say")
def test_other_backends_are_named():
    backend = keras.backend.backend()
    message = f"Walk runs only where Keras runs on jax; the backend is '{backend}'"
    with pytest.raises(ValueError, match=message):
        kit.envs.from_func_env(Walk())
    with pytest.raises(ValueError, match=message):
        kit.envs.from_gymnax(Walk())
    with pytest.raises(ValueError, match=message):
        kit.envs.from_brax(Walk())
