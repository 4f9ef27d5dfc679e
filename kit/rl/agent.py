"""What all agents share: acting, options that may be set at any time, seeds, files.

A subclass says which environments its networks fit, and what it does in a state; `act`
and `evaluate` follow from that.

An agent's options are the arguments of its constructor. Each is checked whenever it is
set. A real number, such as the weight of the entropy, is an argument of the compiled
programs: a callback may change it after every turn, and nothing is compiled again.
What decides how a program looks, such as `double`, has it compiled again.
"""

import contextlib
import functools
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks, random
from kit.backend import compiled, release_programs
from kit.backups import is_plain
from kit.files import SavedWhole
from kit.rl.environments import Environments, play_episodes


class Agent(SavedWhole, keras.Model):
    """A Keras model that plays, and learns from it.

    A subclass sets `obs_shape`, and defines `call`, `fit`, `check_spaces` and
    `greedy_policy`.

    Args:
        seed: Seed of what the agent draws.
        **kwargs: See `keras.Model`.

    Attributes:
        ranges: Valid values of the options by name, as `kit.checks.check` takes them.
        fixed: Names of options that can't be changed, as variables depend on them.
        obs_shape: Shape of one observation.
        random: Generator of what the agent draws. Its state is saved with the agent.
    """

    ranges: Mapping[str, Any] = {}
    fixed: tuple[str, ...] = ()
    obs_shape: tuple[int, ...]

    def __init__(self, *, seed: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed = seed
        self.random = random.Generator(seed)

    def build(self, input_shape=None):
        """Builds nothing: networks come built, tables are made in the constructor."""
        self.built = True

    # --- What a subclass defines ----------------------------------------------

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Plays and learns: `fit(env, total_timesteps, ...)`, as a subclass says."""
        raise self._undefined("fit")

    def check_spaces(self, envs: Environments) -> None:
        """Raises a `ValueError` if the agent isn't made for these environments."""
        raise self._undefined("check_spaces")

    def greedy_policy(
        self, envs: Environments | None = None
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Returns the function that chooses the best or likeliest actions.

        Args:
            envs: The environments to play in, which say how they number their states
                and actions. Defaults to `None`: as those of the last `fit` did.

        Returns:
            A function from observations `(B, ...)` to actions `(B, ...)` as the
            environment takes them.
        """
        raise self._undefined("greedy_policy")

    def _undefined(self, method):
        return NotImplementedError(
            f"{type(self).__name__}: `{method}` isn't defined. A subclass of `Agent` "
            "sets `obs_shape` and defines `call`, `fit`, `check_spaces` and "
            "`greedy_policy`."
        )

    # --- Acting ---------------------------------------------------------------

    def act(self, obs: Any) -> Any:
        """Returns the greedy action, or actions.

        Args:
            obs: One observation, or a batch of them `(B, ...)`.

        Returns:
            An action as the environment takes it for one observation, an integer if
            its actions are `Discrete`; else B of them.

        Raises:
            ValueError: If `obs` has another shape, or is no state.
        """
        return self.act_by(self.greedy_policy(), obs)

    def act_by(self, policy: Callable[[np.ndarray], np.ndarray], obs: Any) -> Any:
        """Returns what a policy on batches does with one observation or several."""
        checks.check(f"{type(self).__name__}.act", {"obs": obs}, {"obs": checks.ARRAY})
        obs = np.asarray(obs)
        self.check_obs(obs)
        if obs.ndim > len(self.obs_shape):
            return policy(obs)
        action = policy(obs[None])[0]
        return action if action.ndim else action.item()

    def check_obs(self, obs: np.ndarray) -> None:
        """Raises a `ValueError` if it is neither an observation nor a batch of them."""
        if self.obs_shape not in (obs.shape, obs.shape[1:]):
            raise ValueError(
                f"{type(self).__name__}: `obs` must have shape {self.obs_shape}, or a "
                f"batch axis before it, received {obs.shape}."
            )

    def evaluate(
        self, env: Any, episodes: int = 20, seed: int | None = None
    ) -> dict[str, float]:
        """Plays episodes greedily: always the best or likeliest actions.

        Episodes must end. A greedy policy may walk in circles, so give an environment
        without an end a time limit: `max_episode_steps` of `gymnasium.make`.

        Args:
            env: Environment as in `fit`.
            episodes: Number of episodes. Defaults to 20.
            seed: Seed of the first reset. Defaults to none.

        Returns:
            `return`, `return_std`, `length` and `episodes`: means over episodes,
            and the standard deviation of their returns.

        Raises:
            TypeError: If `env` isn't one of Gymnasium's.
            ValueError: If its spaces don't fit the agent, or `episodes` is below 1.
        """
        envs = Environments(env)
        self.check_spaces(envs)
        return play_episodes(env, self.greedy_policy(envs), episodes, seed)

    # --- Checks ---------------------------------------------------------------

    def check_compiled(self) -> None:
        """Raises a `ValueError` unless `compile` was called."""
        if not self.compiled:
            raise ValueError(
                f"{type(self).__name__}: call `compile(optimizer=...)` before `fit`."
            )

    def check_box(self, envs: Environments, network: str) -> None:
        """Raises a `ValueError` unless observations are arrays of `obs_shape`.

        Args:
            envs: The environments.
            network: Name of the argument that takes the observations.
        """
        from gymnasium.spaces import Box

        name, space = type(self).__name__, envs.observation_space
        if not isinstance(space, Box):
            raise ValueError(
                f"{name}: the observation space {space} isn't supported; {name} needs "
                "a Box. gymnasium.wrappers.FlattenObservation makes one."
            )
        if tuple(space.shape) != self.obs_shape:
            raise ValueError(
                f"{name}: the environment's observations have shape {space.shape}, "
                f"`{network}` takes {self.obs_shape}."
            )

    # --- Options --------------------------------------------------------------

    def __setattr__(self, name, value):
        """Checks options; has programs compiled again that depend on them."""
        accepted = self.ranges.get(name)
        if accepted is not None:
            checks.check(self, {name: value}, {name: accepted})
        if name in self.__dict__ and (accepted is not None or name == "seed"):
            before = self.__dict__[name]
            if name in (*self.fixed, "seed") and value != before:
                raise AttributeError(
                    f"{type(self).__name__}: `{name}` can't be changed from {before!r} "
                    f"to {value!r} once the agent is made: make a new one."
                )
            is_data = self._is_number(name) and _is_number(value)
            if value != before and not is_data:
                self.forget_programs()
        super().__setattr__(name, value)
        if accepted is not None:
            self.__dict__.pop("_numbers", None)

    def numbers(self) -> np.ndarray:
        """Returns the options that are real numbers, `(K,)`, for `using`."""
        # Kept, as a small agent learns in less than a millisecond. Not by setattr:
        # Keras would track it.
        if "_numbers" not in self.__dict__:
            values = [getattr(self, name) for name in self._number_names()]
            self.__dict__["_numbers"] = np.array(values, "float32")
        return self.__dict__["_numbers"]

    @contextlib.contextmanager
    def using(self, values: Any) -> Iterator[None]:
        """Puts other values, `(K,)`, in the place of what `numbers` returned.

        In a compiled function they are its argument. A number that it read from the
        agent would be part of the program.
        """
        names = self._number_names()
        before = {name: self.__dict__[name] for name in names}
        values = ops.unstack(ops.convert_to_tensor(values))
        self.__dict__.update(zip(names, values, strict=True))
        try:
            yield
        finally:
            self.__dict__.update(before)

    def _number_names(self):
        return [name for name in self.ranges if self._is_number(name)]

    def _is_number(self, name):
        """Whether an option may be any real number between others, and is one."""
        accepted = self.ranges.get(name)
        is_real = accepted is not None and accepted.is_real
        return is_real and _is_number(self.__dict__[name])

    def options(self) -> dict[str, Any]:
        """Returns the options by name, those that numbers and words can say."""
        values = {name: getattr(self, name) for name in (*self.ranges, "seed")}
        return {name: x for name, x in values.items() if is_plain(x)}

    def forget_programs(self) -> None:
        """Has the programs of `compiled_with_numbers` compiled again when called."""
        methods = [
            name
            for name in dir(type(self))
            if isinstance(getattr(type(self), name), compiled_with_numbers)
        ]
        release_programs(self, *methods)

    # --- Seeds and files ------------------------------------------------------

    def env_seed(self, seed: int | None) -> int:
        """Returns the seed of the environment in a training.

        Args:
            seed: What `fit` was given; `None` for another one each time, drawn from
                the agent's generator.
        """
        # Drawn in any case: the agent's later draws don't depend on `seed`.
        (drawn,) = random.split_seed(self.random, 1)
        return drawn if seed is None else seed

    def finalize_optimizers(self) -> None:
        """Ends a training, as Keras' own `fit` does (`use_ema`)."""
        self.optimizer.finalize_variable_values(self.trainable_variables)

    def get_compile_config(self):
        """Returns the arguments of `compile`, for saving; `None` before it."""
        if not self.compiled:
            return None
        return {"optimizer": keras.saving.serialize_keras_object(self.optimizer)}

    def compile_from_config(self, config):
        """Compiles as `get_compile_config` says; the optimizer's state follows."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def save_own_variables(self, store):
        """Saves the agent's own variables, and how far its generator has come."""
        super().save_own_variables(store)
        store["random"] = ops.convert_to_numpy(self.random.state)

    def load_own_variables(self, store):
        """Loads what `save_own_variables` saved; files of old have no generator."""
        keys = store.keys()  # not a dict, but the part of a file
        arrays = {name: store[name] for name in keys}
        state = arrays.pop("random", None)
        super().load_own_variables(arrays)
        if state is not None:
            self.random.state.assign(np.array(state))

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        names = (*self.ranges, "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class compiled_with_numbers:  # noqa: N801, a decorator
    """Compiles a method of an agent; the agent's numbers are data to it.

    As `kit.compiled`, but a number among the agent's options that is set between two
    calls counts in the second.
    """

    def __init__(self, fn: Callable):
        self.__doc__ = fn.__doc__
        self.fn = fn

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, agent, owner=None):
        """Binds the method: each agent has a program of its own."""
        if agent is None:
            return self

        @functools.wraps(self.fn)
        def run(values, *args):
            with agent.using(values):
                return self.fn(agent, *args)

        program = compiled(run)

        @functools.wraps(self.fn)
        def call(*args):
            return program(agent.numbers(), *args)

        call.release = program.release  # type: ignore[attr-defined]
        # Found there by the next look-up. Not by setattr: Keras would track it.
        agent.__dict__[self.name] = call
        return call


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
