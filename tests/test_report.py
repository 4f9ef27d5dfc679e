"""The report on made-up runs: statistics by hand, tables, page, README."""

import html.parser
import json
import math
import pathlib
import re
import warnings

import numpy as np
import pytest
from scipy import stats

from kit.tools import catalog
from kit.tools import report as module
from kit.tools.report import (
    against_best,
    draw,
    estimate,
    figure,
    leaders,
    mean_text,
    read_curves,
    report,
    thinned,
    verdict,
    verdict_text,
    welch,
)
from kit.tools.scores import read_comparison, references, score_of

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[1]
BACKENDS = ("tensorflow", "jax", "torch")


def make_run(folder, recipe, backend, seed, value, quick=False, **more):
    """Writes the folder of a run, as kit.lab.run.Run and kit.tools.compare leave it."""
    path = folder / "runs" / f"{recipe}-{backend}-{seed}"
    path.mkdir(parents=True)
    metric = {"dqn": "eval_return", "rnn": "test_mae"}.get(recipe, "my_figure")
    config = {"env": "CartPole-v1", "total_timesteps": 50_000}
    figures = {
        "recipe": recipe,
        "backend": backend,
        "seed": seed,
        "config": config,
        "metrics": {metric: value, "total_timesteps": 50_000},
        "baselines": {f"random_{metric.split('_', 1)[1]}": 22.0 + seed},
        "throughput": {"value": 8000.0 + seed, "unit": "env steps/s"},
        "compile_seconds": 2.0,
        "wall_seconds": {"jax": 10.0, "tensorflow": 20.0, "torch": 30.0}[backend]
        + seed,
        "peak_memory_mb": 600,
        "versions": {
            "python": "3.11.7",
            "keras": "3.15.1",
            backend: "1.2.3",
            "platform": "Linux-6.18.44-secret-x86_64-with-glibc2.36",
            "cpu_count": 2,
        },
    }
    figures |= more
    (path / "metrics.json").write_text(json.dumps(figures))
    rows = [f"{100 * i},{value and value * i / 10},0.5" for i in range(1, 11)]
    (path / "history.csv").write_text("timesteps,return,loss\n" + "\n".join(rows))
    make_record(path, recipe, backend, seed, "finished", quick)
    return path


def make_record(path, recipe, backend, seed, status, quick=False, lines=()):
    path.mkdir(parents=True, exist_ok=True)
    job = {"recipe": recipe, "backend": backend, "seed": seed, "quick": quick}
    job |= {"arguments": [], "signature": "*, seed=0", "versions": {}}
    record = {"status": status, "last_lines": list(lines), "machine": "Fast CPU"}
    (path / "run.json").write_text(json.dumps(record | {"job": job}))


def make_failed(folder, recipe, backend, seed, status="failed", lines=("boom",)):
    path = folder / "runs" / f"{recipe}-{backend}-{seed}"
    make_record(path, recipe, backend, seed, status, lines=lines)


def make_parity(folder, losses):
    for backend, series in losses.items():
        path = folder / "runs" / f"parity-{backend}-0"
        path.mkdir(parents=True)
        record = {"recipe": "parity", "backend": backend, "seed": 0, "losses": series}
        (path / "metrics.json").write_text(json.dumps(record))


DQN = {  # The score of seeds 0 to 2.
    "tensorflow": (490.0, 500.0, 480.0),
    "jax": (500.0, 500.0, 500.0),
    "torch": (100.0, 101.0, 102.0),
}


@pytest.fixture
def folder(tmp_path):
    """A comparison with all that can be missing."""
    for backend, values in DQN.items():
        for seed, value in enumerate(values):
            make_run(tmp_path, "dqn", backend, seed, value, quick=True)
    make_run(tmp_path, "rnn", "jax", 0, 0.15)
    make_run(tmp_path, "rnn", "torch", 0, None)  # a figure that was NaN
    make_failed(tmp_path, "rnn", "tensorflow", 0, lines=["Traceback", "<b>boom</b>"])
    make_run(tmp_path, "mine", "torch", 0, 1.0)
    make_failed(tmp_path, "mine", "torch", 1, "timed out")
    make_failed(tmp_path, "mine", "torch", 2, "timed out")
    make_failed(tmp_path, "mine", "jax", 0, "not installed", lines=())
    make_failed(tmp_path, "mine", "tensorflow", 0, "running")
    (tmp_path / "runs" / "stray.txt").write_text("no run")
    (tmp_path / "runs" / "empty").mkdir()
    make_parity(
        tmp_path,
        {
            "jax": {"mlp": [1.0, 0.5, 0.25], "cnn": [2.0, 1.0]},
            "torch": {"mlp": [1.0, 0.5, 0.125], "cnn": [2.0, None]},
        },
    )
    return tmp_path


