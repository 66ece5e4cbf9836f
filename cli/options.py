"""Arguments and options that several commands share, and what their values name."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from intcert.cli.failure import Failure

if TYPE_CHECKING:
    from intcert.runtime.boards import BoardSource, Patience
    from intcert.runtime.datasets import Dataset

DEMO = "demo"
MODEL_SUFFIXES = (".pt2", ".graph")


class Network(Protocol):
    """What takes images of one shape (H, W, C) and knows so many classes: a session, or an integer graph."""

    input_shape: tuple[int, int, int]
    classes: int


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

data_option = click.option(
    "--data",
    metavar="SPEC",
    required=True,
    help="Images: folder:DIR (a folder for each class), cifar10:DIR, mnist:DIR, caltech101:DIR, npz:FILE, or demo.",
)
split_option = click.option(
    "--split", metavar="NAME", default="test", show_default=True, help="Part of the data set: test or train."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads, by default all cores; results do not depend on it."
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where to run. An artifact runs where it was compiled for, and anything else is refused.",
)
seed_option = click.option(
    "--seed",
    metavar="INTEGER",
    help="Key of the noise, 0..2^64-1, to repeat a run; by default a fresh secret one. A certificate whose key the "
    "adversary could know is worth nothing.",
)
alpha_option = click.option(
    "--alpha", metavar="P", default="0.001", show_default=True, help="Probability of a wrong answer, an exact decimal."
)


@dataclass(frozen=True)
class Boards:
    """What the options about boards say: where they are, how many to use (None: all), and how long to wait."""

    source: BoardSource
    count: int | None
    patience: Patience


def board_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options about boards, given to the command as ``boards``, a ``Boards``, or None to work on this machine."""
    count = click.option(
        "--boards", metavar="N", type=click.IntRange(min=1), help="Boards to use at once.  [default: all free]"
    )
    return _with_boards(command, (*_BOARD_OPTIONS[:3], count, *_BOARD_OPTIONS[3:]))


