"""A word about environments that don't answer."""

import threading
import time
import warnings

import gymnasium
import keras
import numpy as np
import pytest

import kit
from kit.rl import hanging
from kit.rl.environments import play_episodes


class Waits(gymnasium.Env):
    """In its fifth step, it waits until it is released; episodes have two steps."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.released = threading.Event()
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, "float32"), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 5:
            self.released.wait(20)
        return np.zeros(2, "float32"), 1.0, self.steps % 2 == 0, False, {}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(hanging, "PATIENCE", 0.05)


@pytest.fixture
def env(monkeypatch):
    """It is released by the word about it, as somebody would who reads it."""
    env = Waits()
    said = []

    def warn(message, *args, **kwargs):
        said.append(message)
        threading.Timer(0.1, env.released.set).start()  # long enough for a second word

    monkeypatch.setattr(warnings, "warn", warn)
    env.said = said
    return env


def test_a_training_names_the_environment_and_the_step(impatient, env):
    agent = kit.DQN(kit.q_network((2,), 2), learning_starts=100)
    agent.compile()
    agent.fit(env, 10, verbose=0)
    assert env.steps == 10
    assert env.said == [
        "Waits: `step` in step 5 hasn't answered for 0 s. Ctrl-C ends the training; "
        "kit.BackupAndRestore saves the training so far."
    ]


def test_an_evaluation_names_them_too(impatient, env):
    play_episodes(env, lambda obs: np.zeros(1, int), episodes=4)
    assert ["Waits: `step` in step 5" in message for message in env.said] == [True]


def test_nobody_watches_afterwards(impatient, env):
    before = set(threading.enumerate())  # also of trainings that others broke off
    play_episodes(env, lambda obs: np.zeros(1, int), episodes=4)
    names = [thread.name for thread in set(threading.enumerate()) - before]
    assert "kit.rl.hanging" not in names


def test_many_quick_steps_are_not_named(monkeypatch):
    """Together they take longer than a step may."""
    monkeypatch.setattr(hanging, "PATIENCE", 0.2)
    env = Waits()
    env.step = lambda action: (time.sleep(0.01), Waits.step(env, action))[1]
    env.released.set()
    said = []
    monkeypatch.setattr(warnings, "warn", lambda *args, **_: said.append(args))
    play_episodes(env, lambda obs: np.zeros(1, int), episodes=50)
    assert env.steps == 100 and not said


def test_a3c_leaves_a_worker_alone_whose_environment_hangs(monkeypatch):
    monkeypatch.setattr("kit.a3c.CLOSE_SECONDS", 0.2)
    hanging = Waits()

    def make():
        env = gymnasium.make("CartPole-v1")
        if threading.current_thread() is not first and hanging.steps == 0:
            env, hanging.steps = hanging, 1  # the first worker's
            env.observation_space = gymnasium.spaces.Box(-1, 1, (4,))
            env.reset = lambda **_: (np.zeros(4, "float32"), {})
            env.step = lambda _: env.released.wait(60)
        return env

    first = threading.current_thread()

    agent = kit.A3C(
        kit.policy_network((4,), gymnasium.spaces.Discrete(2), units=(4,)),
        kit.value_network((4,), units=(4,)),
        num_steps=2,
    )
    agent.compile(keras.optimizers.Adam(1e-3))
    try:
        with pytest.warns(RuntimeWarning, match="1 of 2 workers didn't end"):
            agent.fit(make, 8, num_workers=2, verbose=0)
    finally:
        hanging.released.set()
