"""The simulator's commands: `equipoise simulate`, `equipoise engine` (the stand-in as a process), `equipoise calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def engine(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: Path | None = None,
    profile: str = "fast",
    speed: float = 1.0,
    model: str = "standin",
    api_key: str | None = None,
    priority_scheduling: bool = False,
    max_num_queued_reqs: int | None = None,
    max_num_seqs: int | None = None,
    max_model_len: int | None = None,
    kv_tokens: int | None = None,
    stream_interval: int = 1,
    force_include_usage: bool = False,
    prompt_tokens_details: bool = False,
    prefix_caching: bool = False,
    dcgm_host: str = "127.0.0.1",
    dcgm_port: int | None = None,
    dcgm_pod: str = "",
    dcgm_namespace: str = "default",
    dcgm_seconds: float = 30.0,
    die_after_tokens: int | None = None,
    garbage: bool = False,
    garbage_events: bool = False,
    busy: bool = False,
    accept_delay_seconds: float = 0.0,
    close_connections: bool = False,
) -> None:
    """Serve an OpenAI-compatible engine that keeps a real vLLM's time, without a model.

    With `dcgm_port` a stand-in for dcgm-exporter listens there, with a GPU of that pod that is as busy as the engine, sampled
    every so many seconds. The options after that are faults for tests. Ends on SIGINT or SIGTERM; a bad option or an address
    that cannot be had ends with a message on one line.
    """
    import asyncio
    import dataclasses
    import signal

    import uvloop

    from equipoise_simulator.profiles import find_profile
    from equipoise_simulator.standin import DcgmPlace, Faults, Settings, StandIn

    async def serve() -> None:
        sizes = {"max_num_seqs": max_num_seqs, "max_model_len": max_model_len, "kv_tokens": kv_tokens}
        chosen: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
        stand_in = StandIn(
            profile=dataclasses.replace(find_profile(profile), **chosen),
            speed=speed,
            host=host,
            port=port,
            uds=uds,
            settings=Settings(
                model=model,
                api_key=api_key,
                force_include_usage=force_include_usage,
                prompt_tokens_details=prompt_tokens_details,
                prefix_caching=prefix_caching,
                stream_interval=stream_interval,
            ),
            priority_scheduling=priority_scheduling,
            max_num_queued_reqs=max_num_queued_reqs,
            faults=Faults(
                die_after_tokens=die_after_tokens,
                garbage=garbage,
                garbage_events=garbage_events,
                busy=busy,
                accept_delay_seconds=accept_delay_seconds,
                close_connections=close_connections,
            ),
            dcgm=None
            if dcgm_port is None
            else DcgmPlace(
                host=dcgm_host,
                port=dcgm_port,
                pod=dcgm_pod,
                namespace=dcgm_namespace,
                interval_seconds=dcgm_seconds,
            ),
        )
        stopped = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stopped.set)
        async with stand_in:
            print(f"stand-in engine, profile {profile} x {speed:g}, on {uds or stand_in.url}", flush=True)
            ended = asyncio.ensure_future(stand_in.serve_forever())
            await asyncio.wait(
                {ended, asyncio.ensure_future(stopped.wait())}, return_when=asyncio.FIRST_COMPLETED
            )
            if ended.done():
                ended.result()

    try:
        uvloop.run(serve())
    except (ValueError, OSError) as error:
        raise SystemExit(f"equipoise engine: {error}") from None


def calibrate(
    url: str = "http://127.0.0.1:8000",
    *,
    uds: Path | None = None,
    output: Path = Path("profile.json"),
    name: str | None = None,
    api_key: str | None = None,
    kv_tokens: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int = 2048,
    rounds: Annotated[int, typer.Option(min=1)] = 2,
    seconds: Annotated[float, typer.Option(min=1.0)] = 10.0,
) -> None:
    """Load an engine that has nothing else to do, and write the profile with which `equipoise simulate` predicts it.

    Each round loads it with 1, 2, 4 ... up to as many requests at a time as it runs, for so many seconds each and three
    times as long with the most: two minutes in all for 8 requests, four for 256. Calibrate through the proxy that it will be used through. Sizes that are left out are read from the engine or
    measured; --max-num-batched-tokens is vLLM's option of that name.
    """
    import asyncio
    import json

    import aiohttp

    from equipoise_simulator.calibration.calibrate import calibrate as measure
    from equipoise_simulator.calibration.probe import ProbeError

    try:
        made = asyncio.run(
            measure(
                url,
                name=name or output.stem,
                uds=str(uds) if uds else None,
                api_key=api_key,
                kv_tokens=kv_tokens,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                rounds=rounds,
                seconds=seconds,
            )
        )
        output.write_text(json.dumps(made.profile.document(), indent=1) + "\n", encoding="utf-8")
    except (ProbeError, ValueError, OSError, aiohttp.ClientError) as error:
        raise SystemExit(f"equipoise calibrate: {str(error) or type(error).__name__}") from None
    fit = made.fit
    print(f"a step takes {made.profile.formula}")
    for clients, off in fit.errors.items():
        load = f"{clients} requests at a time" if clients else "a prompt alone"
        print(
            f"{load}: median error {off.median:.1%}, bias {off.bias:+.1%} of {off.observations} observations"
        )
    if fit.disturbed:
        print(f"{fit.disturbed} observations were disturbed and left out")
    print(f"wrote {output}: equipoise simulate --profile {output} ...")


def simulate(
    *,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="CSV of requests: arrival, tenant (if any), input and output tokens; - is standard input."
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="A load that needs no file: overload, proportional, on_off_less, on_off_overload, poisson_short_long, "
            "poisson_short_long_2, increase, dist_shift, overload_weighted, mixed_slo, interactions, interactions_open, "
            "exfairs_1 to exfairs_5; or real, with --trace."
        ),
    ] = None,
    scheduler: Annotated[
        list[str] | None,
        typer.Option(
            help="FCFS, RoundRobin, RPM, LCF, DRR, VTC, FairServe, Equinox, ExFairS or Equipoise, with predictor (none, "
            "average, mixture, oracle, noisy, tokens) and parameters after colons, as RPM:limit=5 or "
            "Equipoise:noisy:band=2000; repeat it to compare. Default: Equipoise."
        ),
    ] = None,
    policy: Annotated[
        list[Path] | None, typer.Option(help="FairnessPolicy YAML; repeat it to compare.")
    ] = None,
    tenants: Annotated[
        Path | None, typer.Option(help="Folder (or file) of Tenant YAML for --policy.")
    ] = None,
    gate: Annotated[
        Literal["reserve", "prompt", "peak"] | None,
        typer.Option(
            help="What may be in flight. Default: the policy's, else peak. Profile papers has its own."
        ),
    ] = None,
    metric: Annotated[
        Literal["token", "artifact"],
        typer.Option(
            help="Service as tokens come, or spread over each answer as the VTC paper's artifact has it."
        ),
    ] = "token",
    profile: Annotated[
        str | None,
        typer.Option(
            help="The engine: papers, fast, slow, large, or a JSON file of `equipoise calibrate`. Default: the suite's, "
            "else fast."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of generated loads, --split and the noisy predictor.")] = 0,
    split: Annotated[
        int | None,
        typer.Option(help="Deal a trace without tenants to so many, by Zipf's law.", min=1, max=100_000),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Only what arrives in the first so many seconds.")
    ] = None,
    load: Annotated[
        float | None, typer.Option(help="Of suite mixed_slo; 1.3 by default.", min=0.01, max=100)
    ] = None,
    arrival_column: Annotated[
        str | None,
        typer.Option(help="Seconds, or a time stamp. Default: arrival_s, TIMESTAMP, timestamp or arrival."),
    ] = None,
    tenant_column: Annotated[
        str | None, typer.Option(help="Who sends. Default: client or tenant, where there is one.")
    ] = None,
    input_column: Annotated[
        str | None, typer.Option(help="Prompt tokens. Default: input_tokens or ContextTokens.")
    ] = None,
    output_column: Annotated[
        str | None, typer.Option(help="Generated tokens. Default: output_tokens or GeneratedTokens.")
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["table", "json", "html"],
        typer.Option(help="Table for people, JSON for programs, HTML with plots."),
    ] = "table",
    output: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
) -> None:
    """Replay a load against schedulers, and say what each tenant would have got.

    The schedulers, gate and predictors are the sidecar's own; the engine is a model of vLLM's continuous batching.

    equipoise simulate --suite mixed_slo --scheduler FCFS --scheduler Equipoise

    equipoise simulate --trace requests.csv --policy policy.yaml --tenants tenants/
    """
    from equipoise_simulator import command
    from equipoise_simulator.traces import Columns

    try:
        if output is not None:
            command.check_output(output, [each for each in (trace, tenants, *(policy or ())) if each])
        workload = command.workload_of(
            trace=trace,
            columns=Columns(
                arrival=arrival_column, tenant=tenant_column, input=input_column, output=output_column
            ),
            suite_name=suite,
            split=split,
            load=load,
            seconds=seconds,
            seed=seed,
        )
        contenders = command.contenders_of(scheduler or (), policy or (), tenants)
        for contender in contenders:
            if note := command.strangers(workload, contender):
                typer.echo(note, err=True)
        if note := command.idle_gate(workload, gate, profile):
            typer.echo(note, err=True)
        report = command.run(
            workload,
            contenders,
            gate=gate,
            profile=profile,
            metric=metric,
            seed=seed,
            format_=format,
        )
        command.deliver(report, output)
    except (ValueError, OSError) as error:
        raise SystemExit(f"equipoise simulate: {error}") from None
