"""Asynchronous advantage actor-critic (A3C): actor-critic workers that don't wait.

Each worker has its own environment and networks. In a loop, it

    pulls   the shared weights theta into its own, theta'
    plays   n steps with pi(a | s; theta')
    pushes  the gradients of the actor-critic's loss at theta', which are applied to
            theta at once, whatever the other workers are doing

so no worker waits for another, whereas in A2C all wait for the slowest. The price: when
a gradient arrives, theta has already changed. The number of updates that other workers
pushed in between is the gradient's staleness, which is measured here. The loss is that
of `kit/actor_critic.py`. Two engines run the same worker: threads of one process, and
Ray's actors, processes on one machine or many.

Weights and gradients are sent as one vector: one array to copy instead of a dozen small
ones. Shapes: T steps of a rollout, P weights.
"""

import collections
import copy
import itertools
import math
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks, random
from kit.actor_critic import A2C, LOGS
from kit.backend import apply_gradients, compiled, loss_gradients, release_programs
from kit.rl.environments import Environments
from kit.rl.returns import explained_variance
from kit.rl.rollouts import Rollouts, prepare_batch
from kit.rl.training import turns

ENGINES = ("threads", "ray")
ACCEPTED = {
    "num_workers": checks.SIZE,
    "engine": checks.one_of(*ENGINES),
    "max_restarts": checks.COUNT,
    "kind": checks.instance(type, what="the class of the agent"),
    "config": checks.instance(dict, what="the configuration of the agent"),
    "weights": checks.instance(list, what="a list of arrays"),
    "make_env": checks.FUNCTION,
    "seed": checks.SEED,
    "number": checks.COUNT,
}
CLOSE_SECONDS = 10.0  # for workers, to end their rollouts and environments
Pushes = Generator[tuple["Push", int], None, None]


@dataclass
class Push:
    """The result of a worker's rollout.

    Attributes:
        worker: Number of the worker.
        version: Number of updates made to the weights that it played with.
        gradients: Gradients of the loss at these weights, `(P,)`.
        logs: Metrics by name.
        episodes: `(return, length)` of the episodes that ended.
    """

    worker: int
    version: int
    gradients: np.ndarray
    logs: dict[str, float]
    episodes: list[tuple[float, int]]


