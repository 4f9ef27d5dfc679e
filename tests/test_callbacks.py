"""What happens between the epochs of a training."""

import time

import gymnasium
import keras
import numpy as np
import pytest

import kit


def test_evaluation_feeds_keras_own_callbacks():
    agent = kit.DQN(kit.q_network((4,), 2, units=(8,)), learning_starts=10_000)
    agent.compile("sgd")
    test_env = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    agent.fit(
        gymnasium.make("CartPole-v1"),
        400,
        steps_per_epoch=100,
        callbacks=[
            kit.Evaluation(test_env, episodes=4, seed=3),
            keras.callbacks.EarlyStopping(
                monitor="eval_return", mode="max", patience=2
            ),
        ],
        verbose=0,
    )
    # Nothing is learned, so every evaluation is the same, and the third stops it.
    evaluations = agent.history.history["eval_return"]
    assert len(evaluations) == 3
    assert len(set(evaluations)) == 1
    assert evaluations[0] == agent.evaluate(test_env, 4, seed=3)["return"]


class Begun(gymnasium.Env):
    """Can be reset, and not stepped."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        return np.zeros(4, "float32"), {}


def wrapped(env):
    return gymnasium.wrappers.TimeLimit(env, 10)


def vector(env):
    return gymnasium.vector.SyncVectorEnv([lambda: env])


def wrapped_vector(env):
    return gymnasium.wrappers.vector.RecordEpisodeStatistics(env)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (lambda env: env, lambda env: env),
        (lambda env: env, wrapped),
        (wrapped, wrapped),
        (vector, lambda envs: envs),
        (vector, wrapped_vector),
        (lambda env: env, vector),
        (vector, lambda envs: wrapped(envs.envs[0])),
    ],
)
def test_evaluation_refuses_the_environment_of_the_training(train, test):
    agent = kit.DQN(kit.q_network((4,), 2, units=(8,)))
    agent.compile("sgd")
    env = train(Begun())
    with pytest.raises(ValueError, match="is the training's environment.*Make an"):
        agent.fit(env, 400, callbacks=[kit.Evaluation(test(env))], verbose=0)


def test_evaluation_in_another_environment_of_the_same_kind():
    agent = kit.DQN(kit.q_network((4,), 2, units=(8,)), learning_starts=10_000)
    agent.compile("sgd")
    envs = [gymnasium.make("CartPole-v1") for _ in range(2)]
    vectors = [gymnasium.make_vec("CartPole-v1", 2) for _ in range(2)]
    for env, other in (envs, vectors):
        callback = kit.Evaluation(other, episodes=1)
        history = agent.fit(env, 10, callbacks=[callback], verbose=0).history
        assert min(history["eval_return"]) > 0


def test_epoch_timer_logs_the_seconds_of_each_epoch():
    model = kit.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    start = time.perf_counter()
    history = model.fit(
        np.ones((8, 3)),
        np.ones((8, 1)),
        epochs=3,
        callbacks=[
            kit.EpochTimer(),
            keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: time.sleep(0.01)),
        ],
        verbose=0,
    )
    seconds = history.history["seconds"]
    assert len(seconds) == 3 and min(seconds) >= 0.01
    assert sum(seconds) <= time.perf_counter() - start
