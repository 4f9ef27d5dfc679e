"""The multilayer perceptron, and its recipe."""

import json

import keras
import numpy as np
import pytest

import kit

TINY = {"folds": 2, "units": (4,), "epochs": 2, "verbose": 0}
CLASSIFICATION = {"accuracy"}
BINARY = CLASSIFICATION | {"balanced_accuracy", "average_precision", "auroc"}
REGRESSION = {"rmse", "mae"}


def numbers(x):
    return keras.ops.convert_to_numpy(x)


def test_mlp_computes_relu_of_wx_plus_b_layer_by_layer():
    model = kit.mlp((2,), 1, units=(2,))
    model.set_weights(
        [
            np.array([[1.0, -1.0], [2.0, 0.0]]),
            np.array([0.5, 0.0]),
            np.array([[2.0], [3.0]]),
            np.array([-1.0]),
        ]
    )
    # hidden: relu(1 + 4 + 0.5, -1) = (5.5, 0); output: 11 - 1
    # hidden: relu(-3 + 2 + 0.5, 3) = (0, 3); output: 9 - 1
    y = model(np.array([[1.0, 2.0], [-3.0, 1.0]], "float32"))
    np.testing.assert_allclose(numbers(y), [[10.0], [8.0]], rtol=1e-6)


def test_mlp_flattens_and_gives_probabilities():
    model = kit.mlp((4, 3), 5, units=(8, 8), output_activation="softmax", dropout=0.5)
    y = numbers(model(np.ones((2, 4, 3), "float32")))
    assert y.shape == (2, 5)
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-5)
    assert model.count_params() == (12 * 8 + 8) + (8 * 8 + 8) + (8 * 5 + 5)
    assert sum(isinstance(x, keras.layers.Dropout) for x in model.layers) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_shape": 4},
        {"input_shape": (None,)},
        {"num_outputs": 0},
        {"units": 64},
        {"units": (64, -1)},
        {"units": (6.5,)},
        {"dropout": 1.0},
        {"dropout": -0.1},
    ],
)
def test_mlp_names_a_wrong_argument(wrong):
    ((name, value),) = wrong.items()
    numbers = {"num_outputs": 0, "units": (64, -1), "dropout": value}
    error_type = ValueError if value == numbers.get(name) else TypeError
    with pytest.raises(error_type, match=f"`{name}` must be .*received") as error:
        kit.mlp(**{"input_shape": (4,), "num_outputs": 2} | wrong)
    assert repr(value) in str(error.value)


def check_recipe(record, folder, scores, baselines):
    names = {"model.keras", "history.csv", "result.png", "metrics.json"}
    assert names <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "metrics.json").read_text()) == record
    assert set(record["metrics"]) == {f"test_{key}" for key in scores}
    assert set(record["baselines"]) == {
        f"{name}_test_{key}" for name in baselines for key in scores
    }
    assert record["throughput"]["unit"] == "samples/s"
    rows = (folder / "history.csv").read_text().splitlines()
    assert rows[0].startswith("fold,epoch") and "val_loss" in rows[0]
    assert len(rows) == 1 + 2 * 2  # folds, epochs


@pytest.mark.variants
@pytest.mark.parametrize(
    ("dataset", "scores"),
    [("breast_cancer", BINARY), ("wine", CLASSIFICATION)],
)
def test_recipe_classifies(load_recipe, dataset, scores, tmp_path, capsys):
    recipe = load_recipe("mlp")
    record = recipe.main(dataset=dataset, output_dir=tmp_path, **TINY)
    baselines = ["majority_class", "logistic_regression"]
    baselines += ["gradient_boosting", "sklearn_mlp"]
    check_recipe(record, tmp_path, scores, baselines)
    assert record["baselines"]["logistic_regression_test_accuracy"] > 0.9
    assert capsys.readouterr().out == ""

    # What is saved takes raw rows, and standardizes them by itself.
    model = keras.saving.load_model(tmp_path / "model.keras")
    x, y, classes = recipe.load_data(dataset)
    probabilities = numbers(model(x[:5]))
    assert probabilities.shape == (5, len(classes))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    standardized = numbers(model.layers[0](x))
    np.testing.assert_allclose(standardized.mean(0), 0, atol=0.2)
    np.testing.assert_allclose(standardized.std(0), 1, atol=0.3)