@keras.saving.register_keras_serializable(package="kit")
class A3C(A2C):
    """Asynchronous advantage actor-critic agent, for discrete and continuous actions.

    Runs differ, even with the same seed, as the order of the workers' updates does.

    Args:
        actor: As in `kit.A2C`.
        critic: As in `kit.A2C`.
        gamma: Discount factor in [0, 1]. Defaults to 0.99.
        gae_lambda: Lambda of generalized advantage estimation, in [0, 1]. Defaults to
            1, n-step returns.
        num_steps: T, steps that a worker plays before it pushes. Defaults to 20.
        normalize_advantages: As in `kit.A2C`. Defaults to `False`.
        ent_coef: Weight of the entropy bonus. Defaults to 0.01.
        vf_coef: As in `kit.A2C`. Defaults to 0.5.
        seed: Seed of the workers' random draws. Defaults to 0.

    Attributes:
        staleness: `collections.Counter` of the last `fit`: number of gradients by their
            staleness, in updates.
        pushes: `collections.Counter` of the last `fit`: number of gradients by worker.
            Workers are numbered from 0; a replacement gets a new number.
        restarts: Number of workers that died in the last `fit` and were replaced.

    Raises:
        TypeError: If a network is no Keras model, or an argument has the wrong type.
        ValueError: If a network has the wrong form, or a number is out of its range.

    Example:

    ```python
    env = gymnasium.make("CartPole-v1")
    actor = kit.policy_network((4,), env.action_space)
    agent = kit.A3C(actor, kit.value_network((4,)))
    agent.compile(keras.optimizers.RMSprop(2e-3, rho=0.99, global_clipnorm=40.0))
    agent.fit(lambda: gymnasium.make("CartPole-v1"), 100_000, num_workers=2)
    agent.staleness  # Counter({1: 4512, 0: 387, 2: 101})
    ```

    Reference: Mnih et al., 2016, https://arxiv.org/abs/1602.01783. As there, workers
    share the optimizer's statistics. Deviations: a lock protects updates, so none is
    lost or half done (the paper's are lock-free, as in Hogwild!); truncated episodes
    bootstrap from the critic's value of their final observation.
    """

    staleness: collections.Counter
    pushes: collections.Counter

    def __init__(
        self,
        actor: keras.Model,
        critic: keras.Model | None = None,
        *,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        num_steps: int = 20,
        normalize_advantages: bool = False,
        ent_coef: float = 0.01,
        vf_coef: float = 0.5,
        seed: int = 0,
        **kwargs: Any,
    ):
        for name in ("normalize_observations", "normalize_rewards"):
            if kwargs.get(name):
                raise ValueError(
                    f"A3C: `{name}` isn't supported, as each worker would have "
                    "statistics of its own; received True."
                )
        super().__init__(
            actor,
            critic,
            gamma=gamma,
            gae_lambda=gae_lambda,
            num_steps=num_steps,
            normalize_advantages=normalize_advantages,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            seed=seed,
            **kwargs,
        )
        # Hold it to read or change the shared weights while workers run.
        self.lock = threading.RLock()
        self._count_anew()

    def _count_anew(self):
        self.updates = self.restarts = 0
        # Not with setattr: Keras would turn them into plain dicts.
        self.__dict__["staleness"] = collections.Counter()
        self.__dict__["pushes"] = collections.Counter()

    def compile(self, optimizer: Any = "rmsprop"):  # type: ignore[override]
        """Configures training.

        Args:
            optimizer: Keras optimizer, or its name; all workers share its statistics.
                Defaults to RMSprop.
        """
        super().compile(optimizer)
        release_programs(self, "_apply")

    def schedule(self, *args: Any, **kwargs: Any):
        """Raises an error: A3C's workers don't fit into one program."""
        raise ValueError(
            "A3C: its workers are processes or threads of their own, which don't fit "
            "into one program. A2C learns by the same losses there."
        )

    def fit(
        self,
        env: Callable[[], Any],
        total_timesteps: int,
        *,
        num_workers: int = 2,
        engine: str = "threads",
        address: str | None = None,
        max_restarts: int = 10,
        steps_per_epoch: int | None = None,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        verbose: int | str = "auto",
        seed: int | None = None,
        check_finite: bool = True,
    ) -> keras.callbacks.History:
        """Trains the agent: plays and learns in turns.

        An epoch is a reporting interval. Its logs are those of `kit.A2C`, and
        `staleness`, the gradients' mean staleness in updates. A worker that dies, by an
        error in its environment or with its process, is replaced, and a
        `RuntimeWarning` names the cause.

        Args:
            env: Function without arguments that makes an environment, one for each
                worker: `lambda: gymnasium.make("CartPole-v1")`. Vector environments
                work as well.
            total_timesteps: Number of environment steps to learn from, all workers
                together; the last rollout is played to its end.
            num_workers: Number of workers. Defaults to 2.
            engine: `"threads"` of this process, which share one Python interpreter, or
                `"ray"`: processes, which need the package `ray`, and on each machine
                `kit` and the packages of `env`. Defaults to `"threads"`.
            address: Address of a running Ray cluster to join. Defaults to `None`: the
                cluster that this program has already joined; otherwise a local one is
                started that accepts no connections from other machines.
            max_restarts: How many workers may die. Defaults to 10.
            steps_per_epoch: Environment steps in an epoch. Defaults to a fiftieth of
                `total_timesteps`.
            callbacks: Keras callbacks; one batch is one push. No worker pushes while
                they run.
            verbose: 0 silent, 1 progress bar, 2 a line an epoch. Defaults to
                `"auto"`, which is 1.
            seed: Seed of the environments. Defaults to a new one in each call, from the
                agent's generator.
            check_finite: Whether to stop at the first loss that isn't finite, with the
                last good weights. Defaults to `True`.

        Returns:
            The `History` of the epochs' logs.

        Raises:
            TypeError: If `env` isn't a function that makes a Gymnasium environment, or
                an argument has the wrong type.
            ValueError: If the spaces don't fit the networks, `compile` wasn't called,
                or an argument is out of its range.
            ImportError: If `engine` is `"ray"` and Ray isn't installed.
            RuntimeError: If more than `max_restarts` workers die.
        """
        self._check_fit(env, num_workers, engine, address, max_restarts)
        num_envs = self._try_env(env)
        self.check_normalization(self.num_steps * num_envs)
        tally = _Tally(num_envs)
        progress = turns(
            self,
            tally,
            total_timesteps,
            self.num_steps,
            (*LOGS, "staleness"),
            whole_turns=True,
            steps_per_epoch=steps_per_epoch,
            callbacks=callbacks,
            verbose=verbose,
            check_finite=check_finite,
            parts={"tally": tally, "counts": _Counts(self, tally)},
        )
        self.max_updates = math.ceil(total_timesteps / (self.num_steps * num_envs))
        self.max_restarts = max_restarts
        self._count_anew()
        run = _run_threads if engine == "threads" else _run_ray
        seed = self.env_seed(seed)
        # Closing ends the workers, also after an error or Ctrl-C.
        with closing(run(self, env, num_workers, seed, address)) as pushes:
            for turn in self._undisturbed(progress):
                tally.called = time.monotonic()
                try:
                    push, turn.logs["staleness"] = next(pushes)
                except RuntimeError:  # too many workers died
                    tally.on_error()
                    raise
                tally.called = None
                turn.logs.update(push.logs)
                tally.episodes += push.episodes
                tally.pushes += 1
        return self.history

    def _undisturbed(self, progress):
        """Iterates over the turns; no weights change while callbacks run."""
        while True:
            with self.lock:
                turn = next(progress, None)
                if turn is None:
                    self.max_updates = self.updates
                    return
            yield turn

    def for_workers(self, make_env: Callable[[], Any], seed: int) -> Any:
        """Returns the arguments of `Worker`, except its number."""
        # A new seed, so that the next `fit` makes other draws.
        config = {**self.get_config(), "seed": self.env_seed(None)}
        return (type(self), config, self.get_weights(), make_env, seed)

    # --- The shared agent's interface for workers -----------------------------

    def pull(self) -> tuple[int, np.ndarray]:
        """Returns the number of updates so far, and the shared weights, `(P,)`."""
        with self.lock:
            return self.updates, ops.convert_to_numpy(self._weights())

    def push(self, push: Push) -> int | None:
        """Applies a worker's gradients at once.

        Returns:
            Their staleness; `None` if training is over and they weren't applied.
        """
        with self.lock:
            if self.updates >= self.max_updates:
                return None
            late = self.updates - push.version
            self._apply(push.gradients)
            self.updates += 1
            self.staleness[late] += 1
            self.pushes[push.worker] += 1
            return late

    @compiled
    def _weights(self):
        return _to_vector(self.trainable_variables)

    @compiled
    def _apply(self, gradients):
        variables = self.trainable_variables
        apply_gradients(_to_arrays(gradients, variables), variables, self.optimizer)

    def replace(self, error: BaseException) -> None:
        """Counts a worker that died and warns; the caller replaces it.

        Raises:
            RuntimeError: If too many workers died.
        """
        self.restarts += 1
        if self.restarts > self.max_restarts:
            raise RuntimeError(
                f"A3C: {self.restarts} workers died, `max_restarts` is "
                f"{self.max_restarts}; the last one died of {error!r}."
            ) from error
        warnings.warn(
            f"A3C: a worker died and is replaced: {error!r}.",
            RuntimeWarning,
            stacklevel=2,
        )

    # --- Checks ---------------------------------------------------------------

    def _check_fit(self, env, num_workers, engine, address, max_restarts):
        if not callable(env):
            raise TypeError(
                "A3C: `env` must be a function that makes an environment, as each "
                "worker needs its own: `lambda: gymnasium.make(...)`; received "
                f"{env!r} of type {type(env).__name__}."
            )
        self.check_compiled()
        if any(
            isinstance(layer, keras.layers.BatchNormalization)
            for layer in self._flatten_layers()
        ):
            raise ValueError(
                "A3C: BatchNormalization can't be in its networks, as each worker "
                "would have statistics of its own; LayerNormalization can."
            )
        checks.check(self, locals(), ACCEPTED)
        if address is not None and engine != "ray":
            raise ValueError(
                "A3C: `address` is that of a Ray cluster, for engine='ray'; received "
                f"{address!r} with engine={engine!r}."
            )
        if engine == "ray":
            _import_ray()

    def _try_env(self, make_env):
        """Tries `make_env` and closes what it makes; returns the environments' number.

        Raises an error if `make_env` or its environments aren't suitable.
        """
        envs, another = Environments(make_env()), make_env()
        try:
            if another is envs.env:
                raise ValueError(
                    "A3C: `env` returned the same environment twice; each worker "
                    "needs its own, so make it within the function: "
                    "`lambda: gymnasium.make(...)`."
                )
            self.check_spaces(envs)
        finally:
            envs.env.close()
            another.close()
        return envs.num_envs

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        config = super().get_config()
        for name in ("normalize_observations", "normalize_rewards"):
            del config[name]  # not supported: each worker would have its own statistics
        return config


