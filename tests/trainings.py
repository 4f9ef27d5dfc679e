"""Small trainings of each kind, for tests of backups: same arguments, same numbers.

    python tests/trainings.py dqn BACKUP_DIR RESULT.npz INTERVAL

trains in a process of its own, which a test may kill; `-` for no backups.
"""

import os
import random
import sys

import gymnasium
import keras
import numpy as np

import kit
from kit.envs import CartPole


def dqn(callbacks, env="CartPole-v1", num_envs=None, total_timesteps=1200):
    """Its buffer is overwritten twice."""
    if not isinstance(env, str):
        pass
    elif num_envs is None:
        env = gymnasium.make(env)
    else:
        env = gymnasium.make_vec(env, num_envs, vectorization_mode="sync")
    shape = getattr(env, "single_observation_space", env.observation_space).shape
    num_actions = int(getattr(env, "single_action_space", env.action_space).n)
    network = kit.q_network(shape, num_actions, units=(16,))
    kit.initialize_weights(network, 0)
    agent = kit.DQN(
        network,
        buffer_size=400,
        batch_size=16,
        learning_starts=100,
        target_update_freq=50,
        tau=0.5,
    )
    schedule = keras.optimizers.schedules.PolynomialDecay(1e-3, 100)
    agent.compile(keras.optimizers.Adam(schedule))
    best = keras.callbacks.EarlyStopping(
        monitor="loss", patience=1000, restore_best_weights=True
    )
    history = agent.fit(
        env, total_timesteps, callbacks=[*callbacks, best], verbose=0, seed=3
    )
    return agent, history


def dqn_vector(callbacks):
    """Three environments, one after the other."""
    return dqn(callbacks, num_envs=3)


def dqn_frames(callbacks):
    """Stacks of frames, each of which is kept once."""

    def make():
        env = gymnasium.make("CartPole-v1")
        return gymnasium.wrappers.FrameStackObservation(env, 4, padding_type="zero")

    return dqn(callbacks, env=gymnasium.vector.SyncVectorEnv([make, make]))


def dqn_lander(callbacks):
    """An environment that is played again."""
    return dqn(callbacks, env="LunarLander-v3", total_timesteps=600)


def on_policy(kind, callbacks, env=None, **options):
    """Four environments in one array."""
    env = env or gymnasium.make_vec(
        "CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point"
    )
    actor = kit.policy_network((4,), env.single_action_space, units=(16,))
    critic = kit.value_network((4,), units=(16,))
    for network, seed in zip((actor, critic), kit.random.split_seed(0), strict=True):
        kit.initialize_weights(network, seed)
    agent = kind(actor, critic, num_steps=8, normalize_rewards=True, **options)
    agent.compile(keras.optimizers.Adam(1e-3))
    return agent, agent.fit(env, 32 * 40, callbacks=callbacks, verbose=0, seed=3)


def ppo(callbacks):
    """With running means of observations and rewards."""
    return on_policy(kit.PPO, callbacks, normalize_observations=True)


def a2c(callbacks):
    """With running means of rewards."""
    return on_policy(kit.A2C, callbacks)


def ppo_fused(callbacks):
    """In one program with its environments."""
    return on_policy(kit.PPO, callbacks, env=CartPole(4), normalize_observations=True)


def dqn_fused(callbacks):
    """In one program with its environments, and a buffer that is overwritten."""
    network = kit.q_network((4,), 2, units=(16,))
    kit.initialize_weights(network, 0)
    options = {"batch_size": 16, "learning_starts": 100, "target_update_freq": 50}
    agent = kit.DQN(network, buffer_size=400, **options)
    agent.compile(keras.optimizers.Adam(1e-3))
    return agent, agent.fit(CartPole(2), 1200, callbacks=callbacks, verbose=0, seed=3)


def q_learning(callbacks):
    """SARSA, which has chosen its next action already."""
    env = gymnasium.make("FrozenLake-v1", map_name="8x8")
    agent = kit.QLearning(64, 4, algorithm="sarsa", horizon=10.0)
    agent.compile()
    return agent, agent.fit(env, 1000, callbacks=callbacks, verbose=0, seed=3)


