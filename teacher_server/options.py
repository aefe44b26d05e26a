"""The server's command line, and what it says as plain settings."""

import argparse
import dataclasses
from pathlib import Path

from google.protobuf.message import Message

from lectern_common.errors import Misconfigured
from lectern_common.wire.formats import MAX_DRAWS
from protos import teacher_pb2
from teacher_server.engine import MODES
from teacher_server.limits import Limits, request_bytes
from teacher_server.sharing import Sharing

_LIMITS = [field.name for field in dataclasses.fields(Limits) if field.name != "max_request_bytes"]
_WEIGHTS = (0.001, 1000.0)
# What a fixture has no use for, as its dtype, device and mode are what they are.
_OF_A_MODEL = (
    *("model", "revision", "home", "gguf_file", "mode", "dtype", "device", "quantization"),
    *("attention", "compile", "threads"),
)


def options_parser() -> argparse.ArgumentParser:
    """Returns the parser of `lectern teacher serve`."""
    parser = argparse.ArgumentParser(
        prog="lectern teacher serve",
        usage="%(prog)s --model MODEL [options]",
        description="Serve a teacher over gRPC, until Ctrl-C or SIGTERM; calls in flight are then "
        "finished. Prints model, device, speed and limits once it is ready.",
        epilog="Example: lectern teacher serve --model Qwen/Qwen2.5-Coder-7B-Instruct "
        "--bind 0.0.0.0:50051 --token-file teacher.token",
    )
    _add_model(parser.add_argument_group("model"))
    _add_address(parser.add_argument_group("address and callers"))
    _add_sharing(parser.add_argument_group("sharing between runs"))
    limits = parser.add_argument_group("limits, told to every client")
    for name in _LIMITS:
        default = getattr(Limits(), name)
        limits.add_argument(
            _option(name),
            type=_positive,
            default=default,
            metavar="N",
            help=f"default: {default:,}",
        )
    return parser


def limits_of(options: argparse.Namespace) -> Limits:
    """Returns the limits of a parsed command line.

    Raises:
        Misconfigured: one is more than the wire can count.
    """
    for name in _LIMITS:
        most = MAX_DRAWS if name == "max_draws" else _most(teacher_pb2.Limits, name)
        _require_at_most(options, name, most)
    return Limits(
        **{name: getattr(options, name) for name in _LIMITS},
        max_request_bytes=request_bytes(options.max_tokens, options.max_sequences),
    )


def sharing_of(options: argparse.Namespace) -> Sharing:
    """Returns the sharing settings of a parsed command line.

    Raises:
        Misconfigured: an option has no effect, is given twice, or is more than the wire can count.
    """
    cache_folder_bytes = options.cache_folder_bytes
    if cache_folder_bytes is None:
        cache_folder_bytes = Sharing().cache_folder_bytes
    elif options.cache_folder is None:
        raise Misconfigured("--cache-folder-bytes has no effect without --cache-folder")
    else:
        _require_at_most(
            options, "cache_folder_bytes", _most(teacher_pb2.CacheStats, "disk_capacity_bytes")
        )
    _require_at_most(options, "cache_bytes", _most(teacher_pb2.CacheStats, "capacity_bytes"))
    return Sharing(
        batch_tokens=options.batch_tokens,
        cache_bytes=options.cache_bytes,
        cache_folder=options.cache_folder,
        cache_folder_bytes=cache_folder_bytes,
        weights=_without_repeats("--run-weight", options.run_weight),
        quotas=_without_repeats("--run-quota", options.run_quota),
    )


def require_engine_fits(options: argparse.Namespace) -> None:
    """Returns where no option is given that the engine does not apply, and none is missing.

    Raises:
        Misconfigured: naming them.
    """
    if options.engine == "fixture":
        if options.vocab_size is None:
            raise Misconfigured("--engine fixture needs --vocab-size")
        _require_at_most(options, "vocab_size", _most(teacher_pb2.Model, "logit_width"))
        defaults = options_parser().parse_args([])
        for name in _OF_A_MODEL:
            if getattr(options, name) != getattr(defaults, name):
                raise Misconfigured(
                    f"{_option(name)} has no effect with --engine fixture; leave it out"
                )
        return
    if options.model is None:
        raise Misconfigured("--model is missing: a model folder, or a hub id")
    if options.vocab_size is not None:
        raise Misconfigured("--vocab-size is the fixture's alone; a model has its own")


def _require_at_most(options: argparse.Namespace, name: str, most: int) -> None:
    value = getattr(options, name)
    if value > most:
        raise Misconfigured(f"{_option(name)} {value}: the wire counts up to {most}")


