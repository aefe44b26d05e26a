"""The server's command line, and the plain settings made of it."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import Message

from lectern_common.errors import Misconfigured
from lectern_common.teacher.options import (
    ADDRESS_OPTIONS,
    LIMIT_OPTIONS,
    MAX_WEIGHT,
    MIN_WEIGHT,
    MODEL_OPTIONS,
    SHARING_OPTIONS,
    TEACHER_OPTIONS,
    TeacherOption,
)
from lectern_common.wire.formats import MAX_DRAWS
from protos import teacher_pb2
from teacher_server.rpc.limits import Limits, request_bytes
from teacher_server.scheduling.sharing import Sharing

_LIMITS = [option.name for option in LIMIT_OPTIONS]
# Options that have no effect on a fixture.
_MODEL_ONLY = (
    *("model", "revision", "home", "gguf_file", "mode", "dtype", "device", "tensor_parallel"),
    *("quantization", "attention", "compile", "threads"),
)


def options_parser() -> argparse.ArgumentParser:
    """Returns the parser of `lectern teacher serve`."""
    parser = argparse.ArgumentParser(
        prog="lectern teacher serve",
        usage="%(prog)s --model MODEL [options]",
        description="Serve a teacher over gRPC until Ctrl-C or SIGTERM, then finish the calls in "
        "flight. Prints model, device, speed and limits when ready.",
        epilog="Example: lectern teacher serve --model Qwen/Qwen2.5-Coder-7B-Instruct "
        "--bind 0.0.0.0:50051 --token-file teacher.token",
    )
    _add(parser.add_argument_group("model"), MODEL_OPTIONS)
    _add(parser.add_argument_group("address and callers"), ADDRESS_OPTIONS)
    _add(parser.add_argument_group("sharing between runs"), SHARING_OPTIONS)
    _add(parser.add_argument_group("limits, sent to every client"), LIMIT_OPTIONS)
    return parser


def limits_of(options: argparse.Namespace) -> Limits:
    """Returns the limits of a parsed command line.

    Raises:
        Misconfigured: a limit is larger than its field in the protocol.
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
        Misconfigured: an option has no effect, is given twice, or is larger than its field in the
            protocol.
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
    """Raises unless every option needed by the engine is given, and none that it ignores.

    Raises:
        Misconfigured: names the option.
    """
    if options.engine == "fixture":
        if options.vocab_size is None:
            raise Misconfigured("--engine fixture needs --vocab-size")
        _require_at_most(options, "vocab_size", _most(teacher_pb2.Model, "logit_width"))
        defaults = options_parser().parse_args([])
        for name in _MODEL_ONLY:
            if getattr(options, name) != getattr(defaults, name):
                flag = TEACHER_OPTIONS[name].flag
                raise Misconfigured(f"{flag} has no effect with --engine fixture; leave it out")
        return
    if options.model is None:
        raise Misconfigured("--model is missing; give a model folder or a hub id")
    if options.vocab_size is not None:
        raise Misconfigured("--vocab-size is only for --engine fixture; a model has its own")
    if options.tensor_parallel > 1:
        _require_shareable(options)


def _require_shareable(options: argparse.Namespace) -> None:
    """Raises Misconfigured if an option does not go together with several ranks."""
    shared = f"--tensor-parallel {options.tensor_parallel}"
    if options.quantization != "none":
        raise Misconfigured(
            f"{shared} needs an unquantised model; leave out --quantization "
            f"{options.quantization}, or leave out --tensor-parallel"
        )
    if options.gguf_file is not None or options.model.endswith(".gguf"):
        raise Misconfigured(f"{shared} is not for a GGUF file; serve safetensors, or leave it out")
    if options.compile:
        raise Misconfigured(f"{shared} does not go together with --compile; leave one of them out")
    if options.device not in ("auto", "cpu", "cuda"):
        raise Misconfigured(
            f"{shared} uses GPUs 0 to {options.tensor_parallel - 1}, one for each rank, so "
            f"--device {options.device} has no meaning; leave it out, and set "
            "CUDA_VISIBLE_DEVICES to choose them"
        )


def _require_at_most(options: argparse.Namespace, name: str, most: int) -> None:
    value = getattr(options, name)
    if value > most:
        raise Misconfigured(f"{TEACHER_OPTIONS[name].flag} {value}: it must be at most {most}")


def _most(message: type[Message], name: str) -> int:
    """Returns the largest number that an unsigned field of a message holds."""
    field = message.DESCRIPTOR.fields_by_name[name]
    return (1 << (32 if field.type == field.TYPE_UINT32 else 64)) - 1


def _without_repeats(option: str, given: list[tuple[str, float]]) -> dict[str, float]:
    """Returns pattern -> number, in the order given. Raises Misconfigured."""
    found: dict[str, float] = {}
    for pattern, number in given:
        if pattern in found:
            raise Misconfigured(f"{option} {pattern} is given twice; leave one of them out")
        found[pattern] = number
    return found


def _add(group: argparse._ArgumentGroup, options: Sequence[TeacherOption]) -> None:
    """Adds options of the table to a group of the parser."""
    sharing = Sharing()
    defaults: dict[str, object] = {**vars(Limits()), "cache_bytes": sharing.cache_bytes}
    for option in options:
        default = defaults.get(option.name, option.default)
        # The parsed default is None, to notice the option without --cache-folder.
        shown = sharing.cache_folder_bytes if option.name == "cache_folder_bytes" else default
        text = option.help and option.help.format(default=shown)
        if option.kind == "flag":
            group.add_argument(option.flag, action="store_true", help=text)
        elif option.kind in ("weights", "quotas"):
            group.add_argument(
                option.flag,
                type=_PARSERS[option.kind],
                action="append",
                default=[],
                metavar=option.metavar,
                help=text,
            )
        else:
            group.add_argument(
                option.flag,
                type=_PARSERS[option.kind],
                choices=option.choices or None,
                default=default,
                metavar=option.metavar,
                help=text,
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
    if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise argparse.ArgumentTypeError(
            f"{text} is not a weight of {MIN_WEIGHT:g} to {MAX_WEIGHT:g}"
        )
    return pattern, weight


_PARSERS: dict[str, Callable[[str], object]] = {
    "text": str,
    "path": Path,
    "positive": _positive,
    "size": _not_negative,
    "seconds": _not_negative_number,
    "weights": _pattern_and_weight,
    "quotas": _pattern_and_number,
}
