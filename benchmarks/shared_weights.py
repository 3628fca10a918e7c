"""Can processes share a VGG-16's weights? The ways that ONNX Runtime and OpenVINO offer, on its three full layers (88% of its
weights): what two processes take together (PSS), and how long one image and eight take.

Each way runs in two fresh processes that have answered. PSS counts a page that both map by half in each. "Sealed" is memory
that nobody can write to any more, which is how vggdeploy hands files over (`vggdeploy/system/sealed.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from measuring import write_result

from vggdeploy.system.sealed import HashedFile

MIB = 2**20
SIZES = (25088, 4096, 4096, 1000)
BATCHES, CALLS = (1, 8), 15
WAYS = (
    "one file",
    "external file",
    "external file, not prepacked",
    "mapped by us, not prepacked",
    "sealed file, not prepacked",
    "sealed buffer, not prepacked",
    "openvino",
    "openvino, mapped",
)


def write(home: Path) -> None:
    """The same layers: as one file, and with their weights in a file beside it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for number, (rows, columns) in enumerate(pairwise(SIZES)):
        weights.append(
            numpy_helper.from_array(random.standard_normal((columns, rows), np.float32) * 0.01, f"w{number}")
        )
        nodes.append(helper.make_node("Gemm", [last, f"w{number}"], [f"y{number}"], transB=1))
        last = f"y{number}"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "full",
        [value("x", TensorProto.FLOAT, [None, SIZES[0]])],
        [value(last, TensorProto.FLOAT, [None, SIZES[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, home / "one.onnx")
    onnx.save(model, home / "two.onnx", save_as_external_data=True, location="two.bin", size_threshold=0)


def opened(way: str, home: Path) -> Any:
    """A function that answers one input."""
    if way.startswith("openvino"):
        import openvino as ov

        core = ov.Core()
        settings = (
            {"INFERENCE_NUM_THREADS": 1, "CACHE_DIR": str(home / "cache")}
            if "mapped" in way
            else {"INFERENCE_NUM_THREADS": 1}
        )
        settings["INFERENCE_PRECISION_HINT"] = "f32"
        core.set_property({"ENABLE_MMAP": "mapped" in way})
        if not (home / "one.xml").exists():
            ov.save_model(core.read_model(home / "one.onnx"), home / "one.xml", compress_to_fp16=False)
        model = core.compile_model(core.read_model(home / "one.xml"), "CPU", settings)
        return lambda x: model({"x": x})
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if "not prepacked" in way:
        options.add_session_config_entry("session.disable_prepacking", "1")
    name = "one.onnx" if way == "one file" else "two.onnx"
    if way.startswith("mapped by us"):
        offsets = json.loads((home / "offsets.json").read_text())
        kept = {
            n: np.memmap(home / "two.bin", np.float32, "r", offset=offset, shape=tuple(shape))
            for n, (offset, shape) in offsets.items()
        }
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in kept.values()]
        options.add_external_initializers(list(kept), values)
    if not way.startswith("sealed"):
        session = ort.InferenceSession(home / name, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"x": x})
    with HashedFile.of(home / "two.bin").open() as weights:
        by_buffer = "buffer" in way
        graph = located(home / name, "two.bin" if by_buffer else str(weights.fd))
        if by_buffer:
            data = np.frombuffer(weights.map(), np.uint8)
            options.add_external_initializers_from_files_in_memory(["two.bin"], [data], [data.nbytes])
        else:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/proc/self/fd")
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})


def located(path: Path, location: str) -> bytes:
    """A graph whose weights lie in another file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    return bytes(model.SerializeToString())


def child(way: str, home: Path) -> None:
    try:
        answer = opened(way, home)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        print(json.dumps({"refused": str(error).splitlines()[0]}), flush=True)
        return
    found = {}
    for batch in BATCHES:
        x = np.ones((batch, SIZES[0]), np.float32)
        answer(x)
        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            answer(x)
            times.append(time.perf_counter() - start)
        found[f"batch_{batch}_ms"] = float(np.median(times)) * 1e3
    print(json.dumps(found), flush=True)
    sys.stdin.read()


def rollup(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / MIB for line in lines}


def measure(way: str, home: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", way, str(home)]
    children = []
    for _ in range(2):  # one after the other: a cache that the first writes is there for the second
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(process)
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError(f"{way}: a process ended")
        told = json.loads(line)
        if "refused" in told:
            process.communicate("")
            return dict(told)
    found = [rollup(process.pid) for process in children]
    result = {
        **told,
        "pss_mib": [kinds["Pss"] for kinds in found],
        "private_mib": [kinds["Private_Clean"] + kinds["Private_Dirty"] for kinds in found],
    }
    for process in children:
        process.communicate("")
    return result


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        write(home)
        import onnx

        external = {
            t.name: {e.key: e.value for e in t.external_data}
            for t in onnx.load(home / "two.onnx", load_external_data=False).graph.initializer
        }
        shapes = {f"w{number}": [columns, rows] for number, (rows, columns) in enumerate(pairwise(SIZES))}
        (home / "offsets.json").write_text(
            json.dumps({n: [int(e.get("offset", 0)), shapes[n]] for n, e in external.items()})
        )
        found = {}
        for way in WAYS:
            found[way] = measure(way, home)
            print(way, found[way], flush=True)
    weights = sum(rows * columns * 4 for rows, columns in pairwise(SIZES)) / MIB
    return write_result("shared_weights", {"weights_mib": weights, "ways": found}, [])


if __name__ == "__main__":
    sys.exit(main())
