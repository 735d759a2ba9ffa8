"""Every argument of every method with values that make no sense: a clear error, and no change."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
import weakref
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import potad

GRANULE = 4096
BASE = 1 << 20
SIZE = 64 * GRANULE


def used_space() -> potad.Space:
    """A space with something of everything: blocks, runs, holes, retired granules, two spans."""
    space = potad.Space(SIZE, granule=GRANULE, base=BASE)
    space.alloc_at(BASE, GRANULE)
    space.alloc_at(BASE + 4 * GRANULE, 8 * GRANULE)
    space.alloc_at(BASE + 20 * GRANULE, 3 * GRANULE)
    space.retire(BASE + 5 * GRANULE)
    space.retire(BASE + 40 * GRANULE, 2 * GRANULE)
    space.add(1 << 40, 4 * GRANULE)
    space.pin(BASE + 20 * GRANULE)
    return space


def state(space: potad.Space) -> tuple[Any, ...]:
    """All that can be seen of a space; the check that it agrees with itself."""
    space.check()
    return (
        list(space),
        space.spans(),
        space.retired().tolist(),
        space.free_blocks(),
        (space.size, space.used, space.available, space.largest_free, len(space)),
    )


KIND = potad.Kind("buffer", record=np.dtype("u8"))

# What a good call would be, so that one argument at a time can be made a bad one.
GOOD: dict[str, dict[str, Any]] = {
    "alloc": {"size": GRANULE, "within": (BASE, BASE + SIZE)},
    "alloc_run": {
        "size": GRANULE,
        "align": GRANULE,
        "within": (BASE, BASE + SIZE),
        "fit": "first",
        "relocate": True,
    },
    "plan_run": {"size": GRANULE, "align": GRANULE, "within": (BASE, BASE + SIZE), "fit": "first"},
    "cheapest_window": {"size": GRANULE, "align": GRANULE, "within": (BASE, BASE + SIZE)},
    "compact": {"size": GRANULE, "count": 2, "within": (BASE, BASE + SIZE), "budget": GRANULE},
    "plan_compaction": {
        "size": GRANULE,
        "count": 2,
        "within": (BASE, BASE + SIZE),
        "budget": GRANULE,
    },
    "alloc_at": {"address": BASE + GRANULE, "size": GRANULE},
    "alloc_scattered": {"size": GRANULE, "min_block": GRANULE, "within": (BASE, BASE + SIZE)},
    "alloc_many": {"size": GRANULE, "count": 2},
    "free": {"address": BASE},
    "free_range": {"start": BASE + 4 * GRANULE, "size": GRANULE},
    "free_many": {"addresses": [BASE]},
    "split": {"address": BASE + 4 * GRANULE, "size": GRANULE},
    "lookup": {"address": BASE},
    "lookup_many": {"addresses": [BASE]},
    "allocations": {"within": (BASE, BASE + SIZE)},
    "free_ranges": {"within": (BASE, BASE + SIZE), "min_size": GRANULE, "align": GRANULE},
    "add": {"start": 1 << 41, "size": GRANULE},
    "remove": {"start": BASE + 50 * GRANULE, "size": GRANULE},
    "retire": {"start": BASE + 50 * GRANULE, "size": GRANULE},
    "restore": {"start": BASE + 5 * GRANULE, "size": GRANULE},
    "unusable_free_index": {"size": GRANULE},
    "pin": {"address": BASE},
    "unpin": {"address": BASE + 20 * GRANULE},
    "pinned": {"address": BASE},
    "pin_range": {"start": BASE, "size": GRANULE},
    "memory_failure": {"address": BASE},
    "records": {"kind": KIND},
    "owned_by": {"owner": KIND},
}

ARGUMENTS = [(method, name) for method, good in GOOD.items() for name in good]
NOT_NUMBERS = ("within", "fit", "relocate", "addresses", "kind", "owner")
NUMBERS = [(m, n) for m, n in ARGUMENTS if n not in NOT_NUMBERS]

OPTIONAL = (
    {("alloc_scattered", "min_block"), ("free_ranges", "min_size")}
    | {(method, "align") for method in ("alloc_run", "plan_run", "cheapest_window", "free_ranges")}
    | {
        (method, name)
        for method, name in ARGUMENTS
        if name in ("within", "budget") or (method in ("retire", "restore") and name == "size")
    }
)
"""Arguments for which None means that they are not given."""


def call(space: potad.Space, method: str, arguments: dict[str, Any]) -> Any:
    return getattr(space, method)(**arguments)


def refused(method: str, name: str, value: Any, error: type[Exception]) -> str:
    """Makes a call with one bad argument; the error's message. Nothing may have changed."""
    space = used_space()
    before = state(space)
    with pytest.raises(error) as caught:
        call(space, method, {**GOOD[method], name: value})
    assert type(caught.value) is error
    assert state(space) == before
    return str(caught.value)