class Worker:
    """A worker: an environment, and its own networks to play and compute gradients.

    Args:
        kind: Class of the shared agent.
        config: The result of the shared agent's `get_config`.
        weights: The result of its `get_weights`, non-trainable ones included.
        make_env: Function that makes the environment.
        seed: Seed from which each worker's environment seed is derived.
        number: The worker's number. Each number has its own draws.
    """

    def __init__(
        self,
        kind: type[A3C],
        config: dict,
        weights: list[np.ndarray],
        make_env: Callable[[], Any],
        seed: int,
        number: int,
    ):
        checks.check(self, locals(), ACCEPTED)
        self.number = number
        config = copy.deepcopy(config)  # Keras may modify it; other workers need it too
        config["seed"] = _nth_seed(config["seed"], number)
        self.agent = kind.from_config(config)
        self.agent.set_weights(weights)
        self.envs = Environments(make_env())
        self.rollouts = Rollouts(
            self.agent, self.envs, self.agent.num_steps, _nth_seed(seed, number)
        )

    def get_ready(self) -> None:
        """Compiles, with a rollout whose gradients aren't used.

        They would be stale, as compilation takes long.
        """
        self.play(self.agent.numbers(), *self.agent.pull())

    def play(self, numbers: np.ndarray, version: int, weights: np.ndarray) -> Push:
        """Plays a rollout with these weights; returns the result to push.

        Args:
            numbers: The shared agent's `numbers`, which callbacks may change.
            version: The first result of the shared agent's `pull`.
            weights: The second result of its `pull`.
        """
        # Algorithm S3 of the paper.
        # 1. Set the own weights theta' to the pulled ones.
        self._load(weights)
        # 2. Play T steps with pi(a | s; theta').
        rollout = self.rollouts.play()
        # 3. Compute the gradients at theta'; `push` applies them to theta.
        gradients, logs = map(
            ops.convert_to_numpy, self._differentiate(rollout, numbers)
        )
        episodes = list(self.envs.episodes)
        self.envs.episodes.clear()
        named = dict(zip(LOGS, logs.tolist(), strict=True))
        return Push(self.number, version, gradients, named, episodes)

    def close(self) -> None:
        """Closes the environment."""
        self.envs.env.close()

    @compiled
    def _load(self, weights):
        variables = self.agent.trainable_variables
        for variable, value in zip(
            variables, _to_arrays(weights, variables), strict=True
        ):
            variable.assign(value)

    @compiled
    def _differentiate(self, rollout, numbers):
        """Returns the gradients (P,), and the metrics that `LOGS` names."""
        agent = self.agent
        with agent.using(numbers):
            # As in A2C, but without normalization, and without changing weights.
            _, value, next_value = agent.apply_to_rollout(rollout)
            batch = prepare_batch(
                rollout, value, next_value, agent.gamma, agent.gae_lambda
            )
            (_, logs), gradients = loss_gradients(
                lambda: agent.loss_and_logs(batch), agent.trainable_variables
            )
        logs["explained_variance"] = explained_variance(
            batch["value"], batch["returns"], batch["valid_mask"]
        )
        return _to_vector(gradients), ops.stack([logs[name] for name in LOGS])