def _most(message: type[Message], name: str) -> int:
    """Returns the largest number that an unsigned field of a message holds."""
    field = message.DESCRIPTOR.fields_by_name[name]
    return (1 << (32 if field.type == field.TYPE_UINT32 else 64)) - 1


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _without_repeats(option: str, given: list[tuple[str, float]]) -> dict[str, float]:
    """Returns pattern -> number, in the order given. Raises Misconfigured."""
    found: dict[str, float] = {}
    for pattern, number in given:
        if pattern in found:
            raise Misconfigured(f"{option} {pattern} is given twice; leave one of them out")
        found[pattern] = number
    return found


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model", help="a model folder, a .gguf file, either under the models root, or a hub id")
    add("--revision", help="hub commit, tag or branch; which commit it is, is shown")
    add(
        "--home",
        type=Path,
        metavar="DIR",
        help="whose models folder is the models root; default: LECTERN_HOME, else ~/.lectern",
    )
    add("--gguf-file", help="GGUF file in the folder, or in the hub's model, to load")
    add(
        "--engine",
        choices=("transformers", "fixture"),
        default="transformers",
        help="fixture: no model, the most likely token is the last one; for trying things out",
    )
    add("--vocab-size", type=_positive, metavar="N", help="of the fixture")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="what the model computes in; auto: as stored",
    )
    add(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, or balanced: layer by layer over all GPUs; auto takes a GPU where "
        "there is one",
    )
    add(
        "--quantization",
        choices=("none", "int8", "int4"),
        default="none",
        help="of the body's weights, by bitsandbytes",
    )
    add(
        "--attention",
        choices=("auto", "sdpa", "eager", "flash_attention_2"),
        default="auto",
        help="what computes attention; auto: transformers' choice",
    )
    add("--compile", action="store_true", help="torch.compile the body; for --mode throughput")
    add("--threads", type=_positive, metavar="N", help="CPU threads; torch's default if left out")


def _add_address(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--bind",
        default="127.0.0.1:50051",
        help="host:port, default %(default)s; port 0: a free one",
    )
    add(
        "--token-file",
        type=Path,
        help="file with the bearer token that clients must send; beyond loopback this or "
        "--tls-client-ca is required",
    )
    add("--tls-cert", type=Path, help="the server's certificate (PEM); with --tls-key")
    add("--tls-key", type=Path, help="its private key (PEM)")
    add("--tls-client-ca", type=Path, help="take only clients with a certificate of this CA (PEM)")
    add("--metrics-bind", help="host:port of Prometheus' /metrics, with the same token and TLS")
    add("--port-file", type=Path, help="written with the bound host:port once it is ready")
    add(
        "--drain-seconds",
        type=_not_negative_number,
        default=60.0,
        metavar="SECONDS",
        help="for calls in flight after SIGTERM; default: 60",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")


def _add_sharing(group: argparse._ArgumentGroup) -> None:
    default = Sharing()
    add = group.add_argument
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in MODES.items())
    add("--mode", choices=tuple(MODES), default="independent", help=f"{meanings}")
    add(
        "--batch-tokens",
        type=_positive,
        metavar="N",
        help="tokens of a forward; chosen by the device if left out",
    )
    add(
        "--cache-bytes",
        type=_not_negative,
        default=default.cache_bytes,
        metavar="N",
        help=f"memory for computed rows, 0 for none; default: {default.cache_bytes:,}",
    )
    add("--cache-folder", type=Path, help="keep computed rows on disk too, across restarts")
    add(
        "--cache-folder-bytes",
        type=_positive,
        metavar="N",
        help=f"for each model; default: {default.cache_folder_bytes:,}",
    )
    add(
        "--run-weight",
        type=_pattern_and_weight,
        action="append",
        default=[],
        metavar="PATTERN=WEIGHT",
        help=f"share of the runs whose id matches, {_WEIGHTS[0]:g} to {_WEIGHTS[1]:g}, where "
        "others have 1; the first match holds",
    )
    add(
        "--run-quota",
        type=_pattern_and_number,
        action="append",
        default=[],
        metavar="PATTERN=TOKENS",
        help="tokens a minute of each run whose id matches; the first match holds",
    )


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _not_negative(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _not_negative_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return number


def _pattern_and_number(text: str) -> tuple[str, float]:
    pattern, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not pattern or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not PATTERN=NUMBER, like coder-*=2")
    return pattern, value


def _pattern_and_weight(text: str) -> tuple[str, float]:
    pattern, weight = _pattern_and_number(text)
    least, most = _WEIGHTS
    if not least <= weight <= most:
        raise argparse.ArgumentTypeError(f"{text} is not a weight of {least:g} to {most:g}")
    return pattern, weight
