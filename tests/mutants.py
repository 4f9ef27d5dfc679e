"""Breaks the kit on purpose, in ways in which people do: a test must notice each.

    KERAS_BACKEND=jax python tests/mutants.py            all of them: half an hour
    KERAS_BACKEND=jax python tests/mutants.py ppo gan    those of files of these names
    KERAS_BACKEND=jax python tests/mutants.py 17 40-45   those of these numbers

A mutant replaces a piece of one file, in a temporary copy of the repository, and runs
the tests that should fail. It is killed if one does. Where they pass it survives, and a
test is missing. Where they can't run (the import fails, a test isn't found, the time is
up) that is an error, and says nothing about the tests. The same tests run without any
mutant first. Run by `tox -m mutants`.
"""

import argparse
import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("kit", "recipes", "tests", "pyproject.toml", "README.md", "CHANGELOG.md")


@dataclass(frozen=True)
class Mutant:
    """A mistake.

    Attributes:
        path: File, below `kit/` unless it begins with `recipes/`.
        before: Text that stands in it once.
        after: Text in its place.
        why: The mistake in words.
        tests: Those that should notice: a test file without `test_` and `.py`, and
            names without `test_`. A file's name ends with a colon.
    """

    path: str
    before: str
    after: str
    why: str
    tests: str

    @property
    def file(self):
        """Path in the repository."""
        return self.path if self.path.startswith("recipes/") else f"kit/{self.path}"

    @property
    def runs(self):
        """Whether the backend runs this code: XLA's isn't PyTorch's."""
        return os.environ.get("KERAS_BACKEND") == "jax" or self.path not in (
            "engines/jax.py",
            "engines/fast_ops.py",
            "engines/jax_convolutions.py",
        )

    @property
    def nodes(self):
        """The tests as pytest takes them."""
        nodes, file = [], ""
        for word in self.tests.split():
            if word.endswith(":"):
                file = f"tests/test_{word[:-1]}.py"
            else:
                nodes.append(f"{file}::test_{word}")
        return nodes


