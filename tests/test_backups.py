"""Backups: a resumed training is the one that was never interrupted."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import keras
import numpy as np
import pytest
from interruptions import Killed, interrupt
from trainings import KINDS, differing, train

import kit
from kit import backups
from kit.files import replacing
from kit.rl import env_state
from kit.rl.environments import Environments
from kit.rl.replay import ReplayBuffer


def every_step(folder, **options):
    return kit.BackupAndRestore(folder, interval=0, delete_checkpoint=False, **options)


# --- Trainings --------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed():
    """Returns what a training ends with, each trained once."""
    found = {}

    def get(kind):
        if kind not in found:
            found[kind] = train(kind)
        return found[kind]

    return get


# Each way to train under each backend, the others under JAX.
EVERYWHERE = ("dqn", "ppo", "ppo_fused", "q_learning", "classifier", "gan")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in EVERYWHERE else pytest.mark.once)
        for kind in KINDS
    ],
)
def test_resumed_trainings_are_the_same_to_the_last_bit(
    kind, undisturbed, tmp_path, monkeypatch
):
    if kind == "dqn_lander":
        pytest.importorskip("Box2D")
    for after in (3, 11):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            interrupt(patch, after)
            train(kind, [every_step(tmp_path)])
    assert not differing(undisturbed(kind), train(kind, [every_step(tmp_path)]))
    # A training that is over is restored, and not trained again.
    with monkeypatch.context() as patch:
        patch.setattr(backups.Session, "look", lambda self: pytest.fail("trains"))
        assert not differing(undisturbed(kind), train(kind, [every_step(tmp_path)]))


def test_backups_change_nothing_and_go_at_the_end(undisturbed, tmp_path):
    folder = tmp_path / "backups"
    result = train("classifier", [kit.BackupAndRestore(folder)])
    assert not differing(undisturbed("classifier"), result)
    assert not folder.exists()


@pytest.mark.once
def test_restore_false_begins_anew(undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 3)
        train("a2c", [every_step(tmp_path)])
    # Whoever is killed before the first backup has nothing to go on from.
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 1)
        train("a2c", [kit.BackupAndRestore(tmp_path, interval=999, restore=False)])
    assert not list(tmp_path.glob("backup-*"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 2)
        train("a2c", [every_step(tmp_path, restore=False)])
    assert len(list(tmp_path.glob("backup-*"))) == 2
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 38)  # of 40 turns, two of which are over
        train("a2c", [every_step(tmp_path)])
    assert not differing(undisturbed("a2c"), train("a2c", [every_step(tmp_path)]))


@pytest.mark.once
@pytest.mark.parametrize(
    ("number", "ending"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_signals_end_a_training_with_a_backup(
    number, ending, undisturbed, tmp_path, monkeypatch, capsys, request
):
    # A process in the background may ignore Ctrl-C.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    request.addfinalizer(lambda: signal.signal(number, before))
    look = backups.Session.look
    looks = []

    def look_and_send(session):
        looks.append(session)
        if len(looks) == 5:
            signal.raise_signal(number)
        look(session)

    with monkeypatch.context() as patch, pytest.raises(ending) as caught:
        patch.setattr(backups.Session, "look", look_and_send)
        train("a2c", [kit.BackupAndRestore(tmp_path, delete_checkpoint=False)])
    if ending is SystemExit:
        assert caught.value.code == 128 + number
    caught = None  # it holds the loop
    assert "Stopping after this step" in capsys.readouterr().err
    assert len(looks) == 5 and len(list(tmp_path.glob("backup-*"))) == 1
    assert signal.getsignal(number) is usual
    assert not differing(undisturbed("a2c"), train("a2c", [every_step(tmp_path)]))


def test_a_callback_that_keras_own_loop_runs_says_so(tmp_path):
    model = kit.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match=r"keras\.callbacks\.BackupAndRestore"):
        model.fit(
            np.ones((4, 2)),
            np.ones((4, 1)),
            callbacks=[kit.BackupAndRestore(tmp_path)],
            verbose=0,
        )


@pytest.mark.parametrize(
    "engine", ["threads", pytest.param("ray", marks=pytest.mark.thorough)]
)
def test_a3c_goes_on_from_the_shared_weights_and_counts(engine, tmp_path, monkeypatch):
    if engine == "ray":
        pytest.importorskip("ray")
        # As in tests/test_a3c.py: nothing of Ray's stands back, or is killed.
        monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
        monkeypatch.setenv("RAY_worker_niceness", "0")

    def fit():
        actor = kit.policy_network((4,), gymnasium.spaces.Discrete(2), units=(8,))
        critic = kit.value_network((4,), units=(8,))
        agent = kit.A3C(actor, critic, num_steps=5)
        agent.compile("sgd")
        history = agent.fit(
            lambda: gymnasium.make("CartPole-v1"),
            200,
            num_workers=2,
            engine=engine,
            callbacks=[every_step(tmp_path)],
            verbose=0,
        )
        return agent, history

    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 12)
        fit()
    agent, history = fit()
    # Of 40 pushes at least, the first twelve are those of the run that was interrupted.
    for counts in (agent.staleness, agent.pushes):
        assert sum(counts.values()) == agent.updates >= 40
    assert history.history["timesteps"][-1] == 200
    assert agent.optimizer.iterations == agent.updates


@pytest.mark.variants
@pytest.mark.parametrize("kind", ["dqn", "a2c", "q_learning"])
def test_what_was_learned_is_saved_before_an_environments_error(
    kind, tmp_path, monkeypatch, capsys
):
    name = "_step_vector" if kind == "a2c" else "_step"
    step = getattr(Environments, name)
    reported = []

    def fail(envs, action):
        if envs.steps == 70:
            raise OSError("the simulator is gone")
        return step(envs, action)

    class Report(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            reported.append(logs["timesteps"])

    def fit():
        backup = kit.BackupAndRestore(tmp_path, interval=1e6, delete_checkpoint=False)
        train(kind, [backup, Report()])

    with monkeypatch.context() as patch, pytest.raises(OSError, match="simulator"):
        patch.setattr(Environments, name, fail)
        fit()
    assert f"saved in {tmp_path}" in capsys.readouterr().err
    count, learned = len(reported), reported[-1]
    fit()
    assert reported[count] - learned == reported[1] - reported[0]


@pytest.mark.once
def test_options_that_callbacks_change_are_restored(tmp_path, monkeypatch):
    class Anneal(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.ent_coef = 0.5**epoch

    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 5)
        train("a2c", [every_step(tmp_path), Anneal()])
    resumed = train("a2c", [every_step(tmp_path), Anneal()])
    assert not differing(train("a2c", [Anneal()]), resumed)


@pytest.mark.once
def test_a_run_that_is_another_one_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 3)
        train("q_learning", [every_step(tmp_path)])
    agent = kit.QLearning(64, 4, algorithm="sarsa", horizon=10.0, gamma=0.5)
    agent.compile()
    table = agent.get_weights()
    env = gymnasium.make("FrozenLake-v1", map_name="8x8")
    for match, total, callbacks in (
        ("`total_timesteps` was 1000, and is 500", 500, []),
        (r"`gamma` was 0\.95, and is 0\.5 now", 1000, []),
    ):
        with pytest.raises(ValueError, match=match):
            agent.fit(
                env, total, callbacks=[every_step(tmp_path), *callbacks], verbose=0
            )
    agent = kit.QLearning(64, 4, algorithm="sarsa", horizon=10.0)
    agent.compile()
    with pytest.raises(ValueError, match="callbacks"):
        agent.fit(
            env,
            1000,
            callbacks=[every_step(tmp_path), kit.EpochTimer()],
            verbose=0,
        )
    model = kit.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`class` was 'QLearning', and is 'Seq"):
        model.fit(
            np.ones((4, 2)),
            np.ones((4, 1)),
            callbacks=[every_step(tmp_path)],
            verbose=0,
        )
    for new, old in zip(agent.get_weights(), table, strict=True):
        np.testing.assert_array_equal(new, old)  # nothing is half loaded


def test_another_model_is_refused(tmp_path):
    def fit(units):
        model = kit.Sequential([keras.Input((2,)), keras.layers.Dense(units)])
        model.compile("sgd", "mse")
        data = np.ones((4, 2)), np.ones((4, units))
        model.fit(*data, callbacks=[every_step(tmp_path)], verbose=0)

    fit(1)
    with pytest.raises(ValueError, match=r"\(\(2, 1\), 'float32'\).*\(\(2, 3\)"):
        fit(3)


def test_save_load_fit_is_fit_twice(tmp_path):
    def agent():
        actor = kit.policy_network((4,), env.action_space, units=(8,))
        critic = kit.value_network((4,), units=(8,))
        kit.initialize_weights(actor, 0)
        kit.initialize_weights(critic, 1)
        agent = kit.PPO(actor, critic, num_steps=32, normalize_observations=True)
        agent.compile(keras.optimizers.Adam(1e-3))
        agent.fit(env, 128, verbose=0)
        return agent

    env = gymnasium.make("CartPole-v1")
    twice = agent()
    twice.fit(env, 128, verbose=0)
    agent().save(tmp_path / "agent.keras")
    loaded = keras.saving.load_model(tmp_path / "agent.keras")
    loaded.fit(env, 128, verbose=0)
    for a, b in zip(twice.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# --- Processes that are killed ----------------------------------------------------


@pytest.mark.once
def test_a_process_that_is_killed_is_resumed(undisturbed, tmp_path):
    folder = Path(__file__).parent
    paths = [str(folder.parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, folder / "trainings.py", "q_learning", tmp_path / "b"]
    for seconds in (0.0, 0.2):
        process = subprocess.Popen(
            [*map(str, command), str(tmp_path / "result.npz"), "0"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch")
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    resumed = train("q_learning", [every_step(tmp_path / "b"), Progress()])
    assert not differing(undisturbed("q_learning"), resumed)


class Progress(keras.callbacks.Callback):
    """Of the name that the killed process had."""


# --- Files ------------------------------------------------------------------------


def write(folder, numbers, growing=None):
    files = backups.Backups(folder)
    for number in numbers:
        state = {"number": number, "array": np.full(1000, number)}
        files.save({"class": "Test"}, state, growing or {})


def read(folder):
    return backups.Backups(folder).load({"class": "Test"}, {})["number"]


def test_values_are_what_they_were():
    state = {
        "int": 2**100,
        "floats": [0.1, float("inf"), -0.0],
        "nothing": None,
        1: (True, "text"),
        "array": np.arange(6, dtype="uint8").reshape(2, 3),
        "scalar": np.float32(0.1),
        "string": np.str_("s"),
        "empty": np.zeros((0, 3), "float64"),
        "nested": {"list": [{"a": np.ones(2)}]},
    }
    bfloat16 = keras.ops.convert_to_numpy(keras.ops.ones((2, 2), "bfloat16"))
    if bfloat16.dtype == "bfloat16":
        state["bfloat16"] = bfloat16
    arrays = {}
    packed = backups._pack(state, arrays)
    found = backups._unpack(packed, arrays)
    assert list(found) == list(state)
    for name, value in state.items():
        assert type(found[name]) is type(value), name
        assert getattr(found[name], "dtype", None) == getattr(value, "dtype", None)
        assert repr(found[name]) == repr(value)
    with pytest.raises(TypeError, match="object"):
        backups._pack(object(), {})


@pytest.mark.once
@pytest.mark.parametrize("harm", ["truncate", "flip a bit", "delete"])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "arrays.npz"])
def test_a_damaged_backup_is_passed_over(harm, name, tmp_path):
    write(tmp_path, [1, 2])
    damage(tmp_path / "backup-000002" / name, harm)
    with pytest.warns(RuntimeWarning, match="backup-000002.*continuing from"):
        assert read(tmp_path) == 1
    damage(tmp_path / "backup-000001" / name, harm)
    with pytest.raises(ValueError, match="all backups are damaged"):
        read(tmp_path)


def test_a_manifest_that_was_changed_is_damaged(tmp_path):
    write(tmp_path, [1])
    file = tmp_path / "backup-000001" / "manifest.json"
    text = file.read_text()
    changed = text.replace(r"\"format\": 1", r"\"format\": 2")  # JSON, as before
    assert changed != text
    file.write_text(changed)
    with pytest.raises(ValueError, match="are damaged.*manifest.json isn't"):
        read(tmp_path)


def damage(path, harm):
    content = bytearray(path.read_bytes())
    if harm == "delete":
        path.unlink()
        return
    if harm == "truncate":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.once
def test_another_format_is_refused(tmp_path, monkeypatch):
    write(tmp_path, [1])
    monkeypatch.setattr(backups, "FORMAT", 2)
    with pytest.raises(ValueError, match="format 1 of another version"):
        read(tmp_path)


@pytest.mark.once
@pytest.mark.parametrize("function", ["os.replace", "os.fsync", "numpy.savez"])
def test_whatever_happens_while_a_backup_is_written_the_last_one_stays(
    function, tmp_path, monkeypatch
):
    calls = []
    module, name = function.split(".")
    original = getattr(sys.modules[module], name)
    write(tmp_path, [1])

    def fail_at(number):
        calls.clear()

        def fails(*args, **kwargs):
            calls.append(args)
            if len(calls) == number:
                raise Killed
            return original(*args, **kwargs)

        return fails

    number = 0
    while True:
        number += 1
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[module], name, fail_at(number))
            try:
                write(tmp_path, [number + 1])
            except Killed:
                assert read(tmp_path) in (number, number + 1)
                write(tmp_path, [number + 1])
                continue
            break
    assert number > 1
    assert read(tmp_path) == number + 1


@pytest.mark.once
def test_two_backups_are_kept_and_nothing_else(tmp_path):
    (tmp_path / ".123-backup-000001").mkdir()  # of a process that was killed
    write(tmp_path, range(5))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "backup-000004",
        "backup-000005",
    ]


@pytest.mark.once
def test_nothing_is_unpickled(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "backup-000002" / "arrays.npz"
    np.savez(path, a0=np.array([{"a": 1}], dtype=object))
    with pytest.warns(RuntimeWarning, match="skipped damaged"):
        assert read(tmp_path) == 1


# --- Disks ------------------------------------------------------------------------


@pytest.mark.once
def test_a_full_disk_costs_backups_and_not_the_training(
    undisturbed, tmp_path, monkeypatch
):
    replace, calls = os.replace, []

    def full_at_first(*args):
        calls.append(args)
        if len(calls) <= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(*args)

    with (
        monkeypatch.context() as patch,
        pytest.warns(RuntimeWarning, match="No space left.*continues") as warned,
    ):
        patch.setattr(os, "replace", full_at_first)
        result = train("a2c", [every_step(tmp_path)])
    full = [str(w.message) for w in warned if "No space left" in str(w.message)]
    assert len(full) == 1  # and not with each try
    assert not differing(undisturbed("a2c"), result)
    assert not differing(undisturbed("a2c"), train("a2c", [every_step(tmp_path)]))

    def is_full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.rmtree(tmp_path)
    with (
        monkeypatch.context() as patch,
        pytest.warns(RuntimeWarning, match="continues"),
        pytest.raises(OSError, match="No space left"),
    ):
        patch.setattr(os, "replace", is_full)
        train("a2c", [every_step(tmp_path)])


@pytest.mark.once
def test_free_space_is_asked_for_at_the_start(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="MB left. Choose another `backup_dir`"):
        train("dqn", [every_step(tmp_path)])


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((3,), TypeError, "`backup_dir` must be a path"),
        (("x", "soon"), TypeError, "`interval` must be a number"),
        (("x", -1), ValueError, "`interval` must be .*, received -1"),
        (("x", float("nan")), ValueError, "`interval`"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        kit.BackupAndRestore(*arguments)


# --- Files that are saved whole ---------------------------------------------------


def test_save_leaves_a_good_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    model = kit.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    path = tmp_path / "model.keras"
    model.save(path)
    good = path.read_bytes()

    def killed(*args):
        raise Killed

    for function in ("replace", "fsync"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, function, killed)
            model.save(path)
        assert path.read_bytes() == good
        assert os.listdir(tmp_path) == ["model.keras"]
    model.save_weights(tmp_path / "w.weights.h5")
    assert sorted(os.listdir(tmp_path)) == ["model.keras", "w.weights.h5"]
    model.load_weights(tmp_path / "w.weights.h5")


def test_what_keras_refuses_to_save_is_refused(tmp_path):
    model = kit.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="extension"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"\.weights\.h5"):
        model.save_weights(tmp_path / "model.h5")
    assert os.listdir(tmp_path) == []


@pytest.mark.once
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor):
        calls.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def renamed(*paths):
        calls.append("renamed")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    with replacing(tmp_path / "file") as file:
        file.write_text("text")
    with replacing(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "inner").write_text("text")
    names = ("file", None, ".", "folder/inner", "folder", None, ".")
    assert calls == [
        "renamed" if name is None else (tmp_path / name).stat().st_ino for name in names
    ]


@pytest.mark.once
def test_replacing_a_folder(tmp_path):
    with replacing(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "file").write_text("text")
    assert (tmp_path / "folder" / "file").read_text() == "text"
    with pytest.raises(Killed), replacing(tmp_path / "other") as folder:
        folder.mkdir()
        raise Killed
    assert os.listdir(tmp_path) == ["folder"]


# --- The replay buffer ------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("seed", range(5))
def test_a_replay_buffer_is_what_it_was(seed, tmp_path):
    rng = np.random.default_rng(seed)
    buffer = ReplayBuffer(30, (2,), "float32", num_envs=3)
    buffer.reset(rng.normal(size=(3, 2)))
    files = backups.Backups(tmp_path)
    for _ in range(12):
        for _ in range(rng.integers(12)):
            ended = rng.uniform(size=(2, 3)) < 0.15
            buffer.add(
                rng.integers(4, size=3),
                rng.normal(size=3),
                *ended,
                rng.normal(size=(3, 2)),
                rng.normal(size=(3, 2)),
                rng.uniform(size=3) < 0.8,
            )
        files.save({}, {"buffer": buffer.get_state()}, {"buffer": buffer})
        other = ReplayBuffer(30, (2,), "float32", num_envs=3)
        state = backups.Backups(tmp_path).load({}, {"buffer": other})
        other.set_state(state["buffer"])
        assert len(other) == len(buffer)
        if not len(buffer):
            continue
        uniform = rng.uniform(size=200)
        first = buffer.gather(buffer.indices(uniform))
        second = other.gather(other.indices(uniform))
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    # Only what is new was written: no segment twice, and none that isn't needed.
    assert len(list(tmp_path.glob("buffer-*"))) < 10


@pytest.mark.once
def test_a_buffer_whose_environment_began_anew_ends_nothing():
    buffer = ReplayBuffer(10, (1,), "float32")
    buffer.reset(np.array([[0.0]]))
    step = (np.array([0]), np.array([1.0]), np.array([False]), np.array([False]))
    buffer.add(*step, np.array([[1.0]]), np.array([[1.0]]))
    buffer.restart(np.array([[7.0]]))
    buffer.add(*step, np.array([[8.0]]), np.array([[8.0]]))
    batch = buffer.gather(buffer.indices(np.array([0.0, 0.9])))
    assert batch["obs"][:, 0].tolist() == [0.0, 7.0]
    assert batch["next_obs"][:, 0].tolist() == [1.0, 8.0]
    assert not batch["terminated"].any() and not batch["truncated"].any()


# --- Environments -----------------------------------------------------------------

SINGLE = [
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "FrozenLake-v1",
    "CliffWalking-v1",
    "Taxi-v4",
    "LunarLander-v3",
    "BipedalWalker-v3",
    "HalfCheetah-v5",
]


def make(name):
    if name in ("LunarLander-v3", "BipedalWalker-v3"):
        pytest.importorskip("Box2D")
    if name == "HalfCheetah-v5":
        pytest.importorskip("mujoco")
    return gymnasium.make(name)


def play(envs, actions):
    return [envs.step(np.array(action)) for action in actions]


def check_goes_on(first, second, steps=150):
    """Restores in the middle, and plays on in both environments."""
    first.record()
    second.record()
    first.reset(5)
    space = first.action_space
    space.seed(1)

    def actions(count):
        return [[space.sample() for _ in range(first.num_envs)] for _ in range(count)]

    for count in (1, 37, 0, steps):  # also backups of what was restored
        play(first, actions(count))
        second.reset(6)
        second.set_state(first.get_state())
        assert not second.restarted
        np.testing.assert_array_equal(first.obs, second.obs)
        after = actions(20)
        state = first.get_state()
        expected, found = play(first, after), play(second, after)
        for step, other in zip(expected, found, strict=True):
            for x, y in zip(step, other, strict=True):
                np.testing.assert_array_equal(x, y)
        assert first.episodes == second.episodes
        first.reset(9)
        first.set_state(state)


@pytest.mark.once
@pytest.mark.parametrize("name", SINGLE)
def test_environments_go_on_where_they_were(name):
    check_goes_on(Environments(make(name)), Environments(make(name)))


@pytest.mark.once
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("name", ["CartPole-v1", "LunarLander-v3"])
def test_vector_environments_go_on_where_they_were(name, mode):
    make(name).close()
    mode = gymnasium.vector.AutoresetMode(mode)
    first, second = (
        Environments(
            gymnasium.make_vec(
                name,
                num_envs=3,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": mode},
            )
        )
        for _ in range(2)
    )
    check_goes_on(first, second)


@pytest.mark.once
def test_environments_in_one_array_go_on_where_they_were():
    check_goes_on(
        *(
            Environments(
                gymnasium.make_vec(
                    "CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point"
                )
            )
            for _ in range(2)
        )
    )


@pytest.mark.once
def test_running_means_of_a_wrapper_are_restored():
    def envs():
        env = gymnasium.make("CartPole-v1")
        return Environments(gymnasium.wrappers.NormalizeObservation(env))

    check_goes_on(envs(), envs())


class Elsewhere(gymnasium.Wrapper):
    """An environment that isn't determined by its generator."""

    def __init__(self, env):
        super().__init__(env)
        self.lock = time  # something that isn't plain
        self.kept = iter(range(10**9))

    def step(self, action):
        obs, *rest = self.env.step(action)
        return obs + next(self.kept), *rest


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*The obs returned by:UserWarning")
def test_what_cannot_be_restored_begins_anew_and_says_so():
    first, second = (
        Environments(Elsewhere(gymnasium.make("CartPole-v1"))) for _ in range(2)
    )
    first.record()
    second.record()
    assert isinstance(first.env, env_state.Recorder)
    first.reset(1)
    play(first, [[1], [0]])
    play(first, [[1], [1]])
    second.reset(2)
    play(second, [[1]])
    with pytest.warns(RuntimeWarning, match="another state.*new episodes begin"):
        second.set_state(first.get_state())
    assert second.restarted
    assert np.abs(second.obs).max() < 0.06  # a first observation
