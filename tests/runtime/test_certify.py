import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intcert.runtime import certify as certify_by_name
from intcert.runtime import table_cache
from intcert.runtime.certificate import CertificateParameters, certificate_table
from intcert.runtime.certify import Progress, certify, certify_dataset, predict, run_settings
from intcert.runtime.datasets import open_dataset
from intcert.runtime.errors import ArtifactError, CertificateError, DatasetError, LedgerError
from intcert.runtime.keys import image_key
from intcert.runtime.ledger import ABSTAIN, Ledger, equal_ledgers, image_sha, read_ledger
from intcert.runtime.noise import noise_law
from intcert.runtime.table_cache import load_table

RUN_KEY = 0xFEDCBA9876543210
SIGMA = "0.05"
LAW = noise_law(SIGMA)
RULES = ("cp1", "cp2", "kt:0.04")
DARK = np.full((2, 2, 1), 20, np.uint8)
UNDECIDED = np.full((2, 2, 1), 85, np.uint8)  # dark and medium are about equally probable
NEARLY = np.full((2, 2, 1), 80, np.uint8)


def table_of(rule: str = "cp1", n: int = 1000, n0: int = 100):
    return certificate_table(CertificateParameters(sigma=SIGMA, dimension=4, n0=n0, n=n, rule=rule), LAW)


class Watched:
    """A session that notes which samples are drawn, and may change what is counted."""

    def __init__(self, session, change: Callable[[np.ndarray], np.ndarray] = lambda rows: rows) -> None:
        self._session, self._change = session, change
        self.drawn: list[tuple[int, int]] = []

    def __getattr__(self, name: str):
        return getattr(self._session, name)

    def counts(self, x: np.ndarray, key: int, first: int, n: int) -> np.ndarray:
        self.drawn.append((first, n))
        return self._change(self._session.counts(x, key, first, n))


# ---------------------------------------------------------------------------------------------------------------------
# One image
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pixels=st.lists(st.integers(60, 110), min_size=4, max_size=4),
    key=st.integers(0, 2**64 - 1),
    n=st.sampled_from([64, 100, 700, 1000, 1024]),
    n0=st.sampled_from([1, 64, 100]),
)
def test_certify_is_algorithm_1(session, rule, pixels, key, n, n0):
    """The class comes from the samples [0, n0), its count from [n0, n0 + n), looked at row by row."""
    if rule.startswith("kt") and n < 700:
        n = 700
    x = np.array(pixels, np.uint8).reshape(2, 2, 1)
    table = table_of(rule, n, n0)
    selected = int(session.counts(x, key, 0, n0).sum(0).argmax())
    running = session.counts(x, key, n0, n).cumsum(axis=0)
    for row, counts in enumerate(running, start=1):
        samples = min(64 * row, n)
        m = table.decide(counts, samples, selected)
        if m is not None:
            break
    certificate = certify(session, x, key, table)
    assert certificate.sqradius == m
    assert certificate.predict == (ABSTAIN if m == -1 else selected)
    assert certificate.samples == samples
    np.testing.assert_array_equal(certificate.counts, counts)