@pytest.mark.parametrize("method", GOOD)
def test_good_arguments_are_good(method: str) -> None:
    call(used_space(), method, GOOD[method])


def test_every_method_is_here() -> None:
    without_arguments = {"check", "free_blocks", "report", "retired", "retired_ranges", "spans"}
    public = {
        name
        for name in dir(potad.Space)
        if not name.startswith("_") and callable(getattr(potad.Space, name))
    }
    assert public == GOOD.keys() | without_arguments


@pytest.mark.parametrize(("method", "name"), NUMBERS)
@pytest.mark.parametrize(
    "value",
    [
        1.0,
        4096.0,
        np.float64(4096),
        math.nan,
        math.inf,
        "4096",
        b"4096",
        1j,
        Decimal(4096),
        Fraction(4096),
        [4096],
        (4096,),
        object(),
        np.array([4096, 8192]),
        np.bool_(True),
        int,
    ],
    ids=repr,
)
def test_not_an_integer(method: str, name: str, value: Any) -> None:
    message = refused(method, name, value, TypeError)
    assert message.startswith(f"{name} must be an integer, not ")
    assert type(value).__name__ in message


@pytest.mark.parametrize(("method", "name"), [a for a in NUMBERS if a not in OPTIONAL])
def test_none_is_no_integer(method: str, name: str) -> None:
    assert refused(method, name, None, TypeError) == f"{name} must be an integer, not None"


@pytest.mark.parametrize(("method", "name"), NUMBERS)
@pytest.mark.parametrize("value", [-1, -GRANULE, -(1 << 63), -(1 << 64), -(1 << 128), np.int64(-5)])
def test_negative(method: str, name: str, value: int) -> None:
    message = refused(method, name, value, ValueError)
    assert message == f"{name} must be at least 0, not {int(value)}"


@pytest.mark.parametrize(("method", "name"), NUMBERS)
@pytest.mark.parametrize("value", [(1 << 64) + 1, 1 << 65, 1 << 127, 1 << 128, 1 << 200])
def test_too_large(method: str, name: str, value: int) -> None:
    message = refused(method, name, value, OverflowError)
    assert message.startswith(f"{name} must be ")
    assert "2**64" in message


@pytest.mark.parametrize(("method", "name"), NUMBERS)
def test_numbers_that_are_too_long_to_be_shown(method: str, name: str) -> None:
    for bits in (256, 257, 200_000):
        large = (1 << bits) - 1
        shown = str(large) if bits == 256 else f"a number of {bits} bits"
        assert refused(method, name, large, OverflowError).endswith(f", not {shown}")
        negative = f"-{shown}" if bits == 256 else shown
        assert refused(method, name, -large, ValueError).endswith(f", not {negative}")


