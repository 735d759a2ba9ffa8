"""What the documentation shows runs, and every public call is documented."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import potad

MODULES = ["potad"] + [
    module.name
    for module in pkgutil.walk_packages(potad.__path__, "potad.")
    if not module.name.endswith("__main__")
]

PUBLIC = {name: getattr(potad, name) for name in potad.__all__ if not name.startswith("_")}


def documented(thing: Any, name: str) -> Iterator[tuple[str, str]]:
    """What has documentation in a class, itself included. `doctest` passes over compiled ones."""
    yield name, thing.__doc__ or ""
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if not member.startswith("_") and not isinstance(value, (str, tuple)):
                yield f"{name}.{member}", getattr(value, "__doc__", None) or ""


MEMBERS = dict(
    member for name, thing in PUBLIC.items() for member in documented(thing, f"potad.{name}")
)
METHODS = [
    f"potad.Space.{name}"
    for name, value in vars(potad.Space).items()
    if not name.startswith("_") and isinstance(value, types.MethodDescriptorType)
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_modules(module: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert not failed


@pytest.mark.parametrize("name", [name for name, text in MEMBERS.items() if ">>>" in text])
def test_examples_of_the_core(name: str) -> None:
    test = doctest.DocTestParser().get_doctest(MEMBERS[name], {}, name, None, None)
    assert test.examples
    assert not doctest.DocTestRunner().run(test).failed


@pytest.mark.parametrize("name", MEMBERS)
def test_everything_public_is_documented(name: str) -> None:
    first, _, rest = MEMBERS[name].partition("\n\n")
    assert first.endswith("."), first
    if name in METHODS:
        assert ">>> import potad" in rest
        assert "Takes " in rest or name.endswith((".restore", ".retired"))


@pytest.mark.parametrize("name", METHODS)
def test_arguments_are_documented(name: str) -> None:
    method = getattr(potad.Space, name.rpartition(".")[2])
    for parameter in inspect.signature(method).parameters:
        if parameter != "self" and "Arguments and errors are those of" not in MEMBERS[name]:
            assert f"    {parameter}: " in MEMBERS[name]


def test_examples_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        exec(example, {})
    printed = capsys.readouterr().out
    assert "Cache" in printed
    assert "4096 bytes from" in printed


def test_names() -> None:
    assert potad.__all__ == sorted(potad.__all__)
    assert all(hasattr(potad, name) for name in potad.__all__)
    assert potad.__version__.count(".") == 2
    assert len(METHODS) > 15