@pytest.mark.parametrize("seconds", [0, 0.5, 1e9])
@pytest.mark.parametrize("rule", RULES)
def test_samples_are_drawn_once_in_order_and_whole_rows(session, monkeypatch, rule, seconds):
    monkeypatch.setattr(sys.modules[certify.__module__], "_BATCH_SECONDS", seconds)
    for x in (DARK, NEARLY, UNDECIDED):
        watched = Watched(session)
        certificate = certify(watched, x, 1, table_of(rule, n=20_000))
        assert watched.drawn[0] == (0, 100)
        begins = [first for first, _ in watched.drawn]
        ends = [first + n for first, n in watched.drawn]
        assert begins[1:] == ends[:-1]
        assert all((begin - 100) % 64 == 0 for begin in begins[1:])
        drawn = ends[-1] - 100
        assert certificate.samples <= drawn <= max(certificate.samples * 5 // 4 + 64, 512)
        assert certify(session, x, 1, table_of(rule, n=20_000)).sqradius == certificate.sqradius


def test_a_sequential_rule_takes_few_samples_where_few_do(session):
    table = table_of("kt:0.04", n=100_000)
    assert certify(session, DARK, 1, table).samples == 64
    undecided = certify(session, UNDECIDED, 1, table)
    assert (undecided.predict, undecided.sqradius) == (ABSTAIN, -1)
    assert undecided.samples < 1000


def test_an_undecided_image_abstains(session):
    for rule in RULES:
        certificate = certify(session, UNDECIDED, 1, table_of(rule))
        assert (certificate.predict, certificate.sqradius) == (ABSTAIN, -1)


def test_on_samples_tells_how_many_are_drawn(session):
    told = []
    certify(session, DARK, 1, table_of(n=5000), told.append)
    assert told == sorted(set(told))
    assert told[-1] == 5000


def test_lost_samples_are_an_error(session):
    """A device that drops some of a batch must not get a certificate for the rest."""
    for change, found in [(lambda rows: np.maximum(rows - 1, 0), "98 of 100"), (lambda rows: rows[:-1], "64 of 100")]:
        losing = Watched(session, change)
        with pytest.raises(CertificateError, match=f"reference counted {found} samples; run the image again"):
            certify(losing, DARK, 1, table_of())
        with pytest.raises(CertificateError, match=f"reference counted {found} samples; run the image again"):
            predict(losing, DARK, 1, 100, "0.001")


@pytest.mark.parametrize(("sigma", "dimension"), [("0.06", 4), (SIGMA, 3)])
def test_a_table_for_something_else_is_refused(session, sigma, dimension):
    parameters = CertificateParameters(sigma=sigma, dimension=dimension, n=100)
    watched = Watched(session)
    with pytest.raises(CertificateError, match=f"for sigma {sigma} and {dimension} coordinates does not fit"):
        certify(watched, DARK, 1, certificate_table(parameters, noise_law(sigma)))
    assert watched.drawn == []


def test_certify_is_the_function_in_the_package():
    assert certify_by_name is certify


def test_predict_is_cohens_two_sided_test(session):
    assert predict(session, DARK, 1, 1000, "0.001") == 0
    assert predict(session, UNDECIDED, 1, 1000, "0.001") == ABSTAIN
    # All of k samples in one class: two-sided p = 2^(1 - k), so 10 samples decide at 2 / 1024 and 9 do not.
    assert predict(session, DARK, 1, 10, "0.002") == 0
    assert predict(session, DARK, 1, 9, "0.002") == ABSTAIN


def test_predict_draws_its_samples_once(session):
    watched = Watched(session)
    predict(watched, DARK, 1, 3000, "0.001")
    assert watched.drawn[0][0] == 0
    assert [first for first, _ in watched.drawn[1:]] == [first + n for first, n in watched.drawn[:-1]]
    assert sum(n for _, n in watched.drawn) == 3000


@pytest.mark.parametrize(("n", "alpha"), [(0, "0.001"), (-5, "0.001"), (10, "0"), (10, "0.5"), (10, "1e-3"), (10, "")])
def test_predict_refuses(session, n, alpha):
    watched = Watched(session)
    with pytest.raises(CertificateError, match="give"):
        predict(watched, DARK, 1, n, alpha)
    assert watched.drawn == []


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------

PARAMETERS = CertificateParameters(sigma=SIGMA, dimension=4, n=1000)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "intcert" / "tables"


@pytest.fixture
def made(monkeypatch) -> list:
    """The parameters of the tables made from now on."""
    calls = []

    def make(parameters, law):
        calls.append(parameters)
        return certificate_table(parameters, law)

    monkeypatch.setattr(table_cache, "certificate_table", make)
    return calls


def test_tables_are_cached(cache, made):
    first, second = load_table(PARAMETERS, LAW), load_table(PARAMETERS, LAW)
    assert made == [PARAMETERS]
    assert first.digest == second.digest == certificate_table(PARAMETERS, LAW).digest
    assert len(list(cache.iterdir())) == 1


def test_other_parameters_and_other_noise_have_tables_of_their_own(cache, made):
    several = [
        PARAMETERS,
        CertificateParameters(sigma=SIGMA, dimension=4, n=1001),
        CertificateParameters(sigma=SIGMA, dimension=4, n=1000, rule="cp2"),
        CertificateParameters(sigma="0.06", dimension=4, n=1000),
    ]
    for _ in range(2):
        for parameters in several:
            assert load_table(parameters, noise_law(parameters.sigma)).parameters == parameters
    assert made == several
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_cache_file_is_made_again(cache, made):
    digest = load_table(PARAMETERS, LAW).digest
    [file] = cache.iterdir()
    whole = file.read_bytes()
    other = load_table(CertificateParameters(sigma=SIGMA, dimension=4, n=2000), LAW)
    [other_file] = set(cache.iterdir()) - {file}
    flipped = bytearray(whole)
    flipped[-1] ^= 1  # a claim, which parses as well as the right one
    for content in (b"", whole[:-1], bytes(flipped), whole[65:], other_file.read_bytes()):
        file.write_bytes(content)
        del made[:]
        assert load_table(PARAMETERS, LAW).digest == digest != other.digest
        assert made == [PARAMETERS]
        assert file.read_bytes() == whole


def test_without_a_cache_folder_tables_are_made(tmp_path, made, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert load_table(PARAMETERS, LAW).parameters == PARAMETERS
    assert len(made) == 2


def test_a_full_disk_leaves_nothing_in_the_cache(cache, monkeypatch):
    def fail(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    load_table(PARAMETERS, LAW)
    assert list(cache.iterdir()) == []


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert table_cache.cache_folder() == tmp_path / ".cache" / "intcert" / "tables"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert table_cache.cache_folder() == tmp_path / ".cache" / "intcert" / "tables"


def test_embedded_tables_come_first(cache, made):
    other = table_of("cp2", n=10)
    embedded = [other.to_bytes(), certificate_table(PARAMETERS, LAW).to_bytes()]
    assert load_table(PARAMETERS, LAW, embedded).digest == certificate_table(PARAMETERS, LAW).digest
    assert made == []
    assert not cache.exists()
    load_table(PARAMETERS, LAW, embedded[:1])
    assert made == [PARAMETERS]
    with pytest.raises(ArtifactError, match="damaged certificate table"):
        load_table(PARAMETERS, LAW, [embedded[1][:-1]])


# ---------------------------------------------------------------------------------------------------------------------
# A data set
# ---------------------------------------------------------------------------------------------------------------------


def run(session, source: Path, path: Path, *, rule="cp1", n=1000, resume=False, **arguments) -> list:
    """Certify an npz file into a ledger; its rows."""
    dataset = open_dataset(f"npz:{source}", shape=session.input_shape, classes=session.classes)
    table = table_of(rule, n)
    with Ledger(path, run_settings(session, dataset, table.parameters), resume=resume, run_key=RUN_KEY) as ledger:
        certify_dataset(session, dataset, table, ledger, **arguments)
    return read_ledger(path)


@pytest.mark.parametrize("rule", RULES)
def test_rows_of_a_run(session, images_file, tmp_path, rule):
    rows = run(session, images_file, tmp_path / "run.tsv", rule=rule)
    dataset = open_dataset(f"npz:{images_file}")
    assert [row.idx for row in rows] == list(range(12))
    assert {row.key for row in rows} == {image_key(RUN_KEY, index) for index in range(12)}
    for row, sample in zip(rows, dataset, strict=True):
        certificate = certify(session, sample.image, image_key(RUN_KEY, sample.index), table_of(rule))
        assert (row.predict, row.sqradius) == (certificate.predict, certificate.sqradius)
        assert row.samples == (100, certificate.samples)
        assert dict(row.counts) == {c: k for c, k in enumerate(certificate.counts.tolist()) if k}
        assert (row.label, row.image_sha) == (sample.label, image_sha(sample.image))
        assert (row.rule, row.alpha, row.sigma) == (rule, "0.001", SIGMA)
        assert (row.graph, row.noise) == (session.graph_hash, session.noise_hash)
        assert (row.target, row.device) == (session.target, session.device)
    assert sum(row.correct for row in rows) >= 8


def test_an_image_has_the_same_row_whatever_skip_and_limit(session, images_file, tmp_path):
    everything = run(session, images_file, tmp_path / "all.tsv")
    for name, skip, limit, expected in [
        ("a", 5, None, [0, 5, 10]),
        ("b", 1, 3, [0, 1, 2]),
        ("c", 4, 9, [0, 4, 8]),
        ("d", 1, 0, []),
        ("e", 7, 100, [0, 7]),
    ]:
        rows = run(session, images_file, tmp_path / name, skip=skip, limit=limit)
        assert [row.idx for row in rows] == expected
        assert equal_ledgers(rows, [everything[index] for index in expected])


def test_resume_adds_what_is_missing(session, images_file, tmp_path):
    everything = run(session, images_file, tmp_path / "all.tsv")
    path = tmp_path / "parts.tsv"
    for skip, limit in [(4, None), (2, 7), (1, None)]:
        rows = run(session, images_file, path, skip=skip, limit=limit, resume=True)
    assert [row.idx for row in rows] == [0, 4, 8, 2, 6, 1, 3, 5, 7, 9, 10, 11]
    assert equal_ledgers(rows, everything)
    watched = Watched(session)
    run(watched, images_file, path, resume=True)
    assert watched.drawn == []


def test_progress(session, images_file, tmp_path):
    path = tmp_path / "run.tsv"
    run(session, images_file, path, limit=2)
    seen: list[Progress] = []
    run(session, images_file, path, limit=4, resume=True, progress=seen.append)
    assert seen[0] == Progress(images_done=2, images=4, samples_done=0, samples=1000)
    written = [step for step in seen if step.row is not None]
    assert [(step.images_done, step.row.idx, step.samples_done) for step in written] == [(3, 2, 1000), (4, 3, 1000)]
    assert {(step.images, step.samples) for step in seen} == {(4, 1000)}
    assert any(0 < step.samples_done < 1000 for step in seen)


@pytest.mark.parametrize("arguments", [{"skip": 0}, {"skip": -1}, {"limit": -1}])
def test_skip_and_limit_must_make_sense(session, images_file, tmp_path, arguments):
    with pytest.raises(ValueError, match="skip must be positive and limit not negative"):
        run(session, images_file, tmp_path / "run.tsv", **arguments)


def test_a_ledger_of_another_run_is_refused(session, images_file, tmp_path):
    dataset = open_dataset(f"npz:{images_file}")
    other = run_settings(session, dataset, table_of(n=999).parameters)
    with (
        Ledger(tmp_path / "run.tsv", other) as ledger,
        pytest.raises(LedgerError, match=r"was opened for a run with another n$"),
    ):
        certify_dataset(session, dataset, table_of(n=1000), ledger)


def test_an_unreadable_image_ends_the_run_but_not_the_ledger(session, tmp_path):
    from PIL import Image

    folder = tmp_path / "images" / "dark"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(DARK.squeeze() + number).save(folder / f"{number}.png")
    dataset = open_dataset(f"folder:{tmp_path / 'images'}", shape=(2, 2, 1))
    good = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(b"x" * len(good))
    table = table_of()
    settings = run_settings(session, dataset, table.parameters)
    path = tmp_path / "run.tsv"
    with Ledger(path, settings) as ledger, pytest.raises(DatasetError, match=r"1\.png is not a readable image"):
        certify_dataset(session, dataset, table, ledger)
    assert [row.idx for row in read_ledger(path)] == [0]
    (folder / "1.png").write_bytes(good)
    with Ledger(path, settings, resume=True) as ledger:
        certify_dataset(session, dataset, table, ledger)
    assert [row.idx for row in read_ledger(path)] == [0, 1, 2]


def test_run_settings_record_the_versions(session, images_file):
    dataset = open_dataset(f"npz:{images_file}")
    settings = run_settings(session, dataset, PARAMETERS, {"threads": 2})
    assert settings.dataset == dataset.identity
    assert (settings.n0, settings.n, settings.rule, settings.alpha) == (100, 1000, "cp1", "0.001")
    assert settings.options == {"threads": 2}
    assert settings.versions.keys() == {"intcert", "apache-tvm", "numpy", "python"}


# ---------------------------------------------------------------------------------------------------------------------
# Interruptions: the work runs in a forked child, which starts in a millisecond
# ---------------------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], object]) -> int:
    """Run ``work`` in a child process; its id. It exits with 0, 130 after Ctrl-C, or 1 after any other error."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        status = 0
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Exit status of a child, minus the signal if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class DiesAt:
    """Replaces the calls that change files by ones of which the ``number``-th kills the process, halfway done."""

    NAMES = ("open", "write", "fsync", "replace", "ftruncate")

    def __init__(self, number: int) -> None:
        self.remaining = number
        for name in self.NAMES:
            setattr(os, name, self._dying(name, getattr(os, name)))

    def _dying(self, name: str, call: Callable) -> Callable:
        def wrapped(*arguments, **keywords):
            self.remaining -= 1
            if self.remaining == 0:
                if name == "write":
                    descriptor, data = arguments
                    call(descriptor, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return wrapped


def test_a_kill_at_every_file_operation(session, images_file, tmp_path):
    expected = run(session, images_file, tmp_path / "expected.tsv", n=64, limit=3)
    for number in range(1, 100):
        path = tmp_path / f"{number}.tsv"

        def work(number: int = number, path: Path = path) -> None:
            DiesAt(number)
            run(session, images_file, path, n=64, limit=3, resume=True)

        outcome = ended(forked(work))
        if outcome == 0:
            break
        assert outcome == -signal.SIGKILL
        rows = run(session, images_file, path, n=64, limit=3, resume=True)
        assert equal_ledgers(rows, expected)
        assert path.read_text().count("\n") == 4
    assert number > 12  # creation, settings, header and three rows, each of several operations


def test_twice_killed_at_any_file_operation(session, images_file, tmp_path):
    """The repair is killed as well."""
    expected = run(session, images_file, tmp_path / "expected.tsv", n=64, limit=3)
    chance = random.Random(2)
    for attempt in range(40):
        path = tmp_path / f"{attempt}.tsv"
        for _ in range(4):
            number = chance.randint(1, 12)

            def work(number: int = number, path: Path = path) -> None:
                DiesAt(number)
                run(session, images_file, path, n=64, limit=3, resume=True)

            assert ended(forked(work)) in (0, -signal.SIGKILL)
        assert equal_ledgers(run(session, images_file, path, n=64, limit=3, resume=True), expected)


def test_kills_at_random_moments(session, images_file, tmp_path):
    expected = run(session, images_file, tmp_path / "expected.tsv", n=10_000)
    path = tmp_path / "run.tsv"
    chance = random.Random(1)
    kills, lengths = 0, []
    while True:
        child = forked(lambda: run(session, images_file, path, n=10_000, resume=True))
        # Ever longer, so that a busy machine comes to the end as well.
        time.sleep(chance.uniform(0, 0.05) * (1 + kills / 10))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        if ended(child) == 0:
            break
        kills += 1
        lengths.append(len(path.read_bytes()) if path.exists() else 0)
        assert lengths == sorted(lengths)
    assert equal_ledgers(read_ledger(path), expected)
    assert kills >= 5
    assert len(set(lengths)) >= 3  # in different images


def test_ctrl_c(session, images_file, tmp_path):
    expected = run(session, images_file, tmp_path / "expected.tsv", n=10_000)
    path = tmp_path / "run.tsv"
    begun, begin = os.pipe()

    def work() -> None:
        def show(progress: Progress) -> None:
            if progress.images_done == 2 and progress.samples_done:
                os.write(begin, b"x")

        run(session, images_file, path, n=10_000, progress=show)

    child = forked(work)
    os.read(begun, 1)
    os.kill(child, signal.SIGINT)
    assert ended(child) == 130
    rows = read_ledger(path)
    assert 2 <= len(rows) < 12
    assert path.read_bytes().endswith(b"\n")
    assert equal_ledgers(rows, expected[: len(rows)])
    assert equal_ledgers(run(session, images_file, path, n=10_000, resume=True), expected)
    os.close(begun)
    os.close(begin)
