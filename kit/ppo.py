"""Proximal policy optimization: policy gradients with a limit on the policy's change.

An actor-critic (`kit/actor_critic.py`) can use collected data for one gradient step
only; afterwards the policy has changed and the data no longer matches it. PPO makes
many gradient steps, on minibatches, and keeps the policy near the one that collected
the data. With the ratio

    r(theta) = pi_theta(a | s) / pi_old(a | s)

it maximizes

    min(r A, clip(r, 1 - epsilon, 1 + epsilon) A),

which gains nothing from going beyond the clip range. The critic learns the returns, and
an entropy bonus keeps the policy exploring. Training alternates between playing and
learning; one round of both is a turn. Shapes: T steps, N environments, B = T N
transitions of a rollout, M transitions in a minibatch.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kit import checks, random
from kit.backend import minimize, release_programs, scan
from kit.backups import Values
from kit.rl.agent import compiled_with_numbers
from kit.rl.functional import FunctionalEnv
from kit.rl.fused import train
from kit.rl.on_policy import RANGES, OnPolicy
from kit.rl.returns import explained_variance, normalized, weighted_mean
from kit.rl.rollouts import Rollouts, prepare_batch
from kit.rl.training import turns

LOGS = (
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "explained_variance",
)

ACCEPTED = {
    "log_prob": checks.array("M"),
    "old_log_prob": checks.array("M") | checks.array(""),
    "advantage": checks.array("M"),
    "value": checks.array("M"),
    "old_value": checks.array("M"),
    "returns": checks.array("M"),
    "clip_coef": checks.array("", interval="(0, inf]"),
}


def clipped_policy_loss(log_prob, old_log_prob, advantage, clip_coef):
    """Returns -min(r A, clip(r, 1 - epsilon, 1 + epsilon) A), equation 7.

    Args:
        log_prob: log pi_theta(a | s), shape (M,).
        old_log_prob: log pi_old(a | s), (M,).
        advantage: A, (M,).
        clip_coef: epsilon.

    Returns:
        The losses, shape (M,).
    """
    checks.check("clipped_policy_loss", locals(), ACCEPTED)
    ratio = ops.exp(ops.subtract(log_prob, old_log_prob))
    clip_coef = ops.cast(clip_coef, ratio.dtype)
    clipped = ops.clip(ratio, 1.0 - clip_coef, 1.0 + clip_coef)
    # NumPy arrays are accepted, too, which can't be multiplied with PyTorch tensors.
    return -ops.minimum(
        ops.multiply(ratio, advantage), ops.multiply(clipped, advantage)
    )


def clipped_value_loss(value, old_value, returns, clip_coef):
    """Returns the larger squared error of V and of V clipped near its old value.

    max((V - R)^2, (V_old + clip(V - V_old, -epsilon, epsilon) - R)^2) / 2.

    Args:
        value: V(s), shape (M,).
        old_value: V(s) of the critic before the update, (M,).
        returns: R, (M,).
        clip_coef: epsilon; infinity for the plain squared error.

    Returns:
        The losses, shape (M,).
    """
    checks.check("clipped_value_loss", locals(), ACCEPTED)
    value, old_value, returns = map(ops.convert_to_tensor, (value, old_value, returns))
    clip_coef = ops.cast(clip_coef, value.dtype)
    near = old_value + ops.clip(value - old_value, -clip_coef, clip_coef)
    return 0.5 * ops.maximum(ops.square(value - returns), ops.square(near - returns))


@keras.saving.register_keras_serializable(package="kit")
class PPO(OnPolicy):
    """Proximal policy optimization, for discrete and continuous actions.

    In each turn, it plays `num_steps` steps in each environment, then makes
    `num_epochs` passes over them in minibatches, all in one compiled call.

    Args:
        actor: Built model from observations `(B, ...)` to a policy, which ends in a
            layer of `kit.policies`; `kit.policy_network` builds one. Or a model with
            two outputs, the policy and the values `(B, 1)` (`kit.shared_network`).
        critic: Built model from observations to values `(B, 1)`
            (`kit.value_network`). Defaults to `None`: `actor` has both outputs.
        gamma: Discount factor in [0, 1]. Defaults to 0.99.
        gae_lambda: Lambda of generalized advantage estimation, in [0, 1]. Defaults to
            0.95.
        num_steps: T, steps of each environment in a turn. Defaults to 128.
        num_minibatches: Minibatches per pass, of equal size. Transitions that are left
            over, different ones in each pass, aren't used. Defaults to 4.
        num_epochs: Passes over the rollout. Defaults to 4.
        clip_coef: epsilon, the clip range of the ratio around 1: a number, or a
            learning-rate schedule over the optimizer's steps. Defaults to 0.2.
        clip_value_loss: Whether to clip the critic's change as well, with the same
            epsilon. Defaults to `True`.
        normalize_advantages: Whether to scale advantages to mean 0, variance 1 in each
            minibatch. Defaults to `True`.
        ent_coef: Weight of the entropy bonus. Defaults to 0.01.
        vf_coef: Weight of the critic's loss, half the squared error, as in CleanRL.
            Stable-Baselines3's loss has no half: double its values and those of
            RL Baselines3 Zoo. Defaults to 0.5.
        target_kl: Limit of the approximate KL divergence from the policy that played.
            If the last minibatch of a pass exceeds it, the remaining passes only
            advance the optimizer's step count, on which its learning-rate schedule
            depends. Defaults to `None`, no limit.
        normalize_observations: Whether to scale observations to mean 0 and variance 1,
            with running statistics that are saved with the agent. Observations that a
            network of `kit.policy_network` scales or encodes itself, such as images
            and categories, are left alone. Defaults to `False`.
        normalize_rewards: Whether to divide rewards by the running standard deviation
            of discounted returns. Defaults to `False`.
        seed: Seed of actions and minibatches; every backend makes the same draws.
            Defaults to 0.

    Raises:
        TypeError: If a network is no Keras model, or an argument has the wrong type.
        ValueError: If a network has the wrong form, or a number is out of its range.

    Example:

    ```python
    env = gymnasium.make_vec("CartPole-v1", num_envs=4)
    actor = kit.policy_network((4,), env.single_action_space)
    agent = kit.PPO(actor, kit.value_network((4,)))
    agent.compile(keras.optimizers.Adam(2.5e-4, epsilon=1e-5, global_clipnorm=0.5))
    agent.fit(env, total_timesteps=100_000)
    agent.evaluate(env, episodes=20)
    agent.save("ppo.keras")
    ```

    Reference: Schulman et al., 2017, https://arxiv.org/abs/1707.06347. Details as in
    Huang et al., 2022, "The 37 implementation details of PPO". Deviations: running
    statistics are updated once per turn, not once per step; truncated episodes
    bootstrap from the critic's value of their final observation.
    """

    log_names = LOGS
    ranges = {
        **RANGES,
        "clip_coef": checks.real("(0, 1e9]") | LearningRateSchedule,
        "target_kl": checks.real("[0, 1e9]") | None,
        "num_minibatches": checks.SIZE,
        "num_epochs": checks.SIZE,
        "clip_value_loss": checks.BOOL,
    }

    def __init__(
        self,
        actor: keras.Model,
        critic: keras.Model | None = None,
        *,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        num_steps: int = 128,
        num_minibatches: int = 4,
        num_epochs: int = 4,
        clip_coef: float | LearningRateSchedule = 0.2,
        clip_value_loss: bool = True,
        normalize_advantages: bool = True,
        ent_coef: float = 0.01,
        vf_coef: float = 0.5,
        target_kl: float | None = None,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(
            actor,
            critic,
            gamma=gamma,
            gae_lambda=gae_lambda,
            num_steps=num_steps,
            normalize_advantages=normalize_advantages,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            normalize_observations=normalize_observations,
            normalize_rewards=normalize_rewards,
            seed=seed,
            **kwargs,
        )
        self.num_minibatches = num_minibatches
        self.num_epochs = num_epochs
        if isinstance(clip_coef, dict):  # as `get_config` wrote it
            clip_coef = keras.saving.deserialize_keras_object(clip_coef)
        self.clip_coef = clip_coef
        self.clip_value_loss = clip_value_loss
        self.target_kl = target_kl

    def compile(self, optimizer: Any = "adam", **kwargs: Any):
        """Configures training.

        Args:
            optimizer: Keras optimizer, or its name. Published results use
                `Adam(epsilon=1e-5, global_clipnorm=0.5)` and a schedule of the learning
                rate that falls to 0. Defaults to Adam.
            **kwargs: See `keras.Model.compile`. On PyTorch, `jit_compile=True` makes
                training in one program 1.5 to 2.5 times faster, after 10 to 20 s of
                compilation.
        """
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

        An epoch is a reporting interval. Its logs: `return` and `length` (means of the
        episodes that ended in it, NaN if none), `policy_loss`, `value_loss`, `entropy`
        (nats), `approx_kl` (nats, the KL divergence from the policy that played),
        `clip_fraction` (share of clipped ratios), each measured before a gradient step
        and averaged over steps; `explained_variance` (of the returns, by the critic),
        `steps_per_second`, `timesteps`.

        Args:
            env: `gymnasium.Env` or `gymnasium.vector.VectorEnv` with the observation
                and action space of the networks. Or environments in `keras.ops`
                (`kit.rl.functional.FunctionalEnv`): then playing and learning are one
                compiled program, each call of it is a turn of several updates, and
                `total_timesteps` is rounded up to whole calls.
            total_timesteps: Number of environment steps, all environments together;
                the last turn is played to its end.
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
            ValueError: If the spaces don't fit the networks, `compile` wasn't called,
                a number is not positive, or a turn has fewer steps than minibatches.
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
            self.num_steps,
            self.log_names,
            whole_turns=True,
            parts=parts,
            **options,
        )
        rollouts = Rollouts(self, envs, self.num_steps, self.env_seed(seed))
        # Running discounted returns, whose spread normalizes rewards.
        parts["rewards"] = rewards = Values(
            discounted=ops.zeros((envs.num_envs,), "float32")
        )
        for turn in progress:
            # 1. Play T steps in each environment with the current policy.
            rollout = rollouts.play()
            # 2. Make K passes over them: advantages, minibatches, gradient steps.
            logs, rewards.discounted = self._learn(rollout, rewards.discounted)
            turn.logs.update(logs)
        return self.history

    def checked(self, env):
        """Checks `fit`'s environments and returns them."""
        envs = super().checked(env)
        self._check_minibatches(envs.num_envs)
        return envs

    def update(self, rollout, discounted):
        """Makes all passes over a rollout, arrays (T, N, ...)."""
        # 2.1 Normalize observations and rewards.
        played, discounted = self.normalize_rollout(rollout, discounted)

        # 2.2 Advantages (equation 11), by the networks that played.
        outputs, value, next_value = self.apply_to_rollout(played)
        data = prepare_batch(played, value, next_value, self.gamma, self.gae_lambda)
        data["log_prob"] = self.distribution.log_prob(outputs, data["action"])

        # 2.3 Minibatches: K random orders of all transitions, each cut into equal
        # parts. All orders at once: one draw instead of many.
        size = data["valid_mask"].shape[0]
        used = size // self.num_minibatches * self.num_minibatches
        orders = random.permutation(self.random, size, self.num_epochs)[:, :used]
        orders = ops.reshape(orders, (self.num_epochs, self.num_minibatches, -1))

        # 2.4 A gradient step on each minibatch (`_gradient_step`), until the policy is
        # too far from the one that played.
        def minibatch(keep_updating, indices):
            batch = {name: ops.take(x, indices, axis=0) for name, x in data.items()}
            return keep_updating, self._gradient_step(batch, keep_updating)

        def one_pass(keep_updating, order):
            keep_updating, logs = scan(minibatch, keep_updating, order)
            if self.target_kl is not None:
                near = logs["approx_kl"][-1] <= self.target_kl
                keep_updating = ops.logical_and(keep_updating, near)
            return keep_updating, logs

        _, logs = scan(one_pass, ops.ones((), "bool"), orders)

        # 2.5 Logs, and the running statistics of observations.
        logs = {name: ops.mean(values) for name, values in logs.items()}
        logs["explained_variance"] = explained_variance(
            data["value"], data["returns"], data["valid_mask"]
        )
        self.update_statistics(rollout)
        return logs, discounted

    _learn = compiled_with_numbers(update)

    def _gradient_step(self, batch, keep_updating):
        """One step on a minibatch (M, ...), undone unless `keep_updating`."""
        clip_coef = self.clip_coef
        if isinstance(clip_coef, LearningRateSchedule):
            clip_coef = clip_coef(self.optimizer.iterations)

        def loss_fn():
            return self.loss_and_logs(batch, clip_coef)

        variables = self.trainable_variables
        if self.target_kl is None:
            return minimize(loss_fn, variables, self.optimizer)[1]
        # The step is always computed, and its result kept or undone. The optimizer
        # counts it in any case: the learning rate falls as if there were no limit.
        optimizer_state = [
            x for x in self.optimizer.variables if x is not self.optimizer.iterations
        ]
        state = [*variables, *self._statistics(), *optimizer_state]
        before = [ops.copy(variable) for variable in state]
        _, logs = minimize(loss_fn, variables, self.optimizer)
        for variable, old in zip(state, before, strict=True):
            variable.assign(ops.where(keep_updating, variable.value, old))
        return logs

    def loss_and_logs(self, batch, clip_coef):
        """Returns the loss of a minibatch (M, ...), and the logs."""
        valid_mask, advantage = batch["valid_mask"], batch["advantage"]
        if self.normalize_advantages:
            advantage = normalized(advantage, valid_mask)
        outputs, value = self.apply_networks(batch["obs"], training=True)
        log_prob = self.distribution.log_prob(outputs, batch["action"])

        # Clipped losses: L^CLIP (equation 7) and L^VF.
        policy_loss = clipped_policy_loss(
            log_prob, batch["log_prob"], advantage, clip_coef
        )
        value_loss = clipped_value_loss(
            value,
            batch["value"],
            batch["returns"],
            clip_coef if self.clip_value_loss else math.inf,
        )
        entropy = self.distribution.entropy(outputs)

        # How far the policy has changed. (r - 1) - log r is never negative, and its
        # mean estimates the KL divergence.
        log_ratio = log_prob - batch["log_prob"]
        approx_kl = ops.exp(log_ratio) - 1.0 - log_ratio
        beyond = ops.greater(ops.abs(ops.exp(log_ratio) - 1.0), clip_coef)
        logs = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": approx_kl,
            "clip_fraction": ops.cast(beyond, "float32"),
        }
        logs = {name: weighted_mean(x, valid_mask) for name, x in logs.items()}

        # The sum of all (equation 9), with the opposite sign, as it is minimized.
        loss = (
            logs["policy_loss"]
            + ops.multiply(self.vf_coef, logs["value_loss"])
            - ops.multiply(self.ent_coef, logs["entropy"])
        )
        return loss, logs

    def _statistics(self):
        """The networks' non-trainable variables, such as BatchNormalization's."""
        networks = [self.actor] if self.critic is None else [self.actor, self.critic]
        return [v for network in networks for v in network.non_trainable_variables]

    def _check_minibatches(self, num_envs):
        """Raises an error if a turn is too short for its minibatches."""
        size = self.num_steps * num_envs
        if size < self.num_minibatches:
            raise ValueError(
                f"{type(self).__name__}: `num_minibatches` is {self.num_minibatches}, "
                f"more than the {size} steps of a turn: num_steps={self.num_steps} in "
                f"{num_envs} environments."
            )
        self.check_normalization(size // self.num_minibatches)

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        clip_coef = self.clip_coef
        if isinstance(clip_coef, LearningRateSchedule):
            clip_coef = keras.saving.serialize_keras_object(clip_coef)
        return {**super().get_config(), "clip_coef": clip_coef}
