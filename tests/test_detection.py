"""The detector: targets, loss, decoding, learning, and the recipe."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit.detection import (
    Detector,
    decode,
    detector,
    draw_heatmap,
    focal_loss,
    gaussian_radius,
)

numpy = ops.convert_to_numpy


def tiny(**options):
    """A detector for images of 16 x 16 pixels with objects of two classes."""
    return detector((16, 16, 1), 2, **{"filters": (4, 8), "stride": 2, **options})


# --- Targets --------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(10.0, 10.0), (3.0, 40.0)])
@pytest.mark.parametrize("t", [0.3, 0.7])
def test_a_box_shifted_by_the_radius_overlaps_as_much(height, width, t):
    r = float(gaussian_radius(height, width, t))
    assert 0 < r < min(height, width)
    shared = (height - r) * (width - r)
    assert shared / (2 * height * width - shared) == pytest.approx(t, rel=1e-4)


def test_heatmap_by_hand():
    # Image 1: class 1, centre (14, 6) pixels: cell (3, 1) of 4 x 4 pixels. The second
    # row is empty, its box nonsense. Image 2: two neighbours of class 0.
    boxes = np.array(
        [[[10, 2, 18, 10], [-9, 99, 0, 0]], [[0, 0, 16, 16], [0, 0, 24, 16]]], "float32"
    )
    labels = np.array([[1, -1], [0, 0]], "int32")
    maps = numpy(draw_heatmap(boxes, labels, (4, 6), 2, stride=4, min_overlap=0.5))
    assert maps.shape == (2, 4, 6, 2)

    def bump(x, y, width, height):
        r = float(gaussian_radius(height / 4, width / 4, 0.5))
        sigma = (2 * r + 1) / 6
        expected = np.zeros((4, 6))
        for i in range(4):
            for j in range(6):
                squared = (j - x) ** 2 + (i - y) ** 2
                expected[i, j] = np.exp(-squared / (2 * sigma**2))
        return expected

    np.testing.assert_array_equal(maps[0, :, :, 0], 0.0)
    np.testing.assert_allclose(maps[0, :, :, 1], bump(3, 1, 8, 8), atol=1e-6)
    both = np.maximum(bump(2, 2, 16, 16), bump(3, 2, 24, 16))
    np.testing.assert_allclose(maps[1, :, :, 0], both, atol=1e-6)
    assert maps[1, 2, 2, 0] == maps[1, 2, 3, 0] == 1.0  # exactly: focal_loss compares
    np.testing.assert_array_equal(maps[1, :, :, 1], 0.0)


# --- Loss -----------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 4.0), (0.0, 0.0), (1.0, 3.0)])
def test_focal_loss_by_hand(alpha, beta):
    rng = np.random.default_rng(0)
    y = rng.random((2, 3, 4, 2)).astype("float32")
    y[0, 1, 2, 1] = y[1, 0, 0, 0] = y[1, 2, 3, 0] = 1.0
    logits = rng.normal(size=y.shape).astype("float32")
    total = 0.0
    for true, p in zip(y.ravel(), 1 / (1 + np.exp(-logits.ravel())), strict=True):
        if true == 1.0:
            total += (1 - p) ** alpha * np.log(p)
        else:
            total += (1 - true) ** beta * p**alpha * np.log(1 - p)
    loss = float(focal_loss(y, logits, alpha, beta))
    assert loss == pytest.approx(-total / 3, rel=1e-5)


def test_focal_loss_of_extreme_logits_is_finite():
    y = np.zeros((1, 1, 2, 1), "float32")
    y[0, 0, 0] = 1.0
    wrong = np.array([-200.0, 300.0], "float32").reshape(y.shape)
    assert float(focal_loss(y, wrong)) == pytest.approx(500.0)
    assert float(focal_loss(y, -wrong)) == pytest.approx(0.0, abs=1e-6)
    # Without objects, the loss is divided by one.
    assert float(focal_loss(0 * y, wrong)) == pytest.approx(300.0)


def test_loss_by_hand():
    """The heat map in all cells, size and offset at the centres only."""
    model = tiny(min_overlap=0.5)
    model.size_weight, model.offset_weight = 0.3, 2.0
    rng = np.random.default_rng(1)
    y_pred = {
        "heatmap": rng.normal(size=(2, 8, 8, 2)).astype("float32"),
        "size": rng.normal(size=(2, 8, 8, 2)).astype("float32"),
        "offset": rng.normal(size=(2, 8, 8, 2)).astype("float32"),
    }
    boxes = np.array(
        [[[1, 2, 6, 12], [0, 0, 0, 0]], [[3, 3, 8, 6], [10, 1, 16, 4]]], "float32"
    )
    labels = np.array([[0, -1], [1, 1]], "int32")
    loss = model.compute_loss(
        None,
        {"boxes": boxes, "labels": labels},
        keras.tree.map_structure(ops.convert_to_tensor, y_pred),
    )
    size, offset = [], []
    for i, (x1, y1, x2, y2) in [(0, boxes[0, 0]), (1, boxes[1, 0]), (1, boxes[1, 1])]:
        x, y = (x1 + x2) / 4, (y1 + y2) / 4  # centres in cells of 2 pixels
        column, row = int(x), int(y)
        size.append(abs(y_pred["size"][i, row, column] - [x2 - x1, y2 - y1]))
        offset.append(abs(y_pred["offset"][i, row, column] - [x - column, y - row]))
    heatmap = draw_heatmap(boxes, labels, (8, 8), 2, 2, 0.5)
    heatmap = float(focal_loss(heatmap, y_pred["heatmap"]))
    size, offset = np.sum(size) / 3, np.sum(offset) / 3
    assert float(loss) == pytest.approx(heatmap + 0.3 * size + 2 * offset, rel=1e-5)
    results = {name: float(x) for name, x in model.get_metrics_result().items()}
    assert results["heatmap_loss"] == pytest.approx(heatmap, rel=1e-5)
    assert results["size_loss"] == pytest.approx(size, rel=1e-5)
    assert results["offset_loss"] == pytest.approx(offset, rel=1e-5)


# --- Detection ------------------------------------------------------------------


def test_decodes_peaks():
    heatmap = np.full((1, 4, 6, 2), -9.0, "float32")
    heatmap[0, 1, 2, 0] = 2.0  # a peak
    heatmap[0, 1, 3, 0] = 1.9  # beside it: none
    heatmap[0, 2, 3, 0] = 1.8  # diagonal to it: none
    heatmap[0, 1, 3, 1] = 1.0  # another class: a peak
    heatmap[0, 3, 5, 0] = -1.0  # in the corner
    size = np.zeros((1, 4, 6, 2), "float32")
    offset = np.zeros((1, 4, 6, 2), "float32")
    size[0, 1, 2], offset[0, 1, 2] = (6, 4), (0.5, 0.25)
    size[0, 1, 3], offset[0, 1, 3] = (2, 8), (0.0, 0.75)
    size[0, 3, 5], offset[0, 3, 5] = (-1, 2), (0.0, 0.0)
    found = {k: numpy(v) for k, v in decode(heatmap, size, offset, 4, 3).items()}
    assert found["labels"].tolist() == [[0, 1, 0]]
    scores = 1 / (1 + np.exp([-2.0, -1.0, 1.0]))
    np.testing.assert_allclose(found["scores"], scores[None], rtol=1e-5)
    boxes = [[7, 3, 13, 7], [11, 3, 13, 11], [20, 11, 20, 13]]
    np.testing.assert_allclose(found["boxes"][0], boxes, atol=1e-5)


def test_decodes_what_a_loop_finds():
    """Every logit is negative, so a rim of zeros would hide the peaks at the edges."""
    rng = np.random.default_rng(0)
    heatmap = -5 * rng.random((3, 5, 4, 2)).astype("float32") - 0.1
    size = rng.random((3, 5, 4, 2)).astype("float32")
    offset = rng.random((3, 5, 4, 2)).astype("float32")
    found = {k: numpy(v) for k, v in decode(heatmap, size, offset, 8).items()}
    assert found["boxes"].shape == (3, 40, 4)  # all cells of both classes
    for i in range(3):
        expected = []
        for y, x, c in np.ndindex(5, 4, 2):
            around = heatmap[i, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2, c]
            if heatmap[i, y, x, c] == around.max():
                score = 1 / (1 + np.exp(-heatmap[i, y, x, c]))
                centre = 8 * (np.array([x, y]) + offset[i, y, x])
                half = size[i, y, x] / 2
                expected.append((score, c, *(centre - half), *(centre + half)))
        expected = np.array(sorted(expected, reverse=True))
        number = len(expected)
        np.testing.assert_allclose(found["scores"][i, :number], expected[:, 0], 1e-5)
        np.testing.assert_array_equal(found["labels"][i, :number], expected[:, 1])
        np.testing.assert_allclose(found["boxes"][i, :number], expected[:, 2:], 1e-4)
        np.testing.assert_array_equal(found["scores"][i, number:], 0.0)


def test_decoding_returns_what_was_drawn():
    boxes = np.array([[[2, 4, 13, 9], [17, 20, 30, 31]]], "float32")
    labels = np.array([[2, 0]], "int32")
    heatmap = numpy(draw_heatmap(boxes, labels, (8, 8), 3, 4))
    size, offset = np.zeros((2, 1, 8, 8, 2), "float32")
    for box in boxes[0]:
        centre = (box[:2] + box[2:]) / 8
        column, row = centre.astype(int)
        size[0, row, column] = box[2:] - box[:2]
        offset[0, row, column] = centre % 1
    found = decode(np.log(heatmap + 1e-9), size, offset, 4, 2)
    order = np.argsort(numpy(found["labels"])[0])
    np.testing.assert_allclose(numpy(found["boxes"])[0][order], boxes[0][::-1])
    assert sorted(numpy(found["labels"])[0].tolist()) == [0, 2]


# --- The network ----------------------------------------------------------------


def test_maps_have_the_stride():
    for filters, stride in [((4,), 2), ((4, 6, 8), 2), ((4, 6, 8), 8)]:
        model = detector((16, 32, 3), 5, filters, stride)
        assert (model.stride, model.num_classes) == (stride, 5)
        assert model.map_shape == (16 // stride, 32 // stride)
        maps = model(np.ones((2, 16, 32, 3), "float32"))
        assert tuple(maps["heatmap"].shape) == (2, *model.map_shape, 5)
        assert tuple(maps["size"].shape) == (2, *model.map_shape, 2)
        assert tuple(maps["offset"].shape) == (2, *model.map_shape, 2)


def test_first_scores_are_low():
    maps = tiny()(np.zeros((1, 16, 16, 1), "float32"))
    np.testing.assert_allclose(numpy(ops.sigmoid(maps["heatmap"])), 0.1, rtol=1e-4)


def rectangles(number=64, seed=0):
    """One or two rectangles on an image: wide and dim, or high and bright."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.0, 0.05, (number, 16, 16, 1)).astype("float32")
    boxes = np.zeros((number, 2, 4), "float32")
    labels = np.full((number, 2), -1, "int32")
    for i in range(number):
        for j in range(rng.integers(1, 3)):
            label = rng.integers(2)
            width, height = (6, 4) if label == 0 else (3, 7)
            x, y = rng.integers(0, 8 - width + 1) + 8 * j, rng.integers(0, 17 - height)
            images[i, y : y + height, x : x + width] = 0.5 + 0.5 * label
            boxes[i, j], labels[i, j] = (x, y, x + width, y + height), label
    return images, {"boxes": boxes, "labels": labels}


