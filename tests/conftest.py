"""Randomness of all tests: one seed, printed at the top of each run.

`pytest --hypothesis-seed=N` runs them again as they were. Hypothesis besides prints how to repeat
each failure it finds by itself.
"""

from __future__ import annotations

import random

import hypothesis
import pytest

hypothesis.settings.register_profile("potad", deadline=None, print_blob=True)
hypothesis.settings.load_profile("potad")

SEED_OPTION = "--hypothesis-seed"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption(SEED_OPTION) is None:
        config.option.hypothesis_seed = str(random.SystemRandom().getrandbits(32))


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {SEED_OPTION}={config.getoption(SEED_OPTION)}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Randomness of this test alone, from the run's seed and the test's name."""
    return random.Random(f"{request.config.getoption(SEED_OPTION)} {request.node.nodeid}")
