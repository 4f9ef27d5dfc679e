"""Asynchronous advantage actor-critic (A3C): actor-critics that don't wait.

Each worker has an environment and networks of its own. Again and again it

    pulls   the shared weights theta into its own, theta'
    plays   n steps by pi(a | s; theta')
    pushes  the gradients of the actor-critic's loss at theta', which are applied to
            theta at once, whatever the other workers are doing

so no worker ever waits for another, as in A2C all wait for the slowest. The price is
that theta has moved on by the time a gradient arrives: by as many updates as other
workers pushed in between, the gradient's staleness, which is measured here. The loss is
that of `kit/actor_critic.py`. Two engines run the same worker: threads of one process,
and Ray's actors, processes on one machine or many.

theta travels as one vector, and so does a gradient: one array to copy and to send,
instead of a dozen small ones. Shapes: T steps of a rollout, P weights.
"""

import collections
import copy
import itertools
import math
import os
import queue
import threading
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
CLOSE_SECONDS = 10.0  # for Ray's workers, to close their environments
Pushes = Generator[tuple["Push", int], None, None]


@dataclass
class Push:
    """What a worker brings from a rollout.

    Attributes:
        worker: Number of the worker.
        version: Number of updates that the weights had seen that it played by.
        gradients: Of the loss at these weights, `(P,)`.
        logs: Figures by name.
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

    Runs differ, even with the same seed: which worker is first is up to the machine.

    Args:
        actor: As in `kit.A2C`.
        critic: As in `kit.A2C`.
        gamma: Discount factor in [0, 1]. Defaults to 0.99.
        gae_lambda: Lambda of the generalized advantages, in [0, 1]. Defaults to 1,
            n-step returns.
        num_steps: T, steps that a worker plays before it pushes. Defaults to 20.
        normalize_advantages: As in `kit.A2C`. Defaults to `False`.
        ent_coef: Weight of the entropy. Defaults to 0.01.
        vf_coef: As in `kit.A2C`. Defaults to 0.5.
        seed: Seed of what each worker draws. Defaults to 0.

    Attributes:
        staleness: `collections.Counter` of the last `fit`: how many gradients were
            applied that many updates late.
        pushes: The same by worker: how many gradients each of them brought. Workers
            are numbered from 0; who replaces one that died has a new number.
        restarts: Number of workers that died in it, and were replaced.

    Raises:
        TypeError: If a network is no Keras model, or a number isn't one.
        ValueError: If a network is of another form, or a number is out of its range.

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
    share the optimizer's statistics. Deviations: updates exclude each other, so none is
    lost or half done (the paper's are Hogwild!'s); an episode that was truncated is
    continued by the critic's estimate.
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
        # Held by whoever reads or changes the shared weights while workers run.
        self.lock = threading.RLock()
        self._count_anew()

    def _count_anew(self):
        self.updates = self.restarts = 0
        # Not by setattr: Keras would make plain dicts of them.
        self.__dict__["staleness"] = collections.Counter()
        self.__dict__["pushes"] = collections.Counter()

    def compile(self, optimizer: Any = "rmsprop"):  # type: ignore[override]
        """Sets how to learn.

        Args:
            optimizer: Keras optimizer, or its name; its statistics are shared by all
                workers. Defaults to RMSprop.
        """
        super().compile(optimizer)
        release_programs(self, "_apply")

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
        """Plays and learns.

        An epoch is a reporting interval. Its logs are those of `kit.A2C`, and
        `staleness`: by how many updates gradients came late, on average. A worker that
        dies, of an error in its environment or with its process, is replaced, and a
        `RuntimeWarning` says of what.

        Args:
            env: Function without arguments that makes an environment, one for each
                worker: `lambda: gymnasium.make("CartPole-v1")`. Vector environments
                are fine as well.
            total_timesteps: Number of environment steps that are learned from, all
                workers together; the last rollout is played to its end.
            num_workers: Number of workers. Defaults to 2.
            engine: `"threads"` of this process, which share one Python interpreter, or
                `"ray"`: processes, for which the package `ray` is needed, and on each
                machine `kit` and what `env` uses. Defaults to `"threads"`.
            address: Address of a running Ray cluster to join. Defaults to `None`: the
                one that this program has joined already, else one is started on this
                machine, open to nobody else.
            max_restarts: How many workers may die. Defaults to 10.
            steps_per_epoch: Environment steps in an epoch. Defaults to a fiftieth of
                `total_timesteps`.
            callbacks: Keras callbacks; a batch is a push to them. Nobody pushes
                while they run.
            verbose: 0 silent, 1 progress bar, 2 a line an epoch. Defaults to
                `"auto"`, which is 1.
            seed: Seed of the environments. Defaults to one that the agent draws,
                another one in each call.
            check_finite: Whether to stop at the first loss that isn't finite, with the
                last good weights. Defaults to `True`.

        Returns:
            The `History` of the epochs' logs.

        Raises:
            TypeError: If `env` isn't a function that makes one of Gymnasium's, or a
                number isn't one.
            ValueError: If the spaces don't fit the networks, `compile` wasn't called,
                or an argument is out of its range.
            ImportError: If `engine` is `"ray"` and Ray isn't installed.
            RuntimeError: If more workers die than may.
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
        # Closed, workers end, also where an error or Ctrl-C ends this.
        with closing(run(self, env, num_workers, seed, address)) as pushes:
            for turn in self._undisturbed(progress):
                push, turn.logs["staleness"] = next(pushes)
                turn.logs.update(push.logs)
                tally.episodes += push.episodes
                tally.pushes += 1
        return self.history

    def _undisturbed(self, progress):
        """Goes through the turns; no weights change while callbacks run."""
        while True:
            with self.lock:
                turn = next(progress, None)
                if turn is None:
                    self.max_updates = self.updates
                    return
            yield turn

    def for_workers(self, make_env: Callable[[], Any], seed: int) -> Any:
        """Returns the arguments of `Worker`, but for its number."""
        # The next `fit` has other draws.
        config = {**self.get_config(), "seed": self.env_seed(None)}
        return (type(self), config, self.get_weights(), make_env, seed)

    # --- What workers ask of the shared agent ---------------------------------

    def pull(self) -> tuple[int, np.ndarray]:
        """Returns how many updates the shared weights have seen, and them, `(P,)`."""
        with self.lock:
            return self.updates, ops.convert_to_numpy(self._weights())

    def push(self, push: Push) -> int | None:
        """Applies a worker's gradients at once.

        Returns:
            Their staleness; `None` if training is over, and they were not applied.
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
        """Counts a worker that died, which is to be replaced.

        Raises:
            RuntimeError: If too many did.
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
        """Makes an environment for a moment; returns how many it consists of."""
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
            del config[name]  # each worker would have statistics of its own
        return config


