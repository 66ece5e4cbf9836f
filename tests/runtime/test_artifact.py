import dataclasses
import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intcert.runtime.artifact import Manifest, read_artifact, write_artifact
from intcert.runtime.certificate import CertificateParameters, CertificateTable, certificate_table
from intcert.runtime.errors import ArtifactError
from intcert.runtime.noise import noise_law

LAW = noise_law("0.05")
PARAMETERS = CertificateParameters(sigma="0.05", dimension=4, n=1000)
MEMBERS = {
    "lib.so": b"\x7fELF" + bytes(1000),
    "graph.bin": b"a graph",
    "noise.bin": LAW.to_bytes(),
    "certificate/cp1.bin": certificate_table(PARAMETERS, LAW).to_bytes(),
}
MANIFEST = Manifest(
    model_hash="1" * 64,
    graph_hash="2" * 64,
    noise_hash=LAW.digest,
    target="x86",
    target_facts={"cpu_flags": ["avx2"], "vector_bits": 256},
    scheme="q15",
    input_shape=(2, 2, 1),
    classes=3,
    class_names=("dark", "medium", "bright"),
    sigma="0.05",
    sigma_steps="12.75",
    eta={"total": "0.000000000000001"},
    chunk=64,
    entry_points=("counts", "logits", "layers"),
    tvm_version="0.27.0",
    arena_bytes=4096,
    layers=({"name": "input", "kernel": "quantize", "offset": 0, "shape": [2, 2, 1], "dtype": "uint8", "stride": 16},),
    certificates=("cp1",),
)


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "m.intcert"
    write_artifact(path, MANIFEST, MEMBERS)
    return path


def written_members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def edit_manifest(path: Path, **changes: object) -> None:
    """Change fields of manifest.json; a value of ... removes the field."""
    members = written_members(path)
    content = json.loads(members["manifest.json"]) | changes
    members["manifest.json"] = json.dumps({k: v for k, v in content.items() if v is not ...}).encode()
    rewrite(path, members)


def refusal(path: Path) -> str:
    """The message with which an artifact is refused: one line that names the file."""
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_round_trip(path):
    artifact = read_artifact(path)
    assert dataclasses.replace(artifact.manifest, members={}) == MANIFEST
    assert artifact.manifest.members == {name: hashlib.sha256(data).hexdigest() for name, data in MEMBERS.items()}
    assert artifact.members == MEMBERS
    assert artifact.library == MEMBERS["lib.so"]
    assert artifact.graph == b"a graph"
    assert artifact.law.digest == LAW.digest
    assert artifact.manifest.cpu_flags == ("avx2",)
    assert artifact.certificates == {"cp1": MEMBERS["certificate/cp1.bin"]}
    assert CertificateTable.from_bytes(artifact.certificates["cp1"]).parameters == PARAMETERS


def test_write_returns_the_manifest_as_read(tmp_path):
    written = write_artifact(tmp_path / "m", MANIFEST, MEMBERS)
    assert read_artifact(tmp_path / "m").manifest == written


def test_the_same_build_gives_the_same_bytes(path, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 0.0)
    other = tmp_path / "other.intcert"
    write_artifact(other, MANIFEST, dict(reversed(MEMBERS.items())))
    assert other.read_bytes() == path.read_bytes()