def one_board_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``board_options`` of a command that works on one board."""
    return _with_boards(command, _BOARD_OPTIONS)


_BOARD_OPTIONS = (
    click.option(
        "--rpc-tracker",
        metavar="HOST:PORT",
        help="Work on boards that a TVM RPC tracker lends; by default TVM_TRACKER_HOST and TVM_TRACKER_PORT where "
        "--rpc-key is given. The protocol has no authentication: trusted networks only.",
    ),
    click.option("--rpc-key", metavar="KEY", help="Which boards of the tracker, or the key of the --rpc-server."),
    click.option(
        "--rpc-server",
        metavar="HOST:PORT",
        multiple=True,
        help="Work on the board whose TVM RPC server listens there; may be repeated. Trusted networks only.",
    ),
    click.option(
        "--rpc-timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0.1),
        help="A board that owes an answer for so long is lost.  [default: 60]",
    ),
    click.option(
        "--rpc-wait",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        help="How long to wait for a board to be free or to come back.  [default: 30]",
    ),
    click.option(
        "--rpc-session",
        metavar="SECONDS",
        type=click.FloatRange(min=1),
        help="A session's whole length, after which the server ends it; a new one follows.  [default: no limit]",
    ),
)


def _with_boards(command: Callable[..., Any], declared: Sequence[Decorator]) -> Callable[..., Any]:
    @functools.wraps(command)
    def with_boards(
        *args: Any,
        rpc_tracker: str | None,
        rpc_key: str | None,
        rpc_server: tuple[str, ...],
        rpc_timeout: float | None,
        rpc_wait: float | None,
        rpc_session: float | None,
        boards: int | None = None,
        **others: Any,
    ) -> Any:
        from intcert.runtime.boards import Patience

        source = _board_source(rpc_tracker, rpc_key, rpc_server)
        times = {"answer": rpc_timeout, "board": rpc_wait, "session": rpc_session}
        patience = Patience(**{name: value for name, value in times.items() if value is not None})
        if source is None and (boards is not None or patience != Patience()):
            raise click.UsageError("there are no boards without --rpc-tracker or --rpc-server")
        return command(*args, boards=source and Boards(source, boards, patience), **others)

    for option in reversed(declared):
        with_boards = option(with_boards)
    return with_boards


def _board_source(tracker: str | None, key: str | None, servers: tuple[str, ...]) -> BoardSource | None:
    """Where the boards are that these options name; None where they name none."""
    from intcert.runtime.boards import Servers, Tracker
    from intcert.runtime.rpc_link import Address

    if tracker is not None and servers:
        raise click.UsageError("give either --rpc-tracker or --rpc-server")
    if servers:
        return Servers([Address.parse(server) for server in dict.fromkeys(servers)], key or "")
    if tracker is None and key is not None:
        host, port = os.environ.get("TVM_TRACKER_HOST"), os.environ.get("TVM_TRACKER_PORT")
        if not host or not port:
            raise click.UsageError(
                "--rpc-key needs --rpc-tracker or --rpc-server, or TVM_TRACKER_HOST and TVM_TRACKER_PORT in the "
                "environment"
            )
        tracker = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if tracker is None:
        return None
    if key is None:
        raise click.UsageError("--rpc-tracker needs --rpc-key, the key under which its boards are registered")
    return Tracker(Address.parse(tracker), key)


def note(message: str) -> None:
    """A line on standard error about something that the command copes with."""
    click.echo(f"note: {message}", err=True)


def _refuse_model(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    if is_model(value):
        raise Failure(f"{value} is a model; compile it first, and give the artifact: intcert compile {value}")
    return value


def artifact_argument() -> Decorator:
    """The compiled artifact a command works on, as a Path."""
    return click.argument("artifact", metavar="ARTIFACT", type=click.Path(path_type=Path), callback=_refuse_model)


def demo_folder() -> Path:
    """Folder of the shipped model and images."""
    return Path(str(resources.files("intcert.cli").joinpath("demo")))


def model_path(name: str) -> Path:
    """The model file that an argument names: a path, or the word ``demo`` for the shipped model."""
    return demo_folder() / "resnet20.pt2" if name == DEMO else Path(name)


def is_model(path: Path) -> bool:
    """Whether an argument names a model; anything else is taken for an artifact."""
    return path.suffix in MODEL_SUFFIXES


def check_writable(path: Path) -> None:
    """Refuse an output file that cannot be created, before the work whose result it would take.

    Raises:
        Failure: its folder does not exist or may not be written, or a folder is in its place.
    """
    folder = path.parent
    if path.is_dir():
        raise Failure(f"{path} is a folder; give the name of a file to write")
    if not folder.is_dir():
        raise Failure(f"{path} cannot be written: there is no folder {folder}; make it, or give another --output")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise Failure(f"{path} cannot be written: permission denied; give another --output")


def data_source(spec: str) -> str:
    """The data source that ``--data`` names, ``demo`` replaced by the shipped images."""
    return f"folder:{demo_folder() / 'images'}" if spec == DEMO else spec


def open_data(spec: str, split: str, network: Network, class_names: Sequence[str] = ()) -> Dataset:
    """The data set of ``--data`` and ``--split`` for a network; class_names: the network's, where they are known.

    Raises:
        DatasetError: it cannot be used.
    """
    from intcert.runtime.datasets import open_dataset

    dataset = open_dataset(data_source(spec), split, shape=network.input_shape, classes=network.classes)
    if class_names and dataset.class_names and tuple(class_names) != dataset.class_names:
        click.echo(
            f"warning: the classes of {spec} ({', '.join(dataset.class_names)}) are not the model's "
            f"({', '.join(class_names)}); labels are compared by their numbers",
            err=True,
        )
    return dataset


def run_key(seed: str | None) -> int:
    """The run key of ``--seed``, or a fresh one. CertificateError: the seed is no 64-bit number."""
    from intcert.runtime.keys import new_run_key, parse_seed

    return new_run_key() if seed is None else parse_seed(seed)
