"""Settings of the whole suite: an own cache directory, no FASTCONV_ variables from outside, derandomised hypothesis."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fastconv", derandomize=True, deadline=None, database=None, print_blob=False)
settings.load_profile("fastconv")

VARIABLES = ("FASTCONV_BACKEND", "FASTCONV_NUM_THREADS", "FASTCONV_ACCURACY", "FASTCONV_TUNE")


def pytest_configure(config):
    """Kernels compiled by the suite stay between its runs, and neither read nor write the user's wisdom."""
    for name in VARIABLES:
        os.environ.pop(name, None)
    cache = getattr(config, "cache", None)  # None under `-p no:cacheprovider`
    directory = cache.mkdir("fastconv") if cache is not None else Path(tempfile.mkdtemp(prefix="fastconv"))
    os.environ["FASTCONV_CACHE_DIR"] = str(directory)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    """A test that sets a variable leaves nothing to the next."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
