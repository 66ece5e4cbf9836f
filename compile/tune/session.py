"""The tuner: for each distinct layer of a network, the schedule that is measured to be fastest and gives the same bits.

Of each layer up to ``trials`` candidates are built and timed in turns with the default schedule; an XGBoost model
chooses which. The fastest few are then compared with the reference, bit for bit, and timed against the default again,
in fresh measurements: what won by luck loses here. docs/tuning.md has the rules.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tvm

from intcert.compile.database import Database, LayerEntry, NetworkEntry, read_database
from intcert.compile.graph import IntegerGraph
from intcert.compile.kernels import Schedule
from intcert.compile.layer import Layer, layers_of, network_key, tunable
from intcert.compile.library_cuda import nvcc
from intcert.compile.plan import MAX_BATCH, make_plan
from intcert.compile.tune.cost_model import CostModel, Space
from intcert.compile.tune.device import CandidateError, Device, LocalDevice, Worker
from intcert.compile.tune.gpu import GpuDevice
from intcert.compile.tune.journal import Journal, Trial, kernels_digest, schedule_key
from intcert.compile.tune.program import (
    SIGMA,
    Program,
    check_cases,
    expected_result,
    layer_program,
    network_program,
    result_of,
    with_operands,
)
from intcert.runtime.errors import DatabaseError, ModelError, WrongDeviceError
from intcert.runtime.noise import noise_law
from intcert.targets import CudaTarget, Target, runnable

ROUNDS = 9  # of a trial
FINAL_ROUNDS, WINS = 21, 17  # a coin that is thrown 21 times shows heads 17 times or more once in 280 trials
MARGIN = 0.02  # of the default's time that a winner must save
FINALISTS = 3
AT_ONCE = 8  # candidates that the model chooses before it learns from them
NETWORK_PATIENCE = 20  # timeouts that building a whole network may take
SEED = 1
#: Images that a GPU's candidates are compared on: several tiles of rows and a part of one, where a chunk has thousands.
CHECKED_ON_GPU = 9


@dataclass(frozen=True)
class Progress:
    """Where a run stands. trials: candidates measured, of so many in all; ratio: the layer's best time so far over the
    default's."""

    layer: str
    trials: int
    total: int
    ratio: float


@dataclass
class Report:
    """What a run found. network: its choice of images at once, where it had one; layers: name, how many layers of the
    network are like it, and entry; refused: candidates that did not build or run or gave other bits: layer, schedule,
    reason."""

    network: NetworkEntry | None = None
    layers: list[tuple[str, int, LayerEntry]] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)


