"""Deep Q-network: Q-learning with a neural network, from replayed experience.

The network Q(s, .) predicts the expected discounted return of each action. It is fitted
to the Bellman equation,

    y = r + gamma (1 - terminated) max_a' Q_target(s', a'),

on transitions (s, a, r, s') drawn at random from a replay buffer, with a target network
Q_target that follows Q slowly. Training alternates between playing and learning; one
round of both is a turn. Shapes: N environments, B transitions in a minibatch, G
gradient steps in a turn, A actions, T environment steps in a turn.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks, random
from kit.backend import compiled, minimize, release_programs, scan
from kit.models import WithParts
from kit.rl.agent import Agent, compiled_with_numbers
from kit.rl.device_replay import (
    add_steps,
    empty_buffer,
    sample,
    sample_by_priority,
    set_errors,
)
from kit.rl.encoders import (
    NETWORK,
    OBSERVATIONS,
    default_units,
    hidden_layers,
    network_input,
)
from kit.rl.environments import stacks_frames
from kit.rl.exploration import UniformRows, linear_epsilon
from kit.rl.functional import FunctionalEnv, begin, play
from kit.rl.fused import (
    COUNTED,
    Schedule,
    episodes_of,
    repeat,
    train,
    updates_per_call,
)
from kit.rl.noisy import NoisyDense, draw_noise, noisy_layers
from kit.rl.policies import of_taken_action
from kit.rl.replay import PrioritizedReplayBuffer, ReplayBuffer
from kit.rl.training import turns

LOGS = ("loss", "q_value", "epsilon")
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
    "n_step": checks.SIZE,
    "prioritized": checks.BOOL,
    "priority_exponent": checks.FRACTION,
    "priority_correction": checks.FRACTION,
    "frame_stack": checks.BOOL | None,
    "action_start": checks.INTEGER,
}


ACCEPTED = {
    "q_network": checks.MODEL,
    # q_network, huber
    "obs_shape": OBSERVATIONS,
    "num_actions": checks.SIZE,
    "units": checks.SIZES | None,
    "network": NETWORK,
    "dueling": checks.BOOL,
    "num_quantiles": checks.SIZE | None,
    "noisy": checks.BOOL,
    "td_target": checks.array("B"),
    "q": checks.array("B"),
}
QUANTILES = {name: checks.array("B M") for name in ("td_target", "quantiles")}


@keras.saving.register_keras_serializable(package="kit")
class Dueling(keras.layers.Layer):
    """Turns a state's value and its actions' advantages into Q-values.

    Q(s, a) = V(s) + A(s, a) - mean_a A(s, a). As the last layer of a Q-network, it lets
    the network learn the value of a state separately from its actions.

    Input shape: `(B, 1 + A)`: the value, then the advantages; or `(B, 1 + A, M)`.

    Output shape: `(B, A)`, or `(B, A, M)`.

    Reference: Wang et al., 2016, https://arxiv.org/abs/1511.06581, equation 9.
    """

    def call(self, inputs):
        """Returns the Q-values."""
        value, advantage = inputs[:, :1], inputs[:, 1:]
        return value + advantage - ops.mean(advantage, axis=1, keepdims=True)

    def compute_output_shape(self, input_shape):
        """Returns `(B, A)`, or `(B, A, M)`."""
        return (input_shape[0], input_shape[1] - 1, *input_shape[2:])


def q_network(
    obs_shape: Any,
    num_actions: int,
    units: Sequence[int] | None = None,
    dueling: bool = False,
    num_quantiles: int | None = None,
    noisy: bool = False,
    network: Any = None,
) -> keras.Sequential:
    """Builds a Q-network: Dense layers, after convolutions for images.

    `kit/rl/encoders.py` explains how each kind of observation is encoded.

    Args:
        obs_shape: Any Gymnasium space of a single observation. Or the shape of one:
            any, or (height, width, channels) for images with values in [0, 255].
        num_actions: Number of actions A.
        units: Sizes of the hidden layers. Defaults to `None`: those of the network
            for images, else `(128,)`.
        dueling: If `True`, ends in a `Dueling` layer. Defaults to `False`.
        num_quantiles: M, number of quantiles that describe the distribution of each
            action's return. Defaults to `None`: only its mean.
        noisy: If `True`, Dense layers are `kit.rl.noisy.NoisyDense`, which explore
            without epsilon; set epsilon to 0 then. Defaults to `False`.
        network: Network for images: `"nature"`, `"impala"`, `"minatar"`, `"mlp"`, or a
            Keras model from `(B, height, width, channels)`. Defaults to `None`: chosen
            by image size.

    Returns:
        A `keras.Sequential` from `(B, *obs_shape)` to `(B, A)`, or `(B, A, M)`. Dict
        and tuple observations must be packed into one array, which agents do.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `obs_shape` is an empty shape or an unsupported space, or
            `network` doesn't fit it.
    """
    checks.check("q_network", locals(), ACCEPTED)
    if units is None:
        units = default_units(obs_shape, network, (128,))
    model = keras.Sequential(name="q_network")
    layers = hidden_layers("q_network", obs_shape, units, network=network)
    outputs = int(num_actions) + dueling
    layers.append(keras.layers.Dense(outputs * (num_quantiles or 1)))
    for layer in (network_input(obs_shape), *layers):
        if noisy and isinstance(layer, keras.layers.Dense):
            layer = NoisyDense(layer.units, layer.activation)
        model.add(layer)
    if num_quantiles:
        model.add(keras.layers.Reshape((outputs, int(num_quantiles))))
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
    return _huber(td_target - q)


def _huber(difference):
    error = ops.abs(difference)
    clipped = ops.minimum(error, 1.0)
    return clipped * (error - 0.5 * clipped)


@keras.saving.register_keras_serializable(package="kit")
def quantile_huber(td_target, quantiles):
    """Returns the quantile regression loss of quantiles and TD targets.

    Quantile i of M is at level tau_i = (i + 1/2) / M. With u_ij = y_j - theta_i, the
    loss is the sum over i of the mean over j of |tau_i - 1[u_ij < 0]| huber(u_ij).

    Args:
        td_target: y, quantiles of the TD target, shape (B, M).
        quantiles: theta, quantiles of Q(s, a), shape (B, M).

    Returns:
        The losses, shape (B,).

    Reference: Dabney et al., 2018, https://arxiv.org/abs/1710.10044, equation 10.
    """
    checks.check("quantile_huber", locals(), QUANTILES)
    td_target, quantiles = map(ops.convert_to_tensor, (td_target, quantiles))
    num_quantiles = quantiles.shape[-1]
    tau = (ops.arange(num_quantiles, dtype=quantiles.dtype) + 0.5) / num_quantiles
    difference = td_target[:, None, :] - quantiles[:, :, None]  # (B, M of i, M of j)
    below = ops.cast(difference < 0, quantiles.dtype)
    weighted = ops.abs(tau[:, None] - below) * _huber(difference)
    return ops.sum(ops.mean(weighted, axis=2), axis=1)


@keras.saving.register_keras_serializable(package="kit")
class DQN(WithParts, Agent):
    """Deep Q-network agent for discrete actions.

    In each turn, it plays `train_freq` steps epsilon-greedily into a replay buffer,
    then makes `gradient_steps` gradient steps in one compiled call.

    Args:
        q_network: Built model from observations `(B, ...)` to Q-values `(B, A)`, or
            to M quantiles of each action's return `(B, A, M)`; the function
            `q_network` builds one.
        gamma: Discount factor in [0, 1]. Defaults to 0.99.
        buffer_size: Capacity of the replay buffer in transitions. Defaults to 10,000.
        batch_size: B, transitions in a gradient step. Defaults to 128.
        learning_starts: Environment steps before the first gradient step, with
            exploration as scheduled. Defaults to 1,000.
        train_freq: T, steps of each environment in a turn. Defaults to 10.
        gradient_steps: G, gradient steps in a turn. Defaults to 1.
        target_update_freq: Environment steps between updates of the target
            network, counted at the end of turns. Defaults to 500.
        tau: Weight of the network in an update of the target network, in (0, 1].
            Defaults to 1, a copy.
        epsilon_start: Probability of a random action at the start. Defaults to 1.
        epsilon_end: The same at the end of exploration. Defaults to 0.05.
        exploration_fraction: Part of `total_timesteps` over which epsilon falls
            linearly, in (0, 1]. Defaults to 0.5.
        double: If `True`, the network chooses the next action and the target network
            evaluates it. This reduces the overestimation caused by the maximum (van
            Hasselt et al., 2015). Defaults to `False`.
        n_step: Number of rewards in a target before it bootstraps: with more, rewards
            reach earlier states sooner (Sutton, 1988). Defaults to 1.
        prioritized: If `True`, transitions with larger TD errors are drawn more often
            (Schaul et al., 2016). Defaults to `False`.
        priority_exponent: alpha in [0, 1], the strength of the priorities; 0 draws all
            transitions equally often. Defaults to 0.6.
        priority_correction: beta in [0, 1] at the start, the strength of the
            importance-sampling correction in the loss; it rises to 1 at the end of
            `total_timesteps`. Defaults to 0.4.
        frame_stack: Whether to store each frame of stacked frames only once; a stack of
            four then takes a quarter of the memory, and nothing else changes. Defaults
            to `None`: if the environments are wrapped in Gymnasium's
            `FrameStackObservation`. Environments in other processes don't show this;
            environments in `keras.ops` don't stack.
        action_start: Number of the environment's first action; `fit` takes it from the
            environment. Defaults to 0.
        seed: Seed of exploration and minibatches; every backend makes the same draws.
            Defaults to 0.

    Raises:
        TypeError: If `q_network` is no Keras model, or an argument has the wrong type.
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

    Reference: Mnih et al., 2015, https://doi.org/10.1038/nature14236. Deviations: Adam
    instead of RMSprop; several environments; playing and learning in turns.
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
        n_step: int = 1,
        prioritized: bool = False,
        priority_exponent: float = 0.6,
        priority_correction: float = 0.4,
        frame_stack: bool | None = None,
        action_start: int = 0,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(seed=seed, **kwargs)
        checks.check(self, locals(), ACCEPTED)
        if not _rates_actions(q_network):
            raise ValueError(
                "DQN: `q_network` must be a built model from observations to Q-values "
                "of shape (batch, actions), or their quantiles (batch, actions, M); "
                "begin it with `keras.Input(obs_shape)`."
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
        self.n_step = n_step
        self.prioritized = prioritized
        self.priority_exponent = priority_exponent
        self.priority_correction = priority_correction
        self.frame_stack = frame_stack
        self.action_start = action_start
        self.obs_shape = tuple(q_network.input_shape[1:])
        self.num_actions = q_network.output_shape[1]
        self.is_distributional = len(q_network.output_shape) == 3
        self.is_noisy = any(noisy_layers(q_network))
        self.target_network = keras.models.clone_model(q_network)
        self.target_network.set_weights(q_network.get_weights())
        self.target_network.trainable = False
        self.build(q_network.input_shape)

    def call(self, inputs, training=None):
        """Returns the Q-values `(B, A)` of observations `(B, ...)`."""
        return self._means(self.q_network(inputs, training=training))

    def compile(self, optimizer: Any = "adam", loss: Any = None, **kwargs: Any):
        """Configures training.

        Args:
            optimizer: Keras optimizer, or its name. Defaults to Adam.
            loss: Function of TD targets and Q-values (B,), a Keras loss, or its name.
                Defaults to `huber`, which keeps rare large errors from dominating. For
                quantiles, a function of two arrays (B, M); defaults to
                `kit.dqn.quantile_huber`. With priorities, it must return a loss per
                transition, (B,), as these two do.
            **kwargs: See `keras.Model.compile`. On PyTorch, `jit_compile=True` makes
                training in one program a quarter faster, after 5 to 20 s of
                compilation.
        """
        if loss is None:
            loss = quantile_huber if self.is_distributional else huber
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        self.td_loss = keras.losses.get(loss)
        # Programs hold the optimizer and the loss that they were compiled with.
        release_programs(self, "_learn", "_play_and_learn")

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
        """Trains the agent: plays and learns in turns.

        An epoch is a reporting interval. Its logs: `return` and `length` (means
        of the episodes that ended in it, NaN if none), `loss`, `q_value`,
        `epsilon`, `steps_per_second`, `timesteps`. A second call continues with
        the networks and the optimizer, and starts a new buffer and schedule.

        Args:
            env: `gymnasium.Env` or `gymnasium.vector.VectorEnv` with a `Discrete`
                action space and the network's observation space. Or environments in
                `keras.ops` (`kit.rl.functional.FunctionalEnv`): then playing and
                learning are one compiled program, and `learning_starts` and
                `total_timesteps` are rounded up to whole calls of it.
            total_timesteps: Number of environment steps, all environments
                together.
            steps_per_epoch: Environment steps in an epoch, rounded to turns.
                Defaults to a fiftieth of `total_timesteps`.
            callbacks: Keras callbacks; one batch is one turn.
            verbose: 0 silent, 1 progress bar, 2 a line an epoch. Defaults to
                `"auto"`, which is 1.
            seed: Seed of the environment. Defaults to a new one in each call, from the
                agent's generator.
            check_finite: Whether to stop at the first loss that isn't finite, with the
                last good weights. Defaults to `True`.

        Returns:
            The `History` of the epochs' logs.

        Raises:
            TypeError: If `env` is neither a Gymnasium environment nor a FunctionalEnv.
            ValueError: If the spaces aren't supported or don't fit the network,
                `compile` wasn't called, or a number is not positive.
        """
        options: dict[str, Any] = {
            "steps_per_epoch": steps_per_epoch,
            "callbacks": callbacks,
            "verbose": verbose,
            "check_finite": check_finite,
        }
        envs = self.checked(env)
        if isinstance(envs, FunctionalEnv):
            return train(self, envs, total_timesteps, seed, **options)
        buffer: Any = self._buffer(envs)
        parts: dict[str, Any] = {"envs": envs, "buffer": buffer}
        progress = turns(
            self,
            envs,
            total_timesteps,
            self.train_freq,
            LOGS,
            parts=parts,
            **options,
        )
        buffer.reset(envs.reset(self.env_seed(seed)))
        # Two random numbers per step (whether to explore, and with which action), and
        # one per sampled transition.
        steps = self.train_freq * envs.num_envs
        size = 2 * steps + self.gradient_steps * self.batch_size
        parts["numbers"] = numbers = UniformRows(self.random, (size,))
        # Algorithm 1 of the paper, with the steps of a turn together, not one by one.
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
            if self.is_noisy:
                self._draw_noise()
            self._play(envs, buffer, explore, play[1])
            turn.logs["epsilon"] = epsilon[-1]
            if turn.end < self.learning_starts:
                continue
            # 2. Draw random minibatches of transitions.
            chosen = chosen.reshape(self.gradient_steps, self.batch_size)
            indices = buffer.indices(chosen)
            batches = buffer.gather(indices, self.n_step, self.gamma)
            if self.prioritized:
                correction = self._correction(turn.end / total_timesteps)
                batches["weight"] = buffer.weights(indices, correction)
            # 3. and 4. Targets y, and a gradient step on each minibatch.
            loss, q_value, error = self._learn(batches)
            if self.prioritized:
                buffer.set_errors(indices, ops.convert_to_numpy(error))
            turn.logs.update(loss=loss, q_value=q_value)
            # 5. Every C steps, move the target network.
            freq = self.target_update_freq
            if updates := turn.end // freq - turn.start // freq:
                self._soft_update_target(1.0 - (1.0 - self.tau) ** updates)
        return self.history

    def _buffer(self, envs):
        packing, stacked = envs.packing, self.frame_stack
        if stacked is None:
            stacked = packing.is_array and stacks_frames(envs.env)
        size = (self.buffer_size, packing.shape, packing.dtype, envs.num_envs)
        if self.prioritized:
            exponent = self.priority_exponent
            return PrioritizedReplayBuffer(*size, exponent, frame_stack=stacked)
        return ReplayBuffer(*size, frame_stack=stacked)

    def _play(self, envs, buffer, explore, uniform):
        """Plays a turn, epsilon-greedily."""
        if envs.restarted:  # as a backup couldn't restore them
            buffer.restart(envs.obs)
            envs.restarted = False
        random_action = (uniform * self.num_actions).astype(np.int32)
        for t in range(len(explore)):
            action = random_action[t]  # (N,)
            if not explore[t].all():
                greedy = ops.convert_to_numpy(self._try(envs.obs))
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
        return ops.argmax(self(obs, training=False), axis=-1)

    def _try(self, obs):
        """The actions of highest Q-value, with the noise of a noisy network."""
        return self._noisy(obs) if self.is_noisy else self._greedy(obs)

    @compiled
    def _noisy(self, obs):
        return ops.argmax(self(obs, training=True), axis=-1)

    @compiled
    def _draw_noise(self):
        draw_noise(self.q_network, self.random)

    def _correction(self, progress):
        """Beta rises linearly from `priority_correction` to 1."""
        return linear_epsilon(progress, self.priority_correction, 1.0, 1.0)

    # --- In one program with the environments ----------------------------------

    def schedule(self, env, total_timesteps, steps_per_epoch):
        """Returns how training in one program is divided into calls."""
        checks.check(self, {"total_timesteps": total_timesteps}, COUNTED)
        steps = self.train_freq * env.num_envs
        num_updates = updates_per_call(self, total_timesteps, steps, steps_per_epoch)
        # Turns that end before learning starts.
        first = max(0, math.ceil(self.learning_starts / steps) - 1)
        return Schedule(env, self.train_freq, num_updates, LOGS, first)

    def begin(self, env, keys, total_timesteps):
        """Starts episodes and an empty buffer; part of a compiled program."""
        return {
            "key": keys[0],
            "place": begin(env, keys[1]),
            "buffer": empty_buffer(
                env, self.buffer_size, self.train_freq, self.prioritized
            ),
            "begun": ops.zeros((), "int32"),
            "total_timesteps": ops.cast(total_timesteps, "float32"),
        }

    def play_and_learn(self, plan, position):
        """Makes several turns in sequence; part of a compiled program."""
        env, steps = plan.env, self.train_freq

        def choose(obs, noise):
            explore, random_action = noise
            return ops.where(explore, random_action, self._try(obs))

        def play_and_learn(position, _):
            begun, buffer = position["begun"], position["buffer"]
            key, play_key = ops.unstack(random.split(position["key"]))
            # 1. With probability epsilon a random action, otherwise the best one;
            # execute it, and store the transition.
            at = ops.cast(
                begun + env.num_envs * ops.arange(steps, dtype="int32"), "float32"
            )
            epsilon = linear_epsilon(
                at / position["total_timesteps"],
                self.epsilon_start,
                self.epsilon_end,
                self.exploration_fraction,
            )
            draws = (2, steps, env.num_envs)
            uniform = random.uniform(self.random, draws, dtype="float32")
            explore = uniform[0] < epsilon[:, None]  # (T, N)
            random_action = ops.cast(uniform[1] * self.num_actions, "int32")
            if self.is_noisy:
                self._draw_noise()
            place, rollout = play(
                env,
                position["place"],
                choose,
                (explore, random_action),
                steps,
                play_key,
                lambda action: action + self.action_start,
            )
            buffer = add_steps(buffer, rollout)
            end = begun + steps * env.num_envs
            logs = {"epsilon": epsilon[-1]}
            if plan.learns:
                # 2. to 4. Random minibatches, targets, gradient steps.
                shape = (self.gradient_steps, self.batch_size)
                if self.prioritized:
                    progress = ops.cast(end, "float32") / position["total_timesteps"]
                    correction = self._correction(progress)
                    batches = sample_by_priority(
                        buffer, self.random, shape, correction, self.n_step, self.gamma
                    )
                else:
                    batches = sample(
                        buffer, self.random, shape, self.n_step, self.gamma
                    )
                index = batches.pop("index", None)
                loss, q_value, error = self.update(batches)
                if self.prioritized:
                    exponent = self.priority_exponent
                    buffer = set_errors(buffer, index, error, exponent)
                logs.update(loss=loss, q_value=q_value)
                # 5. Every C steps, move the target network.
                freq = self.target_update_freq
                updates = ops.cast(end // freq - begun // freq, "float32")
                self._soft_update_target(1.0 - (1.0 - self.tau) ** updates)
            after = {"key": key, "place": place, "buffer": buffer, "begun": end}
            return {**position, **after}, (logs, episodes_of(rollout))

        return repeat(play_and_learn, position, plan.num_updates)

    _play_and_learn = compiled_with_numbers(play_and_learn)

    # --- Learning ---------------------------------------------------------------

    def update(self, batches):
        """Makes G gradient steps on batches (G, B, ...).

        Returns:
            The means of the losses and of the Q-values, and the TD errors (G, B).
        """
        variables = self.q_network.trainable_variables

        def gradient_step(carry, batch):
            if self.is_noisy:
                draw_noise(self.q_network, self.random)
                draw_noise(self.target_network, self.random)
            # 3. y = r + gamma (1 - terminated) max_a' Q_target(s', a').
            td_target = self._td_target(batch)

            def loss_fn():
                q = self.q_network(batch["obs"], training=True)  # (B, A)
                q = of_taken_action(q, batch["action"])  # (B,)
                loss = self.td_loss(td_target, q)
                if "weight" in batch:
                    loss = batch["weight"] * self._check_single(loss)
                return ops.mean(loss), q

            # 4. A gradient step on the loss of y and Q(s, a).
            loss, q = minimize(loss_fn, variables, self.optimizer)
            error = td_target - q
            if self.is_distributional:
                error = ops.mean(error, axis=-1)
            return carry, (loss, ops.mean(q), error)

        _, (losses, q_values, errors) = scan(gradient_step, None, batches)
        return ops.mean(losses), ops.mean(q_values), errors

    _learn = compiled_with_numbers(update)

    def _td_target(self, batch):
        """Y = r + gamma (1 - terminated) Q_target(s', a'), shape (B,) or (B, M).

        Only `terminated` makes the next state's value 0. An episode that was truncated
        would have continued: bootstrap from the next state's value.
        """
        noisy = self.is_noisy
        next_q = self.target_network(batch["next_obs"], training=noisy)  # (B, A)
        rating = next_q
        if self.double:
            rating = self.q_network(batch["next_obs"], training=noisy)
        if self.double or self.is_distributional:
            best = ops.argmax(self._means(rating), axis=-1)
            next_q = of_taken_action(next_q, best)
        else:
            next_q = ops.max(next_q, axis=-1)
        steps = batch.get("steps")
        discount = self.gamma if steps is None else self.gamma**steps
        not_terminated = 1.0 - ops.cast(batch["terminated"], next_q.dtype)
        # Not `*` and `+`: TensorFlow's refuse a float64 network and float32 rewards.
        discount, reward = ops.multiply(discount, not_terminated), batch["reward"]
        if self.is_distributional:
            reward, discount = reward[:, None], discount[:, None]
        return ops.add(reward, ops.multiply(discount, next_q))

    def _check_single(self, loss):
        """Raises an error unless the loss has a value for each transition."""
        if loss.shape != (self.batch_size,):
            raise ValueError(
                "DQN: with `prioritized=True`, each transition's loss has a weight, so "
                f"`loss` must return an array of shape ({self.batch_size},); received "
                f"{tuple(loss.shape)}. `kit.dqn.huber` is such a loss."
            )
        return loss

    def _means(self, q):
        """The Q-values (B, A) of a network's outputs, (B, A) or quantiles (B, A, M)."""
        return ops.mean(q, axis=-1) if self.is_distributional else q

    @compiled
    def _soft_update_target(self, tau):
        """Makes the target network tau * network + (1 - tau) * target network."""
        variables = zip(
            self.target_network.variables, self.q_network.variables, strict=True
        )
        for target, online in variables:
            if keras.backend.is_float_dtype(target.dtype):
                # In this form, tau = 1 is an exact copy.
                target.assign(tau * online + (1.0 - tau) * target)

    def greedy_policy(self, envs=None):
        """Returns the function from observations to the actions rated highest."""
        first = self.action_start if envs is None else envs.action_space.start
        return lambda obs: ops.convert_to_numpy(self._greedy(obs)) + first

    def network_for_obs(self):
        """Returns `q_network`."""
        return self.q_network

    def export(self, filepath: Any, *args: Any, **kwargs: Any):
        """Exports `q_network`, as `keras.Model.export` does; see there."""
        return self.q_network.export(filepath, *args, **kwargs)

    def checked(self, env):
        """Checks `fit`'s environments; takes `action_start` from them."""
        envs = super().checked(env)
        self.action_start = int(envs.action_space.start)
        return envs

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
                f"has {self.num_actions}."
            )


def _rates_actions(model):
    """Whether a model maps one array to (B, A) or (B, A, M), with known shapes."""
    shapes: list[Any] = [
        getattr(model, name, None) if model.built else None
        for name in ("input_shape", "output_shape")
    ]
    return (
        all(isinstance(s, tuple) and not isinstance(s[-1], tuple) for s in shapes)
        and len(shapes[1]) in (2, 3)
        and None not in shapes[1][1:]
    )
