"""The base class of agents: acting, options that may be set at any time, seeds, saving.

A subclass defines which environments it accepts, and its greedy policy; `act` and
`evaluate` are built on these.

An agent's options are the arguments of its constructor. They are checked whenever they
are set. A real number, such as the weight of the entropy bonus, is an argument of the
compiled programs: a callback may change it after every turn, without recompilation.
Setting an option that changes the program itself, such as `double`, recompiles it.
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
from kit.rl.functional import FunctionalEnv
from kit.rl.spaces import Packing, misfit, packing_of


class Agent(SavedWhole, keras.Model):
    """A Keras model that plays, and learns from it.

    A subclass sets `obs_shape`, and defines `call`, `fit`, `check_spaces` and
    `greedy_policy`.

    Args:
        seed: Seed of the agent's random draws.
        **kwargs: See `keras.Model`.

    Attributes:
        ranges: Kinds of the options by name, for `kit.checks.check`.
        fixed: Names of options that can't be changed, as variables depend on them.
        obs_shape: Shape of one observation, as the networks take it.
        random: Generator of the agent's draws. Its state is saved with the agent.
    """

    ranges: Mapping[str, Any] = {}
    fixed: tuple[str, ...] = ()
    obs_shape: tuple[int, ...]

    def __init__(self, *, seed: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed = seed
        self.random = random.Generator(seed)

    def build(self, input_shape=None):
        """Does nothing: the constructor has built everything."""
        self.built = True

    # --- What a subclass defines ----------------------------------------------

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Plays and learns: `fit(env, total_timesteps, ...)`; see the subclass."""
        raise self._undefined("fit")

    def check_spaces(self, envs: Environments | FunctionalEnv) -> None:
        """Raises a `ValueError` if the agent isn't made for these environments."""
        raise self._undefined("check_spaces")

    def greedy_policy(
        self, envs: Environments | None = None
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Returns the function that chooses the best or most probable actions.

        Args:
            envs: The environments to play in, which define the numbers of states and
                actions. Defaults to `None`: as in the last `fit`.

        Returns:
            A function from observations `(B, ...)` to actions `(B, ...)` as the
            environment takes them.
        """
        raise self._undefined("greedy_policy")

    def network_for_obs(self) -> Any:
        """Returns the network that defines the observations, if the agent has one.

        It is a method, as Keras would save an attribute or property.
        """
        return None

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
            obs: One observation of the environment, or a batch of them `(B, ...)`. For
                dict and tuple observations, a batch is a dict or tuple of batches.

        Returns:
            For one observation an action of the environment, an integer if its actions
            are `Discrete`; for a batch, B actions.

        Raises:
            ValueError: If `obs` has another shape, or is no state.
        """
        return self.act_by(self.greedy_policy(), obs)

    def act_by(self, policy: Callable[[np.ndarray], np.ndarray], obs: Any) -> Any:
        """Applies a policy for batches to one observation or to a batch."""
        name = f"{type(self).__name__}.act"
        network = self.network_for_obs()
        packing = None if network is None else packing_of(network)
        if packing is not None and not isinstance(obs, np.ndarray):
            try:
                obs = packing.pack_any(obs)
            except ValueError as error:
                raise ValueError(
                    f"{name}: `obs` must be an observation of {packing.space}, or a "
                    f"batch of them: {error}."
                ) from error
        checks.check(name, {"obs": obs}, {"obs": checks.ARRAY})
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
        """Plays episodes greedily: always the best or most probable actions.

        Episodes must end. A greedy policy may walk in circles, so give endless
        environments a time limit: `max_episode_steps` of `gymnasium.make`.

        Args:
            env: Environment as in `fit`.
            episodes: Number of episodes. Defaults to 20.
            seed: Seed of the first reset. Defaults to `None`.

        Returns:
            `return`, `return_std`, `length` and `episodes`: means over episodes,
            and the standard deviation of their returns.

        Raises:
            TypeError: If `env` is neither a Gymnasium environment nor a FunctionalEnv.
            ValueError: If its spaces don't fit the agent, or `episodes` is below 1.
        """
        envs = Environments(env)
        self.check_spaces(envs)
        return play_episodes(env, self.greedy_policy(envs), episodes, seed)

    # --- Checks ---------------------------------------------------------------

    def checked(self, env: Any) -> Environments | FunctionalEnv:
        """Checks `fit`'s environments, and returns them in the form that it uses.

        Args:
            env: `gymnasium.Env`, `gymnasium.vector.VectorEnv` or `FunctionalEnv`.

        Raises:
            TypeError: If `env` is none of them.
            ValueError: If its spaces don't fit, or `compile` wasn't called.
        """
        envs = env if isinstance(env, FunctionalEnv) else Environments(env)
        self.check_spaces(envs)
        self.check_compiled()
        return envs

    def check_compiled(self) -> None:
        """Raises a `ValueError` unless `compile` was called."""
        if not self.compiled:
            raise ValueError(
                f"{type(self).__name__}: call `compile(optimizer=...)` before `fit`."
            )

    def check_box(self, envs: Environments | FunctionalEnv, network: str) -> None:
        """Raises a `ValueError` unless the agent takes the observations.

        Args:
            envs: The environments.
            network: Name of the argument that takes the observations.
        """
        from gymnasium.spaces import Box

        name, space = type(self).__name__, envs.observation_space
        packing = Packing(space)  # raises an error if the space isn't supported
        if isinstance(envs, FunctionalEnv) and not packing.is_array:
            raise ValueError(
                f"{name}: the observation space {space} isn't supported in "
                "environments in keras.ops; `observe` must return one array."
            )
        model = self.network_for_obs()
        if model is not None:
            fault = misfit(model, space)
        elif packing.is_array and packing.shape == self.obs_shape:
            fault = None
        else:
            fault = f"takes {self.obs_shape}"
        if fault is None:
            return
        if isinstance(space, Box):
            raise ValueError(
                f"{name}: the environment's observations have shape {space.shape}, "
                f"`{network}` {fault}."
            )
        raise ValueError(
            f"{name}: the observation space {space} doesn't fit `{network}`, which "
            f"{fault}. `kit.encoder(env.observation_space)` is the first part of a "
            "network for any space; `kit.q_network`, `kit.policy_network` and "
            "`kit.value_network` also take `env.observation_space`."
        )

    # --- Options --------------------------------------------------------------

    def __setattr__(self, name, value):
        """Checks options; releases programs that must be compiled again."""
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
        # Cached, as a small agent's step takes less than a millisecond. Not with
        # setattr: Keras would track it.
        if "_numbers" not in self.__dict__:
            values = [getattr(self, name) for name in self.number_names()]
            self.__dict__["_numbers"] = np.array(values, "float32")
        return self.__dict__["_numbers"]

    @contextlib.contextmanager
    def using(self, values: Any) -> Iterator[None]:
        """Replaces the options that `numbers` returns by other values, `(K,)`.

        Compiled functions get these values as an argument. A number that they read from
        the agent would be a constant of the program.
        """
        names = self.number_names()
        before = {name: self.__dict__[name] for name in names}
        values = ops.unstack(ops.convert_to_tensor(values))
        self.__dict__.update(zip(names, values, strict=True))
        try:
            yield
        finally:
            self.__dict__.update(before)

    def number_names(self) -> list[str]:
        """Returns the names of the options that `numbers` returns."""
        return [name for name in self.ranges if self._is_number(name)]

    def _is_number(self, name):
        """Whether an option's range is real numbers, and its value is a number."""
        accepted = self.ranges.get(name)
        is_real = accepted is not None and accepted.is_real
        return is_real and _is_number(self.__dict__[name])

    def options(self) -> dict[str, Any]:
        """Returns the options by name, those that are plain numbers and strings."""
        values = {name: getattr(self, name) for name in (*self.ranges, "seed")}
        return {name: x for name, x in values.items() if is_plain(x)}

    def forget_programs(self) -> None:
        """Releases the programs of `compiled_with_numbers`, to be compiled again."""
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
            seed: The seed passed to `fit`; `None` for a new one in each call, from the
                agent's generator.
        """
        # Draw in any case, so that the agent's later draws don't depend on `seed`.
        (drawn,) = random.split_seed(self.random, 1)
        return drawn if seed is None else seed

    def finalize_optimizers(self) -> None:
        """Finalizes the weights after training (`use_ema`), as Keras' `fit` does."""
        self.optimizer.finalize_variable_values(self.trainable_variables)

    def get_compile_config(self):
        """Returns the arguments of `compile`, for saving; `None` before it."""
        if not self.compiled:
            return None
        return {"optimizer": keras.saving.serialize_keras_object(self.optimizer)}

    def compile_from_config(self, config):
        """Compiles from `get_compile_config`, and builds the optimizer."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def save_own_variables(self, store):
        """Saves the agent's own variables, and the state of its generator."""
        super().save_own_variables(store)
        store["random"] = ops.convert_to_numpy(self.random.state)

    def load_own_variables(self, store):
        """Loads the result of `save_own_variables`; old files have no generator."""
        keys = store.keys()  # `store` is part of a file, not a dict
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
    """Compiles a method of an agent; the agent's real-valued options are data.

    It works like `kit.compiled`, but if such an option is set between two calls, the
    second call uses the new value.
    """

    def __init__(self, fn: Callable):
        self.__doc__ = fn.__doc__
        self.fn = fn

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, agent, owner=None):
        """Binds the method: each agent has its own program."""
        if agent is None:
            return self

        @functools.wraps(self.fn)
        def run(values, *args):
            with agent.using(values):
                return self.fn(agent, *args)

        # Only if asked for: on PyTorch, Keras' "auto" means no.
        program = compiled(run, inductor=bool(agent.jit_compile))

        @functools.wraps(self.fn)
        def call(*args):
            return program(agent.numbers(), *args)

        call.release = program.release  # type: ignore[attr-defined]
        # The next look-up finds it there. Not with setattr: Keras would track it.
        agent.__dict__[self.name] = call
        return call


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
