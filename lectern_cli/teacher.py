"""`lectern teacher`: serve one, and ask one how it is.

`serve` has the options of `python -m teacher_server`, and nothing of its own: this process becomes
the server, and signals, logs and exit status are the server's.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lectern_cli import console
from lectern_cli.options import Json, command_group, given
from lectern_common.threads import waiting_environment

if TYPE_CHECKING:
    from lectern_common.client_tls import ClientTls

app = command_group("Serve a teacher model to student trainers.")


@app.command(
    epilog="Example: lectern teacher serve --model Qwen/Qwen2.5-Coder-7B-Instruct "
    "--bind 0.0.0.0:50051 --token-file teacher.token"
)
def serve(
    model: Annotated[
        str | None,
        typer.Option(help="A model folder, a .gguf file, or a hub id.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            help="Hub commit, tag or branch; which commit it is, is shown.", show_default=False
        ),
    ] = None,
    gguf_file: Annotated[
        str | None,
        typer.Option(help="GGUF file in the folder, or in the hub's model.", show_default=False),
    ] = None,
    engine: Annotated[
        Literal["transformers", "fixture"], typer.Option(help="What computes the answers.")
    ] = "transformers",
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Of the fixture engine.", show_default=False)
    ] = None,
    bind: Annotated[
        str, typer.Option(help="HOST:PORT; port 0 takes a free one.")
    ] = "127.0.0.1:50051",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="What the model computes in."),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, cuda, cuda:1, or balanced: layer by layer over all GPUs; auto takes a "
            "GPU where there is one."
        ),
    ] = "auto",
    quantization: Annotated[
        Literal["none", "int8", "int4"],
        typer.Option(help="Of the body's weights, by bitsandbytes."),
    ] = "none",
    attention: Annotated[
        Literal["auto", "sdpa", "eager", "flash_attention_2"],
        typer.Option(help="What computes attention; auto is transformers' choice."),
    ] = "auto",
    compile_body: Annotated[
        bool, typer.Option("--compile", help="torch.compile the body; in --mode throughput.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads of the model [default: torch's choice].", show_default=False
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the bearer token that clients must send; beyond loopback, this or "
            "--tls-client-ca is required.",
            show_default=False,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="The server's certificate (PEM); with --tls-key.", show_default=False),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its private key (PEM).", show_default=False)
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            help="Take only clients with a certificate of this CA (PEM).", show_default=False
        ),
    ] = None,
    metrics_bind: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of /metrics for Prometheus, with the teacher's token and TLS "
            "[default: none].",
            show_default=False,
        ),
    ] = None,
    port_file: Annotated[
        Path | None,
        typer.Option(help="Written with the bound host:port once ready.", show_default=False),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            min=0, help="For calls in flight after SIGTERM [default: 60].", show_default=False
        ),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="Least level logged.")
    ] = "info",
    max_sequences: Annotated[
        int | None, typer.Option(min=1, help="Of one request.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of one request.", show_default=False)
    ] = None,
    max_sequence_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of one sequence.", show_default=False)
    ] = None,
    max_top_k: Annotated[
        int | None, typer.Option(min=1, help="Largest top_k.", show_default=False)
    ] = None,
    max_reply_bytes: Annotated[
        int | None, typer.Option(min=1, help="Of one reply.", show_default=False)
    ] = None,
    max_queued_requests: Annotated[
        int | None,
        typer.Option(min=1, help="Waiting before new ones are refused.", show_default=False),
    ] = None,
) -> None:
    """Serve a teacher over gRPC, until Ctrl-C or SIGTERM.

    Calls in flight are then finished. Prints model, device, dtype, address and limits once ready.
    """
    options = {
        "--model": model,
        "--revision": revision,
        "--gguf-file": gguf_file,
        "--engine": engine,
        "--vocab-size": vocab_size,
        "--bind": bind,
        "--dtype": dtype,
        "--device": device,
        "--quantization": quantization,
        "--attention": attention,
        "--compile": compile_body,
        "--threads": threads,
        "--token-file": token_file,
        "--tls-cert": tls_cert,
        "--tls-key": tls_key,
        "--tls-client-ca": tls_client_ca,
        "--metrics-bind": metrics_bind,
        "--port-file": port_file,
        "--drain-seconds": drain_seconds,
        "--log-level": log_level,
        "--max-sequences": max_sequences,
        "--max-tokens": max_tokens,
        "--max-sequence-tokens": max_sequence_tokens,
        "--max-top-k": max_top_k,
        "--max-reply-bytes": max_reply_bytes,
        "--max-queued-requests": max_queued_requests,
    }
    sys.stdout.flush()
    os.environ.update(waiting_environment())
    os.execv(sys.executable, [sys.executable, "-P", "-m", "teacher_server", *given(options)])  # noqa: S606


@app.command(epilog="Example: lectern teacher health 127.0.0.1:50051")
def health(
    address: Annotated[str, typer.Argument(help="HOST:PORT.")] = "127.0.0.1:50051",
    timeout_seconds: Annotated[float, typer.Option(min=0.1, help="For the answer.")] = 5.0,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            help="Authority of the server's certificate (PEM); turns TLS on.", show_default=False
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Certificate to show (PEM); with --tls-key.", show_default=False),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its private key (PEM).", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether a teacher takes calls; exit status 0 where it does. Needs no token."""
    from lectern_common.teacher_channel import serving_state

    asks_tls = any((tls_ca, tls_cert, tls_key))
    tls = _tls(tls_ca, tls_cert, tls_key) if asks_tls else None
    state = serving_state(address, timeout_seconds, tls)
    if as_json:
        console.print_json({"address": address, "state": state})
    else:
        console.note(f"{address}: {state}")
    if state != "SERVING":
        raise typer.Exit(7)


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> "ClientTls":
    """Returns what the files hold. Raises Misconfigured."""
    from lectern_common.client_tls import ClientTls
    from lectern_common.errors import Misconfigured
    from lectern_common.pem import BadPem, read_authorities, read_key_pair

    if ca is None or (certificate is None) != (key is None):
        raise Misconfigured("TLS needs --tls-ca, and --tls-cert and --tls-key together or neither")
    try:
        authorities = read_authorities(ca)
    except BadPem as error:
        raise Misconfigured(f"--tls-ca {ca}: {error}") from None
    if certificate is None or key is None:
        return ClientTls(authorities)
    try:
        return ClientTls(authorities, *read_key_pair(certificate, key))
    except BadPem as error:
        raise Misconfigured(f"--tls-cert {certificate}, --tls-key {key}: {error}") from None
