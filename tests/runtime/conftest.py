"""An engine file, and a fake GPU to open it on; the same sessions on a real one: ``-m gpu``."""

from fakes.sessions import gpu, source

__all__ = ["gpu", "source"]