def _nth_seed(seed, number):
    """The seed of a worker, independent of the other workers'."""
    return random.split_seed(seed, number + 1)[number]


def _to_vector(arrays):
    """Concatenates arrays of any shapes into one vector (P,)."""
    return ops.concatenate([ops.reshape(array, (-1,)) for array in arrays])


def _to_arrays(vector, variables):
    """Splits a vector (P,) into arrays of the variables' shapes."""
    sizes = [math.prod(variable.shape) for variable in variables]
    ends = itertools.accumulate(sizes)
    return [
        ops.reshape(vector[end - size : end], variable.shape)
        for variable, size, end in zip(variables, sizes, ends, strict=True)
    ]


# --- Engines ----------------------------------------------------------------
# Each runs workers until it is closed, and yields their pushes, with the staleness.


def _run_threads(agent, make_env, num_workers, seed, address) -> Pushes:
    """Runs workers in threads of this process, which push by themselves."""
    results: queue.Queue = queue.Queue()
    arguments: tuple[Any, Any, Any, Any, int] = agent.for_workers(make_env, seed)

    def work(number):
        try:
            with closing(Worker(*arguments, number)) as worker:
                worker.get_ready()
                while True:
                    push = worker.play(agent.numbers(), *agent.pull())
                    if (late := agent.push(push)) is None:
                        return
                    results.put((push, late))
        except BaseException as error:  # whatever it is, the others continue
            results.put(error)

    threads: list[threading.Thread] = []

    def start():
        thread = threading.Thread(target=work, args=(len(threads),), daemon=True)
        threads.append(thread)
        thread.start()

    try:
        for _ in range(num_workers):
            start()
        while True:
            result = results.get()
            if isinstance(result, BaseException):
                agent.replace(result)
                start()
            else:
                yield result
    finally:
        agent.max_updates = 0  # ends each worker at its next push
        patience = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.join(max(0.0, patience - time.monotonic()))
        if hanging := sum(thread.is_alive() for thread in threads):
            warnings.warn(
                f"A3C: {hanging} of {len(threads)} workers didn't end within "
                f"{CLOSE_SECONDS:.0f} s of the last update: their environments don't "
                "answer. They aren't killed, but can't change weights any more.",
                RuntimeWarning,
                stacklevel=2,
            )


