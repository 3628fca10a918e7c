"""``vggdeploy serve``: a bundle over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import DeviceName, Modes, Threads, check_modes

MODES: Modes = {
    **dict.fromkeys(("--set", "--memory", "--watch", "--shadow", "--drift", "--grpc-port"), ("without --ray",)),
    **dict.fromkeys(("--min-workers", "--queue-time"), ("--ray",)),
    **dict.fromkeys(("--sample", "--max-flips"), ("--shadow",)),
    "--model-control": ("--grpc-port",),
}


def serve(
    context: typer.Context,
    bundle: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE", help="A bundle, or several: paths, NAME=PATH, or a directory with bundles in it."
        ),
    ],
    backend: Annotated[str, typer.Option(help="A backend's name, or auto.")] = "auto",
    variant: Annotated[str | None, typer.Option(help="Exactly this variant.")] = None,
    device: DeviceName = None,
    threads: Threads = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. 0.0.0.0: every one, reachable from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    workers: Annotated[
        int, typer.Option(help="Processes, each with an engine of its own; one that dies is replaced.")
    ] = 1,
    max_batch: Annotated[
        int | None, typer.Option(help="Images computed together at most. Default: 32, or the variant's.")
    ] = None,
    max_delay_ms: Annotated[float, typer.Option(help="How long a batch waits for more images at most.")] = 2.0,
    queue: Annotated[int, typer.Option(help="Requests that wait at most; one more is answered 503.")] = 256,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time limit of a request, from start to end.")
    ] = 30.0,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Of a request.")] = "16MiB",
    max_pixels: Annotated[int, typer.Option(help="An image with more is refused before it is decoded.")] = 25_000_000,
    isolate: Annotated[
        bool,
        typer.Option("--isolate", help="Decode images in processes that can do nothing else: for anybody's uploads."),
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the bearer token that requests must have. Default: $VGGDEPLOY_TOKEN, or none."),
    ] = None,
    trusted_key: Annotated[
        list[Path] | None, typer.Option(help="Public key (PEM) that must have signed the bundle; may be repeated.")
    ] = None,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", help="After SIGTERM: how long to say 'not ready' and still answer.")
    ] = 1.0,
    grpc_port: Annotated[
        int | None,
        typer.Option(help="Also over gRPC, on this port (Triton's is 8001; 0: a free one). Default: HTTP only."),
    ] = None,
    model_control: Annotated[
        bool, typer.Option("--model-control", help="Let gRPC clients load and unload models.")
    ] = False,
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send OpenTelemetry traces and metrics to this collector, as http://HOST:4318. Default: none.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What all open models take together; the longest unused makes room."),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME.SETTING=VALUE", help="For one model of several: digits.queue=64."),
    ] = None,
    watch: Annotated[
        float, typer.Option(metavar="SECONDS", help="How often to look for new versions. 0: only at SIGHUP.")
    ] = 0.0,
    shadow: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE", help="Ask this one, too, off the callers' path, and tell when it may take over."
        ),
    ] = None,
    sample: Annotated[str, typer.Option(metavar="PERCENT", help="Of the requests, for the shadow.")] = "5%",
    max_flips: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", help="Classes that the shadow may change. Default: its manifest's limit."),
    ] = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Watch whether requests become others than the bundle's test images.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="As a Ray Serve deployment, on local, auto or HOST:PORT: --workers replicas at most, as the load needs.",
        ),
    ] = None,
    min_workers: Annotated[int, typer.Option(help="With --ray: replicas at least.")] = 1,
    queue_time: Annotated[
        float,
        typer.Option(
            metavar="MS", help="With --ray: another replica is started where requests wait longer for their batch."
        ),
    ] = 100.0,
) -> int:
    """Serve bundles over HTTP: the Open Inference Protocol v2, /classify, /embed, /metrics, and a page."""
    from vggdeploy.build.options import parse_size
    from vggdeploy.cli import render
    from vggdeploy.engine.engine import Engine
    from vggdeploy.errors import UsageError
    from vggdeploy.system.optional import require

    check_modes(context, MODES)
    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        require(module, to="serve over HTTP", extra="serve")
    if grpc_port is not None:
        for module in ("grpc", "grpc_health.v1", "grpc_reflection.v1alpha"):
            require(module, to="serve over gRPC", extra="grpc")
    if otlp is not None:
        for module in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
            require(module, to="send traces", extra="tracing")
    from vggdeploy.serve.catalogue import places
    from vggdeploy.serve.server import serve as run
    from vggdeploy.serve.settings import Settings

    settings = Settings(
        bundle=bundle[0],
        also=tuple(bundle[1:]),
        backend=backend,
        variant=variant,
        device=device,
        threads=threads,
        host=host,
        port=port,
        workers=workers,
        min_workers=min_workers,
        queue_time_ms=queue_time,
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        queue=queue,
        timeout=timeout,
        max_body=parse_size(max_body),
        max_pixels=max_pixels,
        isolate=isolate,
        token_file=str(token_file) if token_file else None,
        trusted_keys=tuple(map(str, trusted_key or ())),
        drain=drain,
        otlp=otlp,
        grpc_port=grpc_port,
        model_control=model_control,
        memory=parse_size(memory) if memory else None,
        own=tuple(own or ()),
        watch=watch,
        shadow=str(shadow) if shadow else None,
        sample=_share(sample),
        drift=drift,
        max_flips=None if max_flips is None else max_flips / 100,
    )

    if ray is not None:
        if len(places(settings)) > 1:
            raise UsageError("--ray serves one bundle", "start one command for each")
        from vggdeploy.serve.on_ray import serve_on_ray

        return serve_on_ray(settings, ray, on_start=lambda url: render.notice(f"serving on Ray at {url}"))

    def started(url: str, engine: Engine) -> None:
        first, *others = [place.name for place in places(settings)]
        name = render.escape(first or engine.bundle.manifest.name)
        render.notice(f"serving {name} ({engine.variant.name} on {engine.device}) at {url}")
        if others:
            render.notice(f"and {render.escape(', '.join(others))}: ?model=NAME, /v2/models/NAME")
        if not settings.on_loopback and settings.token() is None:
            render.notice(
                "[yellow]anybody who reaches this address may use it[/]: set $VGGDEPLOY_TOKEN or --token-file"
            )

    return run(settings, on_start=started)


def _share(text: str) -> float:
    """``"5%"`` → 0.05.

    Raises:
        UsageError: no percentage above 0, up to 100.
    """
    from vggdeploy.errors import UsageError

    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise UsageError(f"--sample is {text}", "give a percentage of the requests, for example 5%")
    return percent / 100
