"""Q-learning, SARSA and Expected SARSA: a table of values, learned by living.

The table Q(s, a) holds the expected discounted return of each action in each
state. After each step, the entry of what was done goes a part alpha of the way to
what the step says it should be (Watkins, 1989):

    y = r + gamma (1 - terminated) max_a' Q(s', a')
    Q(s, a) <- Q(s, a) + alpha (y - Q(s, a))

SARSA puts the next action in the place of the best one, Expected SARSA the mean
over the policy. Shapes: S states, A actions, N environments, T environment steps
in a turn, B = T N transitions.
"""

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from kit import checks
from kit.backend import release_programs, scan
from kit.backups import Values
from kit.rl.agent import Agent, compiled_with_numbers
from kit.rl.environments import Environments
from kit.rl.exploration import UniformRows, linear_epsilon
from kit.rl.training import turns

ALGORITHMS = ("q_learning", "sarsa", "expected_sarsa")
# Valid ranges of the constructor's arguments.
RANGES: dict[str, Any] = {
    "num_states": checks.SIZE,
    "num_actions": checks.SIZE,
    "gamma": checks.FRACTION,
    "horizon": checks.WEIGHT | None,
    "initial_value": checks.FINITE,
    "train_freq": checks.SIZE,
    "epsilon_start": checks.FRACTION,
    "epsilon_end": checks.FRACTION,
    "exploration_fraction": checks.real("(0, 1]"),
    "algorithm": checks.one_of(*ALGORITHMS),
    "state_start": checks.INTEGER,
    "action_start": checks.INTEGER,
}


