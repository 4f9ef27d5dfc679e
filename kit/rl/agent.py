"""What all agents share: options that may be set at any time, seeds, and files.

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

from kit import random
from kit.backend import compiled, release_programs
from kit.rl.training import check_options, is_real


class Agent(keras.Model):
    """A Keras model that plays, and learns from it.

    Args:
        seed: Seed of what the agent draws.
        **kwargs: See `keras.Model`.

    Attributes:
        ranges: Valid values of the options by name, as `check_options` takes them.
        fixed: Names of options that can't be changed, as variables depend on them.
        random: Generator of what the agent draws. Its state is saved with the agent.
    """

    ranges: Mapping[str, Any] = {}
    fixed: tuple[str, ...] = ()

    def __init__(self, *, seed: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed = seed
        self.random = random.Generator(seed)

    def __setattr__(self, name, value):
        """Checks options; has programs compiled again that depend on them."""
        accepted = self.ranges.get(name)
        if accepted is not None:
            check_options(type(self).__name__, {name: value}, {name: accepted})
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
        return is_real(self.ranges.get(name)) and _is_number(self.__dict__[name])

    def forget_programs(self) -> None:
        """Has the programs of `compiled_with_numbers` compiled again when called."""
        methods = [
            name
            for name in dir(type(self))
            if isinstance(getattr(type(self), name), compiled_with_numbers)
        ]
        release_programs(self, *methods)

    def env_seed(self, seed: int | None) -> int:
        """Returns the seed of the environment in a training.

        Args:
            seed: What `fit` was given; `None` for another one each time, drawn from
                the agent's generator.
        """
        # Drawn in any case: the agent's later draws don't depend on `seed`.
        (drawn,) = random.split_seed(self.random, 1)
        return drawn if seed is None else seed

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
