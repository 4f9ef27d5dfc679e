"""MinAtar's five games in `keras.ops`.

Small versions of Atari 2600 games on a board of 10 x 10 cells. Observations are stacks
of boards, booleans `(10, 10, channels)`, each with the positions of one kind of object.
The rules are those of the package `minatar`, whose steps these games reproduce exactly,
with one difference: in the first step of an episode, a sticky action repeats "nothing",
not the last action of the episode before.

Reference: Young and Tian, 2019, "MinAtar: an Atari-inspired testbed for thorough and
reproducible reinforcement learning experiments".
"""

from kit.envs.minatar.asterix import Asterix
from kit.envs.minatar.breakout import Breakout
from kit.envs.minatar.freeway import Freeway
from kit.envs.minatar.seaquest import Seaquest
from kit.envs.minatar.space_invaders import SpaceInvaders

__all__ = ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"]