@keras.saving.register_keras_serializable(package="kit")
class QLearning(Agent):
    """Agent with a table of Q-values, for discrete states and actions.

    In turns, it plays `train_freq` steps epsilon-greedily, then learns from them
    one after another, in one compiled call.

    Where chance has a part in what happens, only a learning rate that falls lets
    the noise average out (Watkins and Dayan, 1992). With `horizon` h, that of an
    entry is the optimizer's times (h + 1) / (h + n) at its n-th visit: a mean over
    the visits, in which the first ones, made when the table knew nothing, count
    for less and less (Jin et al., 2018).

    Args:
        num_states: S, number of states.
        num_actions: A, number of actions.
        algorithm: What a state is worth in the target: `"q_learning"`, its best
            action, whatever is done next; `"sarsa"`, the action that is done
            next; `"expected_sarsa"`, the mean over the epsilon-greedy policy. The
            last two learn the value of exploring as well. Defaults to
            `"q_learning"`.
        gamma: Discount factor in [0, 1]. Defaults to 0.95.
        horizon: h, at least 0: for how many visits the learning rate of an entry
            stays about as it is; 0 is the plain mean. In the order of how many
            steps ahead matter. Defaults to `None`: it doesn't fall with visits.
        initial_value: Q-value of what wasn't tried. Above what can be earned, it
            makes the agent try everything. Defaults to 0.
        train_freq: T, steps of each environment in a turn. What is done in a turn,
            and first in the next, was chosen by the table of its start. Defaults
            to 10.
        epsilon_start: Probability of a random action at the start. Defaults to 1.
        epsilon_end: The same at the end of exploration. Defaults to 0.05.
        exploration_fraction: Part of `total_timesteps` over which epsilon falls,
            linearly, in (0, 1]. Defaults to 0.5.
        state_start: What the environment calls the first state; `fit` takes it, and
            `action_start`, from its environment. Defaults to 0.
        action_start: What the environment calls the first action. Defaults to 0.
        seed: Seed of exploration, the same draws on every backend. Defaults to 0.

    Raises:
        TypeError: If a number isn't one.
        ValueError: If a number is out of its range, or `algorithm` is another.

    Example:

    ```python
    env = gymnasium.make("FrozenLake-v1")
    agent = kit.QLearning(16, 4, gamma=0.99, horizon=40, initial_value=1.0)
    agent.compile(optimizer=keras.optimizers.SGD(1.0))
    history = agent.fit(env, total_timesteps=100_000)
    agent.evaluate(env, episodes=100)
    agent.save("q_learning.keras")
    ```

    Reference: Watkins and Dayan, 1992, https://doi.org/10.1007/BF00992698; Sutton
    and Barto, 2018, chapter 6, http://incompleteideas.net/book/the-book-2nd.html;
    Jin et al., 2018, https://arxiv.org/abs/1807.03765. Deviation: actions are chosen
    by the table of the last turn; with `train_freq=1`, of the last step.
    """

    ranges = RANGES
    fixed = ("num_states", "num_actions", "initial_value")
    obs_shape = ()  # a state is a number

    def __init__(
        self,
        num_states: int,
        num_actions: int,
        *,
        algorithm: Literal["q_learning", "sarsa", "expected_sarsa"] = "q_learning",
        gamma: float = 0.95,
        horizon: float | None = None,
        initial_value: float = 0.0,
        train_freq: int = 10,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.05,
        exploration_fraction: float = 0.5,
        state_start: int = 0,
        action_start: int = 0,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(seed=seed, **kwargs)
        self.num_states = num_states
        self.num_actions = num_actions
        self.algorithm = algorithm
        self.gamma = gamma
        self.horizon = horizon
        self.initial_value = initial_value
        self.train_freq = train_freq
        self.epsilon_start = epsilon_start
        self.epsilon_end = epsilon_end
        self.exploration_fraction = exploration_fraction
        self.state_start = state_start
        self.action_start = action_start
        self.table = self._add_table("table", initial_value)
        # Floats count exactly up to 2^24, where they stay. Without a horizon they
        # aren't needed, and stay 0.
        self.visits = self._add_table("visits", 0.0, trainable=False)
        self.build()

    def _add_table(self, name, value, trainable=True):
        return self.add_weight(
            name=name,
            shape=(self.num_states, self.num_actions),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            trainable=trainable,
        )

    def call(self, inputs, training=None):
        """Returns the Q-values `(B, A)` of states `(B,)`."""
        return ops.take(self.table, inputs, axis=0)

    def compile(self, optimizer: Any = None, **kwargs: Any):
        """Sets how fast to learn.

        The update is a step of gradient descent on (y - Q(s, a))^2 / 2, so its
        learning rate is that of Keras' `SGD`: a number, which Keras' callbacks
        can change, or a schedule over environment steps.

        Args:
            optimizer: `keras.optimizers.SGD` with nothing but a learning rate, or
                `"sgd"`. Defaults to `SGD(0.1)`.
            **kwargs: See `keras.Model.compile`.

        Raises:
            ValueError: If it is another optimizer, or has other options.
        """
        optimizer = keras.optimizers.get(optimizer or keras.optimizers.SGD(0.1))
        if options := _more_than_a_learning_rate(optimizer):
            raise ValueError(
                "QLearning: `optimizer` must be keras.optimizers.SGD with nothing but "
                f"a learning rate, received {options}."
            )
        super().compile(optimizer=optimizer, **kwargs)
        # Programs hold the optimizer that they were compiled with.
        release_programs(self, "_learn")

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
        of the episodes that ended in it, NaN if none), `loss` (mean square of
        y - Q(s, a)), `q_value`, `alpha` (mean learning rate), `epsilon`,
        `steps_per_second`, `timesteps`. A second call goes on with the table and
        the visits, and begins a new schedule of epsilon.

        Args:
            env: `gymnasium.Env` or `gymnasium.vector.VectorEnv` with `Discrete`
                observation and action spaces.
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
            ValueError: If the spaces aren't supported or don't fit the table,
                `compile` wasn't called, or a number is not positive.
        """
        envs = Environments(env)
        self.check_spaces(envs)
        self.check_compiled()
        self.state_start = int(envs.observation_space.start)
        self.action_start = int(envs.action_space.start)
        parts: dict[str, Any] = {"envs": envs}
        progress = turns(
            self,
            envs,
            total_timesteps,
            self.train_freq,
            ("loss", "q_value", "alpha", "epsilon"),
            steps_per_epoch=steps_per_epoch,
            callbacks=callbacks,
            verbose=verbose,
            check_finite=check_finite,
            parts=parts,
        )
        state = envs.reset(self.env_seed(seed)) - self.state_start
        # Two a step: to explore or not, and how.
        draws = UniformRows(self.random, (self.train_freq, 2, envs.num_envs))
        table = ops.convert_to_numpy(self.table)
        action = self._choose(table, state, self.epsilon_start, next(draws)[0])
        chosen = Values(state=state, action=action)
        parts |= {"draws": draws, "chosen": chosen}
        for turn, uniform in zip(progress, draws, strict=False):
            at = turn.start + envs.num_envs * np.arange(turn.num_steps)
            epsilon = linear_epsilon(
                at / total_timesteps,
                self.epsilon_start,
                self.epsilon_end,
                self.exploration_fraction,
            )  # (T,)
            # 1. Take T steps: act, observe, choose the next action epsilon-greedily.
            steps = self._play(envs, chosen, epsilon, uniform)
            # 2. Learn from them, one after another.
            loss, q_value, alpha = self._learn(steps)
            turn.logs.update(loss=loss, q_value=q_value, alpha=alpha)
            turn.logs["epsilon"] = epsilon[-1]
        return self.history

    def _choose(self, table, state, epsilon, uniform):
        """Returns epsilon-greedy actions (N,) for states (N,); `uniform`: (2, N)."""
        random_action = (uniform[1] * self.num_actions).astype(np.int32)
        return np.where(uniform[0] < epsilon, random_action, table[state].argmax(-1))

    def _play(self, envs, chosen, epsilon, uniform):
        """Plays a turn, epsilon-greedily; returns the transitions, arrays (T, N).

        `chosen` has the states to go on from, and the actions in them.
        """
        table = ops.convert_to_numpy(self.table)
        if envs.restarted:  # which a backup couldn't restore
            chosen.state = envs.obs - self.state_start
            chosen.action = self._choose(table, chosen.state, epsilon[0], uniform[0])
            envs.restarted = False
        state, action = chosen.state, chosen.action
        shape = (self.train_freq, envs.num_envs)
        names = ("state", "action", "next_state", "next_action")
        steps = {name: np.zeros(shape, np.int32) for name in names}
        names = ("reward", "terminated", "epsilon", "valid")
        steps |= {name: np.zeros(shape, np.float32) for name in names}
        steps["epsilon"][: len(epsilon)] = epsilon[:, None]
        # A shorter turn, the last one, leaves the rest as it is: not valid.
        for t in range(len(epsilon)):
            step = envs.step(action + self.action_start)
            next_state = step.next_obs - self.state_start
            next_action = self._choose(table, next_state, epsilon[t], uniform[t])
            steps["state"][t] = state
            steps["action"][t] = action
            steps["reward"][t] = step.reward
            steps["terminated"][t] = step.terminated
            steps["next_state"][t] = next_state
            steps["next_action"][t] = next_action
            steps["valid"][t] = 1.0 if step.valid is None else step.valid
            state, action = next_state, next_action
            if (step.terminated | step.truncated).any():
                # Where no episode ended, the same draws make the same choice.
                state = step.obs - self.state_start
                action = self._choose(table, state, epsilon[t], uniform[t])
        chosen.state, chosen.action = state, action
        return steps

    @compiled_with_numbers
    def _learn(self, steps):
        """Learns from transitions (T, N), one after another."""
        steps = {name: ops.reshape(x, (-1,)) for name, x in steps.items()}  # (B,)
        # 2.1 The discount is 0 only where the episode terminated. One that was
        # truncated would have continued: bootstrap from the next state's value.
        steps["discount"] = self.gamma * (1.0 - steps["terminated"])
        steps["entry"] = self._entry(steps["state"], steps["action"])
        steps["next_entry"] = self._entry(steps["next_state"], steps["next_action"])
        # 2.2 Learning rates, which fall with the visits of an entry.
        steps["alpha"] = self._alpha(steps["entry"], steps["valid"])

        # 2.3 Q(s, a) <- Q(s, a) + alpha (y - Q(s, a)), in the order of the steps.
        _, logs = scan(lambda _, step: (None, self._update(step)), None, steps)

        # 2.4 What to report, and to count.
        count = ops.sum(steps["valid"])
        iterations = self.optimizer.iterations
        iterations.assign_add(ops.cast(count, iterations.dtype))
        logs = (*logs, steps["alpha"])
        return [ops.sum(x * steps["valid"]) / ops.maximum(count, 1.0) for x in logs]

    def _update(self, step):
        """Q(s, a) <- Q(s, a) + alpha (y - Q(s, a))."""
        q = _read(self.table, step["entry"])
        td_error = self._td_target(step) - q
        _write(self.table, step["entry"], q + step["alpha"] * td_error)
        return ops.square(td_error), q

    def _td_target(self, step):
        """Y = r + gamma (1 - terminated) V(s')."""
        next_q = ops.take(self.table, step["next_state"], axis=0)  # (A,)
        if self.algorithm == "q_learning":
            next_value = ops.max(next_q)
        elif self.algorithm == "sarsa":
            next_value = _read(self.table, step["next_entry"])
        else:
            explore = step["epsilon"]
            next_value = explore * ops.mean(next_q) + (1 - explore) * ops.max(next_q)
        return step["reward"] + step["discount"] * next_value

    def _alpha(self, entry, valid):
        """Learning rates (B,), with the factor (h + 1) / (h + n) at the n-th visit."""
        # What is no transition changes nothing.
        learning_rate = valid * ops.cast(self.optimizer.learning_rate, "float32")
        if self.horizon is None:
            return learning_rate
        # How often each entry was visited, before this turn and earlier in it.
        same = ops.cast(ops.equal(entry[:, None], entry), "float32") * valid  # (B, B)
        before = _read(self.visits, entry) + ops.sum(ops.tril(same, -1), axis=1)
        new = ops.segment_sum(valid, entry, self.num_states * self.num_actions)
        self.visits.assign_add(ops.reshape(new, self.visits.shape))
        return learning_rate * (self.horizon + 1.0) / (self.horizon + 1.0 + before)

    def _entry(self, state, action):
        """The place of (s, a) in the table, read row by row."""
        return state * self.num_actions + action

    def greedy_policy(self, envs=None):
        """Returns the function from states to the actions rated highest."""
        first_state, first_action = self.state_start, self.action_start
        if envs is not None:
            first_state = envs.observation_space.start
            first_action = envs.action_space.start
        table = ops.convert_to_numpy(self.table)
        return lambda obs: table[obs - first_state].argmax(axis=-1) + first_action

    def check_obs(self, obs):
        """Raises an error if it is neither a state nor an array of states `(B,)`."""
        if not np.issubdtype(obs.dtype, np.integer) or obs.ndim > 1:
            raise ValueError(
                "QLearning: `obs` must be an integer or an array of integers with one "
                f"axis, received dtype {obs.dtype} and shape {obs.shape}."
            )
        first, last = self.state_start, self.state_start + self.num_states - 1
        if obs.size and not first <= obs.min() <= obs.max() <= last:
            raise ValueError(
                f"QLearning: `obs` must lie between {first} and {last}, received {obs}."
            )

    def export(self, *args: Any, **kwargs: Any):
        """Raises an error: there is no network to export."""
        raise NotImplementedError(
            "QLearning: there is no network to export, but a table of states and "
            "actions. Save it with `np.save(path, agent.get_weights()[0])`, or the "
            "agent with `agent.save(path)`."
        )

    def check_spaces(self, envs):
        """Raises an error if the table isn't made for these environments."""
        from gymnasium.spaces import Box, Discrete

        if isinstance(envs.observation_space, Box):
            raise ValueError(
                f"QLearning: the observation space {envs.observation_space} isn't "
                "supported; a table needs numbered states, Discrete. Use DQN, which "
                "has a network in its place, or divide the Box into cells and number "
                "them (discretisation) with gymnasium.wrappers.TransformObservation."
            )
        for name, space, size in (
            ("observation", envs.observation_space, self.num_states),
            ("action", envs.action_space, self.num_actions),
        ):
            if not isinstance(space, Discrete):
                raise ValueError(
                    f"QLearning: the {name} space {space} isn't supported; a table "
                    "needs Discrete observation and action spaces."
                )
            if space.n != size:
                what = "states" if name == "observation" else "actions"
                raise ValueError(
                    f"QLearning: the environment has {space.n} {what}, the table has "
                    f"{size}: make the agent with `num_{what}={space.n}`."
                )


def _read(variable, entry):
    """Entries of a variable (S, A), by their places row by row."""
    return ops.take(ops.reshape(variable, (-1,)), entry)


def _write(variable, entry, value):
    flat = ops.reshape(variable, (-1,))
    entry, value = ops.reshape(entry, (1, 1)), ops.reshape(value, (1,))
    flat = ops.scatter_update(flat, entry, value)
    variable.assign(ops.reshape(flat, variable.shape))


def _more_than_a_learning_rate(optimizer):
    """The options of an optimizer that SGD(learning_rate) doesn't have."""
    config = optimizer.get_config()
    if not isinstance(optimizer, keras.optimizers.SGD):
        return type(optimizer).__name__
    plain = keras.optimizers.SGD().get_config() | {
        name: config[name] for name in ("name", "learning_rate")
    }
    return {name: x for name, x in config.items() if x != plain.get(name)}