def fitted(epochs=25, **options):
    model = tiny(**options)
    kit.initialize_weights(model, 0)
    model.compile(keras.optimizers.Adam(1e-2))
    images, y = rectangles()
    return model, model.fit(images, y, batch_size=32, epochs=epochs, verbose=0)


def test_learns_and_is_saved(tmp_path):
    model, history = fitted()
    names = {"loss", "heatmap_loss", "size_loss", "offset_loss"}
    assert set(history.history) == names
    images, y = rectangles(32, seed=1)
    found = model.detect(images, max_detections=2, batch_size=20)
    right = []
    for i in range(32):
        true = y["labels"][i] >= 0
        number = true.sum()
        order = np.argsort(found["boxes"][i, :number, 0])
        same = found["labels"][i, :number][order] == y["labels"][i][true]
        distance = abs(found["boxes"][i, :number][order] - y["boxes"][i][true])
        right += (same & (distance.max(axis=1) < 2.0)).tolist()
    assert np.mean(right) > 0.9, np.mean(right)

    losses = model.evaluate(images, y, verbose=0, return_dict=True)
    parts = [losses[f"{name}_loss"] for name in ("heatmap", "size", "offset")]
    assert losses["loss"] == pytest.approx(np.dot(parts, [1, 0.1, 1]), rel=1e-4)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    again = loaded.detect(images, max_detections=2)
    np.testing.assert_allclose(again["boxes"], found["boxes"], atol=1e-3)
    np.testing.assert_array_equal(again["labels"], found["labels"])
    assert loaded.compiled


