"""Environments in `keras.ops`, which are compiled together with the agent.

`import kit` imports neither this module nor Gymnasium; use `import kit.envs`. Then
Gymnasium can also create the environments: `gymnasium.make("kit/CartPole-v1")`, or
`gymnasium.make_vec("kit/CartPole-v1", num_envs=8)`. With the id
`kit.envs:kit/CartPole-v1`, Gymnasium imports the module itself.
"""

from kit.envs.adapters import from_brax, from_func_env, from_gymnax
from kit.envs.classic_control import (
    Acrobot,
    CartPole,
    MountainCar,
    MountainCarContinuous,
    Pendulum,
)
from kit.envs.grid_worlds import CliffWalking, FrozenLake, TabularEnv, Taxi, one_hot
from kit.envs.minatar import Asterix, Breakout, Freeway, Seaquest, SpaceInvaders
from kit.envs.registration import MINATAR, gymnasium_id, make, register
from kit.rl.vector_env import as_vector_env

__all__ = [
    "MINATAR",
    "Acrobot",
    "Asterix",
    "Breakout",
    "CartPole",
    "CliffWalking",
    "Freeway",
    "FrozenLake",
    "MountainCar",
    "MountainCarContinuous",
    "Pendulum",
    "Seaquest",
    "SpaceInvaders",
    "TabularEnv",
    "Taxi",
    "as_vector_env",
    "from_brax",
    "from_func_env",
    "from_gymnax",
    "gymnasium_id",
    "make",
    "one_hot",
    "register",
]