def tune(
    graph: IntegerGraph,
    target: Target | CudaTarget,
    path: str | os.PathLike[str],
    *,
    name: str,
    trials: int = 64,
    timeout: float = 30.0,
    chunk: int | None = None,
    device: Device | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Report:
    """Tune a network for a target and write the database; goes on where an earlier run with the same file stopped.

    path: of the database; measurements are kept beside it in ``path.trials``. name: of the network, for people. trials:
    candidates of each distinct layer; timeout: seconds that building or running one may take. chunk: images at once, by
    default the best of those measured, which the database then holds too; on this machine's GPU what a session takes.
    device: what times them, by default this machine or its GPU.

    Raises DatabaseError (the file is of another processor, target or version), WrongDeviceError (this machine does not
    run the target), MissingDependencyError (xgboost, nvcc), DeviceLostError (there is no board any more).
    """
    with ExitStack() as stack:
        worker = stack.enter_context(Worker(timeout))
        if isinstance(target, CudaTarget) and device is None:
            nvcc()
            device = stack.enter_context(GpuDevice(target, timeout))
            if chunk is None:
                plan = make_plan(graph, noise_law(SIGMA), target)
                chunk = device.chunk(plan.arena_bytes, graph.dimension)
        elif device is None:
            if target not in runnable():
                raise WrongDeviceError(
                    f"this machine does not run {target.name}, so it cannot tune for it; see intcert targets"
                )
            device = LocalDevice(worker)
        machine = {"cpu": device.cpu, "flags": " ".join(target.cpu_flags), "tvm": tvm.__version__}
        database = _open_database(Path(path), target, machine)
        database.settings = {
            "trials": trials, "rounds": ROUNDS, "final_rounds": FINAL_ROUNDS, "wins": WINS, "margin": MARGIN,
        }  # fmt: skip
        header = {"target": target.name, "machine": machine, "kernels": kernels_digest()}
        with Journal(Path(f"{os.fspath(path)}.trials"), header) as journal:
            session = _Session(worker, device, database, journal, Path(path), trials, timeout)
            return session.tune(graph, target, name, chunk, watch)


def _open_database(path: Path, target: Target | CudaTarget, machine: dict[str, str]) -> Database:
    if not path.exists():
        return Database(target.name, machine, {})
    database = read_database(path, target)
    if database.machine != machine:
        raise DatabaseError(
            f"{path} was tuned on {database.machine.get('cpu')!r} with TVM {database.machine.get('tvm')}, this is "
            f"{machine['cpu']!r} with {machine['tvm']}; give another --db"
        )
    return database


class _Session:
    def __init__(
        self,
        worker: Worker,
        device: Device,
        database: Database,
        journal: Journal,
        path: Path,
        trials: int,
        timeout: float,
    ) -> None:
        self._worker, self._device, self._timeout = worker, device, timeout
        self._database, self._journal, self._path = database, journal, path
        self._trials = trials
        self._model = CostModel()
        self._report = Report()

    def tune(
        self,
        graph: IntegerGraph,
        target: Target | CudaTarget,
        name: str,
        chunk: int | None,
        watch: Callable[[Progress], None],
    ) -> Report:
        if chunk is None:
            self._report.network = self._choose_chunk(graph, target, name)
            chunk = self._report.network.chunk
        layers = [layer for layer in layers_of(graph, chunk, target) if tunable(layer)]
        count = Counter(layer.workload for layer in layers)
        distinct = {layer.workload: layer for layer in reversed(layers)}.values()
        ordered = sorted(distinct, key=lambda layer: -_products(layer) * count[layer.workload])
        spaces = {layer.workload: Space(layer) for layer in ordered}
        total = sum(self._budget(space) for space in spaces.values())
        finished = 0
        for layer in ordered:
            space = spaces[layer.workload]

            def advance(done: int, ratio: float, layer: Layer = layer, before: int = finished) -> None:
                watch(Progress(layer.name, before + done, total, ratio))

            entry = self._tune_layer(layer, space, advance)
            self._report.layers.append((layer.name, count[layer.workload], entry))
            finished += self._budget(space)
        return self._report

    def _budget(self, space: Space) -> int:
        """Candidates to measure; the default is not one."""
        return min(self._trials, len(space.schedules) - 1)

    def _choose_chunk(self, graph: IntegerGraph, target: Target, name: str) -> NetworkEntry:
        """Images at once, with default schedules: a choice of the whole network, so it comes before the layers'."""
        key = network_key(graph, target)
        if key not in self._database.networks:
            patience = NETWORK_PATIENCE * self._timeout
            default = self._worker.call(network_program, graph, target, None, timeout=patience)
            chunks = [default.images * factor // 4 for factor in (1, 2, 8, 16)]
            programs = [default]
            programs += [
                self._worker.call(network_program, graph, target, chunk, timeout=patience)
                for chunk in chunks
                if 1 <= chunk <= MAX_BATCH
            ]
            winner, times = self._duel(programs)
            self._database.networks[key] = NetworkEntry(
                default_us=times[0], best_us=times[winner], chunk=programs[winner].images, name=name
            )
            self._database.write(self._path)
        return self._database.networks[key]

    def _tune_layer(self, layer: Layer, space: Space, advance: Callable[[int, float], None]) -> LayerEntry:
        known = self._known(layer, space)
        self._learn(space, known)
        advance(len(known), _best(known))
        unfinished = len(known) < self._budget(space)
        if not unfinished and layer.workload in self._database.layers:
            return self._database.layers[layer.workload]
        try:
            default = self._worker.call(layer_program, layer, space.schedules[0])
            while len(known) < self._budget(space):
                count = min(AT_ONCE, self._budget(space) - len(known))
                chosen = self._choose(space, known, count)
                for number in chosen:
                    known[number] = self._try(layer, space.schedules[number], default)
                    advance(len(known), _best(known))
                self._learn(space, {number: known[number] for number in chosen})
            entry = self._settle(layer, space, known, default)
        except CandidateError as error:
            raise ModelError(f"the default kernel of {layer.name} ({layer.workload}) fails: {error}") from None
        self._database.layers[layer.workload] = entry
        self._database.write(self._path)
        return entry

    def _known(self, layer: Layer, space: Space) -> dict[int, Trial]:
        """Finished trials by the number of their schedule."""
        trials = self._journal.trials(layer.workload)
        keys = {schedule_key(schedule): number for number, schedule in enumerate(space.schedules)}
        for key, trial in trials.items():
            if trial.error:
                self._report.refused.append((layer.name, key, trial.error))
        return {keys[key]: trial for key, trial in trials.items() if key in keys}

    def _learn(self, space: Space, trials: dict[int, Trial]) -> None:
        if trials:
            self._model.learn(space, list(trials), [trial.ratio for trial in trials.values()])

    def _choose(self, space: Space, known: dict[int, Trial], count: int) -> list[int]:
        """Numbers of the next candidates: three quarters by the model's opinion, if it has one, and the rest by lot."""
        rng = np.random.default_rng([SEED, len(known)])
        left = [number for number in rng.permutation(len(space.schedules)) if number and number not in known]
        if self._model.warm:
            scores = self._model.scores(space)
            best = sorted(left, key=lambda number: -scores[number])[: count - count // 4]
            left = best + [number for number in left if number not in best]
        return [int(number) for number in left[:count]]

    def _try(self, layer: Layer, schedule: Schedule, default: Program) -> Trial:
        try:
            program = self._worker.call(layer_program, layer, schedule)
            times = self._device.measure([default, program], ROUNDS)
            trial = Trial(round(float(np.median(times[1] / times[0])), 4))
        except CandidateError as error:
            trial = Trial(None, str(error))
            self._report.refused.append((layer.name, schedule_key(schedule), trial.error))
        self._journal.record(layer.workload, schedule, trial)
        return trial

    def _settle(self, layer: Layer, space: Space, known: dict[int, Trial], default: Program) -> LayerEntry:
        """The entry of a layer: the fastest candidate that is exact and beats the default again, else the default."""
        hopeful = [number for number, trial in known.items() if trial.ratio and trial.ratio <= 1 - MARGIN]
        exact, programs = [0], [default]
        for number in sorted(hopeful, key=lambda number: known[number].ratio):
            if len(programs) > FINALISTS:
                break
            schedule = space.schedules[number]
            try:
                program = self._worker.call(layer_program, layer, schedule)
                self._require_exact(layer, schedule, program)
            except CandidateError as error:
                known[number] = Trial(None, str(error))
                self._journal.record(layer.workload, schedule, known[number])
                self._report.refused.append((layer.name, schedule_key(schedule), str(error)))
                continue
            exact.append(number)
            programs.append(program)
        winner, times = self._duel(programs)
        schedule = space.schedules[exact[winner]]
        return LayerEntry(default_us=times[0], best_us=times[winner], schedule=dict(vars(schedule)))

    def _require_exact(self, layer: Layer, schedule: Schedule, program: Program) -> None:
        """Raise CandidateError unless a kernel equals the reference, bit for bit."""
        if isinstance(layer.target, CudaTarget) and layer.batch > CHECKED_ON_GPU:
            layer = replace(layer, batch=CHECKED_ON_GPU)
            program = self._worker.call(layer_program, layer, schedule)
        for operands in check_cases(layer, SEED):
            memory = self._device.run(program, with_operands(program, layer, operands))
            wrong = np.count_nonzero(result_of(program, layer, memory) != expected_result(layer, operands))
            if wrong:
                raise CandidateError(f"{wrong} results differ from the reference")

    def _duel(self, programs: Sequence[Program]) -> tuple[int, list[float]]:
        """The number of the winner, 0 unless another one beats the first by the rule; and all median times, in
        microseconds an image."""
        times = self._device.measure(programs, FINAL_ROUNDS)
        times = times / np.array([[program.images] for program in programs]) * 1e6
        ratios = times / times[0]
        medians = np.median(ratios, 1)
        eligible = [
            number
            for number in range(1, len(programs))
            if medians[number] <= 1 - MARGIN and np.count_nonzero(ratios[number] < 1) >= WINS
        ]
        winner = min(eligible, key=lambda number: medians[number], default=0)
        return winner, [round(float(median), 3) for median in np.median(times, 1)]


def _best(trials: dict[int, Trial]) -> float:
    return min((trial.ratio for trial in trials.values() if trial.ratio), default=1.0)


def _products(layer: Layer) -> int:
    """Multiply-adds an image."""
    return layer.node.weight.size * layer.result.height * layer.result.width
