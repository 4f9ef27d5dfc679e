"""Gymnasium's classic control tasks in `keras.ops`.

Constants and formulas are Gymnasium's, but in float32 instead of float64.
"""

import math
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from keras import ops

from kit import random
from kit.rl.functional import FunctionalEnv


class CartPole(FunctionalEnv):
    """A pole on a cart, to be kept upright by pushing the cart left or right.

    `CartPole-v1` of Gymnasium: a reward of 1 for each step, at most 500.

    State: `(N, 4)`: the cart's position in m and velocity, the pole's angle in rad and
    angular velocity. The observation is the state.

    Reference: Barto, Sutton and Anderson, 1983, "Neuronlike adaptive elements that can
    solve difficult learning control problems".
    """

    max_episode_steps = 500
    gravity = 9.8
    cart_mass = 1.0
    pole_mass = 0.1
    half_length = 0.5
    force = 10.0
    tau = 0.02  # seconds a step
    max_position = 2.4
    max_angle = 12 * 2 * math.pi / 360

    action_space = Discrete(2)
    observation_space = Box(
        -np.array([2 * max_position, math.inf, 2 * max_angle, math.inf], "float32"),
        np.array([2 * max_position, math.inf, 2 * max_angle, math.inf], "float32"),
    )

    def reset(self, key, num):
        """Begins near the middle, the pole almost upright."""
        return random.uniform(key, (num, 4), -0.05, 0.05, dtype="float32")

    def observe(self, state):
        """Returns the state."""
        return state

    def step(self, state, action, key):
        """Pushes to the right (1) or left (0) for 0.02 s, by Euler's method."""
        x, velocity, angle, spin = ops.unstack(state, axis=1)
        force = self.force * (2.0 * ops.cast(action, "float32") - 1.0)
        cos, sin = ops.cos(angle), ops.sin(angle)
        total = self.cart_mass + self.pole_mass
        moment = self.pole_mass * self.half_length
        push = (force + moment * ops.square(spin) * sin) / total
        turning = (self.gravity * sin - cos * push) / (
            self.half_length * (4.0 / 3.0 - self.pole_mass * ops.square(cos) / total)
        )
        moving = push - moment * turning * cos / total
        state = state + self.tau * ops.stack([velocity, moving, spin, turning], axis=1)
        x, angle = state[:, 0], state[:, 2]
        fell = ops.logical_or(
            ops.abs(x) > self.max_position, ops.abs(angle) > self.max_angle
        )
        return state, ops.ones_like(x), fell, ops.zeros_like(fell)


class Acrobot(FunctionalEnv):
    """Two links that hang from a pivot; swing the tip above a line one link higher.

    `Acrobot-v1` of Gymnasium: a torque of -1, 0 or 1 N m at the joint between the
    links, a reward of -1 for each step before the goal, at most 500 steps.

    State: `(N, 4)`: the angle of the first link from hanging down, that of the second
    link relative to the first, both in [-pi, pi), and their angular velocities.
    Observed: cosine and sine of each angle, and the velocities.

    Reference: Sutton, 1996, "Generalization in reinforcement learning: successful
    examples using sparse coarse coding"; the equations are those of Sutton and Barto's
    book.
    """

    max_episode_steps = 500
    gravity = 9.8
    mass = 1.0  # of each link
    length = 1.0
    center = 0.5  # from the upper end of a link to its center of mass
    inertia = 1.0
    tau = 0.2  # seconds a step
    max_spin = (4 * math.pi, 9 * math.pi)

    action_space = Discrete(3)
    observation_space = Box(
        -np.array([1, 1, 1, 1, *max_spin], "float32"),
        np.array([1, 1, 1, 1, *max_spin], "float32"),
    )

    def reset(self, key, num):
        """Begins almost at rest, hanging down."""
        return random.uniform(key, (num, 4), -0.1, 0.1, dtype="float32")

    def observe(self, state):
        """Returns cosines and sines of the angles, and the angular velocities."""
        angles, spins = state[:, :2], state[:, 2:]
        turned = ops.stack([ops.cos(angles), ops.sin(angles)], axis=2)
        return ops.concatenate([ops.reshape(turned, (-1, 4)), spins], axis=1)

    def step(self, state, action, key):
        """Applies a torque for 0.2 s, by the classical Runge-Kutta method."""
        torque = ops.cast(action, "float32") - 1.0
        k1 = self._slope(state, torque)
        k2 = self._slope(state + self.tau / 2 * k1, torque)
        k3 = self._slope(state + self.tau / 2 * k2, torque)
        k4 = self._slope(state + self.tau * k3, torque)
        state = state + self.tau / 6 * (k1 + 2.0 * (k2 + k3) + k4)
        angles = _wrap(state[:, :2])
        limit = ops.convert_to_tensor(self.max_spin, "float32")
        spins = ops.clip(state[:, 2:], -limit, limit)
        first, second = angles[:, 0], angles[:, 1]
        high = -ops.cos(first) - ops.cos(first + second) > 1.0
        reward = ops.cast(high, "float32") - 1.0
        state = ops.concatenate([angles, spins], axis=1)
        return state, reward, high, ops.zeros_like(high)

    def _slope(self, state, torque):
        """Returns the derivative of the state with respect to time."""
        first, second, spin1, spin2 = ops.unstack(state, axis=1)
        m, length, center, inertia = self.mass, self.length, self.center, self.inertia
        coupling = m * length * center
        cos2, sin2 = ops.cos(second), ops.sin(second)
        # d1, d2, phi1 and phi2 of the book.
        d1 = m * (length**2 + 2 * center**2) + 2 * inertia + 2 * coupling * cos2
        d2 = m * center**2 + inertia + coupling * cos2
        phi2 = m * center * self.gravity * ops.sin(first + second)
        phi1 = (
            m * (center + length) * self.gravity * ops.sin(first)
            - coupling * spin2 * (spin2 + 2.0 * spin1) * sin2
            + phi2
        )
        share = d2 / d1
        turning2 = (
            torque + share * phi1 - coupling * ops.square(spin1) * sin2 - phi2
        ) / (m * center**2 + inertia - share * d2)
        turning1 = -share * turning2 - phi1 / d1
        return ops.stack([spin1, spin2, turning1, turning2], axis=1)