M = Mutant
MUTANTS = [
    # --- DQN ------------------------------------------------------------------
    M(
        "dqn.py",
        "ops.multiply(discount, not_terminated)",
        "ops.multiply(discount, ops.ones_like(not_terminated))",
        "a final state has a value",
        "dqn: td_target_by_hand",
    ),
    M(
        "dqn.py",
        'ops.cast(batch["terminated"], next_q.dtype)',
        'ops.cast(\n            ops.logical_or(batch["terminated"], batch["truncated"]), next_q.dtype\n        )',
        "a truncated episode isn't continued",
        "dqn: td_target_by_hand",
    ),
    M(
        "dqn.py",
        'ops.cast(batch["terminated"], next_q.dtype)',
        'ops.cast(batch["truncated"], next_q.dtype)',
        "truncated in the place of terminated",
        "dqn: td_target_by_hand",
    ),
    M(
        "dqn.py",
        "turn.start // freq:\n                self._soft_update_target(",
        "turn.start // freq:\n                float(",
        "the target network is never updated",
        "dqn: a_hard_update_is_a_copy_and_comes_in_its_period",
    ),
    M(
        "dqn.py",
        "if updates := turn.end // freq - turn.start // freq:",
        "if updates := 1:",
        "the target network is updated in each turn",
        "dqn: a_hard_update_is_a_copy_and_comes_in_its_period",
    ),
    M(
        "dqn.py",
        "(1.0 - (1.0 - self.tau) ** updates)\n        return self.history",
        "(self.tau)\n        return self.history",
        "several updates in a turn count as one",
        "dqn: soft_updates_by_hand",
    ),
    M(
        "dqn.py",
        "target.assign(tau * online + (1.0 - tau) * target)",
        "target.assign(tau * target + (1.0 - tau) * online)",
        "tau is the share that stays",
        "dqn: soft_updates_by_hand",
    ),
    M(
        "dqn.py",
        'next_q = self.target_network(batch["next_obs"], training=noisy)',
        'next_q = self.q_network(batch["next_obs"], training=False)',
        "the maximum over the online network",
        "dqn: td_target_by_hand gradient_steps_by_hand",
    ),
    M(
        "dqn.py",
        'rating = self.q_network(batch["next_obs"], training=noisy)',
        'rating = self.target_network(batch["next_obs"], training=noisy)',
        "double DQN: the target network chooses",
        "dqn: td_target_by_hand",
    ),
    M(
        "dqn.py",
        "next_q = of_taken_action(next_q, best)",
        'next_q = of_taken_action(self.q_network(batch["next_obs"]), best)',
        "double DQN: the online network rates, too",
        "dqn: td_target_by_hand",
    ),
    M(
        "dqn.py",
        "explore = play[0] < epsilon[:, None]",
        "explore = play[0] > epsilon[:, None]",
        "epsilon is the probability of the best action",
        "dqn: the_environment_sees_the_epsilon_schedule",
    ),
    M(
        "dqn.py",
        "random_action = (uniform * self.num_actions)",
        "random_action = (uniform * (self.num_actions - 1))",
        "the last action is never tried",
        "dqn: the_environment_sees_the_epsilon_schedule",
    ),
    M(
        "dqn.py",
        "clipped = ops.minimum(error, 1.0)",
        "clipped = ops.minimum(error, 2.0)",
        "Huber: another threshold",
        "dqn: huber_by_hand",
    ),
    M(
        "dqn.py",
        "return clipped * (error - 0.5 * clipped)",
        "return clipped * error",
        "Huber: no half",
        "dqn: huber_by_hand",
    ),
    M(
        "dqn.py",
        'q = of_taken_action(q, batch["action"])',
        "q = ops.max(q, axis=-1)",
        "the best action's value learns, not the taken one's",
        "dqn: the_action_that_was_taken_learns_though_another_is_better",
    ),
    M(
        "dqn.py",
        "return value + advantage - ops.mean(advantage, axis=1, keepdims=True)",
        "return value + advantage - ops.max(advantage, axis=1, keepdims=True)",
        "dueling: the maximum in the place of the mean",
        "dqn: dueling_by_hand",
    ),
    M(
        "dqn.py",
        "if turn.end < self.learning_starts:",
        "if turn.start < self.learning_starts:",
        "learning starts a turn late",
        "dqn: learning_starts_and_the_number_of_gradient_steps",
    ),
    M(
        "dqn.py",
        "step.next_obs,\n                step.obs,",
        "step.obs,\n                step.obs,",
        "the next episode's first observation ends the last one",
        "dqn: a_final_observation_is_what_is_learned_from",
    ),
    # --- Environments that hang -----------------------------------------------
    M(
        "rl/hanging.py",
        "if called is None or called == warned:",
        "if called is None:",
        "the word about a call is said again and again",
        "hanging: a_training_names_the_environment_and_the_step",
    ),
    M(
        "rl/hanging.py",
        "if time.monotonic() - called > PATIENCE:",
        "if False:",
        "nothing is said",
        "hanging: a_training_names_the_environment_and_the_step",
    ),
    M(
        "rl/hanging.py",
        "        over.set()\n        thread.join()",
        "        pass",
        "the thread goes on after the training",
        "hanging: nobody_watches_afterwards",
    ),
    M(
        "a3c.py",
        "thread.join(max(0.0, patience - time.monotonic()))",
        "thread.join()",
        "the end of A3C waits for environments that hang",
        "hanging: a3c_leaves_a_worker_alone_whose_environment_hangs",
    ),
    # --- Several steps, priorities, quantiles, noise ---------------------------
    M(
        "rl/replay.py",
        "goes_on &= ~self._obs.ended(env, slot)",
        "goes_on &= True",
        "several steps go beyond the end of an episode",
        "rainbow: several_steps_by_hand",
    ),
    M(
        "rl/replay.py",
        "goes_on &= following != self._newest[env]",
        "goes_on &= True",
        "several steps go beyond what was stored",
        "rainbow: several_steps_by_hand",
    ),
    M(
        "rl/replay.py",
        "np.float32(gamma**k) * self._reward",
        "np.float32(gamma) * self._reward",
        "all later rewards are discounted alike",
        "rainbow: several_steps_by_hand",
    ),
    M(
        "rl/device_replay.py",
        "(left >= k)",
        "(left >= 0)",
        "on the device, several steps go beyond what was stored",
        "rainbow: the_buffer_on_the_device_gathers_the_same",
    ),
    M(
        "rl/device_replay.py",
        '~take("ended", index)',
        '~take("terminated", index)',
        "on the device, several steps go beyond a time limit",
        "rainbow: the_buffer_on_the_device_gathers_the_same",
    ),
    M(
        "dqn.py",
        "self.gamma if steps is None else self.gamma**steps",
        "self.gamma",
        "the value after several steps is discounted once",
        "rainbow: the_target_after_several_steps",
    ),
    M(
        "rl/replay.py",
        "weight = (len(self) * probability) ** -exponent",
        "weight = (len(self) * probability) ** exponent",
        "importance weights the wrong way round",
        "rainbow: priorities_by_hand",
    ),
    M(
        "rl/replay.py",
        "(np.abs(np.asarray(error, np.float64)) + 1e-6) ** self.exponent",
        "(np.abs(np.asarray(error, np.float64)) + 1e-6)",
        "priorities without their exponent",
        "rainbow: priorities_by_hand",
    ),
    M(
        "rl/replay.py",
        "self._tree.set(envs * self.slots + here, self._largest)",
        "self._tree.set(envs * self.slots + here, 1.0)",
        "a new transition has not the largest priority",
        "rainbow: priorities_by_hand",
    ),
    M(
        "rl/device_replay.py",
        "** -correction",
        "** (0.0 * correction)",
        "on the device, no importance weights",
        "rainbow: priorities_on_the_device_are_those_of_the_buffer",
    ),
    M(
        "dqn.py",
        'loss = batch["weight"] * self._check_single(loss)',
        "self._check_single(loss)",
        "the loss isn't weighted",
        "rainbow: weights_count_in_the_loss",
    ),
    M(
        "dqn.py",
        "tau[:, None] - below",
        "tau[None, :] - below",
        "quantile regression by the quantile of the target",
        "rainbow: quantile_huber_by_hand",
    ),
    M(
        "dqn.py",
        "+ 0.5) / num_quantiles",
        ") / num_quantiles",
        "quantiles are not in the middle of their parts",
        "rainbow: quantile_huber_by_hand",
    ),
    M(
        "rl/noisy.py",
        "ops.sign(drawn) * ops.sqrt(ops.abs(drawn))",
        "drawn",
        "noise isn't scaled",
        "rainbow: noise_by_hand",
    ),
    M(
        "dqn.py",
        "                draw_noise(self.q_network, self.random)\n                draw",
        "                draw",
        "a network learns with the noise that it played with",
        "rainbow: noise_is_drawn_for_each_step",
    ),
    # --- Replay ---------------------------------------------------------------
    M(
        "rl/observations.py",
        "next_obs = self.get(env, (slot + 1) % self.slots)",
        "next_obs = self.get(env, slot)",
        "the next observation is off by one",
        "replay: it_stores_what_a_naive_buffer_stores",
    ),
    M(
        "rl/observations.py",
        "next_obs = self.get(env, (slot + 1) % self.slots)",
        "next_obs = self.get(env, (slot + 1) % (self.slots - 1))",
        "the next observation wraps around a slot early",
        "replay: it_stores_what_a_naive_buffer_stores",
    ),
    M(
        "rl/replay.py",
        "following = (here + 1) % self.slots",
        "following = (here + 1) % (self.slots - 1)",
        "the newest slot wraps around early",
        "replay: it_stores_what_a_naive_buffer_stores",
    ),
    M(
        "rl/replay.py",
        "age = ends[env] - rank  # 1 is the newest transition",
        "age = ends[env] - rank - 1",
        "the slot without a transition is drawn",
        "replay: it_stores_what_a_naive_buffer_stores",
    ),
    M(
        "rl/replay.py",
        "np.minimum(self._count[envs] + 1, self.slots - 1)",
        "np.minimum(self._count[envs] + 1, self.slots)",
        "a full ring counts the slot that is overwritten",
        "replay: it_stores_what_a_naive_buffer_stores",
    ),
    M(
        "rl/observations.py",
        "next_obs[ended] = self._get_last(env[ended], slot[ended], row[ended])",
        "pass",
        "the final observation is ignored",
        "replay: next_obs_at_an_end_is_the_last_one_and_not_the_first_of_another_episode",
    ),
    M(
        "rl/replay.py",
        "self._obs.release(envs, here)",
        "pass",
        "an overwritten slot keeps the old final observation",
        "replay: it_stores_what_a_naive_buffer_stores",
    ),
    M(
        "rl/replay.py",
        "(uniform * np.float64(total)).astype(np.int64)",
        "(uniform * np.float64(total - 1)).astype(np.int64)",
        "the newest transition is never drawn",
        "replay: sampling_is_uniform the_ends_of_the_unit_interval_draw_stored_transitions",
    ),
    M(
        "rl/replay.py",
        'env = np.searchsorted(ends, rank, side="right")',
        "env = (uniform * self.num_envs).astype(np.int64)",
        "each environment is drawn alike, however full it is",
        "replay: environments_with_more_transitions_are_drawn_more_often",
    ),
    M(
        "rl/observations.py",
        "self._places = slots + self.num_frames - 1",
        "self._places = slots",
        "the oldest stack has lost frames",
        "replay: a_buffer_of_frames_samples_what_a_buffer_of_stacks_does",
    ),
    M(
        "rl/observations.py",
        "goes_on = ~again & ",
        "goes_on = ",
        "what fills a slot again goes on from what it held",
        "replay: a_buffer_of_frames_samples_what_a_buffer_of_stacks_does",
    ),
    M(
        "rl/observations.py",
        "self._release_openings(env, place)",
        "pass",
        "a frame has the opening of the one before it in the ring",
        "replay: a_buffer_of_frames_samples_what_a_buffer_of_stacks_does",
    ),
    M(
        "rl/observations.py",
        "self._openings.values[row[at], behind[at] :]",
        "self._openings.values[row[at], : missing]",
        "the wrong frames stand before the first one",
        "replay: a_buffer_of_frames_samples_what_a_buffer_of_stacks_does",
    ),
    M(
        "rl/observations.py",
        "behind = np.minimum(self._behind[env, place], number)",
        "behind = self._behind[env, place]",
        "a segment of a backup needs frames of the one before",
        "replay: a_buffer_of_frames_samples_what_a_buffer_of_stacks_does",
    ),
    M(
        "rl/observations.py",
        "if not np.array_equal(before[1:], obs[:-1]):",
        "if False:",
        "a last observation always goes on from the one before",
        "replay: a_buffer_of_frames_samples_what_a_buffer_of_stacks_does",
    ),
    M(
        "rl/environments.py",
        "if isinstance(env, ObservationWrapper | VectorObservationWrapper):",
        "if False:",
        "a stack is seen through wrappers that change it",
        "replay: stacks_are_seen_where_nothing_changes_them",
    ),
    M(
        "rl/atari.py",
        "over = seed is not None or not self.game_goes_on",
        "over = True",
        "the episode after a life is another game",
        "atari: lives_by_hand",
    ),
    M(
        "rl/atari.py",
        "elif lost and self.fire is not None:",
        "elif False:",
        "a life waits for FIRE",
        "atari: lives_by_hand",
    ),
    M(
        "rl/atari.py",
        "    if training:\n        frames = ",
        "    if False:\n        frames = ",
        "rewards aren't cut",
        "atari: rewards_are_cut_in_training_only",
    ),
    M(
        "rl/env_state.py",
        ' and not value.getFloat("repeat_action_probability")',
        "",
        "the state of a game that takes actions again lacks the last one",
        "atari: the_state_of_a_game_that_takes_actions_again_is_not_whole",
    ),
    # --- Exploration ----------------------------------------------------------
    M(
        "rl/exploration.py",
        "done = np.minimum(np.asarray(progress) / fraction, 1.0)",
        "done = np.minimum(np.asarray(progress), 1.0)",
        "epsilon falls over the whole training",
        "exploration: epsilon_by_hand",
    ),
    M(
        "rl/exploration.py",
        "done = np.minimum(np.asarray(progress) / fraction, 1.0)",
        "done = np.asarray(progress) / fraction",
        "epsilon falls below its end",
        "exploration: epsilon_by_hand",
    ),
    M(
        "rl/exploration.py",
        "self._fill(ops.convert_to_numpy(self.generator.next()), 0)",
        "self._row = 0 if self._key is not None else self._fill(ops.convert_to_numpy(self.generator.next()), 0) or 0",
        "the same random numbers again and again",
        "exploration: rows_are_uniform_and_never_the_same",
    ),
    # --- PPO ------------------------------------------------------------------
    M(
        "ppo.py",
        "ratio = ops.exp(ops.subtract(log_prob, old_log_prob))",
        "ratio = ops.exp(ops.subtract(old_log_prob, log_prob))",
        "the ratio is inverted",
        "ppo: clipped_policy_loss_by_hand",
    ),
    M(
        "ppo.py",
        "clipped = ops.clip(ratio, 1.0 - clip_coef, 1.0 + clip_coef)",
        "clipped = ops.minimum(ratio, 1.0 + clip_coef)",
        "clipped above only",
        "ppo: clipped_policy_loss_by_hand",
    ),
    M(
        "ppo.py",
        "clipped = ops.clip(ratio, 1.0 - clip_coef, 1.0 + clip_coef)",
        "clipped = ops.maximum(ratio, 1.0 - clip_coef)",
        "clipped below only",
        "ppo: clipped_policy_loss_by_hand",
    ),
    M(
        "ppo.py",
        "return -ops.minimum(",
        "return -ops.maximum(",
        "the larger of the two, not the smaller",
        "ppo: clipped_policy_loss_by_hand",
    ),
    M(
        "ppo.py",
        "advantage = normalized(advantage, valid_mask)",
        "pass",
        "advantages aren't normalized",
        "ppo: one_pass_is_one_gradient_step_on_all_that_was_seen",
    ),
    M(
        "ppo.py",
        '- ops.multiply(self.ent_coef, logs["entropy"])',
        '+ ops.multiply(self.ent_coef, logs["entropy"])',
        "entropy is punished",
        "ppo: one_pass_is_one_gradient_step_on_all_that_was_seen",
    ),
    M(
        "ppo.py",
        "clip_coef if self.clip_value_loss else math.inf,",
        "math.inf,",
        "the critic isn't kept near the old one",
        "ppo: the_critic_is_kept_near_the_old_one",
    ),
    M(
        "ppo.py",
        "return 0.5 * ops.maximum(ops.square(value - returns)",
        "return 0.5 * ops.minimum(ops.square(value - returns)",
        "the smaller of the critic's two errors",
        "ppo: clipped_value_loss_by_hand",
    ),
    M(
        "ppo.py",
        'data["log_prob"] = self.distribution.log_prob(outputs, data["action"])',
        'data["log_prob"] = self.distribution.log_prob(\n            outputs, self.distribution.mode(outputs)\n        )',
        "the old probability is that of another action",
        "ppo: one_pass_is_one_gradient_step_on_all_that_was_seen",
    ),
    M(
        "ppo.py",
        "orders = random.permutation(self.random, size, self.num_epochs)[:, :used]",
        'orders = ops.stack([ops.arange(size, dtype="int32")] * self.num_epochs)[:, :used]',
        "minibatches aren't shuffled",
        "ppo: passes_draw_other_minibatches",
    ),
    M(
        "ppo.py",
        "orders = random.permutation(self.random, size, self.num_epochs)[:, :used]",
        "orders = ops.stack(\n            [random.permutation(self.random, size)] * self.num_epochs\n        )[:, :used]",
        "every pass has the same minibatches",
        "ppo: passes_draw_other_minibatches updates_are_the_same_on_every_backend",
    ),
    M(
        "ppo.py",
        'near = logs["approx_kl"][-1] <= self.target_kl',
        'near = logs["approx_kl"][-1] >= self.target_kl',
        "it goes on only where the policy went too far",
        "ppo: target_kl_ends_the_passes",
    ),
    M(
        "ppo.py",
        "approx_kl = ops.exp(log_ratio) - 1.0 - log_ratio",
        "approx_kl = ops.exp(log_ratio) - 1.0",
        "approx_kl has the mean zero",
        "ppo: what_is_reported_by_hand",
    ),
    M(
        "ppo.py",
        "beyond = ops.greater(ops.abs(ops.exp(log_ratio) - 1.0), clip_coef)",
        "beyond = ops.greater(ops.exp(log_ratio) - 1.0, clip_coef)",
        "ratios that were clipped below aren't reported",
        "ppo: what_is_reported_by_hand",
    ),
    M(
        "ppo.py",
        "orders = ops.reshape(orders, (self.num_epochs, self.num_minibatches, -1))",
        "orders = ops.reshape(orders, (self.num_epochs, self.num_minibatches, -1))[:, :-1]",
        "the last minibatch isn't used",
        "ppo: every_transition_is_used_once_in_a_pass fit_reports_and_plays_whole_turns",
    ),
    # --- Advantages and returns -------------------------------------------------
    M(
        "rl/returns.py",
        "decay = gamma * gae_lambda * same_episode",
        "decay = gae_lambda * same_episode",
        "the sum of TD errors isn't discounted",
        "returns: advantages_by_hand",
    ),
    M(
        "rl/returns.py",
        "delta = reward + gamma * not_terminated * next_value - value",
        "delta = reward + gae_lambda * not_terminated * next_value - value",
        "lambda in the place of gamma",
        "returns: advantages_by_hand",
    ),
    M(
        "rl/returns.py",
        "same_episode = 1.0 - ops.cast(ended, value.dtype)",
        "same_episode = 1.0 - ops.cast(terminated, value.dtype)",
        "advantages flow over a truncation into another episode",
        "returns: advantages_by_hand",
    ),
    M(
        "rl/returns.py",
        "not_terminated = 1.0 - ops.cast(terminated, value.dtype)",
        "not_terminated = 1.0 - ops.cast(ended, value.dtype)",
        "a truncated episode has no rest",
        "returns: advantages_by_hand",
    ),
    M(
        "rl/returns.py",
        "delta = reward + gamma * not_terminated * next_value - value",
        "delta = reward - value",
        "no bootstrap",
        "returns: advantages_by_hand",
    ),
    M(
        "rl/returns.py",
        "(delta, decay), reverse=True)",
        "(delta, decay))",
        "advantages are added up forwards",
        "returns: advantages_by_hand",
    ),
    M(
        "rl/returns.py",
        "return ops.where(ended, ops.zeros_like(total), total), total",
        "return total, total",
        "returns go on in the next episode",
        "returns: discounted_returns_by_hand",
    ),
    M(
        "rl/returns.py",
        "error = weighted_variance(ops.subtract(returns, value), weight)",
        "error = weighted_mean(ops.square(ops.subtract(returns, value)), weight)",
        "explained variance counts a constant error",
        "returns: explained_variance_by_hand",
    ),
    M(
        "rl/returns.py",
        "return ops.sum(ops.multiply(weight, x)) / ops.maximum(ops.sum(weight), 1.0)",
        "return ops.mean(ops.multiply(weight, x))",
        "what doesn't count is counted as zero",
        "returns: weighted_moments_by_hand",
    ),
    M(
        "rl/rollouts.py",
        '"returns": advantage + value,',
        '"returns": advantage,',
        "the critic learns the advantages",
        "on_policy: a_batch_by_hand",
    ),
    M(
        "rl/rollouts.py",
        "                    step.next_obs,\n",
        "                    step.obs,\n",
        "a rollout has the next episode's first observation for the last one's end",
        "on_policy: rollouts_hold_what_happened",
    ),
    M(
        "rl/rollouts.py",
        "ended = step.terminated | step.truncated",
        "ended = step.terminated",
        "a rollout doesn't know where episodes were truncated",
        "on_policy: rollouts_hold_what_happened",
    ),
    # --- Normalization ----------------------------------------------------------
    M(
        "rl/normalization.py",
        "\n            + share * (1.0 - share) * ops.square(change)",
        "",
        "the spread between the means is forgotten",
        "returns: statistics_of_two_batches_by_hand",
    ),
    M(
        "rl/normalization.py",
        "variance = ops.sum(weight * ops.square(x - mean), axis=0) / safe",
        "variance = ops.sum(weight * ops.square(x - mean), axis=0) / (safe - 1.0)",
        "the variance of a sample",
        "returns: statistics_of_two_batches_by_hand",
    ),
    M(
        "rl/normalization.py",
        "-self.clip, self.clip",
        "-1e9, self.clip",
        "clipped above only",
        "returns: normalization_cuts_and_keeps_signs",
    ),
    M(
        "rl/normalization.py",
        "x * ops.rsqrt(self.variance + self.epsilon)",
        "x / (self.variance + self.epsilon)",
        "divided by the variance",
        "returns: normalization_cuts_and_keeps_signs",
    ),
    M(
        "rl/on_policy.py",
        '"next_obs": self.normalized(rollout["next_obs"]),',
        '"next_obs": rollout["next_obs"],',
        "next observations aren't normalized",
        "on_policy: observations_are_normalized_by_the_statistics_of_earlier_rollouts",
    ),
    M(
        "rl/on_policy.py",
        "flatten_steps(totals), flatten_steps(valid_mask)",
        "flatten_steps(reward), flatten_steps(valid_mask)",
        "rewards are divided by their own spread",
        "on_policy: rewards_are_divided_by_the_spread_of_returns",
    ),
    # --- A2C and A3C ------------------------------------------------------------
    M(
        "actor_critic.py",
        "return -log_prob * advantage",
        "return log_prob * advantage",
        "good actions become less likely",
        "actor_critic: losses_by_hand",
    ),
    M(
        "actor_critic.py",
        "return 0.5 * ops.square(value - returns)",
        "return ops.square(value - returns)",
        "the critic's loss has no half",
        "actor_critic: losses_by_hand",
    ),
    M(
        "actor_critic.py",
        '- ops.multiply(self.ent_coef, logs["entropy"])',
        '+ ops.multiply(self.ent_coef, logs["entropy"])',
        "entropy is punished",
        "actor_critic: a_turn_is_one_gradient_step",
    ),
    M(
        "actor_critic.py",
        "            variables = self.actor.trainable_variables\n        _, logs",
        "            variables = self.trainable_variables\n        _, logs",
        "two optimizers change the critic",
        "actor_critic: a_turn_is_one_gradient_step",
    ),
    M(
        "a3c.py",
        "            self._apply(push.gradients)\n",
        "            self._apply(push.gradients)\n            self._apply(push.gradients)\n",
        "gradients are applied twice",
        "a3c: a_push_that_is_not_stale_is_a_step_of_a2c",
    ),
    M(
        "a3c.py",
        "self._load(weights)",
        "weights is None",
        "a worker keeps its old weights",
        "a3c: play_differentiates_at_the_weights_that_were_pulled",
    ),
    M(
        "a3c.py",
        "late = self.updates - push.version",
        "late = self.updates + 1 - push.version",
        "an update counts itself as late",
        "a3c: staleness_counts_the_updates_in_between",
    ),
    M(
        "a3c.py",
        "            self.updates += 1\n            self.staleness",
        "            self.staleness",
        "updates aren't counted",
        "a3c: staleness_counts_the_updates_in_between",
    ),
    M(
        "a3c.py",
        'config["seed"] = _nth_seed(config["seed"], number)',
        'config["seed"] = int(config["seed"])',
        "all workers draw the same actions",
        "a3c: workers_have_all_weights_and_draw_each_their_own",
    ),
    M(
        "a3c.py",
        "        self.envs.episodes.clear()\n",
        "",
        "episodes are reported again with each push",
        "a3c: play_differentiates_at_the_weights_that_were_pulled",
    ),
    # --- Q-learning ---------------------------------------------------------------
    M(
        "q_learning.py",
        "            next_value = ops.max(next_q)\n",
        '            next_value = _read(self.table, step["next_entry"])\n',
        "SARSA's target in Q-learning",
        "q_learning: update_by_hand",
    ),
    M(
        "q_learning.py",
        'next_value = _read(self.table, step["next_entry"])',
        "next_value = ops.max(next_q)",
        "Q-learning's target in SARSA",
        "q_learning: update_by_hand",
    ),
    M(
        "q_learning.py",
        "(1 - explore) * ops.max(next_q)",
        "ops.max(next_q)",
        "expected SARSA: weights that sum to more than 1",
        "q_learning: update_by_hand",
    ),
    M(
        "q_learning.py",
        'self.gamma * (1.0 - steps["terminated"])',
        'self.gamma + 0.0 * steps["terminated"]',
        "a final state has a value",
        "q_learning: nothing_comes_after_terminated",
    ),
    M(
        "q_learning.py",
        'q + step["alpha"] * td_error',
        "q + td_error",
        "the learning rate is 1",
        "q_learning: update_by_hand",
    ),
    M(
        "q_learning.py",
        "ops.sum(ops.tril(same, -1), axis=1)",
        "0.0 * entry",
        "visits earlier in a turn don't count",
        "q_learning: visits_earlier_in_a_turn_count",
    ),
    M(
        "q_learning.py",
        "np.where(uniform[0] < epsilon, random_action",
        "np.where(uniform[1] < epsilon, random_action",
        "one number decides whether and how to explore",
        "q_learning: the_environment_sees_the_epsilon_schedule "
        "a_run_agrees_with_plain_python",
    ),
    M(
        "q_learning.py",
        "state = step.obs - self.state_start\n                action",
        "state = step.next_obs - self.state_start\n                action",
        "an episode begins where the last one ended",
        "q_learning: a_run_agrees_with_plain_python",
    ),
    # --- Policies -----------------------------------------------------------------
    M(
        "rl/policies.py",
        "density = -0.5 * ops.square(z) - log_std - 0.5 * math.log(2 * math.pi)",
        "density = -0.5 * ops.square(z) - 0.5 * math.log(2 * math.pi)",
        "Gaussian: a density without its width",
        "policies: gaussian_beside_scipy",
    ),
    M(
        "rl/policies.py",
        "math.log(2 * math.pi * math.e)",
        "math.log(2 * math.pi)",
        "Gaussian: an entropy without its 1/2",
        "policies: gaussian_beside_scipy",
    ),
    M(
        "rl/policies.py",
        "ops.multiply(ops.exp(log_std), noise)",
        "ops.multiply(ops.exp(0.5 * log_std), noise)",
        "Gaussian: the logarithm is taken for that of a variance",
        "policies: samples_are_distributed_as_they_say",
    ),
    M(
        "rl/policies.py",
        "return ops.sum(density, axis=-1)",
        "return ops.mean(density, axis=-1)",
        "Gaussian: the mean over the actions' parts",
        "policies: gaussian_beside_scipy",
    ),
    M(
        "rl/policies.py",
        "return -ops.sum(ops.exp(log_probs) * log_probs, axis=-1)",
        "return -ops.mean(log_probs, axis=-1)",
        "Categorical: an entropy without the probabilities",
        "policies: categorical_beside_scipy",
    ),
    M(
        "rl/policies.py",
        "return -ops.log(-ops.log(u))",
        "return ops.log(-ops.log(u))",
        "Gumbel noise with the other sign",
        "policies: samples_are_distributed_as_they_say",
    ),
    M(
        "rl/policies.py",
        "action[..., k])",
        "action[..., 0])",
        "MultiCategorical: the first choice for all",
        "policies: multi_categorical_beside_scipy",
    ),
    M(
        "rl/policies.py",
        "return np.clip(action.astype(self.action_dtype), self.low, self.high)",
        "return action.astype(self.action_dtype)",
        "Gaussian: actions outside of the space",
        "policies: actions_for_the_environment",
    ),
    M(
        "rl/policies.py",
        "self.scale = np.where(few, (high - low + 1) / 2, 1.0)",
        "self.scale = np.where(few, (high - low) / 2, 1.0)",
        "Gaussian: the first and last integer are half as likely",
        "spaces: integers_are_rounded",
    ),
    # --- Observation spaces -----------------------------------------------------------
    M(
        "rl/spaces.py",
        "start = self.parts[-1].stop if self.parts else 0",
        "start = self.parts[-1].start if self.parts else 0",
        "parts of an observation overlap",
        "spaces: a_dict_is_packed_by_hand",
    ),
    M(
        "rl/spaces.py",
        'number = ops.subtract(number, np.array(self.start, "int32"))',
        "number = ops.subtract(number, 0)",
        "Categories: counted from 0, whatever the space does",
        "spaces: features_by_hand",
    ),
    M(
        "rl/spaces.py",
        "ops.take(self.embeddings, ops.add(number, first), axis=0)",
        "ops.take(self.embeddings, ops.add(number, 1), axis=0)",
        "Categories: another one's vector",
        "spaces: features_by_hand",
    ),
    M(
        "rl/spaces.py",
        "if made_for.is_array or describe(made_for.space) != describe(space):",
        "if made_for.is_array:",
        "a network takes the parts of an observation in any order",
        "spaces: agents_learn_from_everything_at_once",
    ),
    M(
        "rl/encoders.py",
        "wide = sides[0] == sides[1] or shape[channels] <= min(sides)",
        "wide = True",
        "images: channels are last, wherever they are",
        "spaces: images_by_rule",
    ),
    M(
        "rl/encoders.py",
        "or (layout is not None and divisor.any())  # marks it as scaled, also in [0, 1]",
        "",
        "planes in [0, 1] aren't marked as scaled",
        "spaces: images_are_divided_by_their_bounds_once",
    ),
    M(
        "rl/on_policy.py",
        "return ops.where(self.scaled, ops.cast(obs, normalized.dtype), normalized)",
        "return normalized",
        "categories and images are normalized too",
        "spaces: numbers_are_scaled_by_the_network_or_normalized",
    ),
    # --- Environments ---------------------------------------------------------------
    M(
        "rl/environments.py",
        "            self._ended = terminated | truncated\n        elif",
        "        elif",
        "a step that only resets is a transition",
        "environments: vector_environments_give_the_transitions_of_single_ones "
        "a_reset_step_ends_nothing",
    ),
    M(
        "rl/environments.py",
        'next_obs[i] = self.packing.pack(info["final_obs"][i])',
        "pass",
        "the final observation is ignored",
        "environments: vector_environments_give_the_transitions_of_single_ones",
    ),
    M(
        "rl/environments.py",
        "self._returns[i] = self._lengths[i] = 0",
        "pass",
        "an episode's return goes on in the next",
        "environments: transitions_by_hand "
        "vector_environments_give_the_transitions_of_single_ones",
    ),
    M(
        "rl/environments.py",
        "if played[i] < quota:",
        "if played[i] >= 0:",
        "short episodes count more often",
        "environments: play_episodes_does_not_favour_short_ones",
    ),
    M(
        "rl/environments.py",
        "obs, reward = self._pack(obs), np.array(reward, np.float32)",
        "reward = np.array(reward, np.float32)",
        "observations are views of memory that is written again",
        "on_policy: environments_may_write_each_step_to_the_same_memory",
    ),
    # --- Autoencoders -----------------------------------------------------------------
    M(
        "autoencoder.py",
        "self.add_loss(self.beta * ops.mean(kl))",
        "self.add_loss(-self.beta * ops.mean(kl))",
        "VAE: the divergence has the wrong sign",
        "autoencoder: variational_loss_is_reconstruction_and_beta_divergence",
    ),
    M(
        "autoencoder.py",
        "parts = ops.square(z_mean) + ops.exp(z_log_var) - 1.0",
        "parts = ops.square(z_mean) + ops.exp(z_log_var)",
        "VAE: the divergence isn't 0 for the prior",
        "autoencoder: kl_divergence_by_hand",
    ),
    M(
        "autoencoder.py",
        "return 0.5 * ops.sum(parts, axis=-1)",
        "return 0.5 * ops.mean(parts, axis=-1)",
        "VAE: the mean over the code, not the sum",
        "autoencoder: kl_divergence_by_hand",
    ),
    M(
        "autoencoder.py",
        "ops.exp(ops.multiply(0.5, z_log_var)) * noise",
        "ops.exp(z_log_var) * noise",
        "VAE: noise of the variance's size",
        "autoencoder: draws_are_the_same_on_every_backend",
    ),
    M(
        "autoencoder.py",
        "z = draw_code(self.random, z_mean, z_log_var) if training else z_mean",
        "z = z_mean",
        "VAE: codes without noise",
        "autoencoder: codes_are_drawn_anew_in_training_and_means_in_use",
    ),
    M(
        "autoencoder.py",
        "return ops.sum(values, axis=tuple(range(1, len(values.shape))))",
        "return ops.mean(values, axis=tuple(range(1, len(values.shape))))",
        "VAE: the mean over pixels, not the sum",
        "autoencoder: reconstruction_losses_by_hand",
    ),
    M(
        "autoencoder.py",
        "        if training:\n            inputs = self.corrupt(inputs)",
        "        inputs = self.corrupt(inputs)",
        "noise is added in use",
        "autoencoder: noise_is_fresh_in_training_and_absent_in_use",
    ),
    # --- GAN ------------------------------------------------------------------------------
    M(
        "gan.py",
        "loss = ops.mean(ops.softplus(-real)) + ops.mean(ops.softplus(fake))",
        "loss = ops.mean(ops.softplus(real)) + ops.mean(ops.softplus(-fake))",
        "labels are swapped",
        "gan: the_non_saturating_losses_by_hand",
    ),
    M(
        "gan.py",
        "return ops.mean(ops.softplus(-score))",
        "return -ops.mean(ops.softplus(score))",
        "the saturating loss",
        "gan: the_non_saturating_losses_by_hand",
    ),
    M(
        "gan.py",
        "fake = self.generate(z, labels, training=True)\n",
        "fake = ops.stop_gradient(self.generate(z, labels, training=True))\n",
        "the generator gets no gradient",
        "gan: each_step_moves_one_part_and_leaves_the_other",
    ),
    M(
        "gan.py",
        "with _unchanged(self.generator):",
        "with contextlib.nullcontext():",
        "the discriminator's step moves the generator's statistics",
        "gan: each_step_moves_one_part_and_leaves_the_other",
    ),
    M(
        "gan.py",
        "ops.square(ops.sqrt(squares + 1e-12) - 1.0)",
        "ops.square(ops.sqrt(squares + 1e-12))",
        "the penalty brings slopes to 0",
        "gan: the_wasserstein_losses_by_hand the_penalty_brings_the_slope_to_one",
    ),
    M(
        "gan.py",
        "between = share * x + (1.0 - share) * fake_x",
        "between = x",
        "the penalty is taken at real examples only",
        "gan: the_penalty_is_taken_between_real_and_fake",
    ),
    M(
        "gan.py",
        "loss = ops.mean(fake) - ops.mean(real)",
        "loss = ops.mean(real) - ops.mean(fake)",
        "the critic learns the opposite",
        "gan: the_wasserstein_losses_by_hand",
    ),
    M(
        "gan.py",
        "for _ in range(self.discriminator_steps):",
        "for _ in range(1):",
        "one step of the discriminator, whatever was asked for",
        "gan: the_steps_are_as_many_as_asked_for",
    ),
    # --- RBM and DBN ----------------------------------------------------------------------
    M(
        "dbn.py",
        "kernel = _mean_product(v_pos, h_pos) - _mean_product(v_neg, h_neg)",
        "kernel = _mean_product(v_pos, h_pos) + _mean_product(v_neg, h_neg)",
        "the negative phase is added",
        "dbn: updates_are_those_of_scikit_learn",
    ),
    M(
        "dbn.py",
        "kernel = _mean_product(v_pos, h_pos) - _mean_product(v_neg, h_neg)",
        "kernel = _mean_product(v_pos, h_pos) - _mean_product(v_neg, hidden)",
        "the negative phase by drawn states",
        "dbn: updates_are_those_of_scikit_learn",
    ),
    M(
        "dbn.py",
        "visible_bias = ops.mean(v_pos, axis=0) - ops.mean(v_neg, axis=0)",
        "visible_bias = ops.mean(v_neg, axis=0) - ops.mean(v_pos, axis=0)",
        "the visible bias goes the other way",
        "dbn: updates_are_those_of_scikit_learn",
    ),
    M(
        "dbn.py",
        "self.velocities[i].assign(step)",
        "self.velocities[i].assign(self.learning_rate * gradient)",
        "momentum remembers one step only",
        "dbn: momentum_adds_up_over_three_updates",
    ),
    M(
        "dbn.py",
        "self.chain_states.assign(hidden)",
        "self.chain_states.assign(start)",
        "persistent chains never move",
        "dbn: updates_are_those_of_scikit_learn",
    ),
    M(
        "dbn.py",
        "energy = -ops.matmul(visible, self.visible_bias)",
        "energy = ops.matmul(visible, self.visible_bias)",
        "free energy: the visible bias has the wrong sign",
        "dbn: free_energy_is_that_of_the_enumerated_rbm",
    ),
    M(
        "dbn.py",
        "kernel -= self.weight_decay * self.kernel",
        "kernel += self.weight_decay * self.kernel",
        "weights grow",
        "dbn: momentum_weight_decay_and_sparsity_by_hand",
    ),
    M(
        "dbn.py",
        "v_neg, h_neg, hidden = self._gibbs_steps(start, self.k)",
        "v_neg, h_neg, hidden = self._gibbs_steps(start, 1)",
        "one Gibbs step, whatever k is",
        "dbn: update_with_long_chains_is_the_exact_gradient",
    ),
    M(
        "dbn.py",
        "return random.normal(self.random, mean.shape, mean, dtype=mean.dtype)",
        "return mean",
        "Gaussian visible units are drawn without noise",
        "dbn: gaussian_free_energy_and_means_by_hand",
    ),
    M(
        "dbn.py",
        "                x = _in_batches(rbm, x)\n",
        "                x = x[:, : rbm.units]\n",
        "the second RBM learns from the data",
        "dbn: the_second_rbm_learns_from_what_the_first_one_makes_of_the_data",
    ),
    # --- Capsules -------------------------------------------------------------------------
    M(
        "capsnet.py",
        "s * (squares / (1.0 + squares) / ops.sqrt(squares + keras.config.epsilon()))",
        "s * (squares / (1.0 + squares))",
        "squash: vectors aren't brought to length 1 first",
        "capsnet: squash_by_hand",
    ),
    M(
        "capsnet.py",
        "ops.softmax(b, axis=1)",
        "ops.softmax(b, axis=2)",
        "routing: votes are divided among capsules below",
        "capsnet: routing_is_that_of_the_equations",
    ),
    M(
        "capsnet.py",
        "b = agreement if b is None else b + agreement",
        "b = agreement",
        "routing: agreement isn't added up",
        "capsnet: routing_is_that_of_the_equations",
    ),
    M(
        "capsnet.py",
        "absent = ops.square(ops.maximum(0.0, y_pred - m_minus))",
        "absent = ops.square(ops.maximum(0.0, y_pred - m_plus))",
        "one margin for both",
        "capsnet: margin_loss_by_hand",
    ),
    M(
        "capsnet.py",
        "t * present + lambda_ * (1.0 - t) * absent",
        "t * present + (1.0 - t) * absent",
        "lambda is forgotten",
        "capsnet: margin_loss_by_hand",
    ),
    M(
        "capsnet.py",
        'self.decode(y_pred["capsules"], y, training=training)',
        'self.decode(y_pred["capsules"], training=training)',
        "the decoder sees the predicted class, not the right one",
        "capsnet: the_decoder_draws_the_right_class_though_another_is_longer",
    ),
    M(
        "capsnet.py",
        "error = ops.sum(error, axis=(1, 2, 3))",
        "error = ops.mean(error, axis=(1, 2, 3))",
        "the mean over pixels, not the sum",
        "capsnet: loss_is_margin_and_reconstruction",
    ),
    # --- Transformer ------------------------------------------------------------------------
    M(
        "transformer.py",
        "mask=attention_mask, is_causal=causal",
        "mask=attention_mask, is_causal=False",
        "it looks ahead",
        "transformer: gpt_does_not_look_ahead",
    ),
    M(
        "transformer.py",
        "            self._queries(x, start), keys, values,",
        "            self._queries(x, start) * self.num_heads**-0.5, keys, values,",
        "scores are scaled by the whole width",
        "transformer: attention_is_the_papers",
    ),
    M(
        "transformer.py",
        "scores /= math.sqrt(keys.shape[-1])",
        "scores /= math.sqrt(x.shape[-1])",
        "the weights that are shown are scaled otherwise",
        "transformer: weights_of_are_those_of_the_call",
    ),
    M(
        "transformer.py",
        "seen = ops.arange(keys.shape[1]) <= places[:, None]",
        "seen = ops.arange(keys.shape[1]) < places[:, None]",
        "with a cache, a token doesn't see itself",
        "transformer: cached_logits_are_those_of_the_whole_text",
    ),
    M(
        "transformer.py",
        "scores = ops.where(places <= places[:, None], scores, -1e30)",
        "scores = ops.where(places < places[:, None], scores, -1e30)",
        "the weights that are shown are off by one",
        "transformer: causal_weights_of_do_not_look_ahead",
    ),
    M(
        "transformer.py",
        "return None if mask is None else mask[:, None, None, :]",
        "return None",
        "padding is looked at",
        "transformer: encoder_decoder_masks_both_paddings "
        "bert_does_not_look_at_padding_but_ahead",
    ),
    M(
        "transformer.py",
        "lambda x: self.cross_attention(x, context, context_mask),",
        "lambda x: self.cross_attention(x, context),",
        "the source's padding is looked at",
        "transformer: encoder_decoder_masks_both_paddings "
        "cross_attention_looks_at_the_context_but_its_padding",
    ),
    M(
        "transformer.py",
        "return x + self.dropout_layer(sublayer(norm(x)), training=training)",
        "return x + self.dropout_layer(sublayer(norm(x)), training=True)",
        "dropout in use",
        "transformer: dropout_is_in_training_only",
    ),
    M(
        "transformer.py",
        "positions = start + ops.arange(ops.shape(x)[1])",
        "positions = ops.arange(ops.shape(x)[1])",
        "with a cache, each token is the first",
        "transformer: cached_logits_are_those_of_the_whole_text",
    ),
    M(
        "transformer.py",
        "rotate(keys, start + ops.arange(ops.shape(context)[1]))",
        "rotate(keys, ops.arange(ops.shape(context)[1]))",
        "with a cache, rotary keys stay at the first place",
        "transformer: cached_logits_are_those_of_the_whole_text",
    ),
    M(
        "transformer.py",
        "[a * cos - b * sin, b * cos + a * sin]",
        "[a * cos - b * sin, b * cos - a * sin]",
        "rotary: no rotation",
        "transformer: rotated_products_depend_on_distance_alone",
    ),
    M(
        "transformer.py",
        '(-ops.arange(0, width, 2, dtype="float32") / width)',
        '(-ops.arange(0, width, 2, dtype="float32") / (2 * width))',
        "sinusoids of other frequencies",
        "transformer: sinusoids_are_the_papers",
    ),
    M(
        "transformer.py",
        "return norm(x + self.dropout_layer(sublayer(x), training=training))",
        "return norm(self.dropout_layer(sublayer(x), training=training))",
        "no residual connection",
        "transformer: encoder_block_is_two_residual_sublayers",
    ),
    M(
        "transformer.py",
        "mask = token_ids != padding_token",
        "mask = token_ids != num_segments",
        "BERT: another token is taken for padding",
        "transformer: bert_does_not_look_at_padding_but_ahead",
    ),
    # --- Convolutions -------------------------------------------------------------------------
    M(
        "engines/jax_convolutions.py",
        "x_padding.append((k - 1 - before, n - m + before))",
        "x_padding.append((before, n - m + k - 1 - before))",
        "an image's gradient is shifted by the padding",
        "fast_ops: convolutions",
    ),
    M(
        "engines/jax_convolutions.py",
        "Window(kernel_dilation, tuple(kernel_padding), input_dilation, strides)",
        "Window(strides, tuple(kernel_padding), input_dilation, kernel_dilation)",
        "a kernel's gradient takes dilation for strides",
        "fast_ops: forms_of_convolutions",
    ),
    M(
        "engines/jax_convolutions.py",
        "kernel = jnp.flip(kernel, range(num_axes, 2 * num_axes))",
        "pass",
        "transposed convolutions mirror each block of pixels",
        "fast_ops: forms_of_convolutions",
    ),
    M(
        "engines/jax_convolutions.py",
        "if rest or options or (named",
        "if rest or options or feature_group_count > 1 or (named",
        "gradients of groups have JAX's own form, which is slow",
        "fast_ops: convolutions_have_the_form_that_xla_is_fast_at_on_jax",
    ),
    # --- Recurrent --------------------------------------------------------------------------
    M(
        "engines/fast_ops.py",
        "new_c = 0.5 * ((f + 1) * c + (i + 1) * g)",
        "new_c = 0.5 * ((i + 1) * c + (f + 1) * g)",
        "LSTM: input and forget gate are swapped",
        "fast_ops: recurrent_layers",
    ),
    M(
        "engines/fast_ops.py",
        "new_h = z * h + (1 - z) * n",
        "new_h = (1 - z) * h + z * n",
        "GRU: the update gate is inverted",
        "fast_ops: recurrent_layers",
    ),
    M(
        "engines/fast_ops.py",
        "z, r = gates[:, :units], gates[:, units:]\n        n_recurrent",
        "r, z = gates[:, :units], gates[:, units:]\n        n_recurrent",
        "GRU: PyTorch's order of the gates",
        "fast_ops: recurrent_layers",
    ),
    M(
        "engines/fast_ops.py",
        "        or not reset_after\n        or not _is_standard(activation, recurrent_activation)\n    ):\n        raise NotImplementedError\n    units",
        "        or not _is_standard(activation, recurrent_activation)\n    ):\n        raise NotImplementedError\n    units",
        "GRU: the reset gate after the product, whatever was asked for",
        "fast_ops: gru_with_the_reset_gate_before_the_product",
    ),
    M(
        "recurrent.py",
        "x = after[0]  # the cell's output is its first state",
        "pass",
        "a masked step has the output of its padding",
        "recurrent: steps_pass_over_what_is_masked",
    ),
    M(
        "recurrent.py",
        "ops.where(keep, a, b) for a, b in zip(after, before, strict=True)",
        "a for a, b in zip(after, before, strict=True)",
        "a masked step changes the state",
        "recurrent: steps_pass_over_what_is_masked",
    ),
    M(
        "recurrent.py",
        "model.add(layer(size, return_sequences=return_sequences or not last))",
        "model.add(layer(size, go_backwards=True, return_sequences=return_sequences or not last))",
        "the sequence is read backwards",
        "recurrent: one_unit_computes_the_equations",
    ),
    M(
        "recurrent.py",
        "read, state, logits[-1], length,",
        "read, state, logits[0], length,",
        "it continues the prompt's first token",
        "recurrent: generates_what_reading_the_whole_text_again_would",
    ),
    # --- Sequence to sequence -------------------------------------------------------------------
    M(
        "recipes/translation.py",
        'return {"source": sources, "target": tokens[:, :-1]}, tokens[:, 1:]',
        'return {"source": sources, "target": tokens[:, 1:]}, tokens[:, 1:]',
        "teacher forcing shows the answer",
        "translation: the_decoder_reads_what_it_wrote_before",
    ),
    M(
        "seq2seq.py",
        "text.split(END)[0]",
        "text",
        "what follows the end is part of the text",
        "seq2seq: texts_become_integers_and_come_back",
    ),
    M(
        "seq2seq.py",
        "values = ops.all(right | (y_true == 0), axis=-1)",
        "values = ops.all(right, axis=-1)",
        "exact match counts padding",
        "seq2seq: exact_match_by_hand",
    ),
    M(
        "seq2seq.py",
        "mask=[None, mask])",
        "mask=[None, ops.ones_like(mask)])",
        "writing looks at the source's padding",
        "seq2seq: greedy_writing_is_the_models_own_choice_at_each_step",
    ),
    M(
        "seq2seq.py",
        "x, state = gru(x, initial_state=state)",
        "x, state = gru(x)",
        "the decoder doesn't begin with what the encoder read",
        "seq2seq: the_model_by_hand",
    ),
    # --- Decoding -------------------------------------------------------------------------------
    M(
        "decoding.py",
        "ranks = totals / new_lengths[..., None] ** length_penalty",
        "ranks = totals * new_lengths[..., None] ** length_penalty",
        "beam search: the penalty is on long sequences",
        "decoding: a_length_penalty_favours_longer_sequences",
    ),
    M(
        "decoding.py",
        "        if beam_width > 1:\n",
        "        if beam_width < 1:\n",
        "beam search: states stay behind when beams change places",
        "decoding: a_narrow_beam_is_the_textbooks "
        "beam_search_comes_back_from_a_path_that_only_began_well",
    ),
    M(
        "decoding.py",
        "log_probs = ops.where(ended[..., None], nothing, log_probs)",
        "log_probs = log_probs + 0.0 * nothing[0]",
        "beam search: a sequence goes on after its end",
        "decoding: nothing_but_zeros_follows_the_end",
    ),
    M(
        "decoding.py",
        'new_lengths = lengths + ops.cast(~ended, "float32")',
        "new_lengths = lengths + 1.0",
        "beam search: the length goes on after the end",
        "decoding: a_length_penalty_favours_longer_sequences",
    ),
    M(
        "decoding.py",
        "scores = ops.where(ops.arange(beam_width) == 0, 0.0, -1e30) * ops.ones(beams)",
        "scores = ops.zeros(beams)",
        "beam search: all beams are the same",
        "decoding: a_narrow_beam_is_the_textbooks",
    ),
    M(
        "decoding.py",
        'return ops.cast(ops.take_along_axis(tokens, choice, axis=1)[:, 0], "int32")',
        'return ops.cast(choice[:, 0], "int32")',
        "top k: ranks are taken for tokens",
        "recurrent: top_k_draws_from_the_k_likeliest_and_temperature_sharpens",
    ),
    M(
        "decoding.py",
        "return random.categorical(key, logits / temperature)",
        "return random.categorical(key, logits * temperature)",
        "the temperature works the other way",
        "decoding: tokens_are_drawn_as_often_as_they_are_likely",
    ),
    M(
        "decoding.py",
        "keys = () if key is None else (random.split(key, length),)",
        "keys = () if key is None else (ops.stack([key] * length),)",
        "each token is drawn by the same random numbers",
        "decoding: tokens_are_drawn_as_often_as_they_are_likely",
    ),
    # --- MLP and CNN ------------------------------------------------------------------------------
    M(
        "mlp.py",
        "model.add(_dense(size, activation, members))",
        "model.add(_dense(size, None, members))",
        "hidden layers have no activation",
        "mlp: mlp_computes_relu_of_wx_plus_b_layer_by_layer",
    ),
    M(
        "mlp.py",
        "GlorotUniform(input_axes=[1], output_axes=[2])",
        "GlorotUniform()",
        "the more members, the smaller their first weights",
        "mlp: first_weights_of_members_are_as_large_as_of_one",
    ),
    M(
        "data/tables.py",
        "if len(values) == 2 and codes.mean() > 0.5:",
        "if len(values) == 2 and codes.mean() < 0.5:",
        "the positive class is the frequent one",
        "tables: texts_become_columns_of_0_and_1",
    ),
    M(
        "cnn.py",
        "        if i > 0:\n",
        "        if i >= 0:\n",
        "pooling before the first convolution",
        "cnn: default_is_the_architecture_of_the_tutorial",
    ),
    M(
        "cnn.py",
        "source_x = zoom * (cos * x - sin * y)",
        "source_x = zoom * (cos * x + sin * y)",
        "no rotation, but a slant",
        "cnn: affine_by_hand",
    ),
    M(
        "cnn.py",
        "        if not training:\n",
        "        if training is False:\n",
        "images are changed in use",
        "cnn: nothing_changes_outside_of_training",
    ),
    M(
        "cnn.py",
        "return above * (1.0 - low) + below * low",
        "return above * low + below * (1.0 - low)",
        "the wrong pixel weighs more",
        "cnn: affine_by_hand",
    ),
    # --- `fit` and `evaluate` ---------------------------------------------------------------------
    M(
        "models.py",
        "x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training",
        "x=x, y=y, y_pred=y_pred, sample_weight=None, training=training",
        "sample weights have no effect on the loss",
        "models: batch_normalization_metrics_and_weights_as_keras",
    ),
    M(
        "models.py",
        "logs = self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)",
        "logs = self.model.compute_metrics(x, y, y_pred)",
        "sample weights have no effect on weighted metrics",
        "models: batch_normalization_metrics_and_weights_as_keras",
    ),
    M(
        "models.py",
        "        if self.rest:\n",
        "        if self.rest < 0:\n",
        "the last batch is dropped if it isn't full",
        "models: batch_normalization_metrics_and_weights_as_keras",
    ),
    M(
        "models.py",
        "                self.reset_metrics()\n                at.begin_epoch(epoch, rng)",
        "                at.begin_epoch(epoch, rng)",
        "metrics go on from epoch to epoch",
        "models: batch_normalization_metrics_and_weights_as_keras",
    ),
    M(
        "models.py",
        "                        validation, validation_batch_size or batch_size, progress",
        "                        data, validation_batch_size or batch_size, progress",
        "validated on the training data",
        "models: schedule_clipping_averages_and_split_as_keras "
        "batch_normalization_metrics_and_weights_as_keras",
    ),
    M(
        "models.py",
        "parts = ((lambda a: a[:first]), (lambda a: a[first:]))",
        "parts = ((lambda a: a), (lambda a: a[first:]))",
        "validation examples are trained on",
        "models: schedule_clipping_averages_and_split_as_keras",
    ),
    M(
        "models.py",
        "self.model._loss_tracker.update_state(loss, sample_weight=size)",
        "self.model._loss_tracker.update_state(loss)",
        "a small last batch counts as much as a full one",
        "models: batch_normalization_metrics_and_weights_as_keras",
    ),
    M(
        "models.py",
        "*self._forward(batch, training=False)",
        "*self._forward(batch, training=True)",
        "evaluated as in training",
        "models: batch_normalization_metrics_and_weights_as_keras",
    ),
    M(
        "models.py",
        "order = rng.permutation(data.size) if shuffle else np.arange(data.size)",
        "order = np.arange(data.size)",
        "examples are never shuffled",
        "models: order_of_examples",
    ),
    M(
        "models.py",
        "                rng.bit_generator.state = at.drawn_from  # also in a resumed epoch\n",
        "                rng = np.random.default_rng(0)\n",
        "each epoch has the same order",
        "models: order_of_examples",
    ),
    # --- The core ---------------------------------------------------------------------------------
    M(
        "engines/jax.py",
        "turn, init, slices, length=length, reverse=reverse",
        "turn, init, slices, length=length",
        "scan: `reverse` has no effect",
        "returns: advantages_by_hand",
    ),
    M(
        "engines/jax.py",
        "        assign_all(written, values)\n",
        "",
        "scan: what its body assigns is lost",
        "backend: scans_nest_and_change_variables",
    ),
    M(
        "engines/jax.py",
        "if references > self.own_references:",
        "if references < 0:",
        "arrays are donated that others hold",
        "backend: two_variables_may_share_one_array",
    ),
    M(
        "engines/jax.py",
        "        commit(updates)\n        if checking:",
        "        if checking:",
        "minimize: what the loss function assigns is lost",
        "backend: batch_normalization_and_dropout_are_fresh_on_every_call",
    ),
    M(
        "engines/jax.py",
        "            optimizer.apply(grads, variables)\n",
        "            optimizer.apply([-g for g in grads], variables)\n",
        "minimize climbs",
        "backend: minimize_is_the_step_that_the_optimizer_would_make",
    ),
    M(
        "backend.py",
        "return scaled, (loss, aux, has_aux)",
        "return scaled, (scaled, aux, has_aux)",
        "minimize returns the scaled loss",
        "backend: loss_scaling_under_mixed_precision",
    ),
    M(
        "backend.py",
        "    np.random.seed(seed)\n",
        "",
        "set_random_seed forgets NumPy",
        "backend: seeds_are_those_of_keras",
    ),
    M(
        "engines/base.py",
        "for t in reversed(range(length)) if reverse else range(length):",
        "for t in range(length):",
        "scan, line by line: `reverse` has no effect",
        "backend: scan_outputs_may_differ_from_the_carry",
    ),
    # --- Random numbers -----------------------------------------------------------------------------
    M(
        "random.py",
        '_threefry(_take(key), 0, ops.arange(num, dtype="int32"))',
        '_threefry(_take(key), 0, ops.zeros(num, dtype="int32"))',
        "split: the same key several times",
        "random: the_numbers_of_jax_random",
    ),
    M(
        "random.py",
        'convert_to_tensor([0, 0, 1], dtype="int32")',
        'convert_to_tensor([0, 0, 0], dtype="int32")',
        "a generator hands out the same key again",
        "random: generator_hands_out_the_keys_of_a_split",
    ),
    M(
        "random.py",
        "return ops.mod(words, maxval - minval) + minval",
        "return ops.mod(words, maxval - minval + 1) + minval",
        "randint draws its end",
        "random: randint_and_bernoulli",
    ),
    M(
        "random.py",
        "z = ops.where(w < 5.0, central, tail) * x * math.sqrt(2.0)",
        "z = ops.where(w < 5.0, central, tail) * x",
        "normal: the variance is 1/2",
        "random: normal_has_the_moments_and_quantiles_of_a_normal_distribution",
    ),
    M(
        "random.py",
        "scores = logits - ops.log(-ops.log(u))",
        "scores = logits + ops.log(-ops.log(u))",
        "categorical: Gumbel noise with the other sign",
        "random: categorical_draws_in_proportion_and_never_what_is_masked",
    ),
    M(
        "random.py",
        'return uniform(key, shape, dtype="float32") < ops.cast(p, "float32")',
        'return uniform(key, shape, dtype="float32") > ops.cast(p, "float32")',
        "bernoulli draws the opposite",
        "random: randint_and_bernoulli",
    ),
    M(
        "random.py",
        "return _unit(bits(key, shape), dtype) * (maxval - minval) + minval",
        "return _unit(bits(key, shape), dtype) * maxval + minval",
        "uniform goes beyond its end",
        "random: every_bit_is_fair_and_uniform_fills_its_range",
    ),
    M(
        "random.py",
        "drawn = randint(source, (-(-num // 16) * 16,), 0, 2**31 - 1)",
        "drawn = ops.arange(-(-num // 16) * 16) + int(seed if isinstance(seed, int) else 0)",
        "seed + 1 for the next seed",
        "random: seeds_of_one_seed_are_independent_of_those_of_the_next",
    ),
    # --- Files, backups, divergence -----------------------------------------------------------------
    M(
        "files.py",
        "        flush(temporary)\n        os.replace(temporary, path)\n",
        "        os.replace(temporary, path)\n",
        "a file gets its name before it is on the disk",
        "backups: a_file_is_on_the_disk_before_it_has_its_name",
    ),
    M(
        "files.py",
        "        flush(path.parent, tree=False)\n",
        "",
        "the new name isn't on the disk",
        "backups: a_file_is_on_the_disk_before_it_has_its_name",
    ),
    M(
        "files.py",
        "    with replacing(filepath) as file:\n        return save(file, overwrite=True, **kwargs)",
        "    return save(filepath, overwrite=True, **kwargs)",
        "a model is written over the good file",
        "backups: save_leaves_a_good_file_until_the_new_one_is_whole",
    ),
    M(
        "backups.py",
        "if _checksum(file) != checksum:",
        "if not file.exists():",
        "checksums are ignored",
        "backups: a_damaged_backup_is_passed_over",
    ),
    M(
        "backups.py",
        'if _sha256(outer["manifest"].encode()) != outer["sha256"]:',
        'if not outer["sha256"]:',
        "the manifest's checksum is ignored",
        "backups: a_manifest_that_was_changed_is_damaged",
    ),
    M(
        "backups.py",
        '        random.setstate(state["python"])\n',
        "",
        "Python's generator isn't restored",
        "backups: resumed_trainings_are_the_same_to_the_last_bit[classifier]",
    ),
    M(
        "backups.py",
        '        np.random.set_state(state["numpy"])\n',
        "",
        "NumPy's generator isn't restored",
        "backups: resumed_trainings_are_the_same_to_the_last_bit[classifier]",
    ),
    M(
        "backups.py",
        "                found += value.variables\n",
        "                pass\n",
        "optimizers begin anew",
        "backups: resumed_trainings_are_the_same_to_the_last_bit[classifier]",
    ),
    M(
        "backups.py",
        "                for segment in rows[name]:\n",
        "                for segment in rows[name][-1:]:\n",
        "a replay buffer has its last segment only",
        "backups: resumed_trainings_are_the_same_to_the_last_bit[dqn]",
    ),
    M(
        "finite.py",
        "            weight.assign(good)\n",
        "            pass\n",
        "the bad weights stay",
        "finite: a_loss_that_is_not_finite_ends_a_training_with_good_weights",
    ),
    M(
        "finite.py",
        "        for name, value in losses.items():\n            if not math.isfinite(value):",
        "        self.keep(count)\n        for name, value in losses.items():\n            if not math.isfinite(value):",
        "weights are kept before the loss is looked at",
        "finite: weights_that_are_kept_are_good",
    ),
    M(
        "finite.py",
        "np.array(ops.convert_to_numpy(w)) for w in weights",
        "w for w in weights",
        "no copy of the good weights",
        "finite: a_loss_that_is_not_finite_ends_a_training_with_good_weights",
    ),
    # --- Data and statistics ------------------------------------------------------------------------
    M(
        "data/vision.py",
        "np.concatenate([p[400:] for p in places])",
        "np.concatenate([p[300:400] for p in places])",
        "digits to test on are trained on",
        "data: no_digit_to_test_on_is_trained_on",
    ),
    M(
        "data/texts.py",
        "folds.split(data.y, data.y, data.documents)",
        "folds.split(data.y, data.y, np.arange(len(data.y)))",
        "texts of one file in both parts",
        "texts: no_file_and_no_text_is_in_both_parts",
    ),
    M(
        "data/corpus.py",
        "        if len(runs & seen) < 0.2 * len(runs):\n",
        "        if runs:\n",
        "text to test on stands in the training text",
        "lstm: held_out_text_does_not_stand_in_the_training_text "
        "what_is_no_prose_or_no_news_is_left_out",
    ),
    M(
        "tools/report.py",
        "for x in found) / (n - 1))",
        "for x in found) / n)",
        "the standard deviation of a population",
        "report: an_interval_by_hand estimates_are_scipys",
    ),
    M(
        "tools/report.py",
        "stats.t.ppf(0.975, n - 1)",
        "stats.norm.ppf(0.975)",
        "a normal distribution for a few seeds",
        "report: an_interval_by_hand estimates_are_scipys",
    ),
    M(
        "tools/report.py",
        "equal_var=False",
        "equal_var=True",
        "Student's test for Welch's",
        "report: p_values_are_scipys",
    ),
    M(
        "tools/report.py",
        "sign = 1 if larger_is_better else -1",
        "sign = 1",
        "the largest error leads",
        "report: leaders_are_those_that_welchs_test_does_not_part_from_the_best",
    ),
    M(
        "tools/report.py",
        "if quick or len(machines) > 1:",
        "if len(machines) > 1:",
        "the times of quick runs tell who is fastest",
        "report: json_has_all_figures",
    ),
    M(
        "tools/report.py",
        "math.fsum(x[i : i + size]) / len(x[i : i + size])",
        "math.fsum(x[i : i + size]) / size",
        "the last point of a thinned curve is too small",
        "report: a_long_curve_is_thinned_to_means_of_neighbours",
    ),
    M(
        "lab/run.py",
        "        self._has_begun = False\n",
        "        self._has_begun = False\n        self.begin()\n",
        "a run deletes earlier results before it has looked at its data",
        "run: what_fails_before_it_begins_leaves_an_earlier_run",
    ),
    M(
        "lab/run.py",
        '        (self.output_dir / "metrics.json").unlink(missing_ok=True)\n',
        "",
        "an interrupted run has the metrics of an earlier one",
        "run: a_run_that_has_begun_has_neither_metrics_nor_backups_of_another",
    ),
    M(
        "rl/progress.py",
        "done = current - (self.begun or 0)",
        "done = current",
        "the time left of a resumed training is too short",
        "dqn: the_time_left_of_a_resumed_training_is_that_of_its_own_steps",
    ),
    # --- In one program with the environments -----------------------------------
    M(
        "rl/functional.py",
        "ops.logical_or(truncated, length >= env.max_episode_steps)",
        "ops.logical_or(truncated, length > env.max_episode_steps)",
        "an episode is cut off a step late",
        "fused: episodes_begin_again_and_are_cut_off",
    ),
    M(
        "rl/functional.py",
        "keras.tree.map_structure(restart, first, state)",
        "state",
        "an episode goes on after its end",
        "fused: episodes_begin_again_and_are_cut_off",
    ),
    M(
        "rl/functional.py",
        '"next_obs": next_obs,',
        '"next_obs": after["obs"],',
        "the next episode's observation in the place of the final one",
        "fused: episodes_begin_again_and_are_cut_off",
    ),
    M(
        "rl/functional.py",
        '"return": ops.where(ended, 0.0, total)',
        '"return": total',
        "returns of episodes are added up",
        "fused: episodes_begin_again_and_are_cut_off",
    ),
    M(
        "rl/functional.py",
        'env.__dict__["_compiled"] = True',
        'env.__dict__.pop("_compiled", None)',
        "a setting that is changed later is ignored",
        "fused: an_environment_is_not_changed_once_it_is_compiled",
    ),
    M(
        "rl/training.py",
        "**settings,",
        "",
        "a backup goes on in an environment with other settings",
        "fused: a_backup_is_for_environments_with_the_same_settings",
    ),
    M(
        "rl/fused.py",
        "(own,) = random.split_seed(seed, 1)",
        "own = seed",
        "agent and environments of one seed draw the same numbers",
        "fused: environments_draw_other_numbers_than_an_agent_of_the_same_seed",
    ),
    M(
        "rl/device_replay.py",
        'slot = buffer["added"] % slots',
        'slot = buffer["added"] * 0',
        "the buffer keeps the latest turn only",
        "fused: the_buffer_has_the_latest_transitions",
    ),
    M(
        "rl/device_replay.py",
        'ops.minimum(buffer["added"], slots) * num_envs',
        "slots * num_envs",
        "empty slots are drawn",
        "fused: only_what_was_added_is_drawn",
    ),
    M(
        "dqn.py",
        "explore = uniform[0] < epsilon[:, None]  # (T, N)\n            random_action",
        "explore = uniform[0] > epsilon[:, None]  # (T, N)\n            random_action",
        "in one program: epsilon is the probability of the best action",
        "fused: dqn_learns_as_from_its_buffer",
    ),
    M(
        "dqn.py",
        "end // freq - begun // freq",
        "end // freq",
        "in one program: the target network moves in each turn",
        "fused: dqn_learns_as_from_its_buffer",
    ),
    M(
        "rl/fused.py",
        "learns = turn.index * self.num_updates >= self.first_update",
        "learns = True",
        "in one program: learning starts at once",
        "fused: dqn_only_plays_before_learning_starts",
    ),
    M(
        "dqn.py",
        'uniform = random.uniform(self.random, draws, dtype="float32")',
        'uniform = random.uniform(key, draws, dtype="float32")',
        "in one program: the agent's seed doesn't count",
        "fused: dqn_learns_as_from_its_buffer",
    ),
    M(
        "rl/on_policy.py",
        "return (key, place, discounted), (logs, episodes_of(rollout))",
        "return (key, position[1], discounted), (logs, episodes_of(rollout))",
        "the same steps are played again and again",
        "fused: an_actor_and_a_critic_learn_as_from_a_rollout",
    ),
    M(
        "q_learning.py",
        'ops.where(is_first, position["action"], action)',
        "action",
        "in one program: a turn begins with another action than was chosen",
        "fused: a_table_is_learned_as_in_the_ordinary_way",
    ),
    M(
        "q_learning.py",
        'rollout["next_obs"], wide, ops.swapaxes',
        'rollout["obs"], wide, ops.swapaxes',
        "in one program: SARSA's next action is one of the state before",
        "fused: a_table_is_learned_as_in_the_ordinary_way",
    ),
    M(
        "backend.py",
        "                variable.assign(row[r])\n",
        "                variable.assign(row[0])\n",
        "vectorize: all runs get the variables of the first",
        "seeds: each_run_is_what_it_is_alone",
    ),
    M(
        "rl/together.py",
        "            with first.using(numbers):\n                return method(*args)\n",
        "            return method(*args)\n",
        "together, all agents have the first one's options",
        "seeds: numbers_and_learning_rates_may_differ",
    ),
    M(
        "rl/together.py",
        "played[i].count(*(x[i] for x in episodes))",
        "played[i].count(*episodes)",
        "the episodes of all runs count in each",
        "seeds: agents_learn_together_what_they_learn_alone",
    ),
    M(
        "rl/together.py",
        "for x in _optimizers(agent) for v in x.variables",
        "for x in _optimizers(agent)[:0] for v in x.variables",
        "together, all agents share an optimizer",
        "seeds: agents_learn_together_what_they_learn_alone",
    ),
    M(
        "lab/run.py",
        "y.std(axis=0, ddof=1) / num_runs**0.5",
        "y.std(axis=0, ddof=1)",
        "an interval of the runs, not of their mean",
        "seeds: mean_and_interval_by_hand",
    ),
    M(
        "rl/vector_env.py",
        'env.__dict__.setdefault("_program", _Program(env))',
        "_Program(env)",
        "an environment is compiled at each evaluation",
        "vector_env: environments_are_compiled_once_however_often_they_are_wrapped",
    ),
    M(
        "lab/agent_recipe.py",
        '    agent.save(run.output_dir / "model.keras")\n    test_env',
        "    test_env",
        "an agent is lost if its evaluation fails",
        "fused: a_trained_agent_is_saved_before_it_is_evaluated",
    ),
    M(
        "rl/environments.py",
        'self._tell(error, "step")\n            self.on_error()',
        'self._tell(error, "step")',
        "an environment's error costs what was learned",
        "backups: what_was_learned_is_saved_before_an_environments_error",
    ),
    M(
        "tools/compare.py",
        "with interrupted_afterwards():",
        "with suppress():",
        "Ctrl-C while a run is started leaves it running",
        "compare: an_interruption_while_a_run_is_started_ends_it",
    ),
    M(
        "tools/copy_recipe.py",
        'start = "." * (2 + within.count("."))',
        'start = "."',
        "a copied package looks for another one within itself",
        "copy_recipe: a_package_may_name_what_lies_in_another_one",
    ),
]