class Worker:
    """An environment, and networks of its own to play and to differentiate by.

    Args:
        kind: Class of the shared agent.
        config: What the shared agent's `get_config` returned.
        weights: What its `get_weights` returned: also those that aren't trained.
        make_env: Function that makes the environment.
        seed: Seed of the environments of all workers.
        number: Which worker it is: no two see or draw the same.
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
        config = copy.deepcopy(config)  # Keras may take it apart; others need it too
        config["seed"] = _nth_seed(config["seed"], number)
        self.agent = kind.from_config(config)
        self.agent.set_weights(weights)
        self.envs = Environments(make_env())
        self.rollouts = Rollouts(
            self.agent, self.envs, self.agent.num_steps, _nth_seed(seed, number)
        )

    def get_ready(self) -> None:
        """Compiles, by a rollout that nobody learns from.

        Weights that were pulled before it would grow old meanwhile.
        """
        self.play(self.agent.numbers(), *self.agent.pull())

    def play(self, numbers: np.ndarray, version: int, weights: np.ndarray) -> Push:
        """Plays a rollout by the weights, and returns what is to be pushed.

        Args:
            numbers: The shared agent's `numbers`, which callbacks may change.
            version: What its `pull` returned first.
            weights: What it returned second.
        """
        # Algorithm S3 of the paper.
        # 1. Make the own weights theta' those that were pulled.
        self._load(weights)
        # 2. Play T steps by pi(a | s; theta').
        rollout = self.rollouts.play()
        # 3. Find the gradients at theta'; `push` applies them to theta.
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
        """Returns the gradients (P,), and the figures that `LOGS` names."""
        agent = self.agent
        with agent.using(numbers):
            # As in A2C; but nothing is normalized, and no weight changes here.
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
    """Arrays of any shapes as one vector (P,)."""
    return ops.concatenate([ops.reshape(array, (-1,)) for array in arrays])


def _to_arrays(vector, variables):
    """Takes a vector (P,) apart, in the variables' shapes."""
    sizes = [math.prod(variable.shape) for variable in variables]
    ends = itertools.accumulate(sizes)
    return [
        ops.reshape(vector[end - size : end], variable.shape)
        for variable, size, end in zip(variables, sizes, ends, strict=True)
    ]


