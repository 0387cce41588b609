"""The command reasoning-rpc-export."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from . import __version__
from .errors import ExportError

MAX_MESSAGE = 1000  # characters


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reasoning-rpc-export",
        description="Writes a decoder checkpoint as an ONNX graph with its weights, tokenizer and manifest.",
    )
    parser.add_argument("source", type=Path, help="Hugging Face model folder, or GGUF file")
    parser.add_argument("dest", type=Path, help="folder to write; an earlier export there is replaced")
    parser.add_argument(
        "--weights",
        choices=("fp32", "int8", "int4"),
        default="int4",
        help="encoding of the linear layers (default: int4; with int4 the head has 8 bits)",
    )
    parser.add_argument(
        "--flavour",
        choices=("cached", "portable"),
        default="cached",
        help="cached: for the engine (default); portable: KV tensors as inputs and outputs, for stock ONNX Runtime",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the export failed (one line on stderr says why), 2 wrong usage."""
    options = parser().parse_args(arguments)
    # A terminated export cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        run(options)
    except ExportError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except MemoryError:
        message = "out of memory"
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    else:
        return 0
    # One line without control characters, whatever a damaged file put into a name.
    line = " ".join(message.split())[:MAX_MESSAGE]
    line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)
    print(f"reasoning-rpc-export: {line}", file=sys.stderr)
    return 1


def run(options: argparse.Namespace) -> None:
    # Imported late: --help and usage errors need none of it.
    import numpy as np
    from tqdm import tqdm

    from .export import check_dest, export, open_checkpoint

    check_dest(options.dest, options.source)
    # Values that are not finite are reported as errors, not as numpy's warnings.
    with np.errstate(all="ignore"):
        checkpoint = open_checkpoint(options.source)
        # disable=None: quiet where stderr is not a terminal
        with tqdm(total=checkpoint.parameters, unit="", unit_scale=True, desc=checkpoint.name, disable=None) as bar:
            export(checkpoint, options.dest, options.weights, options.flavour, bar.update)


if __name__ == "__main__":
    sys.exit(main())
