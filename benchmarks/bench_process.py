"""What a whole process costs: import, the first call from a warm cache, peak memory."""

import os
import subprocess
import sys
import tempfile
import time

import fastconv as fc
from fastconv.bench.suite import items

FIRST_CALL = """
import time, numpy, fastconv
x, w = numpy.ones((1, 16, 32, 32), numpy.float32), numpy.ones((16, 16, 3, 3), numpy.float32)
start = time.perf_counter()
fastconv.conv2d(x, w, padding=1)
print(time.perf_counter() - start)
"""


def timeraw_import() -> str:
    """Import the package in a fresh interpreter."""
    return "import fastconv"


class FirstCall:
    """Seconds of the first convolution of a process."""

    unit = "seconds"
    params = ("warm cache", "cold cache")
    param_names = ("cache",)

    def setup(self, cache: str) -> None:
        """Give the processes a cache of their own, and fill it for the warm case."""
        self.directory = tempfile.TemporaryDirectory()
        if cache == "warm cache":
            self._run()

    def teardown(self, cache: str) -> None:
        """Remove the cache."""
        self.directory.cleanup()

    def track_first_call(self, cache: str) -> float:
        """Run the call in a process."""
        return self._run()

    def _run(self) -> float:
        environment = {**os.environ, "FASTCONV_CACHE_DIR": self.directory.name}
        done = subprocess.run([sys.executable, "-c", FIRST_CALL], env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout)


def track_start_of_command() -> float:
    """Run `fastconv --version`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fastconv", "--version"], capture_output=True, check=True)
    return time.perf_counter() - start


track_start_of_command.unit = "seconds"  # type: ignore[attr-defined]


class PeakMemory:
    """Largest resident memory of a process that runs one large layer: the implicit method must not hold the image's matrix."""

    params = tuple(fc.backends())
    param_names = ("backend",)

    def setup(self, backend: str) -> None:
        """Take a large layer of VGG-16; NotImplementedError makes asv skip what the backend refuses."""
        self.item = item = next(item for item in items("vgg16") if item.name == "conv1_2")
        explained = fc.explain(item.input_shape, item.weight_shape, **item.options)
        refusal = next(candidate.refusal for candidate in explained.candidates if candidate.name == backend)
        if refusal is not None:
            raise NotImplementedError(refusal)

    def peakmem_vgg_layer(self, backend: str) -> None:
        """Convolve once."""
        x, w, bias = self.item.arrays()
        fc.conv2d(x, w, bias, backend=backend, **self.item.options)
