"""Settings files: what is read is what DVC reads, and what is written reads the same everywhere."""

import pytest
import yaml
from dvc.utils.serialize import parse_yaml as dvc_yaml
from hypothesis import given
from hypothesis import strategies as st

from ofq_core.errors import SettingsError
from ofq_core.yaml_files import MAX_BYTES, parse_yaml, read_yaml, to_yaml

# Plain values, half of which YAML 1.1 and 1.2 read as two things.
PLAIN = [
    *(
        "010",
        "08",
        "-09",
        "0o10",
        "0o8",
        "0x1F",
        "0b11",
        "1_000",
        "1__0",
        "0_",
        "+1",
        "-0",
        "9" * 20,
    ),
    *("1e3", "1e-3", "12e8", "1E+3", "1.5e3", ".5", "5.", "+.5", ".5e-3", ".5e3", "1e999"),
    *("nan", ".nan", ".inf", "-.inf", "1:30", "1:30:15", "190:20:30"),
    *("yes", "no", "on", "off", "y", "n", "Yes", "ON", "true", "True", "FALSE"),
    *("~", "null", "Null", "NULL", "word", "a.b", "a-b", "12a", "a12", "http://x:80/y", "x#y"),
    *("++1", "_1"),
]


@pytest.mark.parametrize("value", PLAIN)
def test_a_value_is_what_dvc_reads(value):
    text = f"a: {value}\nb: ['{value}', {{c: {value}}}]\n"
    ours, theirs = parse_yaml(text, "x"), dvc_yaml(text, "x")
    assert repr(ours) == repr(theirs), "repr, for NaN is not equal to itself and 1.0 is to 1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &x {b: 1}\nc: {<<: *x, b: 2, d: 3}\n", {"a": {"b": 1}, "c": {"b": 2, "d": 3}}),
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("%YAML 1.2\n---\na: yes\nb: 010\n", {"a": "yes", "b": 10}),
        ("---\na: !!str 010\n...\n", {"a": "010"}),
        ("2: a\n'3': b\n", {2: "a", "3": "b"}),
        ("a: |\n  one\n  two\n", {"a": "one\ntwo\n"}),
    ],
)
def test_what_more_may_stand_in_a_file(text, value):
    assert parse_yaml(text, "x") == dvc_yaml(text, "x") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 68.00\nb: 010\nc: yes\nd: 4:00:00\n", ["68.00", "010", "yes", "4:00:00"]),
        ("a: null\nb: ~\nc:\nd: 'null'\n", [None, None, None, "null"]),
        ("a: [1, {1.50: x}]\n", [["1", {"1.50": "x"}]]),
        ("a: &x 2024-01-01\nb: &x 1\nc: *x\n", ["2024-01-01", "1", "1"]),
    ],
)
def test_verbatim(text, value):
    assert list(parse_yaml(text, "x", verbatim=True).values()) == value


# "Billion laughs": nine of the one before, ten times.
BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11)
)
CHAIN = "k0: &k0 [x]\n" + "".join(f"k{i}: &k{i} [*k{i - 1}]\n" for i in range(1, 2000))

