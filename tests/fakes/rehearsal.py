"""A pytest plugin that makes the processor the GPU of ``-m gpu``: what prepares and counts on a real one is tried before there
is one. It proves nothing about a GPU.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fakes import standin
from fakes.cudart import Cudart
from fakes.processor import Processor, compile_kernels

from vggdeploy.runtime.gpu import cuda

cudart = Cudart()
cudart.free = 64 * 2**20  # a small GPU is soon full
cuda.bindings = lambda: cudart
cuda.find_gpu = lambda device: cuda.Gpu(0, "a rehearsed GPU", "sm90", "13.0")
standin.Library.__init__.__kwdefaults__["loader"] = Processor(cudart, compile_kernels(Path(tempfile.mkdtemp())))
