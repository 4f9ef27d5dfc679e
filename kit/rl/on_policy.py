"""The base class of on-policy agents: A2C, PPO, A3C.

It combines an actor and a critic in one Keras model: acting, applying them to rollouts,
saving. Learning is in `kit/actor_critic.py`, `kit/ppo.py` and `kit/a3c.py`. Shapes: T
time steps, N environments, B = T N.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks, random
from kit.backend import Nested, Tensor, compiled
from kit.initialization import at_least_float32
from kit.models import WithParts
from kit.rl.agent import Agent, compiled_with_numbers
from kit.rl.environments import Environments
from kit.rl.functional import FunctionalEnv, begin, play
from kit.rl.fused import Plan, Schedule, episodes_of, repeat, updates_per_call
from kit.rl.normalization import RunningNormalization
from kit.rl.policies import Distribution
from kit.rl.returns import discounted_returns
from kit.rl.rollouts import Rollout, flatten_steps
from kit.rl.spaces import scaled_by_network

# Valid ranges of the constructor's arguments.
RANGES: dict[str, Any] = {
    "gamma": checks.FRACTION,
    "gae_lambda": checks.FRACTION,
    "num_steps": checks.SIZE,
    "ent_coef": checks.real("[0, 1e9]"),
    "vf_coef": checks.real("[0, 1e9]"),
    "normalize_advantages": checks.BOOL,
    "normalize_observations": checks.BOOL,
    "normalize_rewards": checks.BOOL,
}


class OnPolicy(WithParts, Agent):
    """An actor and a critic as one Keras model.

    A subclass passes all arguments, the common options of these agents, and defines
    `fit`.

    Args:
        actor: See `kit.PPO`.
        critic: See `kit.PPO`.
        gamma: Discount factor in [0, 1].
        gae_lambda: Lambda of generalized advantage estimation, in [0, 1].
        num_steps: T, steps of each environment in a rollout.
        normalize_advantages: Whether to scale advantages to mean 0, variance 1 in each
            gradient step.
        ent_coef: Weight of the entropy bonus.
        vf_coef: Weight of the critic's loss.
        normalize_observations: Whether to scale observations to mean 0, variance 1,
            except numbers that the networks scale or encode themselves.
        normalize_rewards: Whether to divide rewards by the standard deviation of
            returns.
        seed: Seed of all draws.
        **kwargs: See `keras.Model`.

    Attributes:
        distribution: The actor's last layer, which defines the policy's distribution.
        log_names: Names of the logs of `update`.
    """

    log_names: tuple[str, ...]
    parts = ("actor", "critic")
    ranges = RANGES
    fixed = ("normalize_observations", "normalize_rewards")
    scaled: np.ndarray

    def __init__(
        self,
        actor: keras.Model,
        critic: keras.Model | None,
        *,
        gamma: float,
        gae_lambda: float,
        num_steps: int,
        normalize_advantages: bool,
        ent_coef: float,
        vf_coef: float,
        normalize_observations: bool,
        normalize_rewards: bool,
        seed: int,
        **kwargs: Any,
    ):
        super().__init__(seed=seed, **kwargs)
        name = type(self).__name__
        networks = {"actor": checks.MODEL, "critic": checks.MODEL | None}
        checks.check(self, locals(), networks)
        self.distribution = _check_networks(name, actor, critic)
        self.obs_shape = tuple(actor.input_shape[1:])
        self.actor = actor
        self.critic: Any = critic
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.num_steps = num_steps
        self.normalize_advantages = normalize_advantages
        self.ent_coef = ent_coef
        self.vf_coef = vf_coef
        self.normalize_observations = normalize_observations
        self.normalize_rewards = normalize_rewards
        # Not with setattr: Keras would track it.
        self.__dict__["scaled"] = scaled_by_network(actor)
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
        """Returns the policy's parameters, `(B, ...)`, and the values `(B,)`."""
        return self.apply_networks(self.normalized(obs), training)

    def normalized(self, obs: Tensor) -> Tensor:
        """Returns normalized observations, the networks' inputs."""
        if not self.normalize_observations or self.scaled.all():
            return obs
        normalized = self.obs_statistics(obs)
        if not self.scaled.any():
            return normalized
        return ops.where(self.scaled, ops.cast(obs, normalized.dtype), normalized)

    def apply_networks(self, obs: Tensor, training: bool | None = None) -> tuple:
        """Applies actor and critic to normalized observations."""
        if self.critic is None:
            outputs, value = self.actor(obs, training=training)
        else:
            outputs = self.actor(obs, training=training)
            value = self.critic(obs, training=training)
        return outputs, flat_values(value)

    def policy(self, obs: Tensor) -> Tensor:
        """Returns the policy's parameters for observations, `(B, ...)`."""
        outputs = self.actor(self.normalized(obs), training=False)
        return outputs if self.critic is not None else outputs[0]

    def export(self, filepath: Any, *args: Any, **kwargs: Any):
        """Exports `policy`, which takes raw observations.

        See `keras.Model.export` for arguments and formats.
        """
        (first, *_) = getattr(self.actor, "inputs", None) or [None]
        dtype = getattr(first, "dtype", None)
        inputs = keras.Input(batch_shape=self.actor.input_shape, dtype=dtype)
        network = keras.Model(inputs, self.policy(inputs))
        return network.export(filepath, *args, **kwargs)

    # --- Playing ------------------------------------------------------------

    @compiled
    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Returns the actions `(B, ...)` that are sampled with this noise."""
        return self.distribution.sample(self.policy(obs), noise)

    @compiled
    def mode(self, obs: Tensor) -> Tensor:
        """Returns the most probable actions `(B, ...)`."""
        return self.distribution.mode(self.policy(obs))

    def act(self, obs: Any, sample: bool = False) -> Any:
        """Returns the action, or actions, that the policy takes.

        Args:
            obs: As in `kit.rl.agent.Agent.act`.
            sample: Whether to sample as in training. Defaults to `False`: the most
                probable action.

        Returns:
            For one observation an action of the environment; for a batch, B actions.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If `obs` has another shape.
        """
        checks.check(self, {"sample": sample}, {"sample": checks.BOOL})
        return self.act_by(self._draw if sample else self.greedy_policy(), obs)

    def _draw(self, obs):
        noise = self.distribution.noise(self.random, obs.shape[:1])
        action = ops.convert_to_numpy(self.sample(obs, noise))
        return self.distribution.to_env(action)

    def greedy_policy(self, envs=None):
        """Returns the function from observations to the most probable actions."""
        to_env = self.distribution.to_env
        return lambda obs: to_env(ops.convert_to_numpy(self.mode(obs)))

    def network_for_obs(self):
        """Returns the actor."""
        return self.actor

    def check_spaces(self, envs: Environments | FunctionalEnv) -> None:
        """Raises an error if the networks aren't made for these environments."""
        self.check_box(envs, "actor")
        if not self.distribution.fits(envs.action_space):
            layer = self.distribution
            raise ValueError(
                f"{type(self).__name__}: `actor` ends in {type(layer).__name__}, which "
                f"doesn't fit the environment's action space {envs.action_space}. "
                "`kit.policies.distribution(env.action_space)` creates the layer for "
                "each supported space."
            )

    def check_normalization(self, size: int) -> None:
        """Raises an error if advantages are normalized among too few of them."""
        if self.normalize_advantages and size < 2:
            raise ValueError(
                f"{type(self).__name__}: `normalize_advantages` needs at least two "
                f"transitions per gradient step, which has {size}. Raise `num_steps`, "
                "or set normalize_advantages=False."
            )

    # --- Learning -----------------------------------------------------------

    def update(self, rollout: Rollout, discounted: Tensor) -> tuple[dict, Tensor]:
        """Learns from a rollout; part of a compiled program.

        Args:
            rollout: Arrays `(T, N, ...)` from `Rollouts.play`.
            discounted: Discounted returns from the last call; at first zeros `(N,)`.

        Returns:
            The logs, scalars by name, and the discounted returns for the next call.
        """
        raise self._undefined("update")

    def schedule(
        self, env: FunctionalEnv, total_timesteps: int, steps_per_epoch: int | None
    ) -> Schedule:
        """Returns how training in one program is divided into calls."""
        num_updates = updates_per_call(
            self, total_timesteps, self.num_steps * env.num_envs, steps_per_epoch
        )
        return Schedule(env, self.num_steps, num_updates, self.log_names)

    def begin(
        self, env: FunctionalEnv, keys: Tensor, total_timesteps: Tensor
    ) -> Nested:
        """Starts episodes; part of a compiled program."""
        return keys[0], begin(env, keys[1]), ops.zeros((env.num_envs,), "float32")

    def play_and_learn(self, plan: Plan, position: Nested) -> tuple:
        """Makes several updates in sequence; part of a compiled program."""
        env = plan.env

        def choose(obs, noise):
            return self.distribution.sample(self.policy(obs), noise)

        def play_and_learn(position, _):
            key, place, discounted = position
            key, draws = ops.unstack(random.split(key))
            noise = self.distribution.noise(self.random, (self.num_steps, env.num_envs))
            # 1. Play T steps in each environment with the current policy.
            place, rollout = play(
                env,
                place,
                choose,
                noise,
                self.num_steps,
                draws,
                self.distribution.to_env,
            )
            # 2. Learn from them.
            logs, discounted = self.update(rollout, discounted)
            return (key, place, discounted), (logs, episodes_of(rollout))

        return repeat(play_and_learn, position, plan.num_updates)

    _play_and_learn = compiled_with_numbers(play_and_learn)

    def normalize_rollout(
        self, rollout: Rollout, discounted: Tensor
    ) -> tuple[Rollout, Tensor]:
        """Normalizes the observations and rewards of a rollout.

        Part of a compiled program.

        Args:
            rollout: From `Rollouts`, arrays `(T, N, ...)`.
            discounted: Discounted returns from the last call; at first zeros `(N,)`.

        Returns:
            The rollout, and the discounted returns for the next call.
        """
        reward = rollout["reward"]
        if self.normalize_rewards:
            totals, discounted = discounted_returns(
                reward, rollout["ended"], discounted, self.gamma
            )
            valid_mask = ops.cast(rollout["valid"], "float32")
            self.return_statistics.update(
                flatten_steps(totals), flatten_steps(valid_mask)
            )
            reward = self.return_statistics(reward)
        normalized = {
            **rollout,
            "reward": reward,
            "obs": self.normalized(rollout["obs"]),
            "next_obs": self.normalized(rollout["next_obs"]),
        }
        return normalized, discounted

    def apply_to_rollout(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """Applies the networks to the result of `normalize_rollout`.

        Returns:
            The policy's parameters for `obs`, `(B, ...)`; V(s) of `obs`, `(T, N)`;
            V(s') of `next_obs`, `(T, N)`.
        """
        outputs, value = self.apply_networks(flatten_steps(rollout["obs"]))
        _, next_value = self.apply_networks(flatten_steps(rollout["next_obs"]))
        shape = rollout["reward"].shape
        return outputs, ops.reshape(value, shape), ops.reshape(next_value, shape)

    def update_statistics(self, rollout: Rollout) -> None:
        """Updates the statistics of observations, after learning from them.

        Args:
            rollout: From `Rollouts`, before `normalize_rollout`.
        """
        if self.normalize_observations and not self.scaled.all():
            self.obs_statistics.update(
                flatten_steps(rollout["obs"]), flatten_steps(rollout["valid"])
            )


def flat_values(outputs: Tensor) -> Tensor:
    """Returns a critic's outputs `(B, 1)` as values `(B,)`, at least in float32.

    Advantages are small differences of large values.
    """
    checks.check("flat_values", locals(), {"outputs": checks.array("B 1")})
    dtype = keras.backend.standardize_dtype(outputs.dtype)
    return ops.cast(outputs[:, 0], at_least_float32(dtype))


def _check_networks(name, actor, critic):
    """Raises an error if actor and critic don't have the expected form."""
    for argument, model in (("actor", actor), ("critic", critic)):
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
            f"MultiCategorical, Gaussian), which defines the actions; it has "
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
