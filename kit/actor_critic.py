"""Advantage actor-critic (A2C): a policy gradient with a critic as its baseline.

The policy gradient makes actions more probable that went better than expected. The
critic V(s) predicts the return. R is n rewards plus V of the last state. The advantage
is the difference, A = R - V(s):

    actor loss    -log pi(a | s) A - ent_coef H(pi(. | s))
    critic loss   (R - V(s))^2 / 2

Both are averaged over data that the current policy has just collected. Training
alternates between playing and learning; one round of both is a turn. Shapes: T steps, N
environments, B = T N transitions of a rollout.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kit import checks
from kit.backend import minimize, release_programs
from kit.backups import Values
from kit.rl.agent import compiled_with_numbers
from kit.rl.functional import FunctionalEnv
from kit.rl.fused import train
from kit.rl.on_policy import OnPolicy, flat_values
from kit.rl.returns import explained_variance, normalized, weighted_mean
from kit.rl.rollouts import Rollouts, prepare_batch
from kit.rl.training import turns

LOGS = ("policy_loss", "value_loss", "entropy", "explained_variance")

ACCEPTED = {
    "log_prob": checks.array("B"),
    "advantage": checks.array("B"),
    "value": checks.array("B"),
    "returns": checks.array("B"),
}


def policy_gradient_loss(log_prob, advantage):
    """Returns -log pi(a | s) A, whose gradient is the negative policy gradient.

    Args:
        log_prob: log pi(a | s), shape (B,).
        advantage: A, (B,): constants, not a function of the weights.

    Returns:
        The losses, shape (B,).
    """
    checks.check("policy_gradient_loss", locals(), ACCEPTED)
    return -log_prob * advantage


def value_loss(value, returns):
    """Returns half the squared error of the critic, shape (B,)."""
    checks.check("value_loss", locals(), ACCEPTED)
    return 0.5 * ops.square(value - returns)


@keras.saving.register_keras_serializable(package="kit")
class A2C(OnPolicy):
    """Advantage actor-critic agent, for discrete and continuous actions.

    In each turn, it plays `num_steps` steps in each environment, then makes one
    gradient step on all of them.

    Args:
        actor: Built model from observations `(B, ...)` to a policy, which ends in a
            layer of `kit.policies`; `kit.policy_network` builds one. Or a model with
            two outputs, the policy and the values `(B, 1)` (`kit.shared_network`).
        critic: Built model from observations to values `(B, 1)`
            (`kit.value_network`). Defaults to `None`: `actor` has both outputs.
        gamma: Discount factor in [0, 1]. Defaults to 0.99.
        gae_lambda: Lambda of generalized advantage estimation, in [0, 1]. Defaults to
            1, n-step returns.
        num_steps: T, steps of each environment in a turn. Defaults to 5.
        normalize_advantages: Whether to scale advantages to mean 0, variance 1 in each
            turn. Defaults to `False`.
        ent_coef: Weight of the entropy bonus. Defaults to 0.
        vf_coef: Weight of the critic's loss, half the squared error. It has no effect
            if the critic has its own optimizer. Stable-Baselines3's loss has no half:
            double its values and those of RL Baselines3 Zoo. Defaults to 0.5.
        normalize_observations: Whether to scale observations to mean 0 and variance 1,
            with running statistics that are saved with the agent. Observations that a
            network of `kit.policy_network` scales or encodes itself, such as images
            and categories, are left alone. Defaults to `False`.
        normalize_rewards: Whether to divide rewards by the running standard deviation
            of discounted returns. Defaults to `False`.
        seed: Seed of actions; every backend makes the same draws. Defaults to 0.

    Raises:
        TypeError: If a network is no Keras model, or an argument has the wrong type.
        ValueError: If a network has the wrong form, or a number is out of its range.

    Example:

    ```python
    env = gymnasium.make_vec("CartPole-v1", num_envs=8)
    actor = kit.policy_network((4,), env.single_action_space)
    agent = kit.A2C(actor, kit.value_network((4,)))
    rate = keras.optimizers.schedules.PolynomialDecay(2e-3, 200_000 // (8 * 5), 0.0)
    options = {"rho": 0.99, "epsilon": 1e-5, "global_clipnorm": 0.5}
    agent.compile(keras.optimizers.RMSprop(rate, **options))
    agent.fit(env, total_timesteps=200_000)
    agent.evaluate(env, episodes=20)
    agent.save("a2c.keras")
    ```

    Reference: Mnih et al., 2016, https://arxiv.org/abs/1602.01783, whose A3C does this
    without waiting for all environments. Deviation: truncated episodes bootstrap from
    the critic's value of their final observation.
    """

    log_names = LOGS

    def __init__(
        self,
        actor: keras.Model,
        critic: keras.Model | None = None,
        *,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        num_steps: int = 5,
        normalize_advantages: bool = False,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
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

    def compile(
        self, optimizer: Any = "rmsprop", critic_optimizer: Any = None, **kwargs: Any
    ):
        """Configures training.

        Args:
            optimizer: Keras optimizer, or its name. Keras' RMSprop adds `epsilon` under
                the square root. PyTorch's, which Stable-Baselines3's A2C uses, adds it
                to the root: `eps=1e-5` there is about `epsilon=1e-10` here. Defaults to
                RMSprop.
            critic_optimizer: Separate optimizer for the critic; `optimizer` then
                updates the actor only. Defaults to `None`: one for both.
            **kwargs: See `keras.Model.compile`. On PyTorch, `jit_compile=True` makes
                training in one program a quarter faster, after 5 to 20 s of
                compilation.

        Raises:
            ValueError: If there is no separate `critic` to optimize, or both optimizers
                are the same object.
        """
        name = type(self).__name__
        super().compile(optimizer=optimizer, **kwargs)
        if critic_optimizer is not None and self.critic is None:
            raise ValueError(
                f"{name}: `critic_optimizer` is given, but the agent has no `critic` "
                "of its own: its networks share their layers."
            )
        self.critic_optimizer = None
        if critic_optimizer is not None:
            self.critic_optimizer = keras.optimizers.get(critic_optimizer)
            if self.critic_optimizer is self.optimizer:
                raise ValueError(
                    f"{name}: `optimizer` and `critic_optimizer` must be two "
                    "optimizers, received the same one twice."
                )
            self.optimizer.build(self.actor.trainable_variables)
            self.critic_optimizer.build(self.critic.trainable_variables)
        # Programs hold the optimizers that they were compiled with.
        release_programs(self, "_learn", "_play_and_learn")

    def get_compile_config(self):
        """Returns the arguments of `compile`, for saving; `None` before it."""
        config = super().get_compile_config()
        if config is not None and self.critic_optimizer is not None:
            optimizer = keras.saving.serialize_keras_object(self.critic_optimizer)
            config["critic_optimizer"] = optimizer
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

        An epoch is a reporting interval. Its logs: `return` and `length` (means of the
        episodes that ended in it, NaN if none), `policy_loss`, `value_loss`, `entropy`
        (nats), `explained_variance` (of the returns, by the critic),
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
                or a number is not positive.
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
            # 2. Make one gradient step on all of them.
            logs, rewards.discounted = self._learn(rollout, rewards.discounted)
            turn.logs.update(logs)
        return self.history

    def checked(self, env):
        """Checks `fit`'s environments and returns them."""
        envs = super().checked(env)
        self.check_normalization(self.num_steps * envs.num_envs)
        return envs

    def finalize_optimizers(self):
        """Finalizes the weights after training (`use_ema`), as Keras' `fit` does."""
        if self.critic_optimizer is None:
            super().finalize_optimizers()
            return
        self.optimizer.finalize_variable_values(self.actor.trainable_variables)
        self.critic_optimizer.finalize_variable_values(self.critic.trainable_variables)

    def update(self, rollout, discounted):
        """Makes one gradient step on a rollout, arrays (T, N, ...)."""
        # 2.1 Normalize observations and rewards.
        played, discounted = self.normalize_rollout(rollout, discounted)

        # 2.2 Returns R (n rewards plus V of the last state), and advantages R - V(s).
        _, value, next_value = self.apply_to_rollout(played)
        batch = prepare_batch(played, value, next_value, self.gamma, self.gae_lambda)

        # 2.3 Gradients of both losses: one step for all weights, or two.
        if self.critic_optimizer is None:
            variables = self.trainable_variables
        else:
            variables = self.actor.trainable_variables
        _, logs = minimize(lambda: self.loss_and_logs(batch), variables, self.optimizer)
        if self.critic_optimizer is not None:
            variables = self.critic.trainable_variables
            minimize(lambda: self._critic_loss(batch), variables, self.critic_optimizer)

        # 2.4 Logs, and the running statistics of observations.
        logs["explained_variance"] = explained_variance(
            batch["value"], batch["returns"], batch["valid_mask"]
        )
        self.update_statistics(rollout)
        return logs, discounted

    _learn = compiled_with_numbers(update)

    def loss_and_logs(self, batch):
        """Returns the summed loss of actor and critic, and the logs."""
        valid_mask, advantage = batch["valid_mask"], batch["advantage"]
        if self.normalize_advantages:
            advantage = normalized(advantage, valid_mask)
        outputs, value = self.apply_networks(batch["obs"], training=True)
        log_prob = self.distribution.log_prob(outputs, batch["action"])
        logs = {
            "policy_loss": policy_gradient_loss(log_prob, advantage),
            "value_loss": value_loss(value, batch["returns"]),
            "entropy": self.distribution.entropy(outputs),
        }
        logs = {name: weighted_mean(x, valid_mask) for name, x in logs.items()}
        loss = (
            logs["policy_loss"]
            + ops.multiply(self.vf_coef, logs["value_loss"])
            - ops.multiply(self.ent_coef, logs["entropy"])
        )
        return loss, logs

    def _critic_loss(self, batch):
        """Returns the loss of a critic that has its own optimizer."""
        value = flat_values(self.critic(batch["obs"], training=True))
        return weighted_mean(value_loss(value, batch["returns"]), batch["valid_mask"])