def _run_ray(agent, make_env, num_workers, seed, address) -> Pushes:
    """Runs workers in Ray's processes; this process pushes their results."""
    ray = _import_ray()
    if started := address is not None or not ray.is_initialized():
        if address is None:
            _start_ray(ray, num_workers)
        else:
            ray.init(address=address)
    environment = {"KERAS_BACKEND": keras.backend.backend()}
    # num_cpus=0: if the cluster has fewer processors, workers share them.
    remote = ray.remote(num_cpus=0, runtime_env={"env_vars": environment})(Worker)
    arguments = agent.for_workers(make_env, seed)
    numbers = itertools.count()
    playing: dict[Any, Any] = {}  # pending results and their workers

    def start():
        worker = remote.remote(*arguments, next(numbers))
        playing[worker.get_ready.remote()] = worker

    def close(workers):
        """Closes environments after the current rollouts; kills workers that hang."""
        try:
            closed = [worker.close.remote() for worker in workers]
            if closed:
                ray.wait(closed, num_returns=len(closed), timeout=CLOSE_SECONDS)
        finally:
            for worker in workers:
                ray.kill(worker)

    try:
        for _ in range(num_workers):
            start()
        while True:
            (done,), _ = ray.wait(list(playing), num_returns=1)
            worker = playing[done]
            try:
                push = ray.get(done)
            except ray.exceptions.RayError as error:
                close([playing.pop(done)])
                agent.replace(error)
                start()
                continue
            late = None if push is None else agent.push(push)
            del playing[done]
            playing[worker.play.remote(agent.numbers(), *agent.pull())] = worker
            if late is not None:
                yield push, late
    finally:
        try:
            close(list(playing.values()))
        finally:
            if started:
                ray.shutdown()


def _start_ray(ray, num_cpus):
    """Starts Ray on this machine, closed to other machines."""
    from ray._private import ray_constants  # the only way, see below

    # With clusters enabled, Ray listens to the network even if told to use 127.0.0.1:
    # it looks up a reachable address instead.
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with warnings.catch_warnings():
            # JAX warns of forks; Ray's forked processes exec another program at once.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
            )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _import_ray():
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            'A3C: engine="ray" needs Ray: `python -m pip install "ray>=2.50"`, or '
            "kit's extra `ray`."
        ) from error
    return ray


class _Counts:
    """The shared agent's counts, as a part of a backup."""

    names = ("updates", "restarts", "staleness", "pushes")

    def __init__(self, agent: A3C, tally: "_Tally"):
        self.agent = agent
        self.tally = tally

    def get_state(self) -> dict[str, Any]:
        """Returns the counts by name."""
        return {name: getattr(self.agent, name) for name in self.names}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from the counts of `get_state`."""
        self.agent.updates, self.agent.restarts = state["updates"], state["restarts"]
        self.agent.staleness.update(state["staleness"])
        self.agent.pushes.update(state["pushes"])
        # Don't count gradients that were applied but not yet reported: each remaining
        # turn waits for a push.
        self.agent.max_updates += self.agent.updates - self.tally.pushes


class _Tally:
    """The interface that `turns` needs of environments, for those of all workers."""

    def __init__(self, num_envs: int):
        self.num_envs = num_envs
        self.check_finite = True
        self.on_error: Callable[[], None] = lambda: None
        self.called: float | None = None  # when waiting for a push began
        self.pushes = 0  # reported ones
        self.episodes: list[tuple[float, int]] = []

    def describe_call(self) -> str:
        """Returns a description of the call that is being waited for."""
        compiles = "" if self.pushes else " (or is still compiling)"
        return f"A3C, after {self.pushes:,} updates: a worker{compiles}"

    def record(self) -> None:
        """Does nothing: after a backup, workers' environments start anew."""

    def get_state(self) -> dict[str, Any]:
        """Returns the pushes and the unreported episodes, for a backup."""
        return {"pushes": self.pushes, "episodes": self.episodes}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from the result of `get_state`."""
        self.pushes, self.episodes = state["pushes"], state["episodes"]
