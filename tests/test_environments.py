"""Environments: one view on an env and on vector envs in three autoreset modes."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from kit.rl.environments import Environments, play_episodes, random_policy

pytestmark = pytest.mark.once

MODES = [None, *AutoresetMode]
MODE_IDS = ["env", *(mode.name.lower() for mode in AutoresetMode)]


class Scripted(gymnasium.Env):
    """Episodes of given lengths; observes (name, episode, step).

    Action a at step t of episode e gives the reward 100 e + 10 t + a. Every other
    episode ends with `truncated`, the others with `terminated`.
    """

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Discrete(2)

    def __init__(self, lengths=(3, 1, 4), name=0):
        self.lengths, self.name, self.episode = lengths, name, -1
        self.seeds, self.over = [], True

    def _obs(self):
        return np.array([self.name, self.episode, self.t], np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.t, self.over = self.episode + 1, 0, False
        return self._obs(), {}

    def step(self, action):
        assert not self.over, "stepped after an end"
        reward = 100.0 * self.episode + 10.0 * self.t + action
        self.t += 1
        self.over = self.t == self.lengths[self.episode % len(self.lengths)]
        truncated = self.over and self.episode % 2 == 1
        return self._obs(), reward, self.over and not truncated, truncated, {}


class Fixed(Scripted):
    """Each step gives the reward `name`."""

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(self.name), terminated, truncated, info


def make(mode, *environments):
    if mode is None:
        (env,) = environments
        return env
    return SyncVectorEnv([lambda e=e: e for e in environments], autoreset_mode=mode)


def policy(obs):
    return (obs.sum(axis=-1) % 2).astype(np.int64)


def transitions(envs, steps, seed=None):
    """The transitions of each environment, as tuples."""
    found = [[] for _ in range(envs.num_envs)]
    obs = envs.reset(seed)
    for _ in range(steps):
        action = policy(obs)
        step = envs.step(action)
        for i in range(envs.num_envs):
            if step.valid is None or step.valid[i]:
                row = (
                    tuple(obs[i].tolist()),
                    int(action[i]),
                    float(step.reward[i]),
                    bool(step.terminated[i]),
                    bool(step.truncated[i]),
                    tuple(step.next_obs[i].tolist()),
                )
                found[i].append(row)
        obs = step.obs
    return found


@pytest.mark.parametrize("mode", MODES, ids=MODE_IDS)
def test_transitions_by_hand(mode):
    envs = Environments(make(mode, Scripted((2, 1, 3))))
    (found,) = transitions(envs, 9)
    assert found[:5] == [
        ((0, 0, 0), 0, 0.0, False, False, (0, 0, 1)),
        ((0, 0, 1), 1, 11.0, True, False, (0, 0, 2)),
        ((0, 1, 0), 1, 101.0, False, True, (0, 1, 1)),
        ((0, 2, 0), 0, 200.0, False, False, (0, 2, 1)),
        ((0, 2, 1), 1, 211.0, False, False, (0, 2, 2)),
    ]
    assert envs.episodes[:3] == [(11.0, 2), (101.0, 1), (200.0 + 211 + 220, 3)]


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=MODE_IDS[1:])
def test_vector_environments_give_the_transitions_of_single_ones(mode):
    lengths = [(3, 1, 4), (1, 1, 5), (7, 2)]
    expected, episodes = [], []
    for name, each in enumerate(lengths):
        envs = Environments(Scripted(each, name))
        expected += transitions(envs, 60)
        episodes += [(name, *episode) for episode in envs.episodes]
    vector = make(mode, *(Scripted(each, name) for name, each in enumerate(lengths)))
    envs = Environments(vector)
    found = transitions(envs, 60)
    resets = mode == AutoresetMode.NEXT_STEP
    for got, wanted in zip(found, expected, strict=True):
        assert got == wanted[: len(got)]
        ends = sum(t[3] or t[4] for t in got)
        assert 60 - ends * resets <= len(got) <= 61 - ends * resets
    # Episodes end in another order, but each return and length is that of one.
    assert {e for e in envs.episodes} <= {e[1:] for e in episodes}
    assert len(envs.episodes) == sum(t[3] or t[4] for got in found for t in got)


@pytest.mark.parametrize("mode", MODES, ids=MODE_IDS)
def test_shapes_and_dtypes(mode):
    count = 1 if mode is None else 2
    envs = Environments(make(mode, *(Scripted() for _ in range(count))))
    assert envs.num_envs == count
    assert envs.action_space == Discrete(2)
    assert envs.observation_space.shape == (3,)
    assert envs.reset().shape == (count, 3)
    for _ in range(8):
        step = envs.step(np.zeros(count, int))
        assert step.obs.shape == step.next_obs.shape == (count, 3)
        assert step.obs.dtype == step.next_obs.dtype == np.float32
        for array, dtype in (
            (step.reward, np.float32),
            (step.terminated, bool),
            (step.truncated, bool),
        ):
            assert (array.shape, array.dtype) == ((count,), dtype)


@pytest.mark.parametrize("mode", MODES, ids=MODE_IDS)
def test_a_reset_forgets_the_episode_it_breaks_off(mode):
    envs = Environments(make(mode, Scripted((3,))))
    envs.reset()
    for _ in range(2):
        envs.step(np.array([0]))
    envs.reset()
    for _ in range(3):
        envs.step(np.array([0]))
    # Episode 1, rewards 100, 110, 120.
    assert envs.episodes == [(330.0, 3)]


def test_a_reset_right_after_an_end_needs_no_reset_step():
    envs = Environments(make(AutoresetMode.NEXT_STEP, Scripted((2,))))
    for _ in range(2):
        envs.reset()
        envs.step(np.array([0]))
        step = envs.step(np.array([0]))
        assert step.terminated[0] or step.truncated[0]
        assert step.valid is None or step.valid[0]


def test_a_reset_step_ends_nothing():
    """Not even where the vector environment repeats that it is over."""

    class Repeats(SyncVectorEnv):
        def step(self, actions):
            before = self._autoreset_envs.copy()
            obs, reward, terminated, truncated, info = super().step(actions)
            return obs, reward, terminated | before, truncated, info

    envs = Environments(Repeats([lambda: Scripted((2,))]))
    (found,) = transitions(envs, 9)
    assert [t[3] or t[4] for t in found] == [False, True] * 3
    assert [length for _, length in envs.episodes] == [2, 2, 2]


def test_seeds_reach_the_environments():
    env = Scripted()
    Environments(env).reset(7)
    assert env.seeds == [7]
    pair = Scripted(), Scripted()
    Environments(make(AutoresetMode.NEXT_STEP, *pair)).reset(7)
    assert [env.seeds for env in pair] == [[7], [8]]


@pytest.mark.parametrize("mode", MODES, ids=MODE_IDS)
def test_play_episodes_counts_exactly(mode):
    count = 1 if mode is None else 2
    env = make(mode, *(Fixed((2, 4), name=1) for _ in range(count)))
    for episodes, played in ((1, count), (3, 3 if count == 1 else 4), (4, 4)):
        got = play_episodes(env, policy, episodes)
        assert got["episodes"] == played
        assert got["return"] == got["length"]
    # Four episodes, as many of 2 steps as of 4: mean 3, deviation 1.
    assert (got["return"], got["return_std"]) == (3.0, 1.0)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=MODE_IDS[1:])
def test_play_episodes_does_not_favour_short_ones(mode):
    env = make(mode, Fixed((1,), name=0), Fixed((10,), name=1))
    got = play_episodes(env, policy, 6)
    assert got == {"return": 5.0, "return_std": 5.0, "length": 5.5, "episodes": 6}


def test_play_episodes_hands_on_the_seed():
    env = Scripted()
    play_episodes(env, policy, 3, seed=5)
    assert env.seeds[:3] == [5, None, None]


def test_random_policy_is_uniform_and_seeded():
    env = Scripted()
    env.action_space = Discrete(4, start=3)
    obs = np.zeros((2000, 3))
    actions = random_policy(env, 1)(obs)
    counts = np.bincount(actions, minlength=7)
    assert counts[:3].sum() == 0
    assert (counts[3:] > 430).all()
    np.testing.assert_array_equal(random_policy(env, 1)(obs), actions)
    assert (random_policy(env, 2)(obs) != actions).any()


def test_gymnasiums_own_vector_environment():
    env = gymnasium.make_vec(
        "CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point"
    )
    envs = Environments(env)
    obs = envs.reset(0)
    resets = 0
    for _ in range(300):
        step = envs.step(np.ones(3, int))
        ended = step.terminated | step.truncated
        # Always to the right: the pole falls after about ten steps.
        outside = np.abs(step.next_obs[:, 2]) > 0.2095
        assert (outside == ended).all()
        if step.valid is not None:
            assert (np.abs(step.obs[~step.valid]) <= 0.05).all()
            resets += (~step.valid).sum()
        obs = step.obs
    assert obs.shape == (3, 4)
    assert resets > 50
    returns, lengths = np.array(envs.episodes).T
    np.testing.assert_array_equal(returns, lengths)
    assert lengths.min() >= 8
    assert lengths.max() <= 11
    result = play_episodes(env, lambda obs: np.ones(3, int), 6, seed=0)
    assert result["episodes"] == 6
    assert 8 <= result["return"] <= 11
    env.close()


@pytest.mark.parametrize("wrong", ["CartPole-v1", None, Scripted], ids=repr)
def test_what_is_no_environment_is_refused(wrong):
    for call in (Environments, lambda e: play_episodes(e, policy, 1), random_policy):
        with pytest.raises(TypeError, match=r"`env` must be a gymnasium\.Env"):
            call(wrong)


@pytest.mark.parametrize("episodes", [0, -1])
def test_play_episodes_wants_at_least_one(episodes):
    env = Scripted()
    with pytest.raises(ValueError, match=f"`episodes` .*{episodes}"):
        play_episodes(env, policy, episodes)
    assert env.seeds == []
