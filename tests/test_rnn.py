"""Forecasting by a simple RNN: windows in time, the model's form, the recipe."""

import json
import sys

import keras
import numpy as np
import pandas as pd
import pytest

TINY = {"units": (4,), "epochs": 2, "batch_size": 128, "verbose": 0}


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("rnn")


@pytest.fixture
def short_series():
    """40 days whose target is the number of the hour."""
    hours = pd.date_range("2020-01-06", periods=960, freq="1h")
    return pd.DataFrame({"target": np.arange(960.0), "wind": 7.0}, hours)


def test_windows_end_before_their_targets(recipe):
    features = np.arange(10.0)[:, None]
    x, t = recipe.make_windows(features, window=3, horizon=2, start=0, end=6)
    np.testing.assert_array_equal(x[..., 0], [[0, 1, 2], [1, 2, 3]])
    np.testing.assert_array_equal(recipe.future(features, t, 2), [[3, 4], [4, 5]])
    # The next span: its windows may look back, its targets begin where it begins.
    x, t = recipe.make_windows(features, window=3, horizon=2, start=6, end=10)
    np.testing.assert_array_equal(x[0, :, 0], [3, 4, 5])
    y = recipe.future(features, t, 2)
    np.testing.assert_array_equal(y, [[6, 7], [7, 8], [8, 9]])


def test_features_know_the_hour_and_not_the_future(recipe, short_series):
    features = recipe.make_features(short_series)
    target, wind, sine, cosine = features[24 + 12]  # noon
    assert (target, wind) == (36, 7)
    np.testing.assert_allclose([sine, cosine], [0, -1], atol=1e-6)
    changed = short_series.copy()
    changed.loc[changed.index[500:], "target"] = -1.0
    later = recipe.make_features(changed)
    np.testing.assert_array_equal(features[:500], later[:500])


def test_forecast_is_the_last_value_plus_what_the_network_says(recipe):
    rng = np.random.default_rng(0)
    x = rng.normal(50, 9, (20, 5, 3)).astype("float32")
    y = x[:, -1:, 0] + rng.normal(0, 2, (20, 4)).astype("float32")
    model = recipe.build_forecaster(x, y, units=(6,))
    (network,) = (x for x in model.layers if isinstance(x, keras.Sequential))
    (linear,) = (x for x in model.layers if isinstance(x, keras.layers.Dense))
    network.layers[-1].kernel.assign(np.zeros((6, 4)))
    network.layers[-1].bias.assign([0, 1, -1, 0])
    linear.kernel.assign(np.zeros((20, 4)))
    linear.bias.assign([0, 0, 0, 2])
    scale = np.std(y - x[:, -1:, 0])
    expected = x[:, -1:, 0] + scale * np.array([0, 1, -1, 2])
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5)


def test_linear_baseline_finds_a_linear_series(recipe):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4, 2)).astype("float32")
    y = np.concatenate([x[:, -1, :1] + 3, x[:, -1, :1] - x[:, 0, 1:]], axis=1)
    for horizon in (1, 2):
        target = y[:, :horizon]
        model = recipe.fit_linear(x[:200], target[:200], x[200:], target[200:])
        forecast = recipe.predict_linear(model, x, horizon)
        np.testing.assert_allclose(forecast, target, atol=1e-2)


@pytest.mark.parametrize("season", [24, 168])
def test_season_is_the_one_that_fits(recipe, season):
    wave = np.random.default_rng(0).normal(size=season)
    features = np.tile(wave, 1000 // season)[:, None]
    t = np.arange(400, 500)
    assert recipe.choose_season(features, t, recipe.future(features, t, 6)) == season


def test_recipe_leaves_what_it_promises(recipe, tmp_path, capsys):
    recipe.main(output_dir=tmp_path, seed=1, **TINY)
    names = {"model.keras", "history.csv", "metrics.json", "forecasts.png"}
    assert names | {"error_by_horizon.png"} == {p.name for p in tmp_path.iterdir()}
    record = json.loads((tmp_path / "metrics.json").read_text())
    for prefix, part in (
        ("", "metrics"),
        ("seasonal_naive_", "baselines"),
        ("linear_", "baselines"),
        ("persistence_", "baselines"),
    ):
        for suffix in ("", "_1h", "_6h", "_12h", "_24h"):
            assert 0 < record[part][f"{prefix}test_mae{suffix}"] < 2
    assert record["throughput"]["unit"] == "samples/s"
    assert record["compile_seconds"] > 0
    assert capsys.readouterr().out == ""

    # The saved model needs raw hours and nothing else.
    model = keras.saving.load_model(tmp_path / "model.keras")
    series = recipe.load_series()
    features = recipe.make_features(series)
    x, t = recipe.make_windows(features, 48, 24, int(0.85 * len(series)), len(series))
    error = np.abs(model.predict(x, verbose=0) - recipe.future(features, t, 24)).mean()
    np.testing.assert_allclose(error, record["metrics"]["test_mae"], rtol=1e-4)


def test_series_has_every_hour(recipe):
    series = recipe.load_series()
    assert (np.diff(series.index) == np.timedelta64(1, "h")).all()
    assert not series.isna().any().any()
    assert series["target"].between(0, 25).all()  # degrees Celsius


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"window": 1}, r"window=1 hours: 2 to \d+ are possible"),
        ({"window": 5000}, r"window=5000 hours: 2 to \d+ are possible"),
        ({"horizon": 0}, r"horizon=0 hours: 1 to 168"),
        ({"horizon": 200, "window": 300}, r"horizon=200 hours: 1 to 168"),
    ],
)
def test_recipe_refuses_what_does_not_fit(recipe, wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        recipe.main(output_dir=tmp_path, **TINY, **wrong)


@pytest.mark.once
@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda x: x.resample("1D").mean(),
            "must be times 0 days 01:00:00 apart.*row 1",
        ),
        (lambda x: x.drop(x.index[5]), "received .* in row 5 after"),
        (lambda x: x.reset_index(drop=True), "the index must be times"),
        (lambda x: x.assign(more=np.nan), "must be finite numbers"),
        (lambda x: x.rename(columns={"target": "t"}), r"`target`, received .*\['t'\]"),
    ],
)
def test_recipe_refuses_other_series(recipe, monkeypatch, tmp_path, change, message):
    series = change(recipe.load_series())
    monkeypatch.setattr(recipe, "load_series", lambda: series)
    with pytest.raises(ValueError, match=message):
        recipe.main(output_dir=tmp_path, **TINY)


def test_missing_data_names_the_package(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh_sampledata.sea_surface_temperature", None)
    with pytest.raises(ImportError, match="pip install bokeh-sampledata"):
        recipe.load_series()


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(3))
def test_rnn_beats_both_baselines(recipe, seed, tmp_path):
    record = recipe.main(seed=seed, output_dir=tmp_path, verbose=0)
    score, baselines = record["metrics"]["test_mae"], record["baselines"]
    assert score < baselines["linear_test_mae"]
    assert score < baselines["seasonal_naive_test_mae"]