# --- Engines ----------------------------------------------------------------
# Each runs workers until it is closed, and yields what they pushed, with its staleness.


def _run_threads(agent, make_env, num_workers, seed, address) -> Pushes:
    """Runs workers in threads of this process; each pushes by itself."""
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
        except BaseException as error:  # whatever it is, the others go on
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
        agent.max_updates = 0  # their next push ends them
        for thread in threads:
            thread.join()


def _run_ray(agent, make_env, num_workers, seed, address) -> Pushes:
    """Runs workers in processes of Ray's; pushes for them what they bring."""
    ray = _import_ray()
    if started := address is not None or not ray.is_initialized():
        if address is None:
            _start_ray(ray, num_workers)
        else:
            ray.init(address=address)
    environment = {"KERAS_BACKEND": keras.backend.backend()}
    # Where a cluster has fewer processors, workers share them: all of them play.
    remote = ray.remote(num_cpus=0, runtime_env={"env_vars": environment})(Worker)
    arguments = agent.for_workers(make_env, seed)
    numbers = itertools.count()
    playing: dict[Any, Any] = {}  # what is to come, and who is to bring it

    def start():
        worker = remote.remote(*arguments, next(numbers))
        playing[worker.get_ready.remote()] = worker

    def close(workers):
        """Closes environments after the rollouts under way; what hangs is ended."""
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
    """Starts Ray on this machine, where nobody else can reach it."""
    from ray._private import ray_constants  # the only way, see below

    # Ray listens to the network wherever it could be part of a cluster, even where
    # it is told to use 127.0.0.1: it looks up a reachable address instead.
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with warnings.catch_warnings():
            # JAX' warning: what Ray forks becomes another program at once.
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
    """What the shared agent has counted, as a part of a backup."""

    names = ("updates", "restarts", "staleness", "pushes")

    def __init__(self, agent: A3C, tally: "_Tally"):
        self.agent = agent
        self.tally = tally

    def get_state(self) -> dict[str, Any]:
        """Returns the counts by name."""
        return {name: getattr(self.agent, name) for name in self.names}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from the counts of `get_state`."""
        self.agent.updates, self.agent.restarts = state["updates"], state["restarts"]
        self.agent.staleness.update(state["staleness"])
        self.agent.pushes.update(state["pushes"])
        # Gradients that were applied, and whose push nobody had reported yet, count no
        # more: each turn to come waits for a push.
        self.agent.max_updates += self.agent.updates - self.tally.pushes


class _Tally:
    """What `turns` asks of environments, for those of all workers."""

    def __init__(self, num_envs: int):
        self.num_envs = num_envs
        self.check_finite = True
        self.pushes = 0  # that were reported
        self.episodes: list[tuple[float, int]] = []

    def record(self) -> None:
        """Does nothing: workers' environments begin anew."""

    def get_state(self) -> dict[str, Any]:
        """Returns pushes, and episodes that weren't reported yet, for a backup."""
        return {"pushes": self.pushes, "episodes": self.episodes}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `get_state` returned."""
        self.pushes, self.episodes = state["pushes"], state["episodes"]
