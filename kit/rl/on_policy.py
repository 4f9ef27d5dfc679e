"""What agents share that learn from their latest experience only: A2C, PPO, A3C.

An actor and a critic, a frame for saving and evaluating them, and the rollouts: T steps
in each of N environments, from which one update is learned. How they learn stands in
`kit/actor_critic.py`, `kit/ppo.py` and `kit/a3c.py`. Shapes: T time steps, N
environments, B = T N.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kit.backend import Tensor, compiled
from kit.initialization import at_least_float32
from kit.models import WithParts
from kit.rl.agent import Agent
from kit.rl.environments import Environments
from kit.rl.normalization import RunningNormalization
from kit.rl.policies import Distribution
from kit.rl.returns import (
    discounted_returns,
    explained_variance,
    generalized_advantages,
)
from kit.rl.training import turns

Rollout = dict[str, np.ndarray]

# What the numbers that these agents are made of may be.
RANGES: dict[str, Any] = {
    "gamma": (0, 1),
    "gae_lambda": (0, 1),
    "num_steps": (1, math.inf),
    "ent_coef": (0.0, 1e9),
    "vf_coef": (0.0, 1e9),
    "normalize_advantages": bool,
    "normalize_observations": bool,
    "normalize_rewards": bool,
}


class OnPolicy(WithParts, Agent):
    """An actor and a critic as one Keras model, that plays and is saved.

    Args:
        actor: See `kit.PPO`.
        critic: See `kit.PPO`.
        normalize_observations: Whether to bring observations to mean 0, variance 1.
        normalize_rewards: Whether to divide rewards by the spread of returns.
        seed: Seed of what is drawn.
        **kwargs: See `keras.Model`.

    Attributes:
        distribution: The layer that says what the actor's outputs mean.
    """

    parts = ("actor", "critic")
    ranges = RANGES
    fixed = ("normalize_observations", "normalize_rewards")

    def __init__(
        self,
        actor: keras.Model,
        critic: keras.Model | None,
        *,
        normalize_observations: bool,
        normalize_rewards: bool,
        seed: int,
        **kwargs: Any,
    ):
        super().__init__(seed=seed, **kwargs)
        name = type(self).__name__
        self.distribution = _check_networks(name, actor, critic)
        self.obs_shape = tuple(actor.input_shape[1:])
        self.actor = actor
        self.critic: Any = critic
        self.normalize_observations = normalize_observations
        self.normalize_rewards = normalize_rewards
        if normalize_observations:
            self.obs_statistics = RunningNormalization(name="obs_statistics")
            self.obs_statistics.build(actor.input_shape)
        if normalize_rewards:
            self.return_statistics = RunningNormalization(
                center=False, name="return_statistics"
            )
            self.return_statistics.build((None,))
        self.build(actor.input_shape)

    def call(self, obs, training=None):
        """Returns what describes the policy, `(B, ...)`, and the values `(B,)`."""
        return self.apply_networks(self.normalized(obs), training)

    def normalized(self, obs: Tensor) -> Tensor:
        """Returns observations as the networks take them."""
        return self.obs_statistics(obs) if self.normalize_observations else obs

    def apply_networks(self, obs: Tensor, training: bool | None = None) -> tuple:
        """Applies actor and critic to what `normalized` returned."""
        if self.critic is None:
            outputs, value = self.actor(obs, training=training)
        else:
            outputs = self.actor(obs, training=training)
            value = self.critic(obs, training=training)
        return outputs, flat_values(value)

    def policy(self, obs: Tensor) -> Tensor:
        """Returns what describes the policy in states, `(B, ...)`."""
        outputs = self.actor(self.normalized(obs), training=False)
        return outputs if self.critic is not None else outputs[0]

    def export(self, filepath: Any, *args: Any, **kwargs: Any):
        """Exports `policy`, from observations as they come, as `keras.Model.export`.

        See there for arguments and formats.
        """
        inputs = keras.Input(batch_shape=self.actor.input_shape)
        network = keras.Model(inputs, self.policy(inputs))
        return network.export(filepath, *args, **kwargs)

    # --- Playing ------------------------------------------------------------

    @compiled
    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Returns actions `(B, ...)` that the noise leads to."""
        return self.distribution.sample(self.policy(obs), noise)

    @compiled
    def mode(self, obs: Tensor) -> Tensor:
        """Returns the likeliest actions `(B, ...)`."""
        return self.distribution.mode(self.policy(obs))

    def act(self, obs: Any, sample: bool = False) -> Any:
        """Returns the action, or actions, that the policy takes.

        Args:
            obs: One observation, or a batch of them (B, ...).
            sample: Whether to draw it as in training. Defaults to `False`: the
                likeliest.

        Returns:
            An action as the environment takes it for one observation, else B of them.

        Raises:
            ValueError: If `obs` has another shape.
        """
        return self.act_by(self._draw if sample else self.greedy_policy(), obs)

    def _draw(self, obs):
        noise = self.distribution.noise(self.random, obs.shape[:1])
        action = ops.convert_to_numpy(self.sample(obs, noise))
        return self.distribution.to_env(action)

    def greedy_policy(self, envs=None):
        """Returns the function from observations to the likeliest actions."""
        to_env = self.distribution.to_env
        return lambda obs: to_env(ops.convert_to_numpy(self.mode(obs)))

    def check_spaces(self, envs: Environments) -> None:
        """Raises an error if the networks aren't made for these environments."""
        self.check_box(envs, "actor")
        if not self.distribution.fits(envs.action_space):
            layer = self.distribution
            raise ValueError(
                f"{type(self).__name__}: the environment's actions are "
                f"{envs.action_space}; `actor` ends in {type(layer).__name__} for "
                "others. "
                "`kit.policies.distribution(env.action_space)` makes the layer for a "
                "space that is supported."
            )

    def check_normalization(self, size: int) -> None:
        """Raises an error if advantages are normalized among too few of them."""
        if self.normalize_advantages and size < 2:
            raise ValueError(
                f"{type(self).__name__}: `normalize_advantages` needs two transitions "
                f"at least in a gradient step, which has {size}: none is better than "
                "itself. Raise `num_steps`, or normalize_advantages=False."
            )

    # --- Learning -----------------------------------------------------------

    def train(
        self,
        env: Any,
        total_timesteps: int,
        log_names: Sequence[str],
        *,
        num_minibatches: int = 1,
        seed: int | None = None,
        **reporting: Any,
    ) -> keras.callbacks.History:
        """Plays a rollout and learns from it by `_learn`, turn by turn.

        Args:
            env: Environment or vector environment.
            total_timesteps: Number of environment steps, all environments together.
            log_names: Names of what `_learn` logs.
            num_minibatches: Parts that it divides a rollout into.
            seed: Seed of the environment; `None` for one that the agent draws.
            **reporting: See `kit.rl.training.turns`.

        Returns:
            The `History` of the epochs' logs.

        Raises:
            TypeError: If `env` isn't one of Gymnasium's.
            ValueError: If an argument is out of its range, or `compile` wasn't called.
        """
        envs = Environments(env)
        self.check_spaces(envs)
        name = type(self).__name__
        self.check_compiled()
        size = self.num_steps * envs.num_envs
        if size < num_minibatches:
            raise ValueError(
                f"{name}: `num_minibatches` is {num_minibatches}, more than the {size} "
                f"steps of a turn: num_steps={self.num_steps} in {envs.num_envs} "
                "environments."
            )
        self.check_normalization(size // num_minibatches)
        progress = turns(
            self,
            envs,
            total_timesteps,
            self.num_steps,
            log_names,
            whole_turns=True,
            **reporting,
        )
        rollouts = Rollouts(self, envs, self.num_steps, self.env_seed(seed))
        discounted = ops.zeros((envs.num_envs,))
        for turn in progress:
            logs, discounted = self._learn(rollouts.play(), discounted)
            turn.logs.update(logs)
        return self.history

    def experience(self, rollout: dict, discounted: Tensor) -> tuple[dict, Tensor]:
        """Returns what there is to learn from a rollout; part of a compiled program.

        Args:
            rollout: From `Rollouts`, arrays `(T, N, ...)`.
            discounted: What this returned second for the rollout before; zeros `(N,)`.

        Returns:
            A dict of arrays `(B, ...)`: `obs`, normalized; `action`; what the policy
            that played made of them, `outputs`, `log_prob` and `value`; `advantage`
            and `returns`, what the critic is to learn; `weight`, 0 where a step only
            began an episode. And the discounted returns to go on with.
        """
        weight = ops.cast(rollout["valid"], "float32")
        reward = rollout["reward"]
        if self.normalize_rewards:
            totals, discounted = discounted_returns(
                reward, rollout["ended"], discounted, self.gamma
            )
            self.return_statistics.update(_flat(totals), _flat(weight))
            reward = self.return_statistics(reward)
        obs = self.normalized(_flat(rollout["obs"]))
        outputs, value = self.apply_networks(obs)
        # After an end stands what it ended in, not what comes next.
        _, next_value = self.apply_networks(self.normalized(_flat(rollout["next_obs"])))
        shape = reward.shape
        advantage = generalized_advantages(
            reward,
            ops.reshape(value, shape),
            ops.reshape(next_value, shape),
            rollout["terminated"],
            rollout["ended"],
            self.gamma,
            self.gae_lambda,
        )
        action, advantage = _flat(rollout["action"]), _flat(advantage)
        batch = {
            "obs": obs,
            "action": action,
            "log_prob": self.distribution.log_prob(outputs, action),
            "value": value,
            "advantage": advantage,
            "returns": advantage + value,
            "weight": _flat(weight),
        }
        return batch, discounted

    def update_statistics(self, rollout: dict) -> None:
        """Takes the observations into account, once they have been learned from."""
        if self.normalize_observations:
            self.obs_statistics.update(_flat(rollout["obs"]), _flat(rollout["valid"]))

    def explained(self, batch: dict) -> Tensor:
        """Returns the share of the returns' variance that the critic had foreseen."""
        return explained_variance(batch["value"], batch["returns"], batch["weight"])


class Rollouts:
    """Plays T steps at a time in N environments.

    Args:
        agent: An `OnPolicy` agent.
        envs: The environments.
        num_steps: T.
        seed: Of the environments' first episodes.
    """

    def __init__(self, agent: Any, envs: Environments, num_steps: int, seed: int):
        self.agent = agent
        self.envs = envs
        self.num_steps = num_steps
        shape = (num_steps, envs.num_envs)
        # One call for a rollout: to draw costs more than the numbers do. The agent
        # keeps the program, for the next `fit`.
        draws = agent.__dict__.setdefault("_draws", {})
        if shape not in draws:
            draws[shape] = compiled(
                lambda: agent.distribution.noise(agent.random, shape)
            )
        self.draw = draws[shape]
        self.obs = envs.reset(seed)

    def play(self) -> Rollout:
        """Returns `(T, N, ...)` arrays of what was seen, done and got.

        `obs`, `action`, `reward`, `next_obs` (what an action led to, also at an end),
        `terminated`, `ended` (terminated or truncated), `valid` (`False` where the
        step only began an episode).
        """
        agent, envs = self.agent, self.envs
        noise = ops.convert_to_numpy(self.draw())
        rows = []
        for t in range(self.num_steps):
            action = ops.convert_to_numpy(agent.sample(self.obs, noise[t]))
            step = envs.step(agent.distribution.to_env(action))
            ended = step.terminated | step.truncated
            valid = np.ones_like(ended) if step.valid is None else step.valid
            rows.append(
                (
                    self.obs,
                    action,
                    step.reward,
                    step.next_obs,
                    step.terminated,
                    ended,
                    valid,
                )
            )
            self.obs = step.obs
        names = ("obs", "action", "reward", "next_obs", "terminated", "ended", "valid")
        columns = map(np.stack, zip(*rows, strict=True))
        return dict(zip(names, columns, strict=True))


def flat_values(outputs: Tensor) -> Tensor:
    """Returns a critic's outputs `(B, 1)` as values `(B,)`, in float32 at least.

    Advantages are small differences of large values.
    """
    dtype = keras.backend.standardize_dtype(outputs.dtype)
    return ops.cast(outputs[:, 0], at_least_float32(dtype))


def _flat(x):
    """(T, N, ...) as (B, ...)."""
    return ops.reshape(x, (-1, *x.shape[2:]))


def _check_networks(name, actor, critic):
    """Raises an error if the networks aren't what they are to be."""
    for argument, model in (("actor", actor), ("critic", critic)):
        if not isinstance(model, keras.Model) and not (
            argument == "critic" and model is None
        ):
            raise TypeError(
                f"{name}: `{argument}` must be a keras.Model, received "
                f"{type(model).__name__}."
            )
        if model is not None and not isinstance(
            getattr(model, "input_shape", None) if model.built else None, tuple
        ):
            raise ValueError(
                f"{name}: `{argument}` must be a built model with one input; begin it "
                "with `keras.Input(obs_shape)`."
            )
    found = [x for x in actor.layers if isinstance(x, Distribution)]
    if len(found) != 1:
        raise ValueError(
            f"{name}: `actor` must end in one layer of kit.policies (Categorical, "
            f"MultiCategorical, Gaussian), which says what its outputs mean; it has "
            f"{len(found)}. `kit.policy_network` builds such a model."
        )
    policy_shape = actor.output_shape
    value_shape = None if critic is None else critic.output_shape
    if critic is None and isinstance(policy_shape, list):
        policy_shape, value_shape = (*policy_shape, None)[:2]
    if policy_shape != found[0].compute_output_shape((None, found[0].num_inputs)):
        raise ValueError(
            f"{name}: the first output of `actor` must be that of its layer "
            f"{found[0].name!r} ({type(found[0]).__name__}), and with a `critic` the "
            f"only one; its outputs have the shape {actor.output_shape}."
        )
    if value_shape is None or value_shape[1:] != (1,):
        raise ValueError(
            f"{name}: values must have shape (batch, 1), received {value_shape}. "
            "Without a `critic`, `actor` has two outputs, as of `kit.shared_network`."
        )
    if critic is not None and critic.input_shape != actor.input_shape:
        raise ValueError(
            f"{name}: `actor` takes {actor.input_shape}, `critic` {critic.input_shape}."
        )
    return found[0]
