"""A TorchScript archive, checked before PyTorch sees it: `torch.jit.load` runs code of the archive, which could write files.

What is admitted is what tracing a VGG gives: objects of classes with one ``forward`` each, of which calling the first one
computes the network's chain of layers. The code is not compared as text: it is followed, call by call.
"""

from __future__ import annotations

from vggdeploy.model.formats.chain import Chain, refused
from vggdeploy.model.formats.objects import read_archive
from vggdeploy.model.formats.script import Script


def check_torchscript(data: memoryview, chain: Chain, file: str) -> None:
    """
    Raises:
        ForeignModelError: the archive is no traced VGG, or not that of the chain.
    """
    root, code = read_archive(data, file)
    try:
        Script(code, chain, file).run(root)
    except RecursionError:
        raise refused(file, "its code is nested more deeply than a network is") from None