BAD = [
    # each key once
    ("a: 1\na: 2\n", "line 2: the key 'a' stands here twice"),
    ("x:\n  a: 1\n  b: 2\n  'a': 2\n", "line 4: the key 'a' stands here twice"),
    ("1: a\n01: b\n", "line 2: a key stands here twice"),
    ("[a]: 1\n", "line 1: a list or mapping cannot be a key"),
    ("~: 1\n", "line 1: '~' cannot be a key"),
    ("true: 1\n", "line 1: 'true' cannot be a key"),
    ("1.5: 1\n", "line 1: '1.5' cannot be a key"),
    # values of no setting
    ("a: 2024-01-01\n", "line 1: '2024-01-01' is a date in YAML: put it in quotes"),
    ("a: 2024-13-45\n", "line 1: '2024-13-45' is a date"),
    ("\na: [1, =]\n", "line 2: '=' has the tag 'value', which is unknown"),
    ("a: !foo 1\n", "line 1: '1' has the tag '!foo', which is unknown"),
    ("a: !!python/object/apply:os.system [x]\n", "line 1: the tag 'python/object/apply:os.system'"),
    ("a: !!binary aGk=\n", "line 1: 'aGk=' has the tag 'binary'"),
    ("a: !!set {x}\n", "line 1: the tag 'set' is unknown"),
    ("a: !!int x\n", "line 1: 'x' is no number"),
    ("a: !!int ''\n", "line 1: '' is no number"),
    ("a: !!float ''\n", "line 1: '' is no number"),
    ("a: !!bool maybe\n", "line 1: 'maybe' is neither true nor false"),
    ("a: 0x_\n", "line 1: '0x_' is no number"),
    ("a: 1\nb: -_\n", "line 2: '-_' is no number"),
    (f"a: {'9' * 5000}\n", "9' has too many digits"),
    (f"a: 1.{'9' * 5000}\n", "9' has too many digits"),
    ('a: "x\\0y"\n', "line 1: 'x\\x00y' holds a character that cannot be printed"),
    ('a: "\\ud800"\n', "line 1: '\\ud800' holds a character that cannot be printed"),
    # one document of a sensible shape
    ("a: 1\n---\nb: 2\n", "line 2: a second document starts here"),
    ("a: &x [*x]\n", "line 1: a value that contains itself"),
    ("a: *x\n", "line 1: found undefined alias 'x'"),
    ("a: [" + "[" * 60 + "]" * 61, "line 1: nested more than 50 levels deep"),
    ("[" * 90_000, "line 1: nested more than 50 levels deep"),
    ("{a: " * 20_000, "line 1: nested more than 50 levels deep"),
    ("? " * 40_000, "line 1: nested more than 50 levels deep"),
    (CHAIN, "levels deep"),
    (BOMB, "more than 20000 values, with those that aliases repeat"),
    # no YAML
    ("a: [1\n", "line 2: expected ',' or ']'"),
    ("a:\n\tb: 1\n", "line 2: found character '\\t'"),
    ("a: b: c\n", "line 1: mapping values are not allowed here"),
    ("a: \x07\n", "the character U+0007 may not stand in it"),
    ("a: \0\n", "the character U+0000 may not stand in it"),
    ("%YAML 1.3\n---\na: 1\n", "version minor part"),
    ("%YAML 1.1\n---\na: 12e8\n", "line 3: YAML 1.1 is asked for above: expected 1.2"),
    ("a: @x\n", "line 1: found character '@'"),
]


@pytest.mark.parametrize(("text", "reason"), BAD, ids=[repr(text[:30]) for text, _ in BAD])
def test_what_is_refused(text, reason):
    with pytest.raises(SettingsError) as error:
        parse_yaml(text, "some.yaml")
    message = str(error.value)
    assert message.startswith("some.yaml: no valid YAML: ")
    assert reason in message
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty: expected keys with values"),
        (b"# a comment\n", "empty: expected keys with values"),
        (b"- 1\n", "expected keys with values (`key: value`), found a list"),
        (b"hello\n", "expected keys with values (`key: value`), found one value"),
        (b"a: 1\nb: caf\xe9\n", "no valid YAML: line 2: not UTF-8 text"),
        ("a: 1\n".encode("utf-16"), "no valid YAML: line 1: not UTF-8 text"),
        (b"a: 1\n" + b"#" * MAX_BYTES, "more than 100 kB: no settings file"),
    ],
)
def test_a_file_that_holds_no_settings(content, message, tmp_path):
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        read_yaml(path)
    assert str(error.value) == f"{path}: {message}"


def test_what_is_no_file(tmp_path):
    for path, message in ((tmp_path, "expected a file"), (tmp_path / "no", "no such file")):
        with pytest.raises(SettingsError, match=message):
            read_yaml(path)


TEXTS = [
    *(*PLAIN, "2024-01-01", "", " a", "a b", "é", "x\ny", "\u2028", "'", '"', "\\", "#", "a #b"),
    *("- a", "a: b", ": ", "=", "<<", "!a", "&a", "*a", "@a", "%a", "`a`", "|", ">", "?"),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False)
    # What both dialects can hold: no control characters, no halves of a pair.
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])) | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text("abyn01.:-~ é", max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(value=VALUES)
def test_what_is_written_reads_the_same_everywhere(value):
    text = to_yaml({"a": value})
    assert parse_yaml(text, "x") == yaml.safe_load(text) == {"a": value}
    assert dvc_yaml(text, "x") == {"a": value}
    assert text.isascii()


@pytest.mark.parametrize("value", TEXTS)
def test_every_text_stays_one(value):
    text = to_yaml({"a": value, value or "b": [value]})
    assert yaml.safe_load(text)["a"] == parse_yaml(text, "x")["a"] == value


def test_common_values_stand_there_as_ever():
    """What is written has not changed, so no hash of a result has."""
    data = {"a": {"lr": 1e-06, "x": 0.005, "s": None, "t": "torch/cifar10", "e": {}, "l": []}}
    data["b"] = [1, True, "rand-m9-mstd0.5-inc1", "fp32"]
    assert to_yaml(data) == yaml.safe_dump(data, sort_keys=False)
