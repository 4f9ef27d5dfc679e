import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from kit.files import replacing
from kit.lab.baselines import pair_with_baselines
from kit.lab.run import (
    Run,
    _moving_mean,
    _spread,
    plot_learning_curve,
)

FIGURES = {
    "metrics": {"eval_return": 500.0},
    "baselines": {"random_return": 22.1},
    "throughput": (8123.0, "env steps/s"),
}


def read_metrics(folder):
    def fail(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "metrics.json").read_text()
    return json.loads(text, parse_constant=fail)


def test_metrics_json_has_the_agreed_form(tmp_path):
    run = Run("dqn", seed=3, output_dir=tmp_path, config={"gamma": 0.99})
    returned = run.finish(**FIGURES, compile_seconds=1.9)

    record = read_metrics(tmp_path)
    assert record == returned
    assert list(record) == [
        "recipe",
        "backend",
        "seed",
        "config",
        "metrics",
        "baselines",
        "throughput",
        "compile_seconds",
        "wall_seconds",
        "peak_memory_mb",
        "versions",
    ]
    assert record["recipe"] == "dqn"
    assert record["backend"] == keras.backend.backend()
    assert record["seed"] == 3
    assert record["config"] == {"gamma": 0.99}
    assert record["metrics"] == {"eval_return": 500.0}
    assert record["baselines"] == {"random_return": 22.1}
    assert record["throughput"] == {"value": 8123.0, "unit": "env steps/s"}
    assert record["compile_seconds"] == 1.9
    assert 0 <= record["wall_seconds"] < 60
    assert 20 < record["peak_memory_mb"] < 100_000
    assert record["versions"]["keras"] == keras.__version__
    assert record["versions"]["python"] == sys.version.split()[0]
    assert record["versions"][keras.backend.backend()]
    assert record["versions"]["cpu_count"] >= 1


def test_figures_may_be_scalars_of_numpy_and_of_the_backend(tmp_path):
    figures = {
        **FIGURES,
        "metrics": {
            "numpy": np.float32(0.5),
            "count": np.int64(20),
            "backend": keras.ops.convert_to_tensor(0.25),
            "variable": keras.Variable(2.0, trainable=False),
        },
    }
    Run("dqn", output_dir=tmp_path).finish(**figures)
    metrics = read_metrics(tmp_path)["metrics"]
    assert metrics == {"numpy": 0.5, "count": 20, "backend": 0.25, "variable": 2.0}
    assert type(metrics["count"]) is int


def test_what_is_not_a_number_becomes_null(tmp_path):
    metrics = {"loss": float("nan"), "all": [1.0, np.inf], "n": np.array(-np.inf)}
    Run("dqn", output_dir=tmp_path).finish(**{**FIGURES, "metrics": metrics})
    assert read_metrics(tmp_path)["metrics"] == {
        "loss": None,
        "all": [1.0, None],
        "n": None,
    }


def test_config_is_the_call_of_main_as_it_was(tmp_path):
    def main(*, seed=0, output_dir=None, hidden=(120, 84), data=Path("a") / "b"):
        run = Run("dqn", seed=seed, output_dir=output_dir, config=locals())
        hidden = "changed later"
        return run, hidden, locals()

    run, _, _ = main(seed=1, output_dir=tmp_path)
    assert run.config == {"hidden": [120, 84], "data": str(Path("a") / "b")}


def test_config_that_json_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"config\['optimizer'\]\['inner'\].*object"):
        Run("dqn", output_dir=tmp_path, config={"optimizer": {"inner": object()}})


def test_default_folder_tells_recipe_backend_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("dqn", seed=7)
    assert run.output_dir == Path("runs", f"dqn-{keras.backend.backend()}-7")
    assert (tmp_path / run.output_dir).is_dir()


@pytest.mark.parametrize("inside", [".", "below/it"])
def test_bad_output_dir_is_named_before_any_work(tmp_path, inside):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"output_dir=.*file.*--output-dir"):
        Run("dqn", output_dir=file / inside)
    assert file.read_text() == "mine"


def test_all_random_numbers_follow_the_seed(tmp_path):
    def draw(seed):
        Run("dqn", seed=seed, output_dir=tmp_path)
        noise = keras.ops.convert_to_numpy(keras.random.normal((2,)))
        return [random.random(), np.random.rand(), *noise.tolist()]

    first = draw(1)
    assert draw(1) == first
    assert all(a != b for a, b in zip(first, draw(2), strict=True))


def contents(folder):
    """Returns all files by path."""
    files = (x for x in folder.rglob("*") if x.is_file())
    return {str(x.relative_to(folder)): x.read_bytes() for x in files}


