"""The methods of the Open Inference Protocol and of Triton's extensions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc

from vggdeploy._version import __version__
from vggdeploy.protocol.messages import METHODS, SERVICE, message
from vggdeploy.serve.grpc.calls import Call, Calls, Code, Refused
from vggdeploy.serve.grpc.tensors import read_request, write_answer
from vggdeploy.serve.model import UNAVAILABLE
from vggdeploy.serve.models import Models
from vggdeploy.serve.protocol import EXTENSIONS, OFF_THE_LOOP, VERSION, about_model, configuration, statistics_of
from vggdeploy.serve.tensors import check_outputs

_SHARED_MEMORY = [
    f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister")
]
_QUIET = {"ServerLive", "ServerReady"}


class Service:
    """What answers; its methods have the names of the protocol's, and each gives the message that the method returns."""

    def __init__(self, models: Models, calls: Calls) -> None:
        self._models = models
        self._calls = calls

    def handlers(self) -> list[Any]:
        """For ``add_generic_rpc_handlers``."""
        table = {}
        for name, method in METHODS.items():
            write = message(method.output_type.name).SerializeToString
            if name == "ModelInfer":  # its message is read when there is room for it
                table[name] = grpc.stream_unary_rpc_method_handler(self._reading(name, self.ModelInfer), None, write)
            elif name == "ModelStreamInfer":
                table[name] = grpc.stream_stream_rpc_method_handler(self._stream, None, write)
            else:
                read = message(method.input_type.name).FromString
                table[name] = grpc.unary_unary_rpc_method_handler(self._unary(name, getattr(self, name)), read, write)
        for name in _SHARED_MEMORY:
            table[name] = grpc.unary_unary_rpc_method_handler(self._unary(name, self._no_shared_memory))
        return [grpc.method_handlers_generic_handler(SERVICE, table)]

    def _unary(self, name: str, answer: Callable[[Any], Awaitable[Any]]) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            return await Call(self._calls, name, context, quiet=name in _QUIET).run(lambda _: answer(request))

        return handle

    def _reading(self, name: str, answer: Callable[[Call], Awaitable[Any]]) -> Any:
        async def handle(requests: Any, context: Any) -> Any:
            return await Call(self._calls, name, context).run(answer)

        return handle

    async def ServerLive(self, request: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def ServerReady(self, request: Any) -> Any:
        return message("ServerReadyResponse")(ready=self._models.ready)

    async def ModelReady(self, request: Any) -> Any:
        self._check_name(request.name, request.version)
        # One that waits for a request to open it is ready: else nobody would send it one.
        now = self._models.ready and self._models.find(request.name).state != UNAVAILABLE
        return message("ModelReadyResponse")(ready=now)

    async def ServerMetadata(self, request: Any) -> Any:
        return message("ServerMetadataResponse")(name="vggdeploy", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: Any) -> Any:
        self._check_name(request.name, request.version)
        async with self._models.use(request.name) as here:
            return message("ModelMetadataResponse")(**about_model(here))

    async def ModelConfig(self, request: Any) -> Any:
        self._check_name(request.name, request.version)
        async with self._models.use(request.name) as here:
            return message("ModelConfigResponse")(config=configuration(here))

    async def ModelInfer(self, call: Call) -> Any:
        if len(tuple(self._models)) == 1:  # else it is not known which before the message is read
            self._models.refuse_early()
        return await self._infer(call, await call.receive())

    async def _infer(self, call: Call, body: bytes) -> Any:
        read = asyncio.to_thread(read_request, body) if len(body) > OFF_THE_LOOP else None
        sent, asked, tensors = read_request(body) if read is None else await read
        self._check_name(sent.model_name, sent.model_version)
        async with self._models.use(sent.model_name) as here:
            check_outputs(asked, here.engine.bundle.manifest)
            answer = await here.batching.answer_arrays(tensors)
            here.answered(tensors, answer, call.trace)
            check_outputs(asked, answer.manifest)  # a reload may have come between
            return write_answer(sent, asked, answer, here.model)

    async def _stream(self, requests: Any, context: Any) -> None:
        """One answer after the other. What cannot be answered is told in its answer, and the stream goes on."""
        if self._calls.streams >= self._calls.most:

            async def refuse(call: Call) -> NoReturn:
                raise Refused(
                    Code.RESOURCE_EXHAUSTED, "too many streams are open already", "end one, or use ModelInfer"
                )

            await Call(self._calls, "ModelStreamInfer", context).run(refuse)
        self._calls.streams += 1
        try:
            await self._answer_stream(context)
        finally:
            self._calls.streams -= 1

    async def _answer_stream(self, context: Any) -> None:
        response = message("ModelStreamInferResponse")
        while True:
            body = await context.read()  # however long the caller thinks
            if body is grpc.aio.EOF:
                return
            call = Call(self._calls, "ModelStreamInfer", context)

            async def answer(call: Call, body: bytes = body) -> Any:
                call.take(body)
                reply = await self._infer(call, body)
                reply.parameters["triton_final_response"].bool_param = True
                return response(infer_response=reply)

            await context.write(await call.run(answer, failed=lambda text: response(error_message=text)))

    async def ModelStatistics(self, request: Any) -> Any:
        if request.name:
            self._check_name(request.name, request.version)
        reply = message("ModelStatisticsResponse")
        return reply(model_stats=[statistics_of(m) for m in self._models if request.name in ("", m.name)])

    async def RepositoryIndex(self, request: Any) -> Any:
        found = [{"name": m.name, "version": VERSION, "state": m.state, "reason": m.why} for m in self._models]
        if not self._models.ready:
            found = [{**model, "state": UNAVAILABLE, "reason": "draining"} for model in found]
        if request.ready:
            found = [model for model in found if model["state"] == "READY"]
        return message("RepositoryIndexResponse")(models=found)

    async def RepositoryModelLoad(self, request: Any) -> Any:
        self._check_control(request)
        await self._models.load(request.model_name)
        return message("RepositoryModelLoadResponse")()

    async def RepositoryModelUnload(self, request: Any) -> Any:
        self._check_control(request)
        await self._models.unload(request.model_name)
        return message("RepositoryModelUnloadResponse")()

    async def TraceSetting(self, request: Any) -> Any:
        if request.model_name:
            self._check_name(request.model_name, "")
        level = "TIMESTAMPS" if self._calls.tracing is not None else "OFF"
        now = {"trace_level": level, "trace_mode": "opentelemetry", "trace_rate": "1", "trace_count": "-1"}
        for name, setting in request.settings.items():
            # An empty one asks for the default, which is what it is.
            if name not in now or (list(setting.value) and list(setting.value) != [now[name]]):
                raise _fixed(f"the trace setting '{name[:40]}'", "--otlp, and OpenTelemetry's variables")
        reply = message("TraceSettingResponse")()
        for name, value in now.items():
            reply.settings[name].value.append(value)
        return reply

    async def LogSettings(self, request: Any) -> Any:
        now: dict[str, Any] = {
            "log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0,
            "log_format": "default",
        }  # fmt: skip
        for name, setting in request.settings.items():
            field = setting.WhichOneof("parameter_choice")
            if name not in now or field is None or getattr(setting, field) != now[name]:
                raise _fixed(f"the log setting '{name[:40]}'", "it is JSON lines on stderr, from info upwards")
        reply = message("LogSettingsResponse")()
        for name, value in now.items():
            kind = (
                "bool_param"
                if isinstance(value, bool)
                else "uint32_param"
                if isinstance(value, int)
                else "string_param"
            )
            setattr(reply.settings[name], kind, value)
        return reply

    async def _no_shared_memory(self, request: Any) -> NoReturn:
        raise Refused(Code.UNIMPLEMENTED, "shared memory is not served", "send the tensor's bytes")

    def _check_name(self, model: str, version: str) -> None:
        """Raises Refused: no such model or version."""
        names = [each.name for each in self._models]
        if model not in names:
            raise Refused(
                Code.NOT_FOUND, f"no model '{model[:80]}' here", "this server has " + ", ".join(f"'{n}'" for n in names)
            )
        if version not in ("", VERSION):
            raise Refused(
                Code.NOT_FOUND, f"no version '{version[:20]}' of it", f"leave the version out, or give {VERSION}"
            )

    def _check_control(self, request: Any) -> None:
        """Raises Refused: clients may not, or not this."""
        if not self._calls.settings.model_control:
            raise Refused(
                Code.PERMISSION_DENIED,
                "clients load and unload no models here",
                "start the server with --model-control",
            )
        if set(request.parameters) - {"unload_dependents"}:
            raise Refused(
                Code.INVALID_ARGUMENT, "a model comes from its place, with its own configuration", "send no parameters"
            )
        self._check_name(request.model_name, "")


def _fixed(what: str, where: str) -> Refused:
    return Refused(Code.INVALID_ARGUMENT, f"{what} is set when the server starts", f"see {where}")
