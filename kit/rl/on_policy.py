"""What agents share that learn from their latest experience only: A2C, PPO, A3C.

An actor and a critic as one Keras model: how they act, what a rollout is to them, and
how they are saved. How they learn stands in `kit/actor_critic.py`, `kit/ppo.py` and
`kit/a3c.py`. Shapes: T time steps, N environments, B = T N.
"""

from typing import Any

import keras
from keras import ops

from kit import checks
from kit.backend import Tensor, compiled
from kit.initialization import at_least_float32
from kit.models import WithParts
from kit.rl.agent import Agent
from kit.rl.environments import Environments
from kit.rl.normalization import RunningNormalization
from kit.rl.policies import Distribution
from kit.rl.returns import discounted_returns
from kit.rl.rollouts import Rollout, flatten_steps

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
    """An actor and a critic as one Keras model, that plays and is saved.

    A subclass gives all arguments, which are the options that all these agents have,
    and defines `fit`.

    Args:
        actor: See `kit.PPO`.
        critic: See `kit.PPO`.
        gamma: Discount factor in [0, 1].
        gae_lambda: Lambda of the generalized advantages, in [0, 1].
        num_steps: T, steps of each environment in a rollout.
        normalize_advantages: Whether to bring advantages to mean 0, variance 1 in each
            gradient step.
        ent_coef: Weight of the entropy.
        vf_coef: Weight of the critic's loss.
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
            TypeError: If an argument has another type.
            ValueError: If `obs` has another shape.
        """
        checks.check(self, {"sample": sample}, {"sample": checks.BOOL})
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

    def normalize_rollout(
        self, rollout: Rollout, discounted: Tensor
    ) -> tuple[Rollout, Tensor]:
        """Returns a rollout in the units that the networks learn in.

        Part of a compiled program.

        Args:
            rollout: From `Rollouts`, arrays `(T, N, ...)`.
            discounted: What this returned second for the rollout before; zeros `(N,)`.

        Returns:
            The rollout, and the discounted returns to go on with.
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
        """Applies the networks to what `normalize_rollout` returned.

        Returns:
            What describes the policy in the states `obs`, `(B, ...)`; V(s) of `obs`,
            `(T, N)`; V(s') of `next_obs`, `(T, N)`.
        """
        outputs, value = self.apply_networks(flatten_steps(rollout["obs"]))
        _, next_value = self.apply_networks(flatten_steps(rollout["next_obs"]))
        shape = rollout["reward"].shape
        return outputs, ops.reshape(value, shape), ops.reshape(next_value, shape)

    def update_statistics(self, rollout: Rollout) -> None:
        """Takes the observations into account, once they have been learned from.

        Args:
            rollout: From `Rollouts`, before `normalize_rollout`.
        """
        if self.normalize_observations:
            self.obs_statistics.update(
                flatten_steps(rollout["obs"]), flatten_steps(rollout["valid"])
            )


def flat_values(outputs: Tensor) -> Tensor:
    """Returns a critic's outputs `(B, 1)` as values `(B,)`, in float32 at least.

    Advantages are small differences of large values.
    """
    checks.check("flat_values", locals(), {"outputs": checks.array("B 1")})
    dtype = keras.backend.standardize_dtype(outputs.dtype)
    return ops.cast(outputs[:, 0], at_least_float32(dtype))


def _check_networks(name, actor, critic):
    """Raises an error if the networks aren't what they are to be."""
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