def data():
    """Examples of two classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(480, 8)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32")


def classifier(callbacks):
    """With dropout, validation, and callbacks that have a memory."""
    x, y = data()
    model = kit.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.Dense(2, "softmax"),
        ]
    )
    kit.initialize_weights(model, 0)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    plateau = keras.callbacks.ReduceLROnPlateau(
        patience=0, min_delta=0.05, monitor="loss", factor=0.7
    )
    best = keras.callbacks.EarlyStopping(patience=50, restore_best_weights=True)
    history = model.fit(
        x,
        y,
        batch_size=2,
        epochs=6,
        validation_split=0.1,
        callbacks=[*callbacks, plateau, best],
        verbose=0,
    )
    return model, history


def gan(callbacks):
    """Two optimizers, and noise."""
    x = np.random.default_rng(0).uniform(-1, 1, size=(200, 16)).astype("float32")
    generator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16, "tanh")])
    discriminator = keras.Sequential([keras.Input((16,)), keras.layers.Dense(1)])
    kit.initialize_weights(generator, 0)
    kit.initialize_weights(discriminator, 1)
    model = kit.GAN(generator, discriminator)
    model.compile()
    return model, model.fit(x, batch_size=1, epochs=4, callbacks=callbacks, verbose=0)


def dbn(callbacks):
    """Two stages."""
    x = (np.random.default_rng(0).uniform(size=(200, 16)) < 0.3).astype("float32")
    model = kit.DBN([kit.RBM(8, seed=0), kit.RBM(4, seed=1)])
    model.build((None, 16))
    histories = model.pretrain(
        x, epochs=3, batch_size=1, callbacks=callbacks, verbose=0
    )
    return model, histories[-1]


KINDS = {
    f.__name__: f
    for f in (
        dqn,
        dqn_vector,
        dqn_frames,
        dqn_lander,
        ppo,
        a2c,
        ppo_fused,
        dqn_fused,
        q_learning,
        classifier,
        gan,
        dbn,
    )
}


class Draws(keras.callbacks.Callback):
    """Draws from the generators that belong to the process."""

    def on_epoch_end(self, epoch, logs=None):
        """Draws from each."""
        draws()


def draws():
    """Returns a number of each generator that belongs to the process."""
    drawn = keras.ops.convert_to_numpy(keras.random.uniform(()))
    return np.array([np.random.uniform(), random.random(), drawn])


def train(kind, callbacks=()):
    """Trains, and returns all that has to be the same in a resumed training.

    Weights, optimizers, generators, the history, and the next random numbers.
    """
    kit.set_random_seed(0)
    model, history = KINDS[kind]([*callbacks, Draws()])
    optimizers = [
        x for x in vars(model).values() if isinstance(x, keras.optimizers.Optimizer)
    ]
    variables = [*model.variables, *(v for x in optimizers for v in x.variables)]
    result = {
        f"variable {i}": np.array(keras.ops.convert_to_numpy(v))
        for i, v in enumerate(variables)
    }
    for name, values in history.history.items():
        if name != "steps_per_second":
            result[f"history {name}"] = np.array(values)
    return {**result, "next": draws()}


def differing(first, second):
    """Returns the names of what isn't the same in two trainings, to the last bit."""
    return [
        name
        for name in {**first, **second}
        if name not in first
        or name not in second
        or not np.array_equal(
            first[name], second[name], equal_nan=first[name].dtype.kind == "f"
        )
    ]


class Progress(keras.callbacks.Callback):
    """Tells whoever waits that an epoch is over."""

    def on_epoch_end(self, epoch, logs=None):
        """Prints its number."""
        print("epoch", epoch, flush=True)


if __name__ == "__main__":
    kind, backup_dir, result, interval = sys.argv[1:]
    backups = (
        []
        if backup_dir == "-"
        else [
            kit.BackupAndRestore(
                backup_dir, interval=float(interval), delete_checkpoint=False
            )
        ]
    )
    arrays = train(kind, [*backups, Progress()])
    np.savez(result + ".tmp.npz", **arrays)
    os.replace(result + ".tmp.npz", result)
    print("done", flush=True)
