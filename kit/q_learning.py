"""Q-learning, SARSA and Expected SARSA: reinforcement learning with a table of values.

The table Q(s, a) holds the expected discounted return of each action in each state.
After each step, the entry of the state and action moves towards a target y, by a
fraction alpha (Watkins, 1989):

    y = r + gamma (1 - terminated) max_a' Q(s', a')
    Q(s, a) <- Q(s, a) + alpha (y - Q(s, a))

SARSA uses the next action instead of the best one; Expected SARSA uses the mean over
the policy. Training alternates between playing and learning; one round of both is a
turn. Shapes: S states, A actions, N environments, T environment steps in a turn,
B = T N transitions.
"""

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from kit import checks, random
from kit.backend import release_programs, scan
from kit.backups import Values
from kit.rl.agent import Agent, compiled_with_numbers
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
from kit.rl.training import turns

LOGS = ("loss", "q_value", "alpha", "epsilon")
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

    In each turn, it plays `train_freq` steps epsilon-greedily, then learns from them
    one after another, in one compiled call.

    In stochastic environments, the noise averages out only if the learning rate falls
    (Watkins and Dayan, 1992). With `horizon` h, an entry's learning rate at its n-th
    visit is the optimizer's times (h + 1) / (h + n): a mean over the visits, in which
    early ones, when the table knew little, count less and less (Jin et al., 2018).

    Args:
        num_states: S, number of states.
        num_actions: A, number of actions.
        algorithm: Value of the next state in the target: `"q_learning"`, that of its
            best action, whichever comes next; `"sarsa"`, that of the next action;
            `"expected_sarsa"`, the mean over the epsilon-greedy policy. The last two
            learn values that include exploration. Defaults to `"q_learning"`.
        gamma: Discount factor in [0, 1]. Defaults to 0.95.
        horizon: h, at least 0: number of visits for which an entry's learning rate
            hardly falls; 0 is the plain mean. Usually about the number of future steps
            that matter. Defaults to `None`: it doesn't fall with visits.
        initial_value: Initial Q-value. A value above any possible return makes the
            agent try every action. Defaults to 0.
        train_freq: T, steps of each environment in a turn. All actions of a turn, and
            the first one of the next, are chosen with the table as it was at the turn's
            start. Defaults to 10.
        epsilon_start: Probability of a random action at the start. Defaults to 1.
        epsilon_end: The same at the end of exploration. Defaults to 0.05.
        exploration_fraction: Part of `total_timesteps` over which epsilon falls,
            linearly, in (0, 1]. Defaults to 0.5.
        state_start: Number of the environment's first state; `fit` takes it, and
            `action_start`, from the environment. Defaults to 0.
        action_start: Number of the environment's first action. Defaults to 0.
        seed: Seed of exploration; every backend makes the same draws. Defaults to 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of its range, or `algorithm` is unknown.

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
    with the table of the last turn; with `train_freq=1`, of the last step.
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
        # float32 counts exactly up to 2^24 and stays there. Without a horizon, visits
        # aren't needed and stay 0.
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
        """Sets the learning rate.

        The update is a gradient-descent step on (y - Q(s, a))^2 / 2, so Keras' `SGD`
        gives the learning rate: a number, which Keras' callbacks can change, or a
        schedule over environment steps.

        Args:
            optimizer: `keras.optimizers.SGD` with no option but the learning rate, or
                `"sgd"`. Defaults to `SGD(0.1)`.
            **kwargs: See `keras.Model.compile`.

        Raises:
            ValueError: If `optimizer` is another one or has other options.
        """
        optimizer = keras.optimizers.get(optimizer or keras.optimizers.SGD(0.1))
        if options := _more_than_a_learning_rate(optimizer):
            raise ValueError(
                "QLearning: `optimizer` must be keras.optimizers.SGD with nothing but "
                f"a learning rate, received {options}."
            )
        super().compile(optimizer=optimizer, **kwargs)
        # Programs hold the optimizer that they were compiled with.
        release_programs(self, "_learn", "_play_and_learn")

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
        of the episodes that ended in it, NaN if none), `loss` (mean square of
        y - Q(s, a)), `q_value`, `alpha` (mean learning rate), `epsilon`,
        `steps_per_second`, `timesteps`. A second call continues with the table and
        the visits, and starts a new schedule of epsilon.

        Args:
            env: `gymnasium.Env` or `gymnasium.vector.VectorEnv` with `Discrete`
                observation and action spaces. Or environments in `keras.ops`
                (`kit.rl.functional.FunctionalEnv`): then playing and learning are one
                compiled program, and `total_timesteps` is rounded up to whole calls.
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
            ValueError: If the spaces aren't supported or don't fit the table,
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
        parts: dict[str, Any] = {"envs": envs}
        progress = turns(
            self,
            envs,
            total_timesteps,
            self.train_freq,
            LOGS,
            parts=parts,
            **options,
        )
        state = envs.reset(self.env_seed(seed)) - self.state_start
        # Two random numbers per step: whether to explore, and with which action.
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
        return _epsilon_greedy(table[state], epsilon, uniform)

    def _play(self, envs, chosen, epsilon, uniform):
        """Plays a turn, epsilon-greedily; returns the transitions, arrays (T, N).

        `chosen` has the states to continue from, and the actions chosen there.
        """
        table = ops.convert_to_numpy(self.table)
        if envs.restarted:  # as a backup couldn't restore them
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
        # If the last turn is shorter, the remaining rows stay 0: not valid.
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
                # Where no episode ended, the same draws give the same action again.
                state = step.obs - self.state_start
                action = self._choose(table, state, epsilon[t], uniform[t])
        chosen.state, chosen.action = state, action
        return steps

    # --- In one program with the environments ----------------------------------

    def schedule(self, env, total_timesteps, steps_per_epoch):
        """Returns how training in one program is divided into calls."""
        checks.check(self, {"total_timesteps": total_timesteps}, COUNTED)
        steps = self.train_freq * env.num_envs
        num_updates = updates_per_call(self, total_timesteps, steps, steps_per_epoch)
        return Schedule(env, self.train_freq, num_updates, LOGS)

    def begin(self, env, keys, total_timesteps):
        """Starts episodes, and chooses first actions; part of a compiled program."""
        place = begin(env, keys[1])
        uniform = self._uniform(env)[0]  # (2, N)
        return {
            "key": keys[0],
            "place": place,
            "action": self._choose_in_program(
                place["obs"], self.epsilon_start, uniform
            ),
            "begun": ops.zeros((), "int32"),
            "total_timesteps": ops.cast(total_timesteps, "float32"),
        }

    def play_and_learn(self, plan, position):
        """Makes several turns in sequence; part of a compiled program."""
        env, num_steps = plan.env, self.train_freq
        is_first = ops.equal(ops.arange(num_steps), 0)

        def play_and_learn(position, _):
            key, play_key = ops.unstack(random.split(position["key"]))
            at = position["begun"] + env.num_envs * ops.arange(num_steps, dtype="int32")
            epsilon = linear_epsilon(
                ops.cast(at, "float32") / position["total_timesteps"],
                self.epsilon_start,
                self.epsilon_end,
                self.exploration_fraction,
            )  # (T,)
            uniform = self._uniform(env)  # (T, 2, N)

            # 1. Take T steps. Each step chooses the next action: the first action was
            # chosen in the last turn, the others with the draws of the step before.
            def choose(obs, noise):
                is_first, epsilon, uniform = noise
                action = self._choose_in_program(obs, epsilon, uniform)
                return ops.where(is_first, position["action"], action)

            before = [ops.roll(x, 1, axis=0) for x in (epsilon, uniform)]
            place, rollout = play(
                env,
                position["place"],
                choose,
                (is_first, *before),
                num_steps,
                play_key,
                lambda action: action + self.action_start,
            )
            wide = ops.broadcast_to(epsilon[:, None], rollout["reward"].shape)
            steps = {
                "state": rollout["obs"] - self.state_start,
                "action": rollout["action"],
                "reward": rollout["reward"],
                "terminated": ops.cast(rollout["terminated"], "float32"),
                "next_state": rollout["next_obs"] - self.state_start,
                "next_action": self._choose_in_program(
                    rollout["next_obs"], wide, ops.swapaxes(uniform, 0, 1)
                ),
                "epsilon": wide,
                "valid": ops.ones_like(wide),
            }
            action = self._choose_in_program(place["obs"], epsilon[-1], uniform[-1])
            # 2. Learn from them, one after another.
            logs = dict(zip(LOGS, [*self.update(steps), epsilon[-1]], strict=True))
            begun = position["begun"] + num_steps * env.num_envs
            after = {"key": key, "place": place, "action": action, "begun": begun}
            return {**position, **after}, (logs, episodes_of(rollout))

        return repeat(play_and_learn, position, plan.num_updates)

    _play_and_learn = compiled_with_numbers(play_and_learn)

    def _uniform(self, env):
        """Draws a turn's random numbers for exploration: (T, 2, N)."""
        shape = (self.train_freq, 2, env.num_envs)
        return random.uniform(self.random, shape, dtype="float32")

    def _choose_in_program(self, obs, epsilon, uniform):
        q = ops.take(self.table, obs - self.state_start, axis=0)
        return _epsilon_greedy(q, epsilon, uniform)

    # --- Learning ---------------------------------------------------------------

    def update(self, steps):
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

        # 2.4 Logs, and the optimizer's count of steps.
        count = ops.sum(steps["valid"])
        iterations = self.optimizer.iterations
        iterations.assign_add(ops.cast(count, iterations.dtype))
        logs = (*logs, steps["alpha"])
        return [ops.sum(x * steps["valid"]) / ops.maximum(count, 1.0) for x in logs]

    _learn = compiled_with_numbers(update)

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
        # Rows that aren't valid get a learning rate of 0.
        learning_rate = valid * ops.cast(self.optimizer.learning_rate, "float32")
        if self.horizon is None:
            return learning_rate
        # Number of earlier visits of each entry, before this turn and within it.
        same = ops.cast(ops.equal(entry[:, None], entry), "float32") * valid  # (B, B)
        before = _read(self.visits, entry) + ops.sum(ops.tril(same, -1), axis=1)
        new = ops.segment_sum(valid, entry, self.num_states * self.num_actions)
        self.visits.assign_add(ops.reshape(new, self.visits.shape))
        return learning_rate * (self.horizon + 1.0) / (self.horizon + 1.0 + before)

    def _entry(self, state, action):
        """The index of (s, a) in the flattened table."""
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

    def checked(self, env):
        """Checks `fit`'s environments; takes their first state and action number."""
        envs = super().checked(env)
        self.state_start = int(envs.observation_space.start)
        self.action_start = int(envs.action_space.start)
        return envs

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


