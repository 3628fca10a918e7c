"""``vggdeploy serve``: a bundle over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggdeploy.cli.options import BundlePath, DeviceName, Threads


def serve(
    bundle: BundlePath,
    backend: Annotated[str, typer.Option(help="A backend's name, or auto.")] = "auto",
    variant: Annotated[str | None, typer.Option(help="Exactly this variant.")] = None,
    device: DeviceName = None,
    threads: Threads = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. 0.0.0.0: every one, reachable from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.")] = 8000,
    workers: Annotated[
        int, typer.Option(help="Processes, each with an engine of its own; one that dies is replaced.")
    ] = 1,
    max_batch: Annotated[
        int | None, typer.Option(help="Images computed together at most. Default: 32, or the variant's.")
    ] = None,
    max_delay_ms: Annotated[float, typer.Option(help="How long a batch waits for more images at most.")] = 2.0,
    queue: Annotated[int, typer.Option(help="Requests that wait at most; one more is answered 503.")] = 256,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For a request, from start to end.")] = 30.0,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Of a request.")] = "16MiB",
    max_pixels: Annotated[int, typer.Option(help="An image with more is refused before it is decoded.")] = 25_000_000,
    isolate: Annotated[
        bool,
        typer.Option("--isolate", help="Decode images in processes that can do nothing else: for anybody's uploads."),
    ] = False,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token to ask for. Default: $VGGDEPLOY_TOKEN, or none.")
    ] = None,
    trusted_key: Annotated[
        list[Path] | None, typer.Option(help="Public key (PEM) that must have signed the bundle; may be repeated.")
    ] = None,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", help="After SIGTERM: how long to say 'not ready' and still answer.")
    ] = 1.0,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="As a Ray Serve deployment, on local, auto or HOST:PORT: --workers replicas at most, as the load needs.",
        ),
    ] = None,
) -> int:
    """Serve a bundle over HTTP: the Open Inference Protocol v2, /classify, /embed, /metrics, and a page."""
    from vggdeploy.build.options import parse_size
    from vggdeploy.cli import render
    from vggdeploy.engine.engine import Engine
    from vggdeploy.system.optional import require

    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        require(module, to="serve over HTTP", extra="serve")
    from vggdeploy.serve.server import serve as run
    from vggdeploy.serve.settings import Settings

    settings = Settings(
        bundle=str(bundle),
        backend=backend,
        variant=variant,
        device=device,
        threads=threads,
        host=host,
        port=port,
        workers=workers,
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
    )

    if ray is not None:
        from vggdeploy.serve.on_ray import serve_on_ray

        return serve_on_ray(settings, ray, on_start=lambda url: render.note(f"serving on Ray at {url}"))

    def started(url: str, engine: Engine) -> None:
        render.note(
            f"serving {render.escape(engine.bundle.manifest.name)} ({engine.variant.name} on {engine.device}) at {url}"
        )
        if not settings.on_loopback and settings.token() is None:
            render.note("[yellow]anybody who reaches this address may use it[/]: set $VGGDEPLOY_TOKEN or --token-file")

    return run(settings, on_start=started)