def test_recipe_predicts_numbers_in_their_own_unit(load_recipe, tmp_path):
    recipe = load_recipe("mlp")
    record = recipe.main(dataset="diabetes", output_dir=tmp_path, **TINY)
    baselines = ["mean_of_y", "linear_regression", "gradient_boosting", "sklearn_mlp"]
    check_recipe(record, tmp_path, REGRESSION, baselines)

    model = keras.saving.load_model(tmp_path / "model.keras")
    x, y, _ = recipe.load_data("diabetes")
    predicted = numbers(model(x))
    assert predicted.shape == (len(x), 1)
    # What the network says in standard deviations, the last layer says in units of y.
    mean, higher = numbers(model.layers[-1](np.array([[0.0], [1.0]], "float32")))
    np.testing.assert_allclose(mean, y.mean(), rtol=0.1)
    np.testing.assert_allclose(higher - mean, y.std(), rtol=0.1)


def test_normalization_knows_only_the_rows_to_learn_from(load_recipe, tmp_path):
    recipe = load_recipe("mlp")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype("float32")
    y = (np.arange(40) % 2).astype("int32")
    settings = dict(units=(4,), dropout=0.0, learning_rate=1e-3, batch_size=32)
    settings |= dict(epochs=1, patience=1, validation_fraction=0.5, seed=0, verbose=0)
    settings["backup"] = kit.BackupAndRestore(tmp_path)
    model, _ = recipe.train_mlp(recipe.Table(x, y, ("a", "b")), **settings)
    from sklearn.model_selection import train_test_split

    learned, _ = train_test_split(x, test_size=0.5, random_state=0, stratify=y)
    expected = (x - learned.mean(0)) / learned.std(0)
    np.testing.assert_allclose(numbers(model.layers[0](x)), expected, atol=1e-4)


def test_scores_by_hand(load_recipe):
    recipe = load_recipe("mlp")
    y = np.array([0, 0, 0, 1])
    p = np.array([0.1, 0.2, 0.6, 0.4])
    scores = recipe.score(y, np.stack([1 - p, p], 1), ("no", "yes"))
    assert scores["accuracy"] == 0.5  # rows 0 and 1 are right
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["average_precision"] == 0.5  # found second of the ranking
    assert scores["auroc"] == pytest.approx(2 / 3)  # above two of three
    scores = recipe.score(np.array([1.0, 2.0]), np.array([[4.0], [6.0]]), ())
    assert scores["rmse"] == pytest.approx(np.sqrt((9 + 16) / 2))
    assert scores["mae"] == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("dataset", "rows", "positive"), [("phishing", 1250, 548), ("shuttle", 49097, 3511)]
)
def test_tables_of_river(load_recipe, dataset, rows, positive):
    pytest.importorskip("river")
    x, y, classes = load_recipe("mlp").load_data(dataset)
    assert x.shape == (rows, 9) and x.dtype == "float32"
    assert np.bincount(y).tolist() == [rows - positive, positive]
    assert len(classes) == 2


def test_malignant_is_what_one_looks_for(load_recipe):
    _, y, classes = load_recipe("mlp").load_data("breast_cancer")
    assert classes[1] == "malignant" and y.sum() == 212


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset": "titanic"},
        {"folds": 1},
        {"folds": 60},  # wine's rarest class has 48 rows
        {"dropout": 1.0},
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"epochs": 0},
        {"patience": -1},
        {"validation_fraction": 1.0},
    ],
)
def test_recipe_names_a_wrong_argument(load_recipe, wrong, tmp_path):
    ((name, value),) = wrong.items()
    arguments = {"dataset": "wine", "output_dir": tmp_path, **TINY, **wrong}
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        load_recipe("mlp").main(**arguments)


def test_recipe_says_where_a_number_is_missing(load_recipe):
    x = np.ones((3, 2))
    x[1, 0] = np.nan
    with pytest.raises(ValueError, match="Row 1 .* nan in column 0"):
        load_recipe("mlp")._table(x, np.zeros(3))


@pytest.mark.learn
def test_recipe_is_as_good_as_scikit_learn(load_recipe, tmp_path):
    # One row is 0.0018: a single seed says little, and a row between them nothing.
    main = load_recipe("mlp").main
    records = [main(seed=seed, output_dir=tmp_path, verbose=0) for seed in range(3)]
    ours = np.mean([r["metrics"]["test_accuracy"] for r in records])
    rival = np.mean([r["baselines"]["sklearn_mlp_test_accuracy"] for r in records])
    assert ours >= rival - 0.0018


@pytest.mark.learn
def test_recipe_is_as_good_as_scikit_learn_in_regression(load_recipe, tmp_path):
    record = load_recipe("mlp").main(dataset="diabetes", output_dir=tmp_path, verbose=0)
    rival = record["baselines"]["sklearn_mlp_test_rmse"]
    assert record["metrics"]["test_rmse"] <= 1.01 * rival
