"""Train, compile and certify every method of the comparison, within a time budget and resumable.

    python bench/experiments.py RESULTS --data folder:CIFAR10 --init resnet20-12fca82f.th --hours 2

Each network is a chain of commands of `intcert`; two chains run at a time, each on one thread. A command that is done
is not run again; one that was cut off, by the budget or a kill, goes on from its checkpoint or ledger. RESULTS holds

    models/NAME.pt2  runs/NAME/ (checkpoint, log)  artifacts/NAME.intcert  ledgers/NAME.tsv  logs/NAME.txt  done/NAME

with NAME as bench/results.py says; bench/figures.py draws from ledgers/. The test images are every SKIP-th one: a
folder is sorted by class, so its first 1,000 would be of two classes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

# The same for all methods. Fine-tuning from published float weights: short, with the rate falling to 0.
TRAINING = (
    *("--arch", "resnet20", "--schedule", "cosine", "--batch-size", "128", "--lr", "0.05", "--qat-lr", "0.005"),
    *("--seed", "0"),
)
METHODS = ("intrs", "float", "floatrs-quant", "intrs-consistency")
CONSISTENCY = ("--regularizer", "consistency")
QUANTIZED = ("intrs", "floatrs-quant", "intrs-consistency")
_GRACE_SECONDS = 60


@dataclass(frozen=True)
class Step:
    """A command line of `intcert`. name: of its log and of the mark that it is done."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is run.

    data: source of train and test images; init: first weights; sigmas, mismatches: noise levels on the [0, 1] scale, of
    training and of certification with another one; epochs, qat_epochs: of every training; n, skip, limit: of every
    certification; threads, device: of every command.
    """

    folder: Path
    data: str
    init: Path | None
    sigmas: tuple[str, ...]
    methods: tuple[str, ...]
    mismatches: tuple[str, ...]
    epochs: int
    qat_epochs: int
    n: int
    skip: int
    limit: int
    threads: int
    device: str

    def matching(self) -> Iterator[list[Step]]:
        """Chains that train a network and certify it with the noise of its training."""
        for sigma in self.sigmas:
            for method in self.methods:
                yield [self._training(method, sigma), *self._certification(method, sigma, sigma)]

    def mismatching(self) -> Iterator[list[Step]]:
        """Chains that certify trained networks with other noise."""
        for trained in self.sigmas:
            for method in ("intrs", "float"):
                if method in self.methods:
                    for sigma in self.mismatches:
                        if sigma != trained:
                            yield list(self._certification(method, trained, sigma))

    def _training(self, method: str, sigma: str) -> Step:
        name = f"{method}_{sigma}"
        recipe = method.removesuffix("-consistency")
        quantized = ("--qat-epochs", str(self.qat_epochs)) if method in QUANTIZED else ()
        words = (
            *("train", "--recipe", recipe, "--data", self.data, "--sigma", sigma, "--epochs", str(self.epochs)),
            *quantized,
            *TRAINING,
            *(CONSISTENCY if method.endswith("-consistency") else ()),
            *(() if self.init is None else ("--init", str(self.init))),
            *("--threads", str(self.threads), "--device", self.device, "--test-data", self.data, "--resume"),
            *("--workdir", str(self.folder / "runs" / name), "-o", str(self._model(name))),
        )
        return Step(f"train_{name}", words)

    def _certification(self, method: str, trained: str, sigma: str) -> Iterator[Step]:
        name = f"{method}_{trained}"
        full = name if trained == sigma else f"{name}_at_{sigma}"
        network, more = self._model(name), ("--sigma", sigma, "--device", self.device)
        if method.startswith("intrs"):
            network, more = self.folder / "artifacts" / f"{full}.intcert", ()
            yield Step(f"compile_{full}", ("compile", str(self._model(name)), "--sigma", sigma, "-o", str(network)))
        words = (
            *("certify", str(network), "--data", self.data, "--n", str(self.n), "--skip", str(self.skip)),
            *("--max", str(self.limit), "--threads", str(self.threads), *more, "--resume"),
            *("-o", str(self.folder / "ledgers" / f"{full}.tsv")),
        )
        yield Step(f"certify_{full}", words)

    def _model(self, name: str) -> Path:
        return self.folder / "models" / f"{name}.pt2"


class Runner:
    """Runs chains until a deadline; a step that fails ends its chain alone."""

    def __init__(self, folder: Path, deadline: float) -> None:
        """deadline: of ``time.monotonic``."""
        self._folder, self._deadline = folder, deadline
        self._echo = threading.Lock()
        for part in ("models", "runs", "artifacts", "ledgers", "logs", "done"):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def run(self, chain: Sequence[Step]) -> bool:
        """Whether the whole chain is done now."""
        return all(self._step(step) for step in chain)

    def _step(self, step: Step) -> bool:
        mark, line = self._folder / "done" / step.name, " ".join(("intcert", *step.words))
        if mark.exists() and mark.read_text() == line:
            return True
        left = self._deadline - time.monotonic()
        if left <= 0:
            self._say(f"{step.name}: no time left")
            return False
        begin = time.monotonic()
        with open(self._folder / "logs" / f"{step.name}.txt", "a", encoding="utf-8") as log:
            log.write(f"$ {line}\n")
            log.flush()
            start = "from intcert.cli.main import main; main()"
            process = subprocess.Popen([sys.executable, "-c", start, *step.words], stdout=log, stderr=log)
            try:
                code = process.wait(left)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # the command leaves a state that can be resumed
                code = _wait_or_kill(process)
        minutes = (time.monotonic() - begin) / 60
        if code == 0:
            mark.write_text(line)
        outcome = {0: "done", 130: "cut off, to be resumed"}.get(code, f"failed with {code}, see logs/{step.name}.txt")
        self._say(f"{step.name}: {outcome} after {minutes:.1f} min")
        return code == 0

    def _say(self, text: str) -> None:
        with self._echo:
            click.echo(f"{time.strftime('%H:%M:%S')} {text}")


def _wait_or_kill(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@click.command()
@click.argument("folder", metavar="RESULTS", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="CIFAR-10 with train and test images: folder:DIR or cifar10:DIR.")
@click.option("--init", type=click.Path(path_type=Path, exists=True), help="Float state dict that all start from.")
@click.option("--hours", type=float, default=2.0, show_default=True, help="Time budget.")
@click.option("--sigma", "sigmas", multiple=True, default=("0.25",), show_default=True, help="On the [0, 1] scale.")
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), default=METHODS, show_default=True)
@click.option(
    "--at", "mismatches", multiple=True, default=("0.12", "0.5"), show_default=True, help="Sigmas for figure 6."
)
@click.option("--epochs", type=int, default=19, show_default=True)
@click.option("--qat-epochs", type=int, default=3, show_default=True)
@click.option("--n", type=int, default=1000, show_default=True, help="Samples an image.")
@click.option("--skip", type=int, default=5, show_default=True, help="Every SKIP-th test image.")
@click.option("--max", "limit", type=int, default=5000, show_default=True, help="Stop before the image of this index.")
@click.option("--jobs", type=int, default=2, show_default=True, help="Networks at a time.")
@click.option("--threads", type=int, default=1, show_default=True, help="Of each; trained weights depend on it.")
@click.option("--device", type=click.Choice(["cpu", "cuda", "auto"]), default="cpu", show_default=True)
def main(folder: Path, hours: float, jobs: int, **settings: object) -> None:
    """Train and certify every method, as far as the time goes; run it again to go on."""
    plan = Plan(folder=folder, **settings)
    runner = Runner(folder, time.monotonic() + 3600 * hours)
    finished: list[bool] = []
    with ThreadPoolExecutor(jobs) as pool:
        for wave in (plan.matching(), plan.mismatching()):
            finished += pool.map(runner.run, wave)
    click.echo(f"{sum(finished)} of {len(finished)} chains are done; ledgers are in {folder / 'ledgers'}")


if __name__ == "__main__":
    main()
