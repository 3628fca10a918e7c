"""The weights of an engine that was built without them: those of the bundle's own ONNX, given to the library at load.

Unproven: no engine was refitted on a GPU yet. The calls are those of TensorRT's Python bindings 10.3 to 11.4 and of TensorRT
for RTX 1.7; the golden pair decides whether what came of them is right.
"""

from __future__ import annotations

from typing import Any

from vggdeploy.errors import IncompatibleError
from vggdeploy.runtime.tensorrt.api import Log, in_words, title
from vggdeploy.system.sealed import SealedFile

_NAMED = 3  # weights that an error lists


def refit(library: Any, engine: Any, logger: Any, log: Log, onnx: SealedFile) -> None:
    """Give an engine the weights of an ONNX file. The file's bytes were hashed, and its graph looked at.

    Raises:
        IncompatibleError: the engine cannot take them, or takes others than the file has: it is of another network.
    """
    name = onnx.name
    if not engine.refittable:
        raise _refused(library, name, "the engine was not built to be given weights")
    log.begin()
    refitter = library.Refitter(engine, logger)
    parser_refitter = library.OnnxParserRefitter(refitter, logger)
    data = onnx.map()  # the refitter may read from it until it is done
    if not parser_refitter.refit_from_bytes(data) or parser_refitter.num_errors:
        told = (
            in_words(parser_refitter.get_error(parser_refitter.num_errors - 1).desc())
            if parser_refitter.num_errors
            else log.cause()
        )
        raise _refused(library, name, told)
    missing = list(refitter.get_missing_weights())
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise _refused(library, name, f"the engine also needs {', '.join(missing[:_NAMED])}{more}")
    if not refitter.refit_cuda_engine():
        raise _refused(library, name, log.cause())


def _refused(library: Any, name: str, why: str) -> IncompatibleError:
    return IncompatibleError(
        f"{title(library)} cannot give the engine the weights of {name}: {why}",
        "build the engine from this bundle's ONNX: vggdeploy build BUNDLE --strip identical",
    )