def test_config_is_kept():
    network = tiny().network
    model = Detector(network, size_weight=0.2, offset_weight=0.5, min_overlap=0.6)
    again = Detector.from_config(model.get_config())
    for name in ("size_weight", "offset_weight", "min_overlap"):
        assert getattr(again, name) == getattr(model, name) != getattr(tiny(), name)


def other_network(stride=4, size=2):
    inputs = keras.Input((16, 16, 1))
    x = keras.layers.MaxPooling2D(stride)(inputs)
    channels = {"heatmap": 5, "size": size, "offset": 2}
    heads = {k: keras.layers.Conv2D(n, 1)(x) for k, n in channels.items()}
    return Detector(keras.Model(inputs, heads))


def test_any_network_with_the_three_outputs_will_do():
    model = other_network()
    assert (model.stride, model.map_shape, model.num_classes) == (4, (4, 4), 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: detector((16, 16)), r"input_shape.*\(16, 16\)"),
        (lambda: detector((16, 20, 1), filters=(4, 4, 4)), r"of 8.*\(16, 20, 1\)"),
        (lambda: tiny(stride=8), r"stride.*\[2, 4\].*8"),
        (lambda: tiny(stride=3), r"stride.*\[2, 4\].*3"),
        (lambda: tiny(min_overlap=1.0), r"min_overlap.*\(0, 1\).*1.0"),
        (lambda: tiny().compile("adam", "mse"), "own loss.*'mse'"),
        (lambda: Detector(kit.cnn((28, 28, 1), 2)), "network.*dict of heatmap"),
        (lambda: other_network(size=3), r"network.*'size': \(4, 4, 3\)"),
        (lambda: other_network(stride=3), r"network.*\(None, 16, 16, 1\)"),
        (lambda: tiny().detect(np.ones((2, 8, 8, 1))), r"images.*16.*\(2, 8, 8, 1\)"),
        (
            lambda: focal_loss(np.ones((1, 2, 2, 1)), np.ones((1, 2, 3, 1))),
            "logits.*h=2, w=2|logits.*w=2",
        ),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def changed(name, value):
    images, y = rectangles(4)
    y = {k: v.copy() for k, v in y.items()}
    y[name][1, 0] = value
    return images, y


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", 2, "labels.*0 to 1.*-1 to 2"),
        ("labels", -2, "labels.*-2"),
        ("boxes", (5, 5, 5, 9), r"boxes.*not empty.*\[5.0, 5.0, 5.0, 9.0\]"),
        ("boxes", (5, 5, 17, 9), r"boxes.*16 x 16 pixels.*17.0"),
        ("boxes", (-1, 5, 8, 9), r"boxes.*-1.0"),
        ("boxes", (np.nan, 5, 8, 9), "boxes.*nan"),
    ],
)
def test_refuses_boxes_that_mean_nothing(name, value, message):
    model = tiny()
    model.compile("adam")
    images, y = changed(name, value)
    with pytest.raises(ValueError, match=message):
        model.fit(images, y, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(images, y, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.fit(*rectangles(4), validation_data=(images, y), verbose=0)


def test_refuses_other_targets():
    model = tiny()
    model.compile("adam")
    images, y = rectangles(4)
    for targets, message in [
        (None, "`y` must be a dict.*NoneType"),
        (y["boxes"], "`y` must be a dict.*ndarray"),
        ({"boxes": y["boxes"]}, r"keys \['boxes'\]"),
        ({**y, "labels": y["labels"][:, :1]}, "labels.*M=2"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(images, targets, verbose=0)
    with pytest.raises(ValueError, match="sample_weight"):
        model.fit(images, y, sample_weight=np.ones(4), verbose=0)


def test_an_empty_row_may_hold_any_box():
    images, y = rectangles(8)
    other = {k: v.copy() for k, v in y.items()}
    other["boxes"][y["labels"] < 0] = (-7, 99, 3, 2)
    model = tiny()
    model.compile("adam")
    losses = [model.evaluate(images, t, verbose=0) for t in (y, other)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    assert (y["labels"] < 0).any()


# --- The recipe -----------------------------------------------------------------

TINY = {
    "train_canvases": 40,
    "test_canvases": 3,
    "canvas_size": 32,
    "max_objects": 2,
    "filters": (4, 8),
    "epochs": 1,
    "batch_size": 20,
    "window_epochs": 1,
    "verbose": 0,
}


@pytest.fixture(scope="module")
def recipe(load_recipe):
    pytest.importorskip("pycocotools")
    return load_recipe("detection")


@pytest.mark.once  # test_exchange.py runs it under each backend
def test_recipe_leaves_what_it_promises(recipe, tmp_path, few_digits, monkeypatch):
    monkeypatch.setattr(recipe, "images", lambda: few_digits)
    record = recipe.main(output_dir=tmp_path, seed=1, **TINY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.keras",
        "history.csv",
        "metrics.json",
        "learning_curve.png",
        "detections.png",
        "heatmaps.png",
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    names = {"test_map_50", "test_map_50_95", "milliseconds", "parameters"}
    assert set(record["metrics"]) == names
    assert set(record["baselines"]) == {f"window_{name}" for name in names}
    assert record["config"]["filters"] == [4, 8]

    # Raw images are all that the saved model needs.
    _, test, names = recipe.load_data(40, 3, 32, 2, 0.0, 1)
    model = keras.saving.load_model(tmp_path / "model.keras")
    scores = recipe.score(test, model.detect(test.images), len(names), "test_")
    assert scores["test_map_50"] == record["metrics"]["test_map_50"]


@pytest.mark.once
def test_canvases_hold_what_the_boxes_say(recipe, few_digits, monkeypatch):
    monkeypatch.setattr(recipe, "images", lambda: few_digits)
    photos = [np.zeros((80, 200, 3), "uint8")]
    monkeypatch.setattr(recipe, "_photographs", lambda: photos)
    train, test, _ = recipe.load_data(30, 10, 64, 4, 0.0, 0)
    for canvases in (train, test):
        assert canvases.images.dtype == "uint8"
        sizes = []
        for image, boxes, labels in zip(*canvases, strict=True):
            ink = image[..., 0] > 0
            kept = boxes[labels >= 0].astype(int)
            assert len(kept) >= 1
            outside = ink.copy()
            for x1, y1, x2, y2 in kept:
                inside = ink[y1:y2, x1:x2]
                edges = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
                assert all(edge.any() for edge in edges)
                outside[y1:y2, x1:x2] = False
                sizes.append(max(x2 - x1, y2 - y1))
            assert not outside.any()  # all ink is in boxes
        assert min(sizes) >= 12 and max(sizes) <= 28 and np.ptp(sizes) > 8
    again, same, _ = recipe.load_data(30, 10, 64, 4, 0.0, 1)
    assert not np.array_equal(again.images, train.images)
    np.testing.assert_array_equal(same.images, test.images)


@pytest.mark.once
def test_train_and_test_share_nothing(recipe, few_digits, monkeypatch):
    monkeypatch.setattr(recipe, "images", lambda: few_digits)
    photo = np.repeat(np.arange(200, dtype="uint8")[None], 90, axis=0)
    photos = [np.repeat(photo[..., None], 3, axis=2)]  # grey tells the column
    monkeypatch.setattr(recipe, "_photographs", lambda: photos)
    used = []

    def note(number, digits, labels, photos, *args, **options):
        used.append((digits, np.concatenate([p.ravel() for p in photos])))

    monkeypatch.setattr(recipe, "draw_canvases", note)
    strips: set = set()
    for validation in (0.0, 0.25):
        used.clear()
        recipe.load_data(1, 1, 64, 2, validation, 0)
        (train, train_greys), (test, test_greys) = used
        assert not set(train_greys) & set(test_greys)
        assert len(train) == len(few_digits.x_train) * (1 - validation)
        if validation:  # only training digits and training strips
            np.testing.assert_array_equal(test, few_digits.x_train[150:, ..., 0])
            assert set(train_greys) | set(test_greys) == strips
        else:
            np.testing.assert_array_equal(test, few_digits.x_test[..., 0])
            strips = set(train_greys)


@pytest.mark.once
def test_faces_have_boxes_and_other_patches_have_none(recipe, monkeypatch):
    faces = np.full((100, 25, 25), 0.9)
    monkeypatch.setattr(
        recipe, "lfw_subset", lambda: np.concatenate([faces, np.full_like(faces, 0.4)])
    )
    black = {name: np.zeros((80, 90, 3), "uint8") for name in ("a", "b", "astronaut")}
    monkeypatch.setattr(recipe, "photographs", lambda part: black)
    train, test, names = recipe.load_data(30, 10, 64, 4, 0.0, 0, "faces")
    assert names == ["face"]
    for canvases in (train, test):
        assert set(np.unique(canvases.labels)) == {-1, 0}
        others = 0
        for image, boxes, labels in zip(*canvases, strict=True):
            left = image[..., 0].copy()
            for x1, y1, x2, y2 in boxes[labels >= 0].astype(int):
                assert image[(y1 + y2) // 2, (x1 + x2) // 2, 0] in range(225, 232)
                assert x2 - x1 == pytest.approx(0.8 * (y2 - y1), abs=0.91)
                left[y1:y2, x1:x2] = 0
            others += left.max() in (101, 102)  # a patch that shows something else
            assert left.max() <= 102
        assert others >= 3


@pytest.mark.once
@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_no_face_is_in_both_parts(recipe, validation):
    (train, labels, photos), (test, test_labels, test_photos) = recipe.face_parts(
        validation
    )
    assert len(test) == 2 * (30 if validation == 0 else 21)
    assert len(train) == 4 * (70 if validation == 0 else 49)  # with mirror images
    both = [{x.tobytes() for x in part} for part in (train, test)]
    assert not both[0] & both[1]
    assert labels.mean() == test_labels.mean() == -0.5
    both = [{x.tobytes() for x in part} for part in (photos, test_photos)]
    assert both[0] and both[1] and not both[0] & both[1]


@pytest.mark.once
def test_score_by_hand(recipe):
    boxes = np.array([[[0, 0, 10, 10], [20, 20, 30, 30]], [[0, 0, 10, 10]] * 2])
    labels = np.array([[0, 0], [0, -1]])
    boxes = boxes.astype("float32") + 5
    data = recipe.Canvases(np.zeros((2, 40, 40, 1)), boxes, labels)
    found = {
        # Right; twice the same; too little overlap (0.43); right by 8 / 10 = 0.8.
        "boxes": np.array(
            [
                [[0, 0, 10, 10], [0, 0, 10, 10]],
                [[0, 4, 10, 14], [0, 0, 10, 8]],
            ],
            "float32",
        )
        + 5,
        "labels": np.zeros((2, 2), int),
        "scores": np.array([[0.9, 0.8], [0.7, 0.6]]),
    }
    scores = recipe.score(data, found, 1)
    # Precision 1 up to a recall of 1/3, 2/4 up to 2/3, then 0: at 34, 33 and 34 of the
    # 101 recalls of COCO (0, 0.01, ..., 1).
    assert scores["map_50"] == pytest.approx((34 * 1 + 33 * 0.5) / 101)
    # Above 0.8, only the first one is right: at 7 and 3 of ten thresholds.
    with_both, with_one = scores["map_50"], 34 / 101
    mean = (7 * with_both + 3 * with_one) / 10
    assert scores["map_50_95"] == pytest.approx(mean)
    # A wrong class is wrong, and no object of class 1 is there to be found.
    wrong = {**found, "labels": np.ones((2, 2), int)}
    assert recipe.score(data, wrong, 2)["map_50"] == 0.0
    # Rows of score 0 don't count.
    empty = {**found, "scores": found["scores"] * [[1, 0], [0, 1]]}
    assert recipe.score(data, empty, 1)["map_50"] == pytest.approx(67 / 101)


@pytest.mark.once
def test_window_by_hand(recipe):
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [30, 0, 40, 10], [5, 0, 15, 10]])
    # The second one overlaps the first one by 9/11, the last one by 1/3 only.
    kept = recipe.suppress(boxes.astype(float), np.array([0.5, 0.4, 0.9, 0.3]))
    assert kept == [2, 0, 3]
    assert recipe.suppress(boxes.astype(float), np.array([0.5, 0.4, 0.01, 0.0])) == [0]
    window = recipe.square(np.array([10.0, 10.0, 14.0, 18.0]))
    np.testing.assert_allclose(window, [7, 9, 17, 19])  # 1.25 times 8, same centre
    windows = recipe.all_windows(64)
    assert windows.min() == -8 and windows.max() == 72
    np.testing.assert_allclose(*(windows[:, 2:] - windows[:, :2]).T)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_canvases": 0}, r"`train_canvases` must be .*\[1, .*received 0"),
        ({"epochs": 0}, r"`epochs` must be .*\[1, .*received 0"),
        ({"canvas_size": 16}, r"`canvas_size` must be .*\[28, .*received 16"),
        ({"learning_rate": 0.0}, "`learning_rate` must be .*received 0.0"),
        ({"validation": 1.0}, r"`validation` must be .*\[0, 1\), received 1.0"),
        ({"canvas_size": 34}, "multiples of 4.*34"),
        ({"objects": "faces", "validation": 0.999}, "`validation` must leave"),
        ({"stride": 3}, "stride.*3"),
    ],
)
def test_recipe_refuses(recipe, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(**{**TINY, "output_dir": tmp_path, **arguments})


@pytest.mark.learn
def test_learns_digits(recipe, tmp_path):
    record = recipe.main(output_dir=tmp_path, verbose=0)
    assert record["metrics"]["test_map_50"] >= 0.95
    assert record["metrics"]["test_map_50"] > record["baselines"]["window_test_map_50"]
