"""A connection to a server of the Open Inference Protocol, over HTTP or gRPC. Each belongs to one thread."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import numpy as np

from vggdeploy._version import __version__
from vggdeploy.bench.remote.target import DTYPES, Array, ServedModel, Target, described
from vggdeploy.errors import UsageError, VggdeployError, counted, first_line, one_line

_HEAD = "Inference-Header-Content-Length"
_MAX_ANSWER = 2**30
_DAMAGED = "the answer is not of the Open Inference Protocol v2"


class Client(Protocol):
    """``prepare`` makes a request of images once; ``infer`` sends it, and returns when the last byte of the answer is here."""

    def model(self) -> ServedModel: ...
    def models(self) -> list[str]: ...
    def statistics(self) -> dict[str, Any] | None: ...
    def prepare(self, about: ServedModel, images: Array) -> Any: ...
    def infer(self, request: Any) -> Any: ...
    def outputs(self, answer: Any) -> dict[str, Array]: ...
    def close(self) -> None: ...


def connect(target: Target) -> Client:
    """A connection; nothing is sent before the first question."""
    return GrpcClient(target) if target.grpc else HttpClient(target)


class HttpClient:
    """HTTP/1.1 on one connection that is kept."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection: http.client.HTTPConnection
        if target.tls:
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(
                target.host, target.port, timeout=target.timeout, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(target.host, target.port, timeout=target.timeout)
        self._headers = {"User-Agent": f"vggdeploy-bench/{__version__}"}
        if target.token:
            self._headers["Authorization"] = f"Bearer {target.token}"

    @property
    def _path(self) -> str:
        return f"{self._target.path}/v2/models/{quote(self._target.model, safe='')}"

    def model(self) -> ServedModel:
        return described(self._json("GET", self._path), self._json("GET", f"{self._target.path}/v2"))

    def models(self) -> list[str]:
        """The names of what is served.

        Raises:
            VggdeployError: the server has no index.
        """
        return names_in(self._json("POST", f"{self._target.path}/v2/repository/index"))

    def statistics(self) -> dict[str, Any] | None:
        with suppress(VggdeployError):  # an extension of the protocol: not every server has it
            return first_statistics(self._json("GET", f"{self._path}/stats"))
        return None

    def prepare(self, about: ServedModel, images: Array) -> tuple[bytes, dict[str, str]]:
        tensor: dict[str, Any] = {
            "name": about.input.name,
            "shape": list(images.shape),
            "datatype": about.input.datatype,
        }
        if not about.binary:
            tensor["data"] = images.ravel().tolist()
            return msgspec.json.encode({"inputs": [tensor]}), {"Content-Type": "application/json"}
        blob = np.ascontiguousarray(images).tobytes()
        tensor["parameters"] = {"binary_data_size": len(blob)}
        head = msgspec.json.encode({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        return head + blob, {"Content-Type": "application/octet-stream", _HEAD: str(len(head))}

    def infer(self, request: tuple[bytes, dict[str, str]]) -> tuple[bytes, str | None]:
        body, headers = request
        data, found = self._ask("POST", f"{self._path}/infer", body, headers)
        return data, found.getheader(_HEAD)

    def outputs(self, answer: tuple[bytes, str | None]) -> dict[str, Array]:
        data, length = answer
        try:
            head = len(data) if length is None else int(length)
            rest = memoryview(data)[head:]
            found: dict[str, Array] = {}
            for entry in msgspec.json.decode(data[:head])["outputs"]:
                dtype = np.dtype(DTYPES[entry["datatype"]]).newbyteorder("<")
                size = entry.get("parameters", {}).get("binary_data_size")
                values = np.asarray(entry["data"], dtype) if size is None else np.frombuffer(rest[:size], dtype)
                rest = rest[size or 0 :]
                found[str(entry["name"])] = values.reshape(entry["shape"])
        except (
            *(msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError),
            *(OverflowError, RecursionError),
        ) as error:
            raise VggdeployError(_DAMAGED, first_line(error)) from error
        return found

    def close(self) -> None:
        self._connection.close()

    def _json(self, method: str, path: str) -> Any:
        data, _ = self._ask(method, path, b"{}" if method == "POST" else None, {"Content-Type": "application/json"})
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise VggdeployError(
                f"{self._target.url}{path} answers no JSON", "give the URL of an inference server"
            ) from error

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[bytes, http.client.HTTPResponse]:
        fresh = self._connection.sock is None
        try:
            return self._once(method, path, body, headers)
        except (http.client.RemoteDisconnected, ConnectionError, BrokenPipeError):
            self.close()
            if fresh:
                raise
            return self._once(method, path, body, headers)  # a server may close a connection that rests
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def _once(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[bytes, http.client.HTTPResponse]:
        self._connection.request(method, path, body, {**self._headers, **headers})
        answer = self._connection.getresponse()
        data = answer.read(_MAX_ANSWER)
        if answer.status != 200:
            told = one_line(data[:300].decode(errors="replace"))
            raise VggdeployError(f"HTTP {answer.status}: {told}", "see the server's log")
        return data, answer


class GrpcClient:
    """One channel of its own, so that many clients are many connections."""

    def __init__(self, target: Target) -> None:
        import grpc

        from vggdeploy.protocol.messages import SERVICE

        self._target = target
        self._grpc = grpc
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        ]
        host = f"[{target.host}]" if ":" in target.host else target.host
        place = f"{host}:{target.port}"
        self._channel = (
            grpc.secure_channel(place, grpc.ssl_channel_credentials(), options)
            if target.tls
            else grpc.insecure_channel(place, options)
        )
        self._metadata = (("authorization", f"Bearer {target.token}"),) if target.token else ()
        self._infer = self._channel.unary_unary(f"/{SERVICE}/ModelInfer")
        self._service = SERVICE

    def model(self) -> ServedModel:
        from google.protobuf.json_format import MessageToDict

        found = self._call("ModelMetadata", name=self._target.model)
        server = MessageToDict(self._call("ServerMetadata"), preserving_proto_field_name=True)
        answer = {
            "name": found.name,
            "platform": found.platform,
            "inputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in found.inputs],
            "outputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in found.outputs],
        }
        return described(answer, server)

    def models(self) -> list[str]:
        return [model.name for model in self._call("RepositoryIndex").models]

    def statistics(self) -> dict[str, Any] | None:
        from google.protobuf.json_format import MessageToDict

        with suppress(VggdeployError):  # as over HTTP
            found = self._call("ModelStatistics", name=self._target.model)
            return first_statistics(
                MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            )
        return None

    def prepare(self, about: ServedModel, images: Array) -> bytes:
        from vggdeploy.protocol.messages import message

        request = message("ModelInferRequest")(model_name=about.name)
        request.inputs.add(name=about.input.name, datatype=about.input.datatype, shape=images.shape)
        request.raw_input_contents.append(np.ascontiguousarray(images).tobytes())
        data: bytes = request.SerializeToString()
        return data

    def infer(self, request: bytes) -> bytes:
        try:
            answer: bytes = self._infer(request, timeout=self._target.timeout, metadata=self._metadata)
        except self._grpc.RpcError as error:
            raise _refused(error) from error
        return answer

    def outputs(self, answer: bytes) -> dict[str, Array]:
        from vggdeploy.protocol.messages import message

        try:
            told = message("ModelInferResponse").FromString(answer)
            if len(told.raw_output_contents) != len(told.outputs):
                raise VggdeployError("the server answers with values that are not raw", "ask it over HTTP")
            return {
                tensor.name: np.frombuffer(raw, np.dtype(DTYPES[tensor.datatype]).newbyteorder("<")).reshape(
                    tensor.shape
                )
                for tensor, raw in zip(told.outputs, told.raw_output_contents, strict=True)
            }
        except VggdeployError:
            raise
        except Exception as error:  # protobuf's own DecodeError depends on its implementation
            raise VggdeployError(_DAMAGED, first_line(error)) from error

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, /, **fields: Any) -> Any:
        from vggdeploy.protocol.messages import METHODS, message

        about = METHODS[method]
        ask = self._channel.unary_unary(
            f"/{self._service}/{method}",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=message(about.output_type.name).FromString,
        )
        try:
            return ask(message(about.input_type.name)(**fields), timeout=self._target.timeout, metadata=self._metadata)
        except self._grpc.RpcError as error:
            raise _refused(error) from error


def _refused(error: Any) -> VggdeployError:
    return VggdeployError(f"gRPC {error.code().name}: {one_line(error.details() or '')[:300]}", "see the server's log")


def names_in(index: Any) -> list[str]:
    """Of a repository index."""
    if not isinstance(index, list) or not all(isinstance(entry, dict) and "name" in entry for entry in index):
        raise VggdeployError("the server's index is not of the protocol", "name the model: --model NAME")
    return [str(entry["name"]) for entry in index]


def first_statistics(answer: Any) -> dict[str, Any] | None:
    """Of the one model that was asked for; None for what is not of the extension."""
    try:
        found = answer["model_stats"][0]
    except (KeyError, TypeError, IndexError):
        return None
    return found if isinstance(found, dict) else None


def chosen_model(client: Client, wanted: str) -> str:
    """The model to ask: the named one, or the only one.

    Raises:
        UsageError: several, and none is named; or the named one is not there.
        VggdeployError: nobody answers, or the server does not say what it has.
    """
    if wanted:
        return wanted
    names: Sequence[str] = client.models()
    if len(names) != 1:
        raise UsageError(
            f"the server has {counted(len(names), 'model')}: {one_line(', '.join(names[:20]))}",
            "name one: --model NAME",
        )
    return names[0]
