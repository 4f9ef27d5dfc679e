r"""Object detection: find objects in an image, with a box and a class for each.

The detector treats an object as a point, the centre of its box. A convolutional network
turns the image into maps of a coarse grid of h x w cells, each R x R pixels large:

- a heat map Y^ for each class: how likely is the centre of such an object in this cell?
- the size S^ of the box, if a centre is here: width and height, in pixels;
- the offset O^: where in its cell is the centre? It returns what the grid rounds off.

Training draws the heat map Y that the network should give: a bump at each object,

    Y_xyc = exp(-((x - p_x)^2 + (y - p_y)^2) / (2 sigma_p^2)),

where p is the cell of the object's centre and c its class. The loss of the heat map
punishes cells near a centre less (`focal_loss`). Size and offset are learned at the
centres only, by their absolute error:

    loss = focal_loss(Y, Y^) + lambda_size |S^_p - s| + lambda_off |O^_p - o|.

Detection needs no anchors and no search through windows: each peak of a heat map, a
cell with a higher value than its eight neighbours, is an object (`decode`).

Letters as in the paper: R `stride`, C classes, p cell of a centre, s size, o offset, N
number of objects. Shapes: B batch, M objects in an image (a table filled up with rows
of label -1), h and w height and width of the maps, K `max_detections`. Boxes are
(x_min, y_min, x_max, y_max) in pixels; the image's upper left corner is (0, 0).

Reference: Zhou, Wang, Krähenbühl, 2019, "Objects as Points",
https://arxiv.org/abs/1904.07850.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks
from kit.backend import Tensor
from kit.models import Model, WithParts, to_array

# The scores at the start, where nearly all cells hold no object. With 0.5, the first
# steps would only learn that.
FIRST_SCORE = 0.1

ACCEPTED = {
    "input_shape": checks.IMAGE,
    "num_classes": checks.SIZE,
    "filters": checks.sequence(checks.SIZE, least=1),
    "stride": checks.SIZE,
    "preprocessing": checks.LAYER | None,
    # Detector
    "network": checks.MODEL,
    "size_weight": checks.WEIGHT,
    "offset_weight": checks.WEIGHT,
    "min_overlap": checks.real("(0, 1)"),
    "images": checks.array("B H W C"),
    "max_detections": checks.SIZE,
    # Functions
    "height": checks.array(interval="[0, 1e20)"),
    "width": checks.array(interval="[0, 1e20)"),
    "boxes": checks.array("B M 4"),
    "labels": checks.array("B M", "integers"),
    "map_shape": checks.sequence(checks.SIZE, length=2),
    "y_true": checks.array("B h w C", "floats"),
    "logits": checks.array("B h w C", "floats"),
    "alpha": checks.WEIGHT,
    "beta": checks.WEIGHT,
    "heatmap": checks.array("B h w C", "floats"),
    "size": checks.array("B h w 2", "floats"),
    "offset": checks.array("B h w 2", "floats"),
}


def detector(
    input_shape: Sequence[int] = (64, 64, 1),
    num_classes: int = 10,
    filters: Sequence[int] = (16, 32, 64, 128),
    stride: int = 4,
    min_overlap: float = 0.7,
    preprocessing: keras.layers.Layer | None = None,
) -> "Detector":
    """Builds a detector: convolutions down to a coarse grid, and up to the maps.

    On the way down, each number in `filters` halves the grid, by a convolution of
    stride 2 and another one. The coarsest cells see the most of the image, but don't
    know positions well. So on the way up, until the grid has cells of `stride` pixels,
    each grid is doubled and the maps of the same size from the way down are added.

    Args:
        input_shape: (height, width, channels); height and width must be multiples of
            2 to the power of `len(filters)`. Defaults to `(64, 64, 1)`.
        num_classes: C, number of classes. Defaults to 10.
        filters: Number of filters on each grid on the way down. The coarsest cell
            should see a whole object: with three numbers it sees 43 pixels, with four
            91. Defaults to `(16, 32, 64, 128)`.
        stride: R, pixels in a side of the maps' cells: 2, 4, ..., at most 2 to the
            power of `len(filters)`. Two centres of one class in one cell can't be told
            apart. Defaults to 4, as in the paper.
        min_overlap: See `Detector`. Defaults to 0.7.
        preprocessing: Layer or model that scales the images. It must not move pixels,
            as the boxes wouldn't move with them. Defaults to `None`.

    Returns:
        A `Detector`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the image can't be halved so often, or there is no grid of
            `stride`.

    Example:

    ```python
    model = kit.detector((32, 32, 1), num_classes=2, filters=(8, 16))
    model.compile("adam")
    boxes, labels = np.tile([4, 4, 20, 12], (8, 1, 1)), np.zeros((8, 1), "int32")
    model.fit(np.random.rand(8, 32, 32, 1), {"boxes": boxes, "labels": labels})
    model.detect(np.random.rand(2, 32, 32, 1))["boxes"].shape  # (2, 100, 4)
    ```
    """
    checks.check("detector", locals(), ACCEPTED)
    height, width, _ = input_shape
    coarsest = 2 ** len(filters)
    if height % coarsest or width % coarsest:
        raise ValueError(
            f"detector: {len(filters)} `filters` halve the image as often, so height "
            f"and width must be multiples of {coarsest}; received `input_shape` "
            f"{tuple(input_shape)}."
        )
    strides = [2 ** (i + 1) for i in range(len(filters))]
    if stride not in strides:
        raise ValueError(
            f"detector: `stride` must be one of {strides} with {len(filters)} "
            f"`filters`, received {stride}."
        )
    inputs = x = keras.Input(tuple(input_shape))
    if preprocessing is not None:
        x = preprocessing(x)

    # 1. Down: on each grid, the last maps are kept.
    down = []
    for number in filters:
        x = _convolution(x, number, strides=2)
        x = _convolution(x, number)
        down.append(x)
    # 2. Up to the grid of `stride`.
    level = strides.index(stride)
    for i in reversed(range(level, len(filters) - 1)):
        x = _convolution(x, filters[i], kernel_size=1)
        x = keras.layers.Add()([keras.layers.UpSampling2D()(x), down[i]])
        x = _convolution(x, filters[i])
    # 3. Three heads.
    first_logit = float(np.log(FIRST_SCORE / (1.0 - FIRST_SCORE)))
    heads = {"heatmap": (num_classes, first_logit), "size": (2, 0.0), "offset": (2, 0)}
    outputs = {}
    for name, (channels, bias) in heads.items():
        hidden = keras.layers.Conv2D(
            2 * filters[level], 3, padding="same", activation="relu"
        )(x)
        outputs[name] = keras.layers.Conv2D(
            channels,
            1,
            bias_initializer=keras.initializers.Constant(bias),
            dtype="float32",
            name=name,
        )(hidden)
    network = Model(inputs, outputs, name="network")
    return Detector(network, min_overlap=min_overlap)


def _convolution(x, filters, kernel_size=3, strides=1):
    """Adds a convolution with batch normalization and ReLU."""
    x = keras.layers.Conv2D(
        filters, kernel_size, strides, padding="same", use_bias=False
    )(x)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    return keras.layers.ReLU()(x)


@keras.saving.register_keras_serializable(package="kit")
class Detector(WithParts, Model):
    """Trains a network's maps to show objects, and reads objects from the maps.

    `fit(images, {"boxes": boxes, "labels": labels})` takes Keras' format of bounding
    boxes: `boxes` (B, M, 4), each (x_min, y_min, x_max, y_max) in pixels, and `labels`
    (B, M), integers from 0. Images have different numbers of objects: fill up the rows
    with the label -1 and any box. The loss is the model's own:

        focal_loss + size_weight |S^_p - s| + offset_weight |O^_p - o|,

    the last two summed over x and y, and averaged over the batch's objects.

    The model maps images to a dict: `"heatmap"` (B, h, w, C), logits, whose sigmoid is
    Y^; `"size"` (B, h, w, 2), width and height in pixels; `"offset"` (B, h, w, 2), in
    cells. `detect` turns them into boxes.

    Args:
        network: Built model from images of a fixed size to such a dict; `detector`
            builds one.
        size_weight: lambda_size, weight of the sizes' error. Defaults to 0.1, as in the
            paper.
        offset_weight: lambda_off, weight of the offsets' error. Defaults to 1.
        min_overlap: Width of the bumps in the heat map: a box that is shifted by three
            standard deviations still overlaps the true one this much (intersection over
            union). In (0, 1). Defaults to 0.7.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the network's outputs are others, or an argument is out of range.

    Example: see `detector`.
    """

    parts = ("network",)

    def __init__(
        self,
        network: keras.Model,
        size_weight: float = 0.1,
        offset_weight: float = 1.0,
        min_overlap: float = 0.7,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.stride, self.map_shape, self.num_classes = _read_network(network)
        self.network = network
        self.size_weight = size_weight
        self.offset_weight = offset_weight
        self.min_overlap = min_overlap
        self.heatmap_loss = keras.metrics.Mean("heatmap_loss")
        self.size_loss = keras.metrics.Mean("size_loss")
        self.offset_loss = keras.metrics.Mean("offset_loss")
        self.built = True  # the network is already built

    def build(self, input_shape):
        """Does nothing: the network is already built."""

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """Compiles as Keras does, but without `loss`: the model has its own."""
        if loss is not None:
            raise ValueError(
                "Detector has its own loss: leave out `loss` in compile, received "
                f"{loss!r}. `size_weight` and `offset_weight` of the constructor are "
                "its weights."
            )
        super().compile(optimizer=optimizer, loss=None, **kwargs)

    def fit(self, x=None, y=None, *args, **kwargs):
        """Fits as Keras does, after a check of the boxes and labels."""
        self._check_targets_of("y", y)
        if isinstance(kwargs.get("validation_data"), (tuple, list)):
            self._check_targets_of("validation_data", kwargs["validation_data"][1])
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Evaluates as Keras does, after a check of the boxes and labels."""
        self._check_targets_of("y", y)
        return super().evaluate(x, y, *args, **kwargs)

    def call(self, inputs, training=None):
        """Returns the maps, a dict of heatmap (logits), size and offset."""
        return self.network(inputs, training=training)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the weighted sum of the three losses."""
        if sample_weight is not None:
            raise ValueError("Detector: `sample_weight` has no effect; leave it out.")
        boxes, labels = ops.cast(y["boxes"], "float32"), y["labels"]

        # 1. The heat map, in all cells.
        heatmap = draw_heatmap(
            boxes,
            labels,
            self.map_shape,
            self.num_classes,
            self.stride,
            self.min_overlap,
        )
        heatmap_loss = focal_loss(heatmap, y_pred["heatmap"])

        # 2. Size and offset, at the centres.
        is_object = ops.cast(labels >= 0, "float32")[..., None]  # (B, M, 1)
        centre, cell, size = _centres(boxes, self.stride)  # (B, M, 2) each
        index = self._index_of(cell)
        num_objects = ops.maximum(ops.sum(is_object), 1.0)  # N

        def error(prediction, target):
            distance = ops.abs(_read_at(prediction, index) - target)
            return ops.sum(is_object * distance) / num_objects

        size_loss = error(y_pred["size"], size)
        offset_loss = error(y_pred["offset"], centre - cell)

        self.heatmap_loss.update_state(heatmap_loss)
        self.size_loss.update_state(size_loss)
        self.offset_loss.update_state(offset_loss)
        return (
            heatmap_loss
            + self.size_weight * size_loss
            + self.offset_weight * offset_loss
        )

    def _index_of(self, cell):
        """Returns the number of a cell, row by row: (B, M) of (B, M, 2)."""
        height, width = self.map_shape
        # The box of an empty row may be anything.
        x = ops.clip(cell[..., 0], 0, width - 1)
        y = ops.clip(cell[..., 1], 0, height - 1)
        return ops.cast(y * width + x, "int32")

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Returns the results of the three losses; they are updated already."""
        return self.get_metrics_result()

    def detect(
        self, images: np.ndarray, max_detections: int = 100, batch_size: int = 64
    ) -> dict[str, np.ndarray]:
        """Returns the objects that the model finds, the surest first.

        Args:
            images: Images (B, height, width, channels), as in training.
            max_detections: K, objects for each image. Ignore those with low scores: the
                score to require depends on which mistakes are worse. Defaults to 100.
            batch_size: Images to compute at once. Defaults to 64.

        Returns:
            A dict of NumPy arrays: `"boxes"` (B, K, 4) in pixels, `"labels"` (B, K) and
            `"scores"` (B, K), probabilities that fall. K is `max_detections`, or less
            if the maps have fewer cells.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If the images have another shape than in training.
        """
        checks.check(
            "Detector.detect", locals(), ACCEPTED | {"batch_size": checks.SIZE}
        )
        shape = self.network.input_shape[1:]
        if tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"Detector.detect: `images` must be of shape (B, "
                f"{', '.join(map(str, shape))}), received {tuple(images.shape)}."
            )
        parts = []
        for first in range(0, len(images), batch_size):
            maps = self.predict_on_batch(images[first : first + batch_size])
            found = decode(
                maps["heatmap"],
                maps["size"],
                maps["offset"],
                self.stride,
                max_detections,
            )
            parts.append({k: ops.convert_to_numpy(v) for k, v in found.items()})
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    def _check_targets_of(self, name, y):
        """Raises an error for boxes and labels that mean nothing."""
        if not isinstance(y, Mapping):
            if y is None or to_array(y) is not None:
                raise ValueError(
                    f"Detector: `{name}` must be a dict of boxes and labels, received "
                    f"an object of type {type(y).__name__}."
                )
            return  # a dataset, which yields them
        if set(y) != {"boxes", "labels"}:
            raise ValueError(
                f"Detector: `{name}` must be a dict of boxes and labels, received the "
                f"keys {sorted(map(str, y))}."
            )
        arrays: dict[str, Any] = {key: to_array(part) for key, part in y.items()}
        checks.check("Detector", arrays, ACCEPTED)
        boxes, labels = arrays["boxes"], arrays["labels"]
        if not ((labels >= -1) & (labels < self.num_classes)).all():
            raise ValueError(
                f"Detector: `labels` must be integers from 0 to {self.num_classes - 1},"
                f" or -1 for no object; received {labels.min()} to {labels.max()}."
            )
        height, width = self.network.input_shape[1:3]
        boxes = boxes[labels >= 0]  # (objects, 4)
        low, high = boxes[:, :2], boxes[:, 2:]
        fits = (low >= 0) & (low < high) & (high <= [width, height])  # False for NaN
        if not fits.all():
            wrong = boxes[~fits.all(axis=1)][0].tolist()
            raise ValueError(
                "Detector: `boxes` must be (x_min, y_min, x_max, y_max) in pixels, "
                f"within the image of {width} x {height} pixels and not empty; "
                f"received {wrong}."
            )

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        return {
            **super().get_config(),
            "size_weight": self.size_weight,
            "offset_weight": self.offset_weight,
            "min_overlap": self.min_overlap,
        }