def test_what_fails_before_it_begins_leaves_an_earlier_run(tmp_path):
    def recipe(learning_rate):
        Run("dqn", output_dir=tmp_path, config=locals())
        raise ValueError("no such data")

    Run("dqn", output_dir=tmp_path).finish(**FIGURES)
    finished = contents(tmp_path)
    with pytest.raises(ValueError, match="no such data"):
        recipe(0.1)
    assert contents(tmp_path) == finished
    Run("dqn", output_dir=tmp_path).backup().backups.save({}, {}, {})
    interrupted = contents(tmp_path)
    assert "metrics.json" not in interrupted
    with pytest.raises(ValueError, match="no such data"):
        recipe(0.1)
    assert contents(tmp_path) == interrupted


@pytest.mark.parametrize("first", ["begin", "backup", "write_texts", "figure"])
def test_a_run_that_has_begun_has_neither_metrics_nor_backups_of_another(
    tmp_path, first
):
    Run("dqn", output_dir=tmp_path).finish(**FIGURES)
    (tmp_path / "backups" / "training").mkdir(parents=True)
    (tmp_path / "backups" / "config.json").write_text("{}")
    run = Run("dqn", output_dir=tmp_path, config={"gamma": 0.9, "verbose": 0})
    if first == "figure":
        with run.figure("curve.png"):
            pass
    elif first == "write_texts":
        run.write_texts("samples.txt", {})
    else:
        getattr(run, first)()
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "backups" / "training").exists()
    if first == "backup":  # which can be resumed, and then is finished
        run = Run("dqn", output_dir=tmp_path, config={"gamma": 0.9}, resume=True)
        run.backup().backups.save({}, {}, {})
        run.begin()
        assert (tmp_path / "backups" / "training" / "backup-000001").is_dir()
        run.finish(**FIGURES)
        assert (tmp_path / "metrics.json").exists()
        assert not (tmp_path / "backups").exists()


