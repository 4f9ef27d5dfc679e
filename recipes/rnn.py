r"""Forecasts the temperature of the sea with a simple recurrent network.

You will learn: how to cut a series into windows, how to split it in time so that
nothing of the future leaks into the past, and which baselines to compare a forecast
with.

    KERAS_BACKEND=jax python recipes/rnn.py
    KERAS_BACKEND=torch python recipes/rnn.py --window 72 --units 128

The data: hourly water temperature in degrees Celsius at a buoy in the Gulf of Maine,
from February 2016 to March 2017. The network reads the last `window` hours and
forecasts each of the next `horizon` hours. Training, validation and test span follow
each other in time; all choices are made on the validation span.

Expected result: a mean absolute error of 0.153 degrees over the next 24 hours (JAX,
seed 0, in twelve seconds), against 0.186 for linear autoregression on the same windows
and 0.203 for "as yesterday". The simplest forecast, "as it is now", is as good here,
0.152: always compare with it, too.

Papers: Elman, 1990, https://doi.org/10.1207/s15516709cog1402_1; Lai et al., 2018,
https://arxiv.org/abs/1703.07015 (the linear path beside the recurrent one).
"""

from pathlib import Path

import keras
import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import kit
from kit.lab.run import Run, command_line

STEP = pd.Timedelta(hours=1)  # between two rows
DAY, WEEK = 24, 168  # rows

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Simple recurrent network",
    "place": 3,
    "score": "test_mae",
    "larger_is_better": False,
    "curve": "val_loss",
    "quick": "--epochs 5",
}


