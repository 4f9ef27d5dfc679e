"""Keras callbacks for agents."""

import gymnasium
import keras

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