def _read_network(network):
    """Returns the stride, the maps' shape and the number of classes."""
    outputs = getattr(network, "output", None)
    if not isinstance(outputs, dict) or set(outputs) != {"heatmap", "size", "offset"}:
        raise ValueError(
            "Detector: `network` must be a functional model that returns a dict of "
            f"heatmap, size and offset; received one that returns {outputs}."
        )
    shape = network.input_shape
    shapes = {name: tuple(output.shape[1:]) for name, output in outputs.items()}
    heatmap, stride = shapes["heatmap"], 0
    ranks = not isinstance(shape, list) and (len(shape), len(heatmap)) == (4, 3)
    if ranks and None not in (*shape[1:3], *heatmap):
        stride = shape[1] // heatmap[0]
    grid = heatmap[:2]
    if (
        not stride
        or tuple(stride * length for length in grid) != tuple(shape[1:3])
        or shapes["size"] != (*grid, 2)
        or shapes["offset"] != (*grid, 2)
    ):
        raise ValueError(
            "Detector: `network` must map images (B, R h, R w, channels) of a fixed "
            "size to a heatmap (B, h, w, C), size and offset (B, h, w, 2); received "
            f"the input {shape} and, without B, the outputs {shapes}."
        )
    return stride, grid, heatmap[2]