def chosen(words):
    """Returns `(number, mutant)` of those that are named; all, if none is."""
    found = {}
    for word in words:
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", word):
            first, last = int(match[1]), int(match[2] or match[1])
            named = [i for i in range(len(MUTANTS)) if first <= i + 1 <= last]
        else:
            named = [i for i, x in enumerate(MUTANTS) if word in Path(x.file).parts[-1]]
        if not named:
            raise SystemExit(
                f"There is no mutant {word!r}: there are 1 to {len(MUTANTS)}, in "
                f"{', '.join(sorted({x.file for x in MUTANTS}))}."
            )
        found |= dict.fromkeys(named)
    numbers = found or range(len(MUTANTS))
    return [(i + 1, MUTANTS[i]) for i in numbers if MUTANTS[i].runs]


def mutated(mutant, folder):
    """Returns the text of the mutant's file, with the mistake.

    Raises:
        SystemExit: If what it replaces doesn't stand there exactly once.
    """
    text = (folder / mutant.file).read_text(encoding="utf-8")
    if (count := text.count(mutant.before)) != 1:
        raise SystemExit(
            f"{mutant.file} ({mutant.why}): the text to be replaced must stand there "
            f"once, found {count} times:\n{mutant.before}"
        )
    return text.replace(mutant.before, mutant.after)