def test_standard_tools_read_it(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", *sorted(MEMBERS)]
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_missing(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.intcert")


def test_a_folder(tmp_path):
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x7fELF", b"# a text\n" * 100])
def test_not_a_zip(tmp_path, content):
    file = tmp_path / "m.intcert"
    file.write_bytes(content)
    assert "is not an artifact" in refusal(file)


def test_another_zip(tmp_path):
    rewrite(tmp_path / "z", {"readme.txt": b""})
    assert "unexpected member 'readme.txt'" in refusal(tmp_path / "z")
    rewrite(tmp_path / "z", {"lib.so": b""})
    assert "no manifest.json" in refusal(tmp_path / "z")


def test_every_truncation_is_found(path):
    whole = path.read_bytes()
    for length in [
        *range(4, 200),
        *np.linspace(200, len(whole) - 1, 60).astype(int),
        *range(len(whole) - 30, len(whole)),
    ]:
        path.write_bytes(whole[:length])
        assert "truncated or damaged" in refusal(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_found_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "m.intcert"
    write_artifact(path, MANIFEST, MEMBERS)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        artifact = read_artifact(path)
    except ArtifactError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        # A bit of the zip's own bookkeeping, such as a date.
        assert artifact.members == MEMBERS
        assert dataclasses.replace(artifact.manifest, members={}) == MANIFEST


@pytest.mark.parametrize("name", ["../lib.so", "/etc/passwd", "certificate/../x.bin", "certificate/a/b.bin", "LIB.SO"])
def test_unexpected_names_are_refused(path, name):
    rewrite(path, {**written_members(path), name: b""})
    assert f"unexpected member {name!r}" in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_repeated_member_is_refused(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("lib.so", b"another")
    assert "unexpected member 'lib.so'" in refusal(path)


def test_compressed_members_are_refused_unread(path):
    rewrite(path, {**written_members(path), "lib.so": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "compressed" in refusal(path)


def test_members_that_share_bytes_are_refused(path):
    """Many directory entries of one stored member: little in the file, much in memory."""
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    start = int.from_bytes(content[end + 16 : end + 20], "little")
    directory = content[start:end]
    entry = directory[directory.index(b"PK\x01\x02", 4) :]
    entry = entry[: entry.index(b"PK\x01\x02", 4)]  # certificate/cp1.bin, the second
    copies = b"".join(entry.replace(b"cp1.bin", b"%03d.bin" % i) for i in range(100))
    trailer = bytearray(content[end:])
    count = 100 + int.from_bytes(trailer[8:10], "little")
    trailer[8:12] = count.to_bytes(2, "little") * 2
    trailer[12:16] = (len(directory) + len(copies)).to_bytes(4, "little")
    path.write_bytes(content[:start] + directory + copies + trailer)
    assert "larger than itself" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": 2}, "format version 2, this release reads version 1"),
        ({"format_version": "1"}, "no format version"),
        ({"format_version": ...}, "no format version"),
        ({"sigma": ...}, "sigma is missing"),
        ({"colour": "red"}, "colour is unknown"),
        ({"input_shape": [2, 2]}, "input_shape is [2, 2]"),
        ({"input_shape": [2, 2, 0]}, "input_shape is [2, 2, 0]"),
        ({"classes": True}, "classes is true"),
        ({"scheme": "q8"}, 'scheme is "q8"'),
        ({"graph_hash": "2" * 63}, 'graph_hash is "222'),
        ({"target_facts": {}}, "target_facts is {}"),
        ({"target_facts": {"cpu_flags": "avx2"}}, 'target_facts is {"cpu_flags": "avx2"}'),
        ({"eta": {"total": 0.1}}, 'eta is {"total": 0.1}'),
        ({"layers": ["conv"]}, 'layers is ["conv"]'),
        ({"members": {"lib.so": "abc"}}, 'members is {"lib.so": "abc"}'),
    ],
)
def test_a_manifest_that_cannot_be_used(path, changes, reason):
    edit_manifest(path, **changes)
    assert f"manifest that cannot be used ({reason}" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_not_json(path, content):
    rewrite(path, {**written_members(path), "manifest.json": content})
    assert "manifest that cannot be used" in refusal(path)


def test_members_and_manifest_must_agree(path):
    members = written_members(path)
    rewrite(path, {**members, "lib.so": b"other code"})
    assert "does not match its manifest: lib.so has another hash" in refusal(path)
    rewrite(path, {name: data for name, data in members.items() if name != "graph.bin"})
    assert "does not match its manifest: graph.bin is missing" in refusal(path)
    rewrite(path, {**members, "certificate/more.bin": b""})
    assert "does not match its manifest: certificate/more.bin is not in the manifest" in refusal(path)
    rewrite(path, members)
    edit_manifest(path, certificates=[])
    assert "certificate/cp1.bin is not in the manifest" in refusal(path)


def test_a_manifest_at_odds_with_its_content(path):
    original = path.read_bytes()
    edit_manifest(path, class_names=["dark"])
    assert "1 class names for 3 classes" in refusal(path)
    path.write_bytes(original)
    edit_manifest(path, sigma="0.5")
    assert "another noise law" in refusal(path)
    path.write_bytes(original)
    edit_manifest(path, noise_hash="0" * 64)
    assert "another noise law" in refusal(path)


@pytest.mark.parametrize("missing", ["lib.so", "certificate/cp1.bin"])
def test_write_wants_all_members(tmp_path, missing):
    with pytest.raises(ValueError, match="instead of"):
        write_artifact(tmp_path / "m", MANIFEST, {name: data for name, data in MEMBERS.items() if name != missing})
    assert not list(tmp_path.iterdir())


def test_write_refuses_what_could_not_be_read(tmp_path):
    with pytest.raises(ValueError, match="classes is 0"):
        write_artifact(tmp_path / "m", dataclasses.replace(MANIFEST, classes=0), MEMBERS)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_path(tmp_path):
    with pytest.raises(ArtifactError, match=r"none/m\.intcert cannot be written \(No such file"):
        write_artifact(tmp_path / "none" / "m.intcert", MANIFEST, MEMBERS)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_artifact(tmp_path / "folder", MANIFEST, MEMBERS)
    assert os.listdir(tmp_path) == ["folder"]


def test_a_failed_write_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ArtifactError, match="No space left"):
        write_artifact(path, dataclasses.replace(MANIFEST, chunk=1), MEMBERS)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