# --- Targets --------------------------------------------------------------------


def gaussian_radius(height: Tensor, width: Tensor, min_overlap: float = 0.7) -> Tensor:
    """Returns how far a box may be shifted, each way, and still overlap itself enough.

    A box of width w and height h and the same box shifted by r both ways intersect in
    (w - r)(h - r). Their intersection over union is t = `min_overlap` where

        (w - r)(h - r) = 2 t / (1 + t) w h,

    a quadratic equation; r is its smaller solution.

    Args:
        height: h, height of the boxes, of any shape and unit.
        width: w, width of the boxes.
        min_overlap: t, in (0, 1). Defaults to 0.7.

    Returns:
        r, in the unit of the boxes.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a height or width is negative, or `min_overlap` out of range.

    Example:

    ```python
    gaussian_radius(10.0, 10.0, 0.7)  # 0.925
    ```

    Reference: Law and Deng, 2018, https://arxiv.org/abs/1808.01244, section 3.2. They
    also consider boxes that grow and shrink, and take the smallest r: for squares and
    t = 0.7 it is 12 % less.
    """
    checks.check("gaussian_radius", locals(), ACCEPTED)
    height, width = ops.convert_to_tensor(height), ops.convert_to_tensor(width)
    t = min_overlap
    half = (height + width) / 2
    return half - ops.sqrt(half**2 - height * width * (1 - t) / (1 + t))