def preload():
    """Imports what takes long and doesn't change, for all forks together.

    Nothing of the repository, and no backend is started: a fork may do that.
    """
    if all(importlib.util.find_spec(name) for name in ("tensorflow", "torch")):
        import torch  # noqa: F401  # before TensorFlow, as in conftest.py
    import gymnasium  # noqa: F401
    import keras  # noqa: F401
    import pytest  # noqa: F401


def run_tests(folder, nodes, limit):
    """Runs tests in a fork of this process.

    Returns:
        pytest's exit code, `None` after `limit` seconds; and what it said.
    """
    log = folder / "output.txt"
    with warnings.catch_warnings(action="ignore"):  # JAX' of forks
        process = os.fork()
    if not process:
        os._exit(run_in_fork(folder, nodes, log))
    end = time.monotonic() + limit
    while not (waited := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(process, signal.SIGKILL)  # with what the tests have started
            os.waitpid(process, 0)
            return None, ""
        time.sleep(0.05)
    return os.waitstatus_to_exitcode(waited[1]), log.read_text(errors="replace")


def run_in_fork(folder, nodes, log):
    """Runs tests of the copy in this process; returns pytest's exit code."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(folder)
    # In the place of this file's folder; processes that tests start look there, too.
    sys.path[0] = os.environ["PYTHONPATH"] = str(folder)
    # Python's files of compiled code go by a file's second and size.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    import pytest

    code = pytest.main(
        [
            *("-x", "-q", "--tb=short", "-rfE", "-p", "no:cacheprovider"),
            *("-o", "addopts=", f"--rootdir={folder}", *nodes),
        ]
    )
    import kit

    if not Path(kit.__file__).is_relative_to(folder):
        print(f"The tests ran {kit.__file__}, not the copy.")
        code = 99
    sys.stdout.flush()
    return int(code)


def verdict(code, output):
    """Returns what became of a mutant, and by which test or why."""
    failed = re.search(r"^FAILED \S*::test_(\S+)(?: - (\w+))?", output, re.MULTILINE)
    if code == 1 and failed:
        return "killed", f"{failed[1]} ({failed[2] or 'fails'})"
    if code == 0:
        return "SURVIVED", ""
    if code is None:
        return "ERROR", "the time is up"
    return "ERROR", " ".join(output.split()[-30:])


def check_unmutated(folder, mutants, limit):
    """Runs the tests without any mutant.

    Raises:
        SystemExit: If one fails.
    """
    nodes = {node: None for _, mutant in mutants for node in mutant.nodes}
    files = {node.partition("::")[0]: None for node in nodes}
    for file in files:
        mine = [node for node in nodes if node.startswith(f"{file}::")]
        code, output = run_tests(folder, mine, limit * len(mine))
        if code != 0:
            raise SystemExit(f"{file} fails without a mutant:\n{output[-3000:]}")


def main():
    """Prints a row for each mutant; fails unless all are killed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("which", nargs="*", help="names of files, or numbers")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for each")
    parser.add_argument("--list", action="store_true", help="only list them")
    arguments = parser.parse_args()
    mutants = chosen(arguments.which)
    for _, mutant in mutants:
        mutated(mutant, ROOT)
    if arguments.list:
        for number, mutant in mutants:
            print(f"{number:4} {mutant.file:28} {mutant.why}")
        return 0
    preload()
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        check_unmutated(folder, mutants, arguments.limit)
        for number, mutant in mutants:
            file = folder / mutant.file
            good = file.read_text(encoding="utf-8")
            file.write_text(mutated(mutant, folder), encoding="utf-8")
            begun = time.perf_counter()
            what, detail = verdict(*run_tests(folder, mutant.nodes, arguments.limit))
            seconds = time.perf_counter() - begun
            file.write_text(good, encoding="utf-8")
            counts[what] += 1
            print(
                f"{number:4} {mutant.file:28} {what:8} {seconds:4.0f} s  {mutant.why}: "
                f"{detail}",
                flush=True,
            )
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0 if set(counts) == {"killed"} else 1


if __name__ == "__main__":
    sys.exit(main())