class MountainCar(FunctionalEnv):
    """A car in a valley, too weak to drive up the hill without a run-up.

    `MountainCar-v0` of Gymnasium: push to the left, not at all or to the right; a
    reward of -1 for each step, at most 200.

    State: `(N, 2)`: position and velocity. The observation is the state.

    Reference: Moore, 1990, "Efficient memory-based learning for robot control".
    """

    max_episode_steps = 200
    gravity = 0.0025
    force = 0.001
    min_position = -1.2
    max_position = 0.6
    max_speed = 0.07
    goal = 0.5

    action_space: Any = Discrete(3)
    observation_space = Box(
        np.array([min_position, -max_speed], "float32"),
        np.array([max_position, max_speed], "float32"),
    )

    def reset(self, key, num):
        """Begins at rest, near the bottom of the valley."""
        position = random.uniform(key, (num,), -0.6, -0.4, dtype="float32")
        return ops.stack([position, ops.zeros_like(position)], axis=1)

    def observe(self, state):
        """Returns the state."""
        return state

    def step(self, state, action, key):
        """Pushes to the left (0), not (1) or to the right (2)."""
        state, arrived = self._drive(state, ops.cast(action, "float32") - 1.0)
        reward = -ops.ones_like(state[:, 0])
        return state, reward, arrived, ops.zeros_like(arrived)

    def _drive(self, state, push):
        """Returns the next state, and whether it is at the goal."""
        position, velocity = ops.unstack(state, axis=1)
        velocity = velocity + self.force * push
        velocity = velocity - self.gravity * ops.cos(3.0 * position)
        velocity = ops.clip(velocity, -self.max_speed, self.max_speed)
        position = position + velocity
        # The wall on the left stops the car.
        stopped = ops.logical_and(position <= self.min_position, velocity < 0.0)
        velocity = ops.where(stopped, 0.0, velocity)
        position = ops.clip(position, self.min_position, self.max_position)
        arrived = ops.logical_and(position >= self.goal, velocity >= 0.0)
        return ops.stack([position, velocity], axis=1), arrived


class MountainCarContinuous(MountainCar):
    """The same car in the same valley, with a continuous force.

    `MountainCarContinuous-v0` of Gymnasium: a force in [-1, 1], a reward of 100 at the
    goal, less 0.1 times the square of each action; at most 999 steps.

    State: `(N, 2)`: position and velocity. The observation is the state.
    """

    max_episode_steps = 999
    force = 0.0015
    goal = 0.45

    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def step(self, state, action, key):
        """Pushes with a force `(N, 1)`."""
        action = ops.cast(action[:, 0], "float32")
        state, arrived = self._drive(state, ops.clip(action, -1.0, 1.0))
        reward = 100.0 * ops.cast(arrived, "float32") - 0.1 * ops.square(action)
        return state, reward, arrived, ops.zeros_like(arrived)


class Pendulum(FunctionalEnv):
    """A pendulum, to be swung up and held upright with little torque.

    `Pendulum-v1` of Gymnasium: a torque in [-2, 2] N m; the reward is
    -(angle^2 + 0.1 velocity^2 + 0.001 torque^2), and an episode has 200 steps.

    State: `(N, 2)`: the angle from upright in rad, which isn't wrapped, and the angular
    velocity. Observed: cosine and sine of the angle, and the velocity.
    """

    max_episode_steps = 200
    gravity = 10.0
    mass = 1.0
    length = 1.0
    tau = 0.05  # seconds a step
    max_spin = 8.0
    max_torque = 2.0

    action_space = Box(-max_torque, max_torque, (1,), np.float32)
    observation_space = Box(
        -np.array([1, 1, max_spin], "float32"), np.array([1, 1, max_spin], "float32")
    )

    def reset(self, key, num):
        """Begins at any angle, and turning with at most 1 rad/s."""
        limit = ops.convert_to_tensor([math.pi, 1.0], "float32")
        return random.uniform(key, (num, 2), -1.0, 1.0, dtype="float32") * limit

    def observe(self, state):
        """Returns cosine and sine of the angle, and the angular velocity."""
        angle, spin = ops.unstack(state, axis=1)
        return ops.stack([ops.cos(angle), ops.sin(angle), spin], axis=1)

    def step(self, state, action, key):
        """Applies a torque `(N, 1)` for 0.05 s, by Euler's method."""
        angle, spin = ops.unstack(state, axis=1)
        torque = ops.cast(action[:, 0], "float32")
        torque = ops.clip(torque, -self.max_torque, self.max_torque)
        cost = ops.square(_wrap(angle)) + 0.1 * ops.square(spin)
        cost = cost + 0.001 * ops.square(torque)
        turning = 1.5 * self.gravity / self.length * ops.sin(angle)
        turning = turning + 3.0 / (self.mass * self.length**2) * torque
        spin = ops.clip(spin + self.tau * turning, -self.max_spin, self.max_spin)
        state = ops.stack([angle + self.tau * spin, spin], axis=1)
        never = ops.zeros_like(spin, dtype="bool")
        return state, -cost, never, never


def _wrap(angle):
    """Returns angles in [-pi, pi)."""
    return ops.mod(angle + math.pi, 2 * math.pi) - math.pi