def draw_heatmap(
    boxes: Tensor,
    labels: Tensor,
    map_shape: Sequence[int],
    num_classes: int,
    stride: int = 4,
    min_overlap: float = 0.7,
) -> Tensor:
    """Returns the heat maps Y that a network should give: a bump for each object.

    The bump is 1 in the cell p of the object's centre. Its standard deviation, in
    cells, grows with the box: sigma_p = (2 r + 1) / 6, where r is `gaussian_radius`.
    Where two bumps of a class meet, the higher one counts.

    Args:
        boxes: (B, M, 4), each (x_min, y_min, x_max, y_max) in pixels.
        labels: (B, M), integers; -1 for no object.
        map_shape: (h, w), cells of the map.
        num_classes: C, number of classes.
        stride: R, pixels in a side of a cell. Defaults to 4.
        min_overlap: See `Detector`. Defaults to 0.7.

    Returns:
        Y, of shape (B, h, w, C), in [0, 1].

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If boxes and labels don't fit together, or an argument is out of
            range.
    """
    checks.check("draw_heatmap", locals(), ACCEPTED)
    height, width = map_shape
    _, cell, size = _centres(ops.cast(boxes, "float32"), stride)
    size = ops.maximum(size, 0.0) / stride  # in cells; empty rows may hold anything
    sigma = (2 * gaussian_radius(size[..., 1], size[..., 0], min_overlap) + 1) / 6

    def bump(length, axis):  # the Gaussian of x or y: (B, M, length)
        distance = ops.arange(length, dtype="float32") - cell[..., axis, None]
        return ops.exp(-ops.square(distance) / (2 * ops.square(sigma[..., None])))

    bumps = bump(height, 1)[..., None] * bump(width, 0)[..., None, :]  # (B, M, h, w)
    # A label of -1 is a row of zeros.
    classes = ops.one_hot(labels, num_classes, dtype="float32")  # (B, M, C)
    bumps = bumps[..., None] * classes[:, :, None, None, :]  # (B, M, h, w, C)
    return ops.max(bumps, axis=1)