@pytest.mark.parametrize(("method", "name"), [a for a in NUMBERS if a[1] in ("address", "start")])
def test_no_address_beyond_the_last(method: str, name: str) -> None:
    message = refused(method, name, 1 << 64, OverflowError)
    assert message == f"{name} must be below 2**64, not {1 << 64}"


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for method, name in NUMBERS
        if name in ("size", "align", "min_block") and method != "split"
    ],
)
def test_zero_is_no_size(method: str, name: str) -> None:
    assert refused(method, name, 0, ValueError).startswith(f"{name} must be ")


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for method, name in NUMBERS
        if method in ("alloc_at", "free_range", "add", "remove", "retire", "restore")
        or (method, name) == ("split", "size")
    ],
)
@pytest.mark.parametrize("offset", [1, GRANULE // 2, GRANULE - 1])
def test_not_a_multiple_of_the_granule(method: str, name: str, offset: int) -> None:
    value = GOOD[method][name] + offset
    message = refused(method, name, value, ValueError)
    assert message.startswith(f"{name} must be a multiple of the granule {GRANULE}")
    assert str(value) in message


@pytest.mark.parametrize("method", ["alloc_at", "free_range", "add", "remove", "retire", "restore"])
def test_a_range_beyond_the_last_address(method: str) -> None:
    assert "2^64" in refused(method, "size", 1 << 64, ValueError)


@pytest.mark.parametrize(("method", "name"), [a for a in ARGUMENTS if a[1] == "within"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (5, TypeError),
        ((), TypeError),
        ((1,), TypeError),
        ((1, 2, 3), TypeError),
        ("ab", TypeError),
        ({1, 2}, TypeError),
        ((1.0, 2), TypeError),
        ((1, math.nan), TypeError),
        ((None, 2), TypeError),
        ((-1, 2), ValueError),
        ((2, -1), ValueError),
        ((2, 1), ValueError),
        ((1 << 64, 1), ValueError),
        ((0, (1 << 64) + 1), OverflowError),
        (((1 << 64) + 1, (1 << 64) + 1), OverflowError),
    ],
)
def test_bad_windows(method: str, name: str, value: Any, error: type[Exception]) -> None:
    assert "within" in refused(method, name, value, error)


@pytest.mark.parametrize(
    "within", [(0, 0), (BASE, BASE + 1), (BASE + 1, BASE + GRANULE), (1 << 64, 1 << 64), (5, 5)]
)
def test_windows_without_room(within: tuple[int, int]) -> None:
    space = used_space()
    before = state(space)
    for method in ("alloc", "alloc_run", "alloc_scattered"):
        with pytest.raises(potad.OutOfSpace):
            call(space, method, {"size": GRANULE, "within": within})
    assert state(space) == before


@pytest.mark.parametrize(
    "within", [[BASE, 1 << 64], np.array([BASE, BASE + SIZE]), range(0, 1 << 22, 1 << 21)]
)
def test_other_sequences_of_two_are_windows(within: Any) -> None:
    assert used_space().alloc(GRANULE, within=within) in range(BASE, BASE + SIZE)


@pytest.mark.parametrize(
    ("value", "error"),
    [("best", ValueError), ("", ValueError), ("\ud800", ValueError), ("ALIGNED", ValueError)]
    + [(value, TypeError) for value in (None, 1, b"first", ["first"], math.nan)],
)
def test_bad_fits(value: Any, error: type[Exception]) -> None:
    message = refused("alloc_run", "fit", value, error)
    assert message.startswith("fit must be 'aligned' or 'first', not ")


@pytest.mark.parametrize("method", ["free_many", "lookup_many"])
@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (None, TypeError, "addresses must be an array or sequence of integers, not None"),
        (5, TypeError, "addresses must be an array or sequence of integers, not 5"),
        (1.5, TypeError, "addresses must be an array or sequence of integers, not 1.5 (float)"),
        ("ab", TypeError, "addresses[0] must be an integer, not 'a' (str)"),
        (b"ab", TypeError, "addresses must be integers, not of type |S2"),
        ([BASE, 1.0], TypeError, "addresses[1] must be an integer, not 1.0 (float)"),
        ([BASE, None], TypeError, "addresses[1] must be an integer, not None"),
        ([BASE, -1], ValueError, "addresses[1] must be at least 0, not -1"),
        ([BASE, 1 << 64], OverflowError, f"addresses[1] must be below 2**64, not {1 << 64}"),
        ([[BASE]], TypeError, f"addresses[0] must be an integer, not [{BASE}] (list)"),
        (np.array([BASE, -7]), ValueError, "addresses[1] must be at least 0, not -7"),
        (np.array([-7], np.int8), ValueError, "addresses[0] must be at least 0, not -7"),
        (np.array([1.0]), TypeError, "addresses must be integers, not of type float64"),
        (np.array([]), TypeError, "addresses must be integers, not of type float64"),
        (np.array([math.nan]), TypeError, "addresses must be integers, not of type float64"),
        (np.array([True]), TypeError, "addresses must be integers, not of type bool"),
        (np.array(["a"]), TypeError, "addresses must be integers, not of type <U1"),
        (np.array([1j]), TypeError, "addresses must be integers, not of type complex128"),
        (
            np.array([BASE, -1, 1 << 64], object),
            ValueError,
            "addresses[1] must be at least 0, not -1",
        ),
        (np.array([None]), TypeError, "addresses[0] must be an integer, not None"),
        (np.array(["2024-01-01"], "M8[D]"), TypeError, "addresses must be integers, not of type"),
        (np.zeros((2, 2), np.uint64), ValueError, "addresses must have one dimension, not 2"),
        (np.array(5, np.uint64), ValueError, "addresses must have one dimension, not 0"),
        (np.uint64(5), ValueError, "addresses must have one dimension, not 0"),
        (np.zeros(2, [("a", "u8")]), TypeError, "addresses must be integers, not of type"),
    ],
)
def test_bad_lists_of_addresses(
    method: str, value: Any, error: type[Exception], words: str
) -> None:
    assert refused(method, "addresses", value, error).startswith(words)


