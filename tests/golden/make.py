"""How the golden counts were made, once, with the reference: python tests/golden/make.py.

They pin the meaning of ``counts`` for good: certificates already made rely on it. A change that makes a golden test
fail is not a fix of these files but a new format version of graph, noise law or ledger.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from intcert.compile.frontend import import_program
from intcert.compile.reference import ReferenceSession
from intcert.runtime.datasets import open_dataset
from intcert.runtime.noise import noise_law

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "cli" / "demo"
SIGMA, SAMPLES = "0.25", 256
CASES = ((0, 0x0123456789ABCDEF, 0), (7, 0xFEDCBA9876543210, 100), (13, 1, 2**32 - 100))  # image, key, first sample


def main() -> None:
    images = [sample.image for sample in open_dataset(f"folder:{DEMO / 'images'}")]
    np.savez_compressed(HERE / "images.npz", images=np.stack([images[i] for i, _, _ in CASES]))
    law = noise_law(SIGMA)
    cases = []
    for scheme in ("q15", "q31"):
        graph = import_program(DEMO / "resnet20.pt2", scheme=scheme)
        (HERE / f"resnet20-{scheme}.graph").write_bytes(graph.to_bytes())
        session = ReferenceSession(graph, law)
        for position, (number, key, first) in enumerate(CASES):
            rows = session.counts(images[number], key, first, SAMPLES)
            entry = {"scheme": scheme, "graph": graph.digest, "noise": law.digest, "image": position}
            cases.append(entry | {"key": f"{key:016x}", "first": first, "samples": SAMPLES, "rows": rows.tolist()})
    document = {"sigma": SIGMA, "cases": cases}
    (HERE / "counts.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