def _centres(boxes, stride):
    """Returns centres and their cells p, in cells, and sizes s in pixels: (B, M, 2)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    centre = (low + high) / (2 * stride)
    return centre, ops.floor(centre), high - low


def _read_at(maps, index):
    """Returns what maps (B, h, w, 2) hold in the cells `index`: (B, M, 2)."""
    values = ops.reshape(maps, (-1, maps.shape[1] * maps.shape[2], 2))
    index = ops.repeat(index[..., None], 2, axis=-1)  # (B, M, 2)
    return ops.take_along_axis(values, index, axis=1)


# --- Loss -----------------------------------------------------------------------


def focal_loss(
    y_true: Tensor, logits: Tensor, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """Returns the penalty-reduced focal loss of heat maps (equation 1 of the paper).

    With Y the true map, Y^ the sigmoid of the logits and N the number of centres, it is

        -1/N sum (1 - Y^)^alpha log(Y^)                     where Y = 1,
                 (1 - Y)^beta Y^^alpha log(1 - Y^)          elsewhere.

    Nearly all cells are empty. alpha makes the loss ignore those that are already
    right; otherwise, their sum would outweigh the few centres. beta reduces the penalty
    near a centre, where a peak would give nearly the same box.

    Args:
        y_true: Y, heat maps (B, h, w, C) in [0, 1], 1 at centres.
        logits: Logits of Y^, of the same shape.
        alpha: Exponent that fades out what is right. Defaults to 2.
        beta: Exponent that reduces the penalty near centres. Defaults to 4.

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the shapes differ, or an exponent is negative.
    """
    checks.check("focal_loss", locals(), ACCEPTED)
    logits = ops.cast(logits, "float32")
    y_true = ops.cast(y_true, "float32")
    y_pred = ops.sigmoid(logits)
    is_centre = ops.cast(ops.equal(y_true, 1.0), "float32")
    # log(Y^) and log(1 - Y^), which stay finite where the sigmoid rounds to 0 or 1.
    log_yes, log_no = -ops.softplus(-logits), -ops.softplus(logits)
    at_centres = (1.0 - y_pred) ** alpha * log_yes
    elsewhere = (1.0 - y_true) ** beta * y_pred**alpha * log_no
    total = ops.sum(is_centre * at_centres + (1.0 - is_centre) * elsewhere)
    return -total / ops.maximum(ops.sum(is_centre), 1.0)


# --- Detection ------------------------------------------------------------------


def decode(
    heatmap: Tensor,
    size: Tensor,
    offset: Tensor,
    stride: int = 4,
    max_detections: int = 100,
) -> dict[str, Tensor]:
    """Returns the boxes at the peaks of heat maps.

    A peak is a cell that is as high as the highest in its 3 x 3 neighbourhood, for each
    class. With the size (w, h) and the offset (o_x, o_y) of its cell (x, y), the box
    has the centre R (x + o_x, y + o_y) and the size (w, h).

    Args:
        heatmap: Logits of the heat maps, (B, h, w, C).
        size: Width and height in pixels, (B, h, w, 2).
        offset: Place of the centre in its cell, in cells, (B, h, w, 2).
        stride: R, pixels in a side of a cell. Defaults to 4.
        max_detections: K, largest number of boxes. Defaults to 100.

    Returns:
        A dict: `"boxes"` (B, K, 4), each (x_min, y_min, x_max, y_max) in pixels;
        `"labels"` (B, K); `"scores"` (B, K), in falling order. Where an image has fewer
        peaks, the scores of the rest are 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the shapes don't fit together, or a number is out of range.
    """
    checks.check("decode", locals(), ACCEPTED)
    heatmap = ops.convert_to_tensor(heatmap)
    _, height, width, num_classes = heatmap.shape
    # 1. Peaks. In logits: the sigmoid may round neighbours to the same number.
    highest = ops.max_pool(heatmap, 3, strides=1, padding="same")
    scores = ops.where(heatmap >= highest, ops.sigmoid(heatmap), 0.0)
    # 2. The K highest, of all cells and classes.
    number = height * width * num_classes
    scores = ops.reshape(scores, (-1, number))
    scores, index = ops.top_k(scores, min(max_detections, number))  # (B, K)
    cell, labels = index // num_classes, index % num_classes
    # 3. Their boxes.
    y = ops.cast(cell // width, "float32")
    x = ops.cast(cell % width, "float32")
    centre = stride * (ops.stack([x, y], axis=-1) + _read_at(offset, cell))
    half = ops.maximum(_read_at(size, cell), 0.0) / 2
    boxes = ops.concatenate([centre - half, centre + half], axis=-1)
    return {"boxes": boxes, "labels": labels, "scores": scores}