def main(
    *,
    window: int = 48,
    horizon: int = 24,
    units: tuple[int, ...] = (64,),
    learning_rate: float = 1e-3,
    epochs: int = 30,
    batch_size: int = 64,
    patience: int = 10,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains a simple RNN and compares its forecasts with three baselines.

    Args:
        window: Hours that the model reads.
        horizon: Hours to forecast, 1 to 168.
        units: Size of the state of each recurrent layer.
        learning_rate: Step size of Adam at the start; it falls to 0 on a half cosine.
        epochs: Passes over the training span, at most.
        batch_size: Windows in a gradient step.
        patience: Epochs without a lower validation error before training stops.
        seed: Seed of the weights and of the order of the windows.
        output_dir: Folder for the results; runs/rnn-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run("rnn", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    series = load_series()
    check_series(series)
    ends = check_and_split(len(series), window, horizon)
    features = make_features(series)
    # For each span: the windows, and the indices of their last hours.
    (x_train, t_train), (x_val, t_val), (x_test, t_test) = (
        make_windows(features, window, horizon, start, end)
        for start, end in zip((0, *ends), (*ends, len(series)), strict=True)
    )
    y_train, y_val, y_test = (
        future(features, t, horizon) for t in (t_train, t_val, t_test)
    )

    model = build_forecaster(x_train, y_train, units)
    kit.initialize_weights(model, seed)
    steps = epochs * -(-len(x_train) // batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    # Gradients through many time steps can explode: their norm is clipped to 1.
    model.compile(optimizer=keras.optimizers.Adam(schedule, clipnorm=1.0), loss="mae")
    history = model.fit(
        x_train,
        y_train,
        batch_size=batch_size,
        epochs=epochs,
        validation_data=(x_val, y_val),
        callbacks=[
            kit.EpochTimer(),
            keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True),
            run.backup(),
        ],
        verbose=verbose,
    )
    seconds = np.median(history.history["seconds"])

    linear = fit_linear(x_train, y_train, x_val, y_val)
    season = choose_season(features, t_val, y_val)
    forecasts = {
        "RNN": model.predict(x_test, batch_size=256, verbose=0),
        "linear": predict_linear(linear, x_test, horizon),
        "seasonal naive": future(features, t_test - season, horizon),
        "as it is now": np.repeat(x_test[:, -1, :1], horizon, axis=1),
    }
    errors = {name: np.abs(y - y_test).mean(0) for name, y in forecasts.items()}

    model.save(run.output_dir / "model.keras")
    shown = sorted({1, max(1, horizon // 4), max(1, horizon // 2), horizon})
    draw_forecasts(run, series.index, t_test, y_test, forecasts, shown)
    draw_errors(run, errors)

    def scores(prefix: str, error: np.ndarray) -> dict[str, float]:
        by_horizon = {f"{prefix}test_mae_{h}h": error[h - 1] for h in shown}
        return {f"{prefix}test_mae": error.mean(), **by_horizon}

    return run.finish(
        history=history,
        metrics={
            **scores("", errors["RNN"]),
            "val_mae": min(history.history["val_loss"]),
            "test_forecasts": len(x_test),
        },
        baselines={
            **scores("seasonal_naive_", errors["seasonal naive"]),
            **scores("linear_", errors["linear"]),
            **scores("persistence_", errors["as it is now"]),
        },
        throughput=(len(x_train) / seconds, "samples/s"),
        compile_seconds=kit.compile_seconds(),
    )


def load_series() -> pd.DataFrame:
    """Reads the data. To use your own, return it in the same form.

    Returns:
        A row for each hour, without gaps: `target`, the series to forecast, and
        optionally further columns that are known up to the present. The index has the
        times. For rows that aren't hours, change `STEP`, `DAY` and `WEEK`, and the
        hour of the day in `make_features`.

    Raises:
        ImportError: If bokeh-sampledata isn't installed.
    """
    try:
        from bokeh_sampledata.sea_surface_temperature import sea_surface_temperature
    except ImportError as error:
        raise ImportError(
            "The series comes with bokeh-sampledata, which isn't installed: "
            "`python -m pip install bokeh-sampledata`, or kit's extra `recipes`."
        ) from error
    hours = sea_surface_temperature["temperature"].resample("1h").mean()
    return hours.interpolate().to_frame("target")  # 11 of 9,625 hours are missing


def check_series(series: pd.DataFrame) -> None:
    """Raises a ValueError if the series isn't as `load_series` says."""
    if not len(series.columns) or series.columns[0] != "target":
        raise ValueError(
            f"load_series: the first column must be `target`, received the columns "
            f"{series.columns.tolist()}."
        )
    if not np.isfinite(series.to_numpy("float64")).all():
        raise ValueError(
            "load_series: all values must be finite numbers; interpolate gaps, for "
            "example by pandas' `interpolate`."
        )
    steps = np.diff(series.index.to_numpy())
    if not isinstance(series.index, pd.DatetimeIndex) or (steps != STEP).any():
        row = 1 + int(np.argmax(steps != STEP))
        raise ValueError(
            f"load_series: the index must be times {STEP} apart (`STEP`, `DAY` and "
            f"`WEEK` belong together), received {series.index[row]} in row {row} after "
            f"{series.index[row - 1]}."
        )


def check_and_split(size: int, window: int, horizon: int) -> tuple[int, int]:
    """Returns the starts of validation and test span: 70 % and 85 % of the hours.

    Raises:
        ValueError: If `window` or `horizon` doesn't fit the series.
    """
    if not 1 <= horizon <= WEEK:
        raise ValueError(f"horizon={horizon} hours: 1 to {WEEK} are possible.")
    ends = int(0.7 * size), int(0.85 * size)
    most = min(ends[0], size - ends[1]) - 2 * horizon
    if not 2 <= window <= most:
        raise ValueError(
            f"window={window} hours: 2 to {most} are possible for this series of "
            f"{size} hours and horizon={horizon}."
        )
    return ends


def make_features(series: pd.DataFrame) -> np.ndarray:
    """Returns the network's inputs for each hour: target first, then the rest.

    The hour of the day is a point on a circle, so that 23 is near 0.
    """
    angle = 2 * np.pi * pd.DatetimeIndex(series.index).hour.to_numpy() / DAY
    columns = [*series.to_numpy().T, np.sin(angle), np.cos(angle)]
    return np.stack(columns, axis=-1).astype("float32")  # (hours, features)


def make_windows(
    features: np.ndarray, window: int, horizon: int, start: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the windows whose targets all lie in hours `start` to `end`.

    A window may begin in the span before, which is known at the time of the forecast.
    """
    t = np.arange(max(start, window) - 1, end - horizon)  # last hour of each window
    return features[t[:, None] + np.arange(1 - window, 1)], t  # (B, T, features)


def future(features: np.ndarray, t: np.ndarray, horizon: int) -> np.ndarray:
    """Returns the target in the `horizon` hours after hours `t`."""
    return features[t[:, None] + np.arange(1, horizon + 1), 0]  # (B, horizon)


def build_forecaster(
    x: np.ndarray, y: np.ndarray, units: tuple[int, ...]
) -> keras.Model:
    """Builds a model from raw windows to forecasts, both in the units of the series.

    The model contains the statistics of the training span, so that it takes raw inputs.
    As the level of the series drifts, the model reads and forecasts differences from
    the window's last hour. A Dense layer beside the recurrent one models the linear
    part.
    """
    window, num_features = x.shape[1:]
    change = y - x[:, -1:, 0]
    scale = float(np.std(change))
    inputs = keras.Input((window, num_features))
    last = keras.layers.Cropping1D((window - 1, 0))(inputs)[..., :1]  # (B, 1, 1)
    levels = keras.layers.Normalization(mean=x.mean((0, 1)), variance=x.var((0, 1)))
    seen = keras.layers.Concatenate()(
        [levels(inputs), (inputs[..., :1] - last) / scale]
    )
    ahead = kit.rnn((window, num_features + 1), y.shape[1], units)(seen)
    ahead += keras.layers.Dense(y.shape[1])(keras.layers.Flatten()(seen))
    outputs = last[..., 0] + keras.layers.Rescaling(scale)(ahead)
    return kit.Model(inputs, outputs, name="forecaster")


def fit_linear(
    x_train: np.ndarray, y_train: np.ndarray, x_val: np.ndarray, y_val: np.ndarray
) -> Pipeline:
    """Fits a linear autoregression on all hours and features of the same windows.

    The ridge penalty is chosen on the validation span.
    """
    rows = x_train.reshape(len(x_train), -1)
    models = [
        make_pipeline(StandardScaler(), Ridge(alpha)).fit(rows, y_train)
        for alpha in 10.0 ** np.arange(-2, 5)
    ]
    horizon = y_val.shape[1]
    errors = [np.abs(predict_linear(m, x_val, horizon) - y_val).mean() for m in models]
    return models[int(np.argmin(errors))]


def predict_linear(model: Pipeline, x: np.ndarray, horizon: int) -> np.ndarray:
    """Returns the forecasts of `fit_linear`'s model, shape (B, horizon)."""
    # scikit-learn drops the last axis if there is only one target.
    return model.predict(x.reshape(len(x), -1)).reshape(-1, horizon)


def choose_season(features: np.ndarray, t_val: np.ndarray, y_val: np.ndarray) -> int:
    """Returns the better of "as yesterday" and "as a week ago", in hours."""
    horizon = y_val.shape[1]
    seasons = [season for season in (DAY, WEEK) if season >= horizon]
    return min(
        seasons,
        key=lambda s: np.abs(future(features, t_val - s, horizon) - y_val).mean(),
    )


def draw_forecasts(
    run: Run,
    hours: pd.Index,
    t_test: np.ndarray,
    y_test: np.ndarray,
    forecasts: dict[str, np.ndarray],
    shown: list[int],
) -> None:
    """Plots forecasts for ten days of the test span, made some hours ahead."""
    few = slice(0, 10 * DAY)
    with run.figure("forecasts.png", figsize=(10, 2.4 * len(shown))) as figure:
        rows = figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
        for axes, h in zip(rows, shown, strict=True):
            when = hours[t_test[few] + h]
            axes.plot(when, y_test[few, h - 1], color="black", label="truth")
            for name, style in (("RNN", "-"), ("linear", "--")):
                y = forecasts[name][few, h - 1]
                axes.plot(when, y, style, linewidth=1.2, label=name)
            axes.set_ylabel("temperature in °C")
            axes.set_title(f"forecast {h} h ahead", loc="left", fontsize=10)
            axes.margins(x=0.01)
        rows[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
        rows[-1].tick_params("x", rotation=20)


def draw_errors(run: Run, errors: dict[str, np.ndarray]) -> None:
    """Plots the mean absolute error on the test span for each hour ahead."""
    with run.figure("error_by_horizon.png", figsize=(6.5, 4)) as figure:
        axes = figure.subplots()
        for name, error in errors.items():
            label = f"{name}, {error.mean():.3f} on average"
            axes.plot(np.arange(1, len(error) + 1), error, marker=".", label=label)
        axes.set_xlabel("hours ahead")
        axes.set_ylabel("mean absolute error in °C")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.set_title(f"Test span ({run.backend}, seed {run.seed})")


if __name__ == "__main__":
    command_line(main)