def entry(data, recipe):
    (found,) = (x for x in data["recipes"] if x["recipe"] == recipe)
    return found


def read(folder):
    def fail(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "backends.json").read_text()
    return json.loads(text, parse_constant=fail)


# --- Statistics ---------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [[1.0, 2.0], [490.0, 500.0, 480.0], [0.1] * 4 + [0.3]]
)
def test_estimates_are_scipys(values):
    x = estimate(values)
    low, high = stats.t.interval(
        0.95, len(values) - 1, np.mean(values), stats.sem(values)
    )
    expected = [len(values), np.mean(values), np.std(values, ddof=1), low, high]
    got = [x[name] for name in ("n", "mean", "sd", "low", "high")]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_an_interval_by_hand():
    x = estimate([490.0, 500.0, 480.0])
    # 4.302653 is the quantile of Student's distribution with two degrees of freedom.
    assert x["high"] - x["mean"] == pytest.approx(4.302653 * 10 / math.sqrt(3))
    assert mean_text(x) == "490 ± 25"


def test_what_is_no_number_does_not_count():
    x = estimate([None, float("nan"), 3.0, float("inf"), "4", True])
    assert (x["n"], x["mean"]) == (2, 3.5)
    x = estimate([3.0, None])
    assert (x["n"], x["mean"], x["sd"], x["low"], x["high"]) == (1, 3.0, *[None] * 3)
    assert mean_text(x) == "3"
    assert estimate([])["mean"] is None
    assert mean_text(estimate([])) == "–"


def test_no_spread_is_an_interval_of_no_length():
    x = estimate([0.5] * 3)
    assert (x["sd"], x["low"], x["high"]) == (0, 0.5, 0.5)
    assert mean_text(x) == "0.5 ± 0"


def estimates(**values):
    return {name: estimate(x) for name, x in values.items()}


def test_leaders_are_those_that_welchs_test_does_not_part_from_the_best():
    x = estimates(jax=[10, 11, 12], tensorflow=[11, 12, 13], torch=[30, 31, 32])
    assert leaders(x, larger_is_better=False) == ["jax", "tensorflow"]
    assert verdict(x, larger_is_better=False) == "JAX and TensorFlow, equal"
    assert verdict(x, larger_is_better=True) == "PyTorch"
    x["torch"] = estimate([10, 10.5, 12])
    assert verdict(x, larger_is_better=True) == "equal"


def test_intervals_that_overlap_are_not_equal_yet():
    a, b = [10, 11, 12], [13, 14, 15]
    x = estimates(jax=a, torch=b)
    assert x["jax"]["high"] > x["torch"]["low"]
    p = stats.ttest_ind(a, b, equal_var=False).pvalue  # 0.021
    found = against_best(x, larger_is_better=True)
    assert found == {"best": "torch", "p": {"jax": pytest.approx(p)}}
    assert verdict(x, larger_is_better=True) == "PyTorch"


