"""Deep Q-network: Q-learning with a neural network, from replayed experience.

The network Q(s, .) gives the expected discounted return of each action. It is
fitted to its own Bellman equation,

    y = r + gamma (1 - terminated) max_a' Q_target(s', a'),

on transitions (s, a, r, s') drawn at random from what was lived through, with a
target network Q_target that follows Q slowly. Shapes: N environments, B
transitions in a minibatch, G gradient steps in a turn, A actions, T environment
steps in a turn.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks
from kit.backend import compiled, minimize, release_programs, scan
from kit.models import WithParts
from kit.rl.agent import Agent, compiled_with_numbers
from kit.rl.environments import Environments
from kit.rl.exploration import UniformRows, linear_epsilon
from kit.rl.policies import hidden_layers
from kit.rl.replay import ReplayBuffer
from kit.rl.training import turns

# Valid ranges of the constructor's arguments.
RANGES: dict[str, Any] = {
    "gamma": checks.FRACTION,
    "buffer_size": checks.SIZE,
    "batch_size": checks.SIZE,
    "learning_starts": checks.COUNT,
    "train_freq": checks.SIZE,
    "gradient_steps": checks.SIZE,
    "target_update_freq": checks.SIZE,
    "tau": checks.real("(0, 1]"),
    "epsilon_start": checks.FRACTION,
    "epsilon_end": checks.FRACTION,
    "exploration_fraction": checks.real("(0, 1]"),
    "double": checks.BOOL,
    "action_start": checks.INTEGER,
}


ACCEPTED = {
    "q_network": checks.MODEL,
    # q_network, huber
    "obs_shape": checks.SIZES,
    "num_actions": checks.SIZE,
    "units": checks.SIZES,
    "dueling": checks.BOOL,
    "td_target": checks.array("B"),
    "q": checks.array("B"),
}


@keras.saving.register_keras_serializable(package="kit")
class Dueling(keras.layers.Layer):
    """Turns a state's value and its actions' advantages into Q-values.

    Q(s, a) = V(s) + A(s, a) - mean_a A(s, a). As the last layer of a Q-network
    it lets the network learn how good a state is apart from what to do in it.

    Input shape: `(B, 1 + A)`: the value, then the advantages.

    Output shape: `(B, A)`.

    Reference: Wang et al., 2016, https://arxiv.org/abs/1511.06581, equation 9.
    """

    def call(self, inputs):
        """Returns the Q-values."""
        value, advantage = inputs[:, :1], inputs[:, 1:]
        return value + advantage - ops.mean(advantage, axis=-1, keepdims=True)

    def compute_output_shape(self, input_shape):
        """Returns `(B, A)`."""
        return (input_shape[0], input_shape[1] - 1)


def q_network(
    obs_shape: Sequence[int],
    num_actions: int,
    units: Sequence[int] = (128,),
    dueling: bool = False,
) -> keras.Sequential:
    """Builds a Q-network: Dense layers, behind a convolution for images.

    Args:
        obs_shape: Shape of an observation: any, or (height, width, channels) for
            images, whose values are expected in [0, 255].
        num_actions: Number of actions A.
        units: Sizes of the hidden layers. Defaults to `(128,)`.
        dueling: If `True`, ends in a `Dueling` layer. Defaults to `False`.

    Returns:
        A `keras.Sequential` from `(B, *obs_shape)` to `(B, A)`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If `obs_shape` is empty.
    """
    checks.check("q_network", locals(), ACCEPTED)
    model = keras.Sequential(name="q_network")
    layers = hidden_layers("q_network", obs_shape, units)
    for layer in (keras.Input(tuple(obs_shape)), *layers):
        model.add(layer)
    model.add(keras.layers.Dense(int(num_actions) + dueling))
    if dueling:
        model.add(Dueling())
    return model


@keras.saving.register_keras_serializable(package="kit")
def huber(td_target, q):
    """Returns the Huber loss of each TD error, which grows linearly beyond 1.

    With e = |td_target - q| and c = min(e, 1): e^2 / 2 up to 1, then e - 1/2.

    Args:
        td_target: y, shape (B,).
        q: Q(s, a), shape (B,).

    Returns:
        The losses, shape (B,).
    """
    checks.check("huber", locals(), ACCEPTED)
    error = ops.abs(td_target - q)
    clipped = ops.minimum(error, 1.0)
    return clipped * (error - 0.5 * clipped)


@keras.saving.register_keras_serializable(package="kit")
class DQN(WithParts, Agent):
    """Deep Q-network agent for discrete actions.

    In turns, it plays `train_freq` steps epsilon-greedily into a replay buffer,
    then makes `gradient_steps` gradient steps in one compiled call.

    Args:
        q_network: Built model from observations `(B, ...)` to Q-values `(B, A)`;
            the function `q_network` makes one.
        gamma: Discount factor in [0, 1]. Defaults to 0.99.
        buffer_size: Number of transitions to remember. Defaults to 10,000.
        batch_size: B, transitions in a gradient step. Defaults to 128.
        learning_starts: Environment steps before the first gradient step; all
            of them explore at the epsilon of their time. Defaults to 1,000.
        train_freq: T, steps of each environment in a turn. Defaults to 10.
        gradient_steps: G, gradient steps in a turn. Defaults to 1.
        target_update_freq: Environment steps between updates of the target
            network, counted at the end of turns. Defaults to 500.
        tau: Part of the way that the target network goes to the network in an
            update, in (0, 1]. Defaults to 1, a copy.
        epsilon_start: Probability of a random action at the start. Defaults to 1.
        epsilon_end: The same at the end of exploration. Defaults to 0.05.
        exploration_fraction: Part of `total_timesteps` over which epsilon falls,
            linearly, in (0, 1]. Defaults to 0.5.
        double: If `True`, the network chooses the next action and the target
            network rates it, which removes the overestimation that comes of
            taking a maximum (van Hasselt et al., 2015). Defaults to `False`.
        action_start: What the environment calls the first action; `fit` takes it
            from its environment. Defaults to 0.
        seed: Seed of exploration and minibatches, the same draws on every
            backend. Defaults to 0.

    Raises:
        TypeError: If `q_network` is no Keras model, or a number isn't one.
        ValueError: If `q_network` isn't a `Sequential` or functional model from
            one input to one vector, or a number is out of its range.

    Example:

    ```python
    env = gymnasium.make("CartPole-v1")
    agent = kit.DQN(kit.q_network((4,), 2), gamma=0.99)
    agent.compile(optimizer=keras.optimizers.Adam(2.5e-4))
    history = agent.fit(env, total_timesteps=50_000)
    agent.evaluate(env, episodes=20)
    agent.save("dqn.keras")
    ```

    Reference: Mnih et al., 2015, https://doi.org/10.1038/nature14236. Deviations:
    Adam in place of RMSprop; several environments; training in turns.
    """

    parts = ("q_network",)
    ranges = RANGES

    def __init__(
        self,
        q_network: keras.Model,
        *,
        gamma: float = 0.99,
        buffer_size: int = 10_000,
        batch_size: int = 128,
        learning_starts: int = 1_000,
        train_freq: int = 10,
        gradient_steps: int = 1,
        target_update_freq: int = 500,
        tau: float = 1.0,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.05,
        exploration_fraction: float = 0.5,
        double: bool = False,
        action_start: int = 0,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(seed=seed, **kwargs)
        checks.check(self, locals(), ACCEPTED)
        if not _rates_actions(q_network):
            raise ValueError(
                "DQN: `q_network` must be a built model from observations to Q-values "
                "of shape (batch, actions); begin it with `keras.Input(obs_shape)`."
            )
        self.q_network = q_network
        self.gamma = gamma
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.learning_starts = learning_starts
        self.train_freq = train_freq
        self.gradient_steps = gradient_steps
        self.target_update_freq = target_update_freq
        self.tau = tau
        self.epsilon_start = epsilon_start
        self.epsilon_end = epsilon_end
        self.exploration_fraction = exploration_fraction
        self.double = double
        self.action_start = action_start
        self.obs_shape = tuple(q_network.input_shape[1:])
        self.num_actions = q_network.output_shape[-1]
        self.target_network = keras.models.clone_model(q_network)
        self.target_network.set_weights(q_network.get_weights())
        self.target_network.trainable = False
        self.build(q_network.input_shape)

    def call(self, inputs, training=None):
        """Returns the Q-values `(B, A)` of observations `(B, ...)`."""
        return self.q_network(inputs, training=training)

    def compile(self, optimizer: Any = "adam", loss: Any = huber, **kwargs: Any):
        """Sets how to learn.

        Args:
            optimizer: Keras optimizer, or its name. Defaults to Adam.
            loss: Function of TD targets and Q-values (B,), a Keras loss, or its
                name. Defaults to `huber`, which keeps rare large errors from
                dominating.
            **kwargs: See `keras.Model.compile`.
        """
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        self.td_loss = keras.losses.get(loss)
        # Programs hold the optimizer and the loss that they were compiled with.
        release_programs(self, "_learn")

    def get_compile_config(self):
        """Returns the arguments of `compile`, for saving; `None` before it."""
        config = super().get_compile_config()
        if config is not None:
            config["loss"] = keras.saving.serialize_keras_object(self.td_loss)
        return config

    def fit(
        self,
        env: Any,
        total_timesteps: int,
        *,
        steps_per_epoch: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        verbose: int | str = "auto",
        seed: int | None = None,
        check_finite: bool = True,
    ) -> keras.callbacks.History:
        """Plays and learns.

        An epoch is a reporting interval. Its logs: `return` and `length` (means
        of the episodes that ended in it, NaN if none), `loss`, `q_value`,
        `epsilon`, `steps_per_second`, `timesteps`. A second call goes on with
        the networks and the optimizer, and begins a new buffer and schedule.

        Args:
            env: `gymnasium.Env` or `gymnasium.vector.VectorEnv` with a `Discrete`
                action space and a `Box` observation space.
            total_timesteps: Number of environment steps, all environments
                together.
            steps_per_epoch: Environment steps in an epoch, rounded to turns.
                Defaults to a fiftieth of `total_timesteps`.
            callbacks: Keras callbacks; a batch is a turn to them.
            verbose: 0 silent, 1 progress bar, 2 a line an epoch. Defaults to
                `"auto"`, which is 1.
            seed: Seed of the environment. Defaults to one that the agent draws,
                another one in each call.
            check_finite: Whether to stop at the first loss that isn't finite, with the
                last good weights. Defaults to `True`.

        Returns:
            The `History` of the epochs' logs.

        Raises:
            TypeError: If `env` isn't one of Gymnasium's.
            ValueError: If the spaces aren't supported or don't fit the network,
                `compile` wasn't called, or a number is not positive.
        """
        envs = Environments(env)
        self.check_spaces(envs)
        self.check_compiled()
        self.action_start = int(envs.action_space.start)
        space = envs.observation_space
        buffer = ReplayBuffer(self.buffer_size, space.shape, space.dtype, envs.num_envs)
        parts: dict[str, Any] = {"envs": envs, "buffer": buffer}
        progress = turns(
            self,
            envs,
            total_timesteps,
            self.train_freq,
            ("loss", "q_value", "epsilon"),
            steps_per_epoch=steps_per_epoch,
            callbacks=callbacks,
            verbose=verbose,
            check_finite=check_finite,
            parts=parts,
        )
        buffer.reset(envs.reset(self.env_seed(seed)))
        # Two random numbers a step, to explore or not and how, and one a sampled
        # transition.
        steps = self.train_freq * envs.num_envs
        size = 2 * steps + self.gradient_steps * self.batch_size
        parts["numbers"] = numbers = UniformRows(self.random, (size,))
        # Algorithm 1 of the paper; the steps of a turn together, instead of one by one.
        for turn, uniform in zip(progress, numbers, strict=False):
            play, chosen = np.split(uniform, [2 * steps])
            # 1. With probability epsilon a random action, otherwise the best one;
            # execute it, and store the transition.
            play = play.reshape(2, self.train_freq, envs.num_envs)[:, : turn.num_steps]
            at = turn.start + envs.num_envs * np.arange(turn.num_steps)
            epsilon = linear_epsilon(
                at / total_timesteps,
                self.epsilon_start,
                self.epsilon_end,
                self.exploration_fraction,
            )
            explore = play[0] < epsilon[:, None]  # (T, N)
            self._play(envs, buffer, explore, play[1])
            turn.logs["epsilon"] = epsilon[-1]
            if turn.end < self.learning_starts:
                continue
            # 2. Draw random minibatches of transitions.
            chosen = chosen.reshape(self.gradient_steps, self.batch_size)
            batches = buffer.gather(buffer.indices(chosen))
            # 3. and 4. Targets y, and a gradient step on each minibatch.
            loss, q_value = self._learn(batches)
            turn.logs.update(loss=loss, q_value=q_value)
            # 5. Every C steps, move the target network.
            freq = self.target_update_freq
            if updates := turn.end // freq - turn.start // freq:
                self._soft_update_target(1.0 - (1.0 - self.tau) ** updates)
        return self.history

    def _play(self, envs, buffer, explore, uniform):
        """Plays a turn, epsilon-greedily."""
        if envs.restarted:  # which a backup couldn't restore
            buffer.restart(envs.obs)
            envs.restarted = False
        random_action = (uniform * self.num_actions).astype(np.int32)
        for t in range(len(explore)):
            action = random_action[t]  # (N,)
            if not explore[t].all():
                greedy = ops.convert_to_numpy(self._greedy(envs.obs))
                action = np.where(explore[t], action, greedy)
            step = envs.step(action + self.action_start)
            buffer.add(
                action,
                step.reward,
                step.terminated,
                step.truncated,
                step.next_obs,
                step.obs,
                step.valid,
            )

    @compiled
    def _greedy(self, obs):
        return ops.argmax(self.q_network(obs, training=False), axis=-1)

    @compiled_with_numbers
    def _learn(self, batches):
        """Makes G gradient steps on batches (G, B, ...)."""
        variables = self.q_network.trainable_variables

        def gradient_step(carry, batch):
            # 3. y = r + gamma (1 - terminated) max_a' Q_target(s', a').
            td_target = self._td_target(batch)

            def loss_fn():
                q = self.q_network(batch["obs"], training=True)  # (B, A)
                q = _q_of_taken_action(q, batch["action"])  # (B,)
                return ops.mean(self.td_loss(td_target, q)), ops.mean(q)

            # 4. A gradient step on the loss of y and Q(s, a).
            return carry, minimize(loss_fn, variables, self.optimizer)

        _, (losses, q_values) = scan(gradient_step, None, batches)
        return ops.mean(losses), ops.mean(q_values)

    def _td_target(self, batch):
        """Y = r + gamma (1 - terminated) Q_target(s', a'), shape (B,).

        Only `terminated` makes the next state's value 0. An episode that was truncated
        would have continued: bootstrap from the next state's value.
        """
        next_q = self.target_network(batch["next_obs"], training=False)  # (B, A)
        if self.double:
            best = ops.argmax(self.q_network(batch["next_obs"]), axis=-1)
            next_q = _q_of_taken_action(next_q, best)
        else:
            next_q = ops.max(next_q, axis=-1)
        not_terminated = 1.0 - ops.cast(batch["terminated"], next_q.dtype)
        return batch["reward"] + self.gamma * not_terminated * next_q

    @compiled
    def _soft_update_target(self, tau):
        """Moves the target network a part `tau` of the way to the network."""
        variables = zip(
            self.target_network.variables, self.q_network.variables, strict=True
        )
        for target, online in variables:
            if keras.backend.is_float_dtype(target.dtype):
                # In this form tau = 1 copies to the last bit.
                target.assign(tau * online + (1.0 - tau) * target)

    def greedy_policy(self, envs=None):
        """Returns the function from observations to the actions rated highest."""
        first = self.action_start if envs is None else envs.action_space.start
        return lambda obs: ops.convert_to_numpy(self._greedy(obs)) + first

    def export(self, filepath: Any, *args: Any, **kwargs: Any):
        """Exports `q_network`, as `keras.Model.export` does; see there."""
        return self.q_network.export(filepath, *args, **kwargs)

    def check_spaces(self, envs):
        """Raises an error if `q_network` isn't made for these environments."""
        from gymnasium.spaces import Discrete

        if not isinstance(envs.action_space, Discrete):
            raise ValueError(
                f"DQN: the action space {envs.action_space} isn't supported; DQN needs "
                "Discrete actions. For continuous ones, use PPO or actor-critic."
            )
        self.check_box(envs, "q_network")
        if envs.action_space.n != self.num_actions:
            raise ValueError(
                f"DQN: the environment has {envs.action_space.n} actions, `q_network` "
                f"rates {self.num_actions}."
            )


def _rates_actions(model):
    """Whether the shapes are known: one array in, one of shape (B, A) out."""
    shapes: list[Any] = [
        getattr(model, name, None) if model.built else None
        for name in ("input_shape", "output_shape")
    ]
    return (
        all(isinstance(s, tuple) and not isinstance(s[-1], tuple) for s in shapes)
        and len(shapes[1]) == 2
        and shapes[1][1] is not None
    )


def _q_of_taken_action(q, action):
    """The Q-values (B,) of one action each, out of all (B, A)."""
    actions = ops.arange(q.shape[-1], dtype="int32")
    taken = ops.equal(ops.expand_dims(ops.cast(action, "int32"), -1), actions)
    return ops.sum(ops.where(taken, q, 0.0), axis=-1)
