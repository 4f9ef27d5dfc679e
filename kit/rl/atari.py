"""Atari games with the preprocessing of the literature: `ALE/Pong-v5` and the others.

The Arcade Learning Environment (ale-py, which includes the games) has a screen of
210x160 pixels, 60 frames per second. Gymnasium's wrappers preprocess it as described by
Mnih et al. (2015):

    AtariPreprocessing       repeats each action for 4 frames and takes the maximum of
                             the last two; grey, 84x84; up to 30 steps without an action
                             at the start
    FrameStackObservation    stacks the last 4 of these: (4, 84, 84), uint8

Between the two, `Lives` presses FIRE at the start of each life, as some games wait for
it. For training only, rewards are clipped to their sign, and each life is an episode.

Reference: Mnih et al., 2015, https://doi.org/10.1038/nature14236; Machado et al., 2018,
https://arxiv.org/abs/1709.06009.
"""

import gymnasium
import numpy as np
from gymnasium.wrappers import (
    AtariPreprocessing,
    FrameStackObservation,
    TransformReward,
)

from kit import checks

NUM_FRAMES = 4
ACCEPTED = {
    "env": checks.TEXT,
    "training": checks.BOOL,
    "repeat_action_probability": checks.FRACTION,
    "render_mode": checks.one_of("rgb_array", "human") | None,
}


def is_atari(env: str) -> bool:
    """Returns whether an id names an Atari game, such as `"ALE/Pong-v5"`."""
    checks.check("is_atari", locals(), ACCEPTED)
    return env.startswith("ALE/")


def make_atari(
    env: str,
    *,
    training: bool = False,
    repeat_action_probability: float = 0.0,
    render_mode: str | None = None,
) -> gymnasium.Env:
    """Makes an Atari game whose observations are the last four frames, grey and 84x84.

    Args:
        env: Its id, such as `"ALE/Pong-v5"`.
        training: Whether to clip rewards to -1, 0 and 1, and to make each life an
            episode (the next episode continues the same game). Defaults to `False`:
            whole games and their scores.
        repeat_action_probability: Probability that the game repeats the last action
            instead, in [0, 1]. Defaults to 0, as in most published figures; "v5" has
            0.25, with which backups may not restore a game exactly.
        render_mode: See `gymnasium.make`.

    Raises:
        ImportError: If ale-py or OpenCV isn't installed.
        TypeError: If an argument has another type.
        ValueError: If there is no such game, or a number is out of its range.

    Example:

    ```python
    env = make_atari("ALE/Pong-v5", training=True)
    agent = kit.DQN(kit.q_network(env.observation_space, env.action_space.n))
    agent.compile(keras.optimizers.Adam(1e-4))
    agent.fit(env, total_timesteps=10_000_000)
    agent.evaluate(make_atari("ALE/Pong-v5"))
    ```
    """
    checks.check("make_atari", locals(), ACCEPTED)
    try:
        import ale_py
    except ImportError as error:
        raise _missing("ale-py", env) from error
    gymnasium.register_envs(ale_py)
    try:
        game = gymnasium.make(
            env,
            frameskip=1,  # AtariPreprocessing skips
            obs_type="grayscale",
            repeat_action_probability=repeat_action_probability,
            render_mode=render_mode,
        )
    except gymnasium.error.UnregisteredEnv as error:
        raise ValueError(
            f"make_atari: `env` must be the id of a game, such as 'ALE/Pong-v5', "
            f"received {env!r}: {error}"
        ) from error
    try:
        game = AtariPreprocessing(game)
    except gymnasium.error.DependencyNotInstalled as error:
        raise _missing("OpenCV", env) from error
    frames: gymnasium.Env = Lives(game, ends_episodes=training)
    if training:
        frames = TransformReward(frames, _sign)
    return FrameStackObservation(frames, NUM_FRAMES)


def _sign(reward):
    return float(np.sign(reward))


def _missing(package, env):
    return ImportError(
        f"make_atari: {env} needs {package}: `python -m pip install ale-py "
        'opencv-python-headless`, or `"keras-algorithm-kit[atari]"`.'
    )


class Lives(gymnasium.Wrapper):
    """Presses FIRE at the start of each life; for training, makes lives episodes.

    If a lost life ends an episode, the next episode continues the same game, as in the
    published figures. `terminal_on_life_loss` of `AtariPreprocessing` differs: its next
    episode is a new game, so an agent only ever sees the first life of a game.

    Args:
        env: The game.
        ends_episodes: Whether losing a life ends an episode.
    """

    def __init__(self, env: gymnasium.Env, ends_episodes: bool):
        super().__init__(env)
        self.ends_episodes = ends_episodes
        meanings = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        self.fire = meanings.index("FIRE") if "FIRE" in meanings else None
        self.lives = 0
        self.game_goes_on = False  # with another life

    def reset(self, *, seed=None, options=None):
        """Starts the next life, or a new game after the last one."""
        over = seed is not None or not self.game_goes_on
        if not over:
            obs, _, terminated, truncated, info = self.env.step(0)  # no action
            over = terminated or truncated
        if over:
            obs, info = self.env.reset(seed=seed, options=options)
        if self.fire is not None:
            obs, _, terminated, truncated, info = self.env.step(self.fire)
            if terminated or truncated:
                obs, info = self.env.reset(options=options)
        self.game_goes_on, self.lives = False, info["lives"]
        return obs, info

    def step(self, action):
        """Makes a step; presses FIRE if the next life starts within the episode."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        # At 0, the game itself is about to end.
        lost = 0 < info["lives"] < self.lives and not (terminated or truncated)
        if lost and self.ends_episodes:
            terminated = self.game_goes_on = True
        elif lost and self.fire is not None:
            obs, more, terminated, truncated, info = self.env.step(self.fire)
            reward = float(reward) + float(more)
        self.lives = info["lives"]
        return obs, reward, terminated, truncated, info