@pytest.mark.parametrize(
    "a, b", [([1.0, 2.0], [4.0, 9.0, 5.0]), ([500.0] * 3, [500.0, 500.0, 488.9])]
)
def test_p_values_are_scipys(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's, where a sample doesn't vary
        expected = stats.ttest_ind(a, b, equal_var=False).pvalue
    assert welch(estimate(a), estimate(b)) == pytest.approx(expected)
    assert welch(estimate(b), estimate(a)) == pytest.approx(expected)


def test_one_seed_tells_nothing_unless_the_figures_are_the_same():
    x = estimates(jax=[10.0], torch=[20.0], tensorflow=[])
    assert leaders(x, larger_is_better=True) == []
    assert verdict(x, larger_is_better=True) == "too few seeds to tell"
    x["torch"] = estimate([10.0])
    assert verdict(x, larger_is_better=True) == "equal"
    assert verdict(estimates(jax=[1.0], torch=[]), True) == "only JAX"
    assert verdict(estimates(jax=[], torch=[]), True) == "no figures"


def test_what_does_not_vary_is_equal_up_to_rounding_or_cannot_be_told():
    x = estimates(jax=[0.54199998] * 3, torch=[0.542] * 3)
    assert verdict(x, larger_is_better=True) == "equal"
    assert against_best(x, larger_is_better=True)["p"] == {"jax": 1.0}
    x["torch"] = estimate([0.543, 0.543, 0.54300001])
    assert verdict(x, larger_is_better=True) == "no spread over seeds to tell by"
    assert against_best(x, larger_is_better=True)["p"] == {"jax": None}
    x["tensorflow"] = estimate([0.1])
    assert verdict(x, larger_is_better=True) == "too few seeds to tell"


def test_a_verdict_compares_no_backend_with_itself():
    test = {"best": "torch", "p": {"jax": 0.0004, "tensorflow": 0.031}}
    alone = "PyTorch (p: JAX < 0.001, TensorFlow 0.031)"
    assert verdict_text("PyTorch", test) == alone
    test["p"] = {"jax": 0.5, "tensorflow": None}
    assert verdict_text("equal", test) == "equal (best mean PyTorch; p: JAX 0.5)"
    assert verdict_text("only JAX", {"best": None, "p": {}}) == "only JAX"


def test_figures_as_people_read_them():
    values = [None, 0, 500.0, 12345.6, 488.71, 0.97834, 2.34e-7, -76.6]
    texts = ["–", "0", "500", "12,346", "488.7", "0.9783", "2.3e-07", "-76.6"]
    assert [figure(x) for x in values] == texts


# --- Scores -------------------------------------------------------------------


def declared(recipe):
    return read_comparison(catalog.recipes()[recipe])


def test_main_scores():
    rnn = score_of("rnn", declared("rnn"), ["val_mae", "test_mae"])
    assert (rnn.metric, rnn.larger_is_better) == ("test_mae", False)
    mlp = score_of("mlp", declared("mlp"), ["test_rmse"])  # of a regression
    assert (mlp.metric, mlp.larger_is_better) == ("test_rmse", False)
    assert mlp.title == "Multilayer perceptron"
    dqn = score_of("dqn", declared("dqn"), [])
    assert (dqn.metric, dqn.larger_is_better) == ("eval_return", True)


def test_a_recipe_that_declares_nothing_is_judged_by_its_first_figure():
    mine = score_of("mine", {}, ["val_loss", "accuracy"])
    assert (mine.title, mine.metric, mine.larger_is_better) == (
        "mine",
        "val_loss",
        False,
    )
    assert score_of("mine", {}, ["success"]).larger_is_better
    assert score_of("mine", {}, []).metric == ""


def test_what_a_recipe_declares_goes_before_what_names_suggest():
    mine = {"score": "loss", "larger_is_better": True, "title": "Mine"}
    score = score_of("mine", mine, ["accuracy", "loss"])
    assert (score.title, score.metric, score.larger_is_better) == ("Mine", "loss", True)


@pytest.mark.parametrize("recipe", catalog.recipes())
def test_every_recipe_declares_its_score_and_quick_budget(recipe):
    found = declared(recipe)
    assert found["score"] and found["title"] and found["curve"]
    assert found["quick"]


def test_every_recipe_has_a_place_of_its_own():
    places = [declared(recipe)["place"] for recipe in catalog.recipes()]
    assert sorted(places) == list(range(1, len(places) + 1))


def test_references_belong_to_a_setting():
    found = references(declared("dqn"), {"env": "Acrobot-v1"})
    assert found == [{"figure": "-76.6", "source": "RL Baselines3 Zoo"}]
    assert references(declared("dqn"), {"env": "MountainCar-v0"}) == []
    assert references({}, {}) == []


def test_a_reference_may_belong_to_several_settings_or_to_all():
    when = {"env": "Cart", "units": 64, "double": True}
    mine = {"published": [["1", "everyone"], ["2", "some", when]]}

    def figures(**config):
        return [x["figure"] for x in references(mine, config)]

    assert figures(env="CartPole-v1", units=64, double=True) == ["1", "2"]
    assert figures(env="CartPole-v1", units=640, double=True) == ["1"]
    assert figures(env="CartPole-v1", units=64, double=False) == ["1"]
    assert figures(units=64, double=True) == figures() == ["1"]


# --- The files ----------------------------------------------------------------


def test_json_has_all_figures(folder):
    assert report(output_dir=folder) == 0
    data = read(folder)
    dqn = entry(data, "dqn")
    x = dqn["backends"]["tensorflow"]
    assert x["score"]["values"] == [490.0, 500.0, 480.0]
    assert x["score"] == estimate(x["score"]["values"])
    assert x["wall_seconds"]["mean"] == 21.0
    assert x["compile_seconds"]["mean"] == 2.0
    assert x["throughput"]["mean"] == 8001.0
    assert x["throughput_unit"] == "env steps/s"
    assert x["seeds"] == [0, 1, 2]
    assert dqn["best_score"] == "TensorFlow and JAX, equal"
    p = dqn["best_score_test"]
    assert p["best"] == "jax" and list(p["p"]) == ["tensorflow", "torch"]
    assert p["p"]["tensorflow"] == pytest.approx(0.2254033)
    # Times of quick runs don't tell who is fastest.
    assert dqn["shortest_time"] == "quick runs: largely compilation"
    assert dqn["shortest_time_test"] == {"best": None, "p": {}}
    assert dqn["quick"] and data["quick"]
    # A seed counts once, though its baseline was measured under three backends.
    assert dqn["baselines"]["random_return"] == estimate([22.0, 23.0, 24.0])
    assert len(dqn["references"]) == 2
    assert data["machines"] == ["Fast CPU, 2 cores, Linux 6.18.44"]
    assert data["versions"]["torch"] == ["1.2.3"]
    assert "history" not in json.dumps(data)


def test_what_is_missing_is_told(folder):
    report(output_dir=folder)
    data = read(folder)
    rnn = entry(data, "rnn")["backends"]
    assert (rnn["jax"]["state"], rnn["jax"]["score"]["n"]) == ("finished", 1)
    assert (rnn["torch"]["state"], rnn["torch"]["score"]["mean"]) == ("finished", None)
    assert rnn["tensorflow"]["state"] == "failed"
    assert rnn["tensorflow"]["failures"][0]["last_lines"] == [
        "Traceback",
        "<b>boom</b>",
    ]
    mine = entry(data, "mine")
    states = {backend: x["state"] for backend, x in mine["backends"].items()}
    assert states == {
        "jax": "not installed",
        "tensorflow": "interrupted",
        "torch": "timed out: 2 of 3",
    }
    assert not mine["quick"]
    assert mine["metric"] == "my_figure"
    assert mine["references"] == []


def test_parity_is_the_largest_difference(folder):
    report(output_dir=folder)
    mlp, cnn = read(folder)["parity"]
    assert mlp["differences"] == {"jax-torch": 0.125}
    assert (mlp["steps"], mlp["first_loss"], mlp["last_loss"]) == (3, 1.0, 0.25)
    assert cnn["differences"] == {"jax-torch": None}  # One of them was NaN.


def test_runs_that_were_called_differently_are_apart(tmp_path):
    make_run(tmp_path, "dqn", "jax", 0, 500.0)
    path = make_run(tmp_path, "dqn", "torch", 0, 9.0)
    edit_record(path, arguments=["--total-timesteps", "10"])
    report(output_dir=tmp_path)
    first, second = read(tmp_path)["recipes"]
    assert first["backends"]["torch"]["state"] == "not run"
    assert second["arguments"] == "--total-timesteps 10"
    assert first["key"] != second["key"]


def test_runs_that_compare_did_not_make_count_too(tmp_path):
    figures = {"loss": 3.0, "eval_return": 500.0}
    path = make_run(tmp_path, "dqn", "jax", 0, None, metrics=figures)
    (path / "run.json").unlink()
    (path / "history.csv").unlink()
    report(output_dir=tmp_path)
    (dqn,) = read(tmp_path)["recipes"]
    assert dqn["backends"]["jax"]["score"]["mean"] == 500.0
    assert (dqn["title"], dqn["metric"]) == ("Deep Q-network", "eval_return")


def edit_record(path, **job):
    """Changes what compare kept of a run; returns the record."""
    record = json.loads((path / "run.json").read_text())
    record["job"] |= job
    (path / "run.json").write_text(json.dumps(record))
    return record


def declare(path, **comparison):
    record = edit_record(path) | {"comparison": comparison}
    (path / "run.json").write_text(json.dumps(record))


def test_the_report_goes_by_what_the_recipe_declared_when_it_was_run(tmp_path):
    path = make_run(tmp_path, "dqn", "jax", 0, 500.0)
    published = [["7", "me", {"env": "CartPole"}], ["8", "me", {"env": "Acrobot"}]]
    score = {"score": "total_timesteps", "larger_is_better": False, "title": "Mine"}
    declare(path, **score, curve="loss", published=published)
    report(output_dir=tmp_path)
    (dqn,) = read(tmp_path)["recipes"]
    shown = ("title", "metric", "larger_is_better", "curve", "references")
    assert [dqn[name] for name in shown] == [
        "Mine",
        "total_timesteps",
        False,
        "loss",
        [{"figure": "7", "source": "me"}],
    ]


@pytest.mark.parametrize(
    "rows, values", [({"layer": "1"}, [1.0, 2.0]), ({"layer": None}, [3.0])]
)
def test_a_curve_has_the_rows_that_the_recipe_declares(
    tmp_path, monkeypatch, rows, values
):
    drawn = []
    monkeypatch.setattr(module, "learning_curves", lambda *x: drawn.append(x) or "")
    path = make_run(tmp_path, "mine", "jax", 0, 1.0)
    history = "epoch,layer,loss,cost\n1,1,9,1\n2,1,9,2\n1,2,9,3\n"
    (path / "history.csv").write_text(history)
    declare(path, curve="cost", curve_rows=rows)
    report(output_dir=tmp_path)
    ((series, x, y, *_),) = drawn
    ((epochs, costs),) = series["jax"]
    assert (x, y, costs) == ("epoch", "cost", values)
    assert len(epochs) == len(costs)


def test_curves_of_all_seeds_and_backends_are_stored(folder, capsys):
    report(output_dir=folder, curves=folder / "docs" / "curves")
    names = sorted(path.name for path in (folder / "docs" / "curves").iterdir())
    assert names == ["dqn.csv", "mine.csv", "rnn.csv"]
    path = folder / "docs" / "curves" / "dqn.csv"
    assert f"Wrote {path}" in capsys.readouterr().out
    lines = path.read_text().splitlines()
    assert lines[0] == "backend,seed,timesteps,return"
    assert len(lines) == 1 + 9 * 10
    assert "tensorflow,0,100,49" in lines and "jax,2,1000,500" in lines
    found = read_curves(path)
    assert (found.x, found.y, len(found.runs)) == ("timesteps", "return", 9)
    xs, ys = found.runs["torch", "2"]
    assert xs[:2] == [100.0, 200.0] and ys == pytest.approx(
        102 * np.arange(0.1, 1.1, 0.1)
    )
    assert draw(found, module.NAMES, "dqn").count("PyTorch") == 1
    with pytest.raises(ValueError, match="curves are read from runs"):
        report(output_dir=folder, curves=folder, readme=folder / "README.md")


def test_a_long_curve_is_thinned_to_means_of_neighbours():
    short = ([1.0, 2.0], [5.0, 7.0])
    assert thinned(short) == short
    xs, ys = thinned((range(202), [3.0 * x for x in range(202)]))
    assert len(xs) == 68  # of three points each, and of the last one
    assert (xs[0], ys[0], xs[-1], ys[-1]) == (1.0, 3.0, 201.0, 603.0)


def test_a_recipe_of_another_file_is_not_the_kits(tmp_path):
    path = make_run(tmp_path, "dqn", "jax", 0, 500.0, metrics={"loss": 3.0})
    edit_record(path, file="/elsewhere/dqn.py")
    report(output_dir=tmp_path)
    (dqn,) = read(tmp_path)["recipes"]
    assert (dqn["title"], dqn["metric"], dqn["references"]) == ("dqn", "loss", [])


def test_recipes_come_in_their_places_and_without_one_last(tmp_path):
    for recipe, place in (("a", None), ("b", 15), ("c", 1), ("dqn", 14), ("e", None)):
        path = make_run(tmp_path, recipe, "jax", 0, 1.0)
        declare(path, **({"place": place} if place else {}))
    report(output_dir=tmp_path)
    recipes = [found["recipe"] for found in read(tmp_path)["recipes"]]
    assert recipes == ["c", "dqn", "b", "a", "e"]


def test_damaged_figures_do_not_stop_the_report(tmp_path):
    make_run(tmp_path, "dqn", "jax", 0, 500.0, throughput=None, versions={})
    path = make_run(tmp_path, "dqn", "jax", 1, 500.0)
    (path / "metrics.json").write_text('{"half": ')
    report(output_dir=tmp_path)
    (dqn,) = read(tmp_path)["recipes"]
    assert dqn["backends"]["jax"]["state"] == "failed: 1 of 2"


@pytest.mark.parametrize("with_record", [True, False])
@pytest.mark.parametrize(
    "content, fault",
    [
        ('{"recipe": "dqn", "met', "not JSON (Unterminated string"),
        ("", "not JSON (Expecting value"),
        ("[]", "the file must be an object, received '[]'"),
        ("null", "the file must be an object, received 'None'"),
        (b'{"recipe": "\xff"}', "not UTF-8 (invalid start byte at byte 12)"),
        ("{}", "'recipe', 'backend', 'seed', 'metrics' missing"),
        ({"metrics": None}, "'metrics' missing"),
        ({"metrics": [500.0]}, "'metrics' must be an object, received '[500.0]'"),
        ({"baselines": 22}, "'baselines' must be an object, received '22'"),
        ({"versions": "all"}, "'versions' must be an object, received 'all'"),
        ({"config": []}, "'config' must be an object, received '[]'"),
        ({"throughput": 8}, "'throughput' must be an object, received '8'"),
        ({"throughput": {"unit": []}}, "'unit' must be a string, received '[]'"),
        ({"recipe": 3}, "'recipe' must be a string, received '3'"),
        ({"backend": ["jax"]}, "'backend' must be a string, received"),
        ({"backend": "jaxx"}, "'backend' must be one of tensorflow, jax, torch"),
        ({"seed": "0"}, "'seed' must be an integer, received '0'"),
        ({"seed": True}, "'seed' must be an integer, received 'True'"),
        ({"wall_seconds": "long"}, "'wall_seconds' must be a number, received 'long'"),
        ({"recipe": "parity", "losses": 1}, "'losses' must be an object, received '1'"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_count(
    tmp_path, capsys, content, fault, with_record
):
    make_run(tmp_path, "dqn", "jax", 0, 500.0)
    path = make_run(tmp_path, "dqn", "jax", 1, 100.0)
    if isinstance(content, dict):
        figures = json.loads((path / "metrics.json").read_text())
        content = json.dumps(figures | content)
    data = content if isinstance(content, bytes) else content.encode()
    (path / "metrics.json").write_bytes(data)
    if not with_record:
        (path / "run.json").unlink()
        (tmp_path / "runs" / "dqn-jax-0" / "run.json").unlink()
    assert report(output_dir=tmp_path) == 0
    out = capsys.readouterr().out
    assert f"{path / 'metrics.json'} is left out: {fault}" in out
    found = entry(read(tmp_path), "dqn")["backends"]["jax"]
    assert found["score"]["values"] == [500.0]
    if with_record:
        assert found["state"] == "failed: 1 of 2"
        (line,) = found["failures"][0]["last_lines"]
        assert line.startswith(f"metrics.json: {fault}")


@pytest.mark.parametrize(
    "record, fault",
    [
        ([], "the file must be an object"),
        ({"job": "dqn"}, "'job' must be an object, received 'dqn'"),
        ({"job": {"arguments": 3}}, "'arguments' must be a list, received '3'"),
        ({"status": 3}, "'status' must be a string, received '3'"),
        ({"last_lines": "boom"}, "'last_lines' must be a list, received 'boom'"),
        ({"comparison": "x"}, "'comparison' must be an object, received 'x'"),
        ({"comparison": {"curve": 3}}, "COMPARISON['curve'] must be a string, the"),
    ],
)
def test_a_damaged_record_is_named_and_the_figures_count(
    tmp_path, capsys, record, fault
):
    path = make_run(tmp_path, "dqn", "jax", 0, 500.0)
    (path / "run.json").write_text(json.dumps(record))
    report(output_dir=tmp_path)
    assert f"{path / 'run.json'} is left out: {fault}" in capsys.readouterr().out
    found = entry(read(tmp_path), "dqn")["backends"]["jax"]
    assert found["score"]["values"] == [500.0]


def test_a_damaged_history_is_named_and_has_no_curve(tmp_path, capsys):
    path = make_run(tmp_path, "dqn", "jax", 0, 500.0)
    (path / "history.csv").write_bytes(b"timesteps,return\n1,\xff\n")
    report(output_dir=tmp_path)
    assert f"{path / 'history.csv'} is left out: 'utf-8'" in capsys.readouterr().out
    assert "<svg" not in (tmp_path / "backends.html").read_text()


def test_numbers_that_json_lacks_do_not_stop_the_report(tmp_path):
    path = make_run(tmp_path, "dqn", "jax", 0, 500.0)
    text = (path / "metrics.json").read_text()
    for number in ("NaN", "-Infinity", "1e999"):
        (path / "metrics.json").write_text(text.replace("50000", number))
        report(output_dir=tmp_path)
        assert entry(read(tmp_path), "dqn")["config"]["total_timesteps"] is None


def test_losses_of_parity_that_are_no_lists_are_told_as_no_difference(tmp_path):
    make_parity(tmp_path, {"jax": {"mlp": 5}, "torch": {"mlp": [1.0, "x"]}})
    report(output_dir=tmp_path)
    assert read(tmp_path)["parity"][0]["differences"] == {}


def test_runs_that_diverged_are_counted_and_change_no_score(tmp_path):
    for seed, value in enumerate((500.0, None, None)):
        make_run(tmp_path, "dqn", "jax", seed, value)
        make_run(tmp_path, "rnn", "jax", seed, None)
    report(output_dir=tmp_path)
    data = read(tmp_path)
    jax = entry(data, "dqn")["backends"]["jax"]
    assert (jax["score"]["n"], jax["state"]) == (1, "no figure: 2 of 3")
    assert entry(data, "rnn")["metric"] == "test_mae"
    assert "| `rnn`<br>test_mae, lower" in (tmp_path / "backends.md").read_text()


def test_machines_and_versions_are_told_and_times_compared_on_one_machine(tmp_path):
    make_run(tmp_path, "dqn", "jax", 0, 500.0)
    make_run(tmp_path, "dqn", "jax", 1, 500.0)
    path = make_run(tmp_path, "dqn", "torch", 0, 500.0)
    figures = json.loads((path / "metrics.json").read_text())
    figures["versions"] |= {"cpu_count": 64, "torch": "2.13.0"}
    (path / "metrics.json").write_text(json.dumps(figures))
    report(output_dir=tmp_path)
    dqn = entry(read(tmp_path), "dqn")
    assert dqn["shortest_time"] == "not on one machine"
    assert dqn["backends"]["torch"]["versions"] == ["keras 3.15.1, torch 2.13.0"]
    for page in ("backends.md", "backends.html"):
        text = (tmp_path / page).read_text()
        assert "PyTorch: keras 3.15.1, torch 2.13.0, on Fast CPU, 64 cores" in text


def test_a_bound_is_no_baseline_that_could_be_best(tmp_path):
    figures = {"optimal_value": 0.54, "random_value": 0.01}
    make_run(
        tmp_path,
        "q_learning",
        "jax",
        0,
        None,
        metrics={"policy_value": 0.5},
        baselines=figures,
    )
    report(output_dir=tmp_path)
    found = entry(read(tmp_path), "q_learning")
    assert set(found["baselines"]) == set(figures)
    assert found["best_baseline"] == "random_value"


def test_a_parity_run_that_failed_is_shown(folder):
    make_failed(folder, "parity", "tensorflow", 0, lines=["no such op"])
    report(output_dir=folder)
    assert "Parity, TensorFlow: failed." in (folder / "backends.md").read_text()
    assert "no such op" in (folder / "backends.html").read_text()


def test_the_table_in_markdown(folder):
    report(output_dir=folder)
    text = (folder / "backends.md").read_text()
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    rows = [line for line in text.splitlines() if line.startswith("| `dqn`")]
    assert rows == [
        "| `dqn` (quick)<br>eval_return, higher is better "
        "| 490 ± 25 (n = 3)<br>21 ± 2.5 s, 2 s of it compiling "
        "| 500 ± 0 (n = 3)<br>11 ± 2.5 s, 2 s of it compiling "
        "| 101 ± 2.5 (n = 3)<br>31 ± 2.5 s, 2 s of it compiling "
        "| TensorFlow and JAX, equal (best mean JAX; p: TensorFlow 0.23, PyTorch "
        "< 0.001) |",
        "| `dqn` (quick) | random_return 23 | 488.7 ± 16.1 (PyTorch), 498.4 ± 2.3 "
        "(JAX) (CleanRL, 500,000 steps); 500 (RL Baselines3 Zoo, 50,000 steps) |",
        "| `dqn` (quick) "
        "| TensorFlow and JAX, equal (best mean JAX; p: TensorFlow 0.23, PyTorch "
        "< 0.001) | quick runs: largely compilation |",
    ]
    (row, *_) = (line for line in text.splitlines() if line.startswith("| `mine`"))
    assert "| interrupted | not installed | 1<br>30 s (timed out: 2 of 3) |" in row
    assert "Rows marked **quick**" in text
    assert "large part of the seconds is compilation" in " ".join(text.split())
    assert "secret" not in text


class Page(html.parser.HTMLParser):
    """Collects what a page refers to, and checks that its elements are nested."""

    empty = {"meta", "br", "link", "use", "path", "rect"}

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.ids, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k.endswith(("href", "src"))]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.empty:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.empty:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.empty:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_no_network(folder):
    report(output_dir=folder)
    text = (folder / "backends.html").read_text()
    page = Page(text)
    assert "http" not in text
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text)
    assert "@import" not in text
    assert len(set(page.ids)) == len(page.ids)
    assert page.links and all(x[0] == "#" and x[1:] in page.ids for x in page.links)
    # Three recipes with a history, in the page's colours.
    assert text.count("<svg") == 3
    assert "var(--jax)" in text
    assert not re.search(r"#0[0-9a-f]{5}\b", text.split("</style>")[1])
    assert "&lt;b&gt;boom" in text and "<b>boom" not in text
    words = " ".join(" ".join(page.text).split())
    assert "490 ± 25" in words
    assert "(best mean JAX; p: TensorFlow 0.23, PyTorch < 0.001)" in words
    assert "not installed" in words
    assert "Quick run." in words
    # Scores come first.
    assert words.index("Best score") < words.index("Shortest time")
    assert "of 3 recipes: too few seeds to tell (1); quick runs: largely" in words


def test_without_runs_there_is_no_report(tmp_path):
    with pytest.raises(ValueError, match="no runs in .*compare"):
        report(output_dir=tmp_path)


def test_paths_of_this_machine_stay_out():
    line = f'  File "{pathlib.Path.cwd()}/recipes/dqn.py", line 3'
    assert module.without_paths(line) == '  File "recipes/dqn.py", line 3'


# --- README -------------------------------------------------------------------


def test_readme_is_written_and_checked(folder, capsys):
    report(output_dir=folder)
    readme = folder / "README.md"
    readme.write_text("before\n<!-- compare:begin -->\n<!-- compare:end -->\nafter\n")
    arguments = {"output_dir": folder, "readme": readme}
    assert report(**arguments, check=True) == 1
    assert "out of date" in capsys.readouterr().out
    assert report(**arguments) == 0
    assert report(**arguments, check=True) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- compare:begin -->\n\nRows marked **quick**")
    assert text.endswith("<!-- compare:end -->\nafter\n")
    score = "490 ± 25".replace(" ", "\N{NO-BREAK SPACE}")
    changed = text.replace(score, "491")
    assert changed != text
    readme.write_text(changed)
    assert report(**arguments, check=True) == 1
    assert readme.read_text() == changed


def test_readme_needs_its_markers_and_a_source(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- compare:begin -->")
    with pytest.raises(ValueError, match="backends.json.*missing"):
        report(output_dir=folder, readme=readme)
    report(output_dir=folder)
    with pytest.raises(ValueError, match="needs one <!-- compare:begin -->"):
        report(output_dir=folder, readme=readme)
    readme.write_text("<!-- compare:end --><!-- compare:begin -->")
    with pytest.raises(ValueError, match="then one <!-- compare:end -->"):
        report(output_dir=folder, readme=readme)
    with pytest.raises(ValueError, match="check needs readme"):
        report(output_dir=folder, check=True)


def test_what_readme_shows_are_todays_scores_and_references():
    for found in read(ROOT / "reports")["recipes"]:
        today = declared(found["recipe"])
        score = score_of(found["recipe"], today, [found["metric"]])
        shown = [found[name] for name in ("title", "metric", "larger_is_better")]
        assert shown == [score.title, score.metric, score.larger_is_better]
        shown = (found["curve"], found["where"])
        assert shown == (today["curve"], today.get("curve_rows", {}))
        assert found["references"] == references(today, found["config"])


def test_what_readme_shows_is_in_todays_order():
    recipes = [found["recipe"] for found in read(ROOT / "reports")["recipes"]]
    assert recipes == sorted(recipes, key=lambda name: declared(name)["place"])


def test_the_comparison_of_this_project_is_up_to_date():
    assert (
        report(
            output_dir=ROOT / "reports",
            readme=ROOT / "docs" / "comparison.md",
            check=True,
        )
        == 0
    )