def test_only_a_finished_run_has_metrics(tmp_path):
    Run("dqn", output_dir=tmp_path).finish(**FIGURES)
    (tmp_path / "notes.txt").write_text("mine")
    run = Run("dqn", output_dir=tmp_path)
    run.begin()
    assert [path.name for path in tmp_path.glob("metrics*")] == []

    with pytest.raises(TypeError, match="metrics"):
        run.finish(**{**FIGURES, "metrics": {"eval_return": object()}})
    assert not (tmp_path / "metrics.json").exists()

    run.finish(**FIGURES)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["history.csv", "metrics.json", "notes.txt"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with path.open() as reader:
        with replacing(path) as file:
            file.write_text("new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_file_that_fails_midway_leaves_the_old_one(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def read_history(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_history_of_keras_becomes_rows(tmp_path):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    x, y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
    run = Run("mlp", output_dir=tmp_path)
    history = model.fit(x, y, epochs=2, verbose=0, validation_data=(x, y))
    run.finish(**FIGURES, history=history)

    rows = read_history(tmp_path)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    for name in ("loss", "val_loss"):
        expected = [float(value) for value in history.history[name]]
        assert [float(row[name]) for row in rows] == expected


def test_history_of_rows_keeps_values_under_their_names(tmp_path):
    rows = [{"steps": 10, "loss": np.nan}, {"steps": 20, "return": 9.0, "loss": 0.25}]
    Run("dqn", output_dir=tmp_path).finish(**FIGURES, history=rows)
    assert read_history(tmp_path) == [
        {"steps": "10", "loss": "", "return": ""},
        {"steps": "20", "loss": "0.25", "return": "9.0"},
    ]


def test_history_that_cannot_be_put_in_line_is_refused(tmp_path):
    history = keras.callbacks.History()
    history.on_train_begin()
    history.set_model(keras.Sequential())
    history.on_epoch_end(0, {"loss": 1.0})
    history.on_epoch_end(1, {"loss": 0.5, "val_loss": 0.7})
    with pytest.raises(ValueError, match="1 values of 'val_loss' in 2 epochs"):
        Run("dqn", output_dir=tmp_path).finish(**FIGURES, history=history)


def test_table_shows_each_claim_beside_its_baseline(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    Run("ppo", seed=4, output_dir=tmp_path).finish(
        metrics={"eval_return": 487.25, "lost": float("nan")},
        baselines={"random_return": 22.125},
        throughput=(102_000.0, "env steps/s"),
        compile_seconds=6.54,
    )
    out = capsys.readouterr().out
    (row,) = (line for line in out.splitlines() if "eval_return" in line)
    assert "487.2" in row and "random_return" in row and "22.12" in row
    (row,) = (line for line in out.splitlines() if "lost" in line)
    assert "not a number" in row
    assert "102,000.0 env steps/s" in out
    assert "6.5 s of it compiling" in out
    assert f"Results in {tmp_path}" in out


def test_texts_are_written_and_printed_unless_verbose_is_0(tmp_path, capsys):
    for verbose, words in ((1, ["a title", "some words"]), (0, [])):
        run = Run("gpt", output_dir=tmp_path, config={"verbose": verbose})
        run.write_texts("samples.txt", {"a title": "some words"})
        assert (tmp_path / "samples.txt").read_text() == "# a title\nsome words\n"
        run.finish(**FIGURES)
        out = capsys.readouterr().out
        assert all(x in out for x in words) and bool(out) == bool(words)


def test_a_baseline_belongs_to_the_metric_that_shares_most_last_words():
    metrics = ["test_accuracy", "transformed_accuracy", "test_rmse", "epochs"]
    baselines = [
        "cnn_test_accuracy",
        "cnn_transformed_accuracy",
        "logistic_regression_test_accuracy",
        "optimum",
    ]
    pairs = pair_with_baselines(dict.fromkeys(metrics), dict.fromkeys(baselines))
    assert pairs == [
        ("test_accuracy", ["cnn_test_accuracy", "logistic_regression_test_accuracy"]),
        ("transformed_accuracy", ["cnn_transformed_accuracy"]),
        ("test_rmse", []),
        ("epochs", []),
        ("", ["optimum"]),
    ]


def test_learning_curve_is_drawn_where_it_was_asked_for(tmp_path):
    path = tmp_path / "curve.png"
    steps, returns = np.arange(1, 101) * 10, np.linspace(10, 500, 100)
    settings = {"title": "DQN on CartPole-v1", "baseline": 22.1, "final": 500.0}
    plot_learning_curve(path, steps, returns, **settings)
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]

    plot_learning_curve(path, steps, returns, **settings, window=50)
    assert path.read_bytes() != picture


def test_learning_curve_shows_returns_mean_and_both_levels(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, file: (figures.append(figure), file.touch())
    )
    plot_learning_curve(
        tmp_path / "curve.png",
        [10, 20, 40],
        [0.0, 3.0, 6.0],
        title="DQN on CartPole-v1",
        baseline=22.1,
        final=500.0,
        window=3,
    )
    (axes,) = figures[0].axes
    raw, mean, baseline, final = (line.get_xydata() for line in axes.lines)
    np.testing.assert_allclose(raw, [[10, 0], [20, 3], [40, 6]])
    np.testing.assert_allclose(mean, [[10, 1.5], [20, 3], [40, 4.5]])
    assert set(baseline[:, 1]) == {22.1} and set(final[:, 1]) == {500.0}
    labels = " ".join(text.get_text() for text in axes.texts).split()
    assert {"22.1", "500.0", "random", "final", "3"} <= set(labels)
    assert axes.get_title(loc="left") == "DQN on CartPole-v1"
    assert axes.get_xlabel() and axes.get_ylabel()


def test_learning_curve_skips_what_is_not_a_number(tmp_path):
    a, b = tmp_path / "a.svg", tmp_path / "b.png"
    plot_learning_curve(a, [10, 20, 30], [5.0, np.nan, 7.0], title="DQN")
    assert "<svg" in a.read_text()
    plot_learning_curve(b, [], [], title="No episode has ended", baseline=np.nan)
    assert b.stat().st_size > 1000


def test_moving_mean_is_centred_and_shorter_at_the_edges():
    mean = _moving_mean(np.array([0.0, 3.0, 6.0, 0.0]), 3)
    np.testing.assert_allclose(mean, [1.5, 3.0, 3.0, 3.0])
    np.testing.assert_allclose(_moving_mean(np.array([2.0]), 9), [2.0])


@pytest.mark.parametrize(
    "heights, expected",
    [
        ([0.1, 0.5], [0.1, 0.5]),
        ([0.1, 0.15, 0.2], [0.1, 0.21, 0.32]),
        ([0.95, 0.95, 0.95], [0.78, 0.89, 1.0]),
    ],
)
def test_labels_keep_clear_of_each_other(heights, expected):
    np.testing.assert_allclose(_spread(heights), expected)


@pytest.mark.once
def test_importing_it_loads_nothing_that_keras_does_not():
    code = """
import keras, numpy, sys
before = set(sys.modules)
import kit.lab.run
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(names & {"gymnasium", "matplotlib", "moviepy", "pandas", "rich", "tyro"})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow is loaded anyway"
)
def test_a_run_imports_tensorflow_under_no_other_backend(tmp_path):
    code = """
import importlib.abc, importlib.machinery, sys

class FakeTensorFlow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    imports = 0

    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":  # installed or not
            return importlib.machinery.ModuleSpec(name, self)

    def exec_module(self, module):
        FakeTensorFlow.imports += 1
        raise ImportError("what is imported anyway")

sys.meta_path.insert(0, FakeTensorFlow())
import keras, numpy
import kit
from kit.lab.run import Run

run = Run("mlp", output_dir=sys.argv[1])
model = kit.mlp((4,), 2, (8,), output_activation="softmax")
model.compile("adam", "sparse_categorical_crossentropy")
history = model.fit(numpy.zeros((8, 4)), numpy.zeros(8, "int32"), verbose=0)
model.save(run.output_dir / "model.keras")
keras.saving.load_model(run.output_dir / "model.keras")
keras.models.clone_model(model)
run.finish(history=history, metrics={}, baselines={}, throughput=(1, "x"))
print(FakeTensorFlow.imports, "imports")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["0 imports"], done.stderr
