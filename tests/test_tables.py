"""Tables of numbers and texts."""

import numpy as np
import pandas as pd
import pytest

from kit.data.tables import encode, make_table, read_table

pytestmark = pytest.mark.once


def write(folder, text):
    (folder / "table.csv").write_text(text, encoding="utf-8")
    return folder / "table.csv"


def test_texts_become_columns_of_0_and_1(tmp_path):
    path = write(
        tmp_path, "age,home,good\n31,rent,yes\n52,own,no\n40,own,yes\n20,free,yes\n"
    )
    table = read_table(path, "good")
    expected = [[31, 0, 0, 1], [52, 0, 1, 0], [40, 0, 1, 0], [20, 1, 0, 0]]
    np.testing.assert_array_equal(table.x, expected)
    assert table.x.dtype == "float32" and table.y.dtype == "int32"
    assert table.columns == {"age": [], "home": ["free", "own", "rent"]}
    # The rarer class is class 1.
    assert table.classes == ("yes", "no") and table.y.tolist() == [0, 1, 0, 0]
    assert table.target == "good" and list(table.frame) == ["age", "home"]


@pytest.mark.parametrize(
    ("targets", "classes", "y"),
    [
        ("3 1 2 1", ("1", "2", "3"), [2, 0, 1, 0]),
        ("b a b a", ("a", "b"), [1, 0, 1, 0]),  # equally many: in alphabetic order
        ("1 0 1 1", ("1", "0"), [0, 1, 0, 0]),
        ("True False False False", ("False", "True"), [1, 0, 0, 0]),
        ("2.0 1.0 1.0 1.0", ("1.0", "2.0"), [1, 0, 0, 0]),
        ("1.5 2.0 1.0 1.5", (), [1.5, 2.0, 1.0, 1.5]),
    ],
)
def test_what_the_target_is(tmp_path, targets, classes, y):
    rows = "".join(f"{i},{value}\n" for i, value in enumerate(targets.split()))
    table = read_table(write(tmp_path, f"x,t\n{rows}"), "t")
    assert table.classes == classes and table.y.tolist() == y
    assert table.y.dtype == ("int32" if classes else "float32")


def test_many_different_whole_numbers_are_a_quantity(tmp_path):
    for number, classes in ((20, 20), (21, 0)):
        rows = "".join(f"{i},{i}\n" for i in range(number))
        table = read_table(write(tmp_path, f"x,t\n{rows}"), "t")
        assert len(table.classes) == classes


def test_new_rows_are_encoded_as_the_old_ones():
    columns = {"age": [], "home": ["own", "rent"]}
    frame = pd.DataFrame({"home": ["own", "boat"], "more": [0, 0], "age": [31, 52]})
    np.testing.assert_array_equal(encode(frame, columns), [[31, 1, 0], [52, 0, 0]])
    with pytest.raises(ValueError, match=r"columns \['age', 'home'\], received \['ag"):
        encode(pd.DataFrame({"age": [1]}), columns)
    with pytest.raises(ValueError, match="numbers in column 'age'.*old"):
        encode(pd.DataFrame({"age": ["old"], "home": ["own"]}), columns)
    with pytest.raises(ValueError, match="no value in column 'home', row 1"):
        encode(pd.DataFrame({"age": [1, 2], "home": ["own", None]}), columns)


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("a,b\n1,x\n2,y\n", "c", "`target` must be .*'a', 'b'; received 'c'"),
        ("a,b\n1,x\n2,\n", "b", "without gaps.*'b'.*row 1"),
        ("a,b\n1,x\n,y\n", "b", "no value in column 'a', row 1"),
        (
            "a,b,c,d\n1,x,2,\n1,y,,\n2,x,,3\n",
            "b",
            r"'c', row 1 \(2 in all\); column 'd', row 0 \(2 in all\)\. .*line 2",
        ),
        ("a,b\n1,x\ninf,y\n", "b", "infinite number in column 'a', row 1"),
        ("a,b\n1,x\n2,x\n", "b", "different values; 'b' is always 'x'"),
        ("b\nx\ny\n", "b", "a column or more"),
        ("", "b", "`csv` must be a CSV file"),
        (
            "a,b\n" + "".join(f"n{i},{i % 2}\n" for i in range(51)),
            "b",
            "up to 50 different texts; 'a' has 51",
        ),
    ],
)
def test_refuses(tmp_path, text, target, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, text), target)


def test_refuses_what_is_no_table():
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    with pytest.raises(ValueError, match="`y` must hold classes from 0 to 1.*0 to 2"):
        make_table(frame, [0, 2], ("no", "yes"))
    with pytest.raises(ValueError, match="`y` must hold finite numbers"):
        make_table(frame, [0.0, np.nan])
    with pytest.raises(ValueError, match=r"shapes \(2, 1\) and \(3,\)"):
        make_table(frame, [0, 1, 1], ("no", "yes"))
    with pytest.raises(TypeError, match="`frame` must be a pandas.DataFrame"):
        make_table(np.ones((2, 1)), [0, 1], ("no", "yes"))