class Index:
    """An integer that does something when it is asked which."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __index__(self) -> Any:
        return self.act()


class Boom(Exception):
    """Not an error of ours."""


def boom() -> int:
    raise Boom


@pytest.mark.parametrize(("method", "name"), NUMBERS)
def test_index_that_raises(method: str, name: str) -> None:
    refused(method, name, Index(boom), Boom)


@pytest.mark.parametrize(("method", "name"), NUMBERS)
@pytest.mark.parametrize("garbage", [1.0, "5", None, [], Index(lambda: 5)], ids=repr)
def test_index_that_returns_garbage(method: str, name: str, garbage: Any) -> None:
    message = refused(method, name, Index(lambda: garbage), TypeError)
    assert message.startswith(f"{name} must be an integer, not ")


@pytest.mark.parametrize(("method", "name"), NUMBERS)
def test_index_that_uses_the_space(method: str, name: str) -> None:
    """A conversion may run any Python code: it is over before the space is locked."""
    space = used_space()
    taken = []

    def act() -> int:
        block = space.alloc(GRANULE, within=(1 << 40, 1 << 41))
        space.check()
        taken.append(block)
        return int(GOOD[method][name])

    call(space, method, {**GOOD[method], name: Index(act)})
    assert len(taken) == 1
    assert taken[0] in space
    space.check()


def test_items_that_use_the_space() -> None:
    space = used_space()

    class Window:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, at: int) -> int:
            space.free(space.alloc(GRANULE))
            return (0, 1 << 64)[at]

    def addresses() -> Any:
        yield space.alloc(GRANULE)
        yield space.alloc(GRANULE)

    before = len(space)
    window: Any = Window()
    space.free(space.alloc(GRANULE, within=window))
    space.free_many(addresses())
    assert len(space) == before
    space.check()


def test_iterables_that_raise() -> None:
    space = used_space()

    def addresses() -> Any:
        yield BASE
        raise Boom

    before = state(space)
    with pytest.raises(Boom):
        space.free_many(addresses())
    assert state(space) == before


class Strange(int):
    """An integer that lies about everything that can be lied about."""

    def __lt__(self, other: object) -> Any:
        return "no"

    def __rshift__(self, other: object) -> Any:
        return "no"

    def __repr__(self) -> Any:
        raise Boom

    def bit_length(self) -> Any:
        raise Boom

    def __index__(self) -> Any:
        raise Boom


@pytest.mark.parametrize("value", [4096, 1 << 64, 1 << 65, -1, -(1 << 200)])
def test_subclasses_of_int_that_lie(value: int) -> None:
    """What comes of it is open, but not a crash, a panic or half a change."""
    for method, name in NUMBERS:
        space = used_space()
        try:
            call(space, method, {**GOOD[method], name: Strange(value)})
        except Exception as error:
            assert isinstance(error, (ValueError, TypeError, OverflowError, Boom, potad.PotadError))
        space.check()


@pytest.mark.parametrize(
    "kind", [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.int64, np.uint64, bool, Index]
)
def test_what_has_an_index_is_an_integer(kind: Any) -> None:
    space = potad.Space(64, granule=1)
    one = Index(lambda: 1) if kind is Index else kind(1)
    address = space.alloc_at(one, one)
    assert type(address) is int
    assert address == 1
    assert (one in space, 1 in space) == (True, True)
    found = space.lookup(one)
    assert found is not None
    space.free(one)
    assert len(space) == 0
    assert type(space.alloc(one)) is int


def test_numbers_of_exactly_64_bits() -> None:
    space = potad.Space(1 << 64, granule=1)
    last = (1 << 64) - 1
    assert space.alloc_at(last, 1) == last
    assert last in space
    assert space.lookup(np.uint64(last)) == space.lookup(last)
    space.free(last)
    with pytest.raises(potad.NotAllocated) as caught:
        space.free(last)
    assert caught.value.address == last


def test_containment_of_what_is_no_address() -> None:
    """As with a range: integers that cannot be in it are not, other things make no sense."""
    space = potad.Space(1 << 64, granule=1)
    space.alloc_run(1 << 64)
    assert 0 in space
    assert (1 << 64) - 1 in space
    for value in (-1, 1 << 64, -(1 << 100), 1 << 100, np.int64(-1)):
        assert value not in space
    nonsense: Any
    for nonsense in (1.0, "a", None, math.nan, [0]):
        with pytest.raises(TypeError, match="address must be an integer"):
            _ = nonsense in space
    with pytest.raises(Boom):
        _ = Index(boom) in space


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"size": -1}, ValueError),
        ({"size": 1.0}, TypeError),
        ({"size": None}, TypeError),
        ({"size": math.nan}, TypeError),
        ({"size": 4095}, ValueError),
        ({"size": (1 << 64) + 4096}, OverflowError),
        ({"size": 1 << 64, "base": 4096}, ValueError),
        ({"size": 4096, "base": 1}, ValueError),
        ({"size": 4096, "base": -4096}, ValueError),
        ({"size": 4096, "base": 1 << 64}, OverflowError),
        ({"size": 4096, "base": None}, TypeError),
        ({"size": 4096, "base": 0.0}, TypeError),
        ({"size": 4096, "granule": 0}, ValueError),
        ({"size": 4096, "granule": 3}, ValueError),
        ({"size": 4096, "granule": -1}, ValueError),
        ({"size": 4096, "granule": 1 << 64}, OverflowError),
        ({"size": 4096, "granule": None}, TypeError),
        ({"size": 4096, "granule": 1.0}, TypeError),
        ({"size": 4096, "granule": "1"}, TypeError),
        ({"size": 4096, "granule": Index(boom)}, Boom),
    ],
)
def test_spaces_that_cannot_be(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        potad.Space(**arguments)
    name = list(arguments)[-1]
    if error is not Boom and arguments != {"size": 1 << 64, "base": 4096}:
        assert str(caught.value).startswith(f"{name} must be ")


@pytest.mark.parametrize("method", GOOD)
def test_wrong_forms_of_calls(method: str) -> None:
    space = used_space()
    before = state(space)
    function = getattr(space, method)
    values = list(GOOD[method].values())
    all_optional = all((method, name) in OPTIONAL for name in GOOD[method])
    for arguments, keywords in [
        *([] if all_optional else [((), {})]),
        ((*values, 1, 2), {}),
        ((), {**GOOD[method], "owner_": None}),
        (values[:1], {next(iter(GOOD[method])): values[0]}),
    ]:
        with pytest.raises(TypeError, match=re.escape(f"Space.{method}()")):
            function(*arguments, **keywords)
    with pytest.raises(TypeError):
        getattr(potad.Space, method)(5, *values)
    assert state(space) == before


@pytest.mark.parametrize("method", GOOD)
def test_the_first_argument_by_name_or_position(method: str) -> None:
    first, *rest = GOOD[method].items()
    call(used_space(), method, GOOD[method])
    getattr(used_space(), method)(first[1], **dict(rest))


def test_no_copies() -> None:
    space = used_space()
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a Space cannot be pickled or copied"):
            make(space)


def test_spaces_and_descriptors_are_closed() -> None:
    space: Any = used_space()
    found = space.lookup(BASE)
    for thing, name in [(space, "size"), (space, "colour"), (found, "start"), (found, "colour")]:
        with pytest.raises(AttributeError):
            setattr(thing, name, 1)
    with pytest.raises(TypeError):
        potad.Descriptor()
    assert weakref.ref(space)() is space


def test_descriptors_compare_by_value() -> None:
    space = used_space()
    one, same = space.lookup(BASE), space.lookup(BASE + 1)
    other = space.lookup(BASE + 4 * GRANULE)
    assert one is not None
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != (one.start, one.size)
    assert len({one, same, other}) == 2
    assert repr(one) == "Descriptor(start=0x100000, size=4096)"


def test_the_look_of_a_space() -> None:
    assert repr(used_space()) == (
        "<potad.Space base=0x100000 size=278528 granule=4096 used=49152 allocations=3>"
    )


anything = st.one_of(
    st.integers(-2, 1 << 20).map(lambda number: number * GRANULE),
    st.integers(0, 100),
    st.integers(),
    st.sampled_from([BASE, BASE + 4 * GRANULE, 1 << 40, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 65]),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.complex_numbers(),
    st.decimals(),
    st.lists(st.integers(0, (1 << 64) - 1) | st.floats() | st.none(), max_size=4),
    st.tuples(st.integers(0, 1 << 65), st.integers(0, 1 << 65)),
    st.sampled_from(["aligned", "first", np.uint8(1), np.float32(1), np.array([BASE]), ...]),
    st.builds(lambda value: Index(lambda: value), st.integers() | st.floats()),
)


@settings(max_examples=1500)
@given(st.data())
def test_anything_goes_nowhere_or_through(data: st.DataObject) -> None:
    """Whatever is passed, a call succeeds or raises one of our errors and changes nothing."""
    space = used_space()
    for _ in range(4):
        before = state(space)
        method = data.draw(st.sampled_from(sorted(GOOD)))
        arguments = {
            name: value if data.draw(st.integers(0, 2)) else data.draw(anything)
            for name, value in GOOD[method].items()
        }
        # A block a granule is as many as a space of these sizes has; more only takes long.
        if isinstance(arguments.get("count"), int):
            arguments["count"] = min(arguments["count"], 1 << 70)
        try:
            call(space, method, arguments)
        except (ValueError, TypeError, OverflowError, potad.PotadError):
            assert state(space) == before
        else:
            space.check()


@pytest.mark.parametrize("count", [1 << 20, 1 << 40, 1 << 61, 1 << 63, (1 << 64) - 1])
def test_more_blocks_than_memory_can_list(count: int) -> None:
    space = used_space()
    before = state(space)
    with pytest.raises(potad.OutOfSpace) as caught:
        space.alloc_many(GRANULE, count)
    assert caught.value.requested == GRANULE * count
    assert state(space) == before


def test_combinations_of_bad_arguments_change_nothing() -> None:
    space = used_space()
    before = state(space)
    bad = [-1, 1.5, None, 1 << 70, "x", math.nan]
    for method, good in GOOD.items():
        if method == "owned_by":
            continue  # any object may be an owner
        for values in itertools.product(bad, repeat=min(2, len(good))):
            given = dict(zip(good, values, strict=False))
            if all(value is None and (method, name) in OPTIONAL for name, value in given.items()):
                continue  # as if none of them were given
            arguments = {**good, **given}
            with pytest.raises((ValueError, TypeError, OverflowError)):
                call(space, method, arguments)
    assert state(space) == before