def _epsilon_greedy(q, epsilon, uniform):
    """Returns actions (...) by Q-values (..., A), NumPy's arrays or tensors.

    `uniform`, (2, ...), decides whether an action is random, and which it is.
    """
    random_action = uniform[1] * q.shape[-1]
    if not ops.is_tensor(q):
        random_action = random_action.astype(np.int32)
        return np.where(uniform[0] < epsilon, random_action, q.argmax(-1))
    random_action = ops.cast(random_action, "int32")
    return ops.where(uniform[0] < epsilon, random_action, ops.argmax(q, axis=-1))


def _read(variable, entry):
    """Entries of a variable (S, A), by their indices in the flattened table."""
    return ops.take(ops.reshape(variable, (-1,)), entry)


def _write(variable, entry, value):
    flat = ops.reshape(variable, (-1,))
    entry, value = ops.reshape(entry, (1, 1)), ops.reshape(value, (1,))
    flat = ops.scatter_update(flat, entry, value)
    variable.assign(ops.reshape(flat, variable.shape))


def _more_than_a_learning_rate(optimizer):
    """Returns the options that `SGD(learning_rate)` doesn't have; empty if none."""
    config = optimizer.get_config()
    if not isinstance(optimizer, keras.optimizers.SGD):
        return type(optimizer).__name__
    plain = keras.optimizers.SGD().get_config() | {
        name: config[name] for name in ("name", "learning_rate")
    }
    return {name: x for name, x in config.items() if x != plain.get(name)}
