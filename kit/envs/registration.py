"""Creates environments by their ids, for the kit and for Gymnasium."""

from collections.abc import Callable
from typing import Any

import gymnasium

from kit import checks
from kit.envs.classic_control import (
    Acrobot,
    CartPole,
    MountainCar,
    MountainCarContinuous,
    Pendulum,
)
from kit.envs.grid_worlds import CliffWalking, FrozenLake, Taxi
from kit.envs.minatar import Asterix, Breakout, Freeway, Seaquest, SpaceInvaders
from kit.rl.functional import FunctionalEnv
from kit.rl.vector_env import FunctionalSingleEnv, FunctionalVectorEnv

# Classes by id: Gymnasium's ids; for MinAtar's games, the class name with version 1.
IDS: dict[str, Callable[..., FunctionalEnv]] = {
    "Acrobot-v1": Acrobot,
    "Asterix-v1": Asterix,
    "Breakout-v1": Breakout,
    "CartPole-v1": CartPole,
    "CliffWalking-v1": CliffWalking,
    "Freeway-v1": Freeway,
    "FrozenLake-v1": FrozenLake,
    "MountainCar-v0": MountainCar,
    "MountainCarContinuous-v0": MountainCarContinuous,
    "Pendulum-v1": Pendulum,
    "Seaquest-v1": Seaquest,
    "SpaceInvaders-v1": SpaceInvaders,
    "Taxi-v3": Taxi,
}
# MinAtar's games, as Gymnasium calls them.
MINATAR = tuple(
    f"kit/{game.__name__}-v1"
    for game in (Asterix, Breakout, Freeway, Seaquest, SpaceInvaders)
)


def make(env: str, num_envs: int = 1, **settings: Any) -> FunctionalEnv:
    """Makes an environment in `keras.ops` by its Gymnasium id.

    Args:
        env: Id, such as `"CartPole-v1"`, with or without `kit/` before it.
        num_envs: N. Defaults to 1.
        **settings: Further arguments of its class.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the id is unknown.
    """
    checks.check("make", {"env": env}, {"env": checks.TEXT})
    kind = IDS.get(env.removeprefix("kit/"))
    if kind is None:
        raise ValueError(
            f"kit.envs.make: `env` must be one of {', '.join(IDS)}, received {env!r}. "
            "Other environments are Python, and can't be compiled together with an "
            "agent; write one as a kit.rl.functional.FunctionalEnv."
        )
    return kind(num_envs, **settings)


def gymnasium_id(env: str) -> str:
    """Returns Gymnasium's id of an environment: its own version's, if it has one.

    Args:
        env: Id for `make`, such as `"CartPole-v1"` or `"Breakout-v1"`.

    Raises:
        TypeError: If `env` isn't a string.
    """
    checks.check("gymnasium_id", {"env": env}, {"env": checks.TEXT})
    return env if env in gymnasium.registry else f"kit/{env.removeprefix('kit/')}"


def make_single_env(
    env: str, render_mode: str | None = None, **settings: Any
) -> FunctionalSingleEnv:
    """Makes one environment by its id; for `gymnasium.make`."""
    return FunctionalSingleEnv(make(env, **settings), render_mode)


def make_vector_env(env: str, num_envs: int, **settings: Any) -> FunctionalVectorEnv:
    """Makes N environments by their id; for `gymnasium.make_vec`."""
    return FunctionalVectorEnv(make(env, num_envs, **settings))


def register(env: str, kind: Callable[..., FunctionalEnv]) -> None:
    """Makes an environment known by an id, to `make` and to Gymnasium.

    Args:
        env: Id, such as `"FastWalk-v0"`. Gymnasium's has `kit/` before it:
            `"kit/FastWalk-v0"`.
        kind: Its class, or a function of the number of environments.

    Raises:
        TypeError: If an argument has the wrong type.

    Example:

    ```python
    kit.envs.register("FastWalk-v0", FastWalk)
    gymnasium.make_vec("kit/FastWalk-v0", num_envs=8)
    ```
    """
    accepted = {"env": checks.TEXT, "kind": checks.FUNCTION}
    checks.check("register", {"env": env, "kind": kind}, accepted)
    IDS[env] = kind
    gymnasium.register(
        id=f"kit/{env}",
        # Gymnasium's types are those of functions without arguments.
        entry_point=make_single_env,  # type: ignore[arg-type]
        vector_entry_point=make_vector_env,  # type: ignore[arg-type]
        kwargs={"env": env},
    )


for _id, _kind in list(IDS.items()):
    register(_id, _kind)
