"""Molecules: SMILES that a language model writes, with as many rings and atoms as it is asked for.

    python -m bench.recipes.molecules --out build/molecules --python path/to/python/with/rdkit

Each row of the training is "3 21 CC(=O)...": the rings and the heavy atoms, counted in the string, and the molecule.
The model is asked for 1,000 molecules without a prompt, and for 1,000 with the rings and atoms of molecules that are
held out. rdkit, of any Python, is the judge: `valid` can be read by it, `unique` and `novel` are shares of those.
"""

import gzip
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

N_SAMPLES = 1000
MODEL = {"dim": 96, "n_layer": 3, "n_head": 3, "context": 64}
ATOM = re.compile(r"\[[^\]]+\]|Br|Cl|[BCNOPSFI]|[bcnops]")
RING = re.compile(r"%\d\d|\d")


def count_parts(smiles: str) -> tuple[int, int]:
    """Return the rings and the heavy atoms of a molecule in SMILES."""
    atoms = ATOM.findall(smiles)
    outside = re.sub(r"\[[^\]]+\]", "", smiles)
    return len(RING.findall(outside)) // 2, sum(atom != "[H]" for atom in atoms)


def write_rows(path: Path, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Write some molecules with their counts, and return those to train on and those held out."""
    from anyformer.data.io.resolve import resolve

    with gzip.open(resolve("molecules")[0], "rt") as file:
        molecules = [line.strip() for line in islice(file, 1, None)]
    random.Random(seed).shuffle(molecules)
    rows = ("{} {} {}".format(*count_parts(smiles), smiles) for smiles in molecules[:count])
    path.write_text("text\n" + "".join(row + "\n" for row in rows), encoding="utf-8")
    return molecules[:count], molecules[count : count + N_SAMPLES]


def sample(model: Any, prompts: Sequence[str], seed: int, temperature: float, batch: int = 250) -> list[str]:
    """Write one text for each prompt; those of the same prompt are samples of it."""
    texts = []
    for prompt, count in Counter(prompts).items():
        for start in range(0, count, batch):
            request = {
                "temperature": temperature,
                "tokens": 80,
                "seed": seed + start,
                "samples": min(batch, count - start),
            }
            texts += [s["prompt"] + s["text"] for s in model.generate(prompt, **request)["samples"]]
    return texts


def judge(path: Path) -> dict[str, Any]:
    """Read the samples with rdkit."""
    from rdkit import Chem, RDLogger
    from rdkit.Chem.rdMolDescriptors import CalcNumHeavyAtoms, CalcNumRings

    RDLogger.DisableLog("rdApp.*")
    content = json.loads(path.read_text())
    training, facts = set(content["training"]), {}
    for name in ("free", "conditioned"):
        rows = [text.split(" ") for text in content[name]]
        molecules = [(row, Chem.MolFromSmiles(row[2])) for row in rows if len(row) == 3 and row[2]]
        valid = [(row, molecule) for row, molecule in molecules if molecule is not None and molecule.GetNumAtoms()]
        canonical = {Chem.MolToSmiles(molecule) for _, molecule in valid}
        n_valid = max(1, len(valid))
        rings = sum(row[0] == str(CalcNumRings(molecule)) for row, molecule in valid)
        atoms = [abs(int(row[1]) - CalcNumHeavyAtoms(molecule)) for row, molecule in valid if row[1].isdigit()]
        facts[name] = {
            "valid": len(valid) / len(rows),
            "unique": len(canonical) / n_valid,
            "novel": len(canonical - training) / max(1, len(canonical)),
            "rings as asked": rings / n_valid,
            "atoms as asked": sum(difference == 0 for difference in atoms) / n_valid,
            "atoms within one": sum(difference <= 1 for difference in atoms) / n_valid,
        }
    return facts


def main() -> None:
    if sys.argv[1:2] == ["--judge"]:
        print(json.dumps(judge(Path(sys.argv[2]))))
        return
    from anyformer import api
    from bench._common import make_parser
    from bench.recipes.music import count_cpu

    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/molecules"))
    parser.add_argument("--python", default=sys.executable, help="one that has rdkit")
    parser.add_argument("--molecules", type=int, default=300_000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    training, others = write_rows(options.out / "molecules.csv", options.molecules, options.seed)
    start = count_cpu()
    settings = {
        "steps": options.steps,
        "batch": 64,
        "lr": 5e-3,
        "seed": options.seed,
        "eval_every": max(1, options.steps // 4),
    }
    fields: dict[str, Any] = {"documents": "rows", "model": MODEL, "val_fraction": 0.01, "device": "cpu"}
    data, out = str(options.out / "molecules.csv"), options.out / "run"
    if (out / "result.json").exists():  # a finished training is not repeated
        model = api.load(out, "cpu")
    else:
        model = api.train("language", data=data, out=out, train=settings, progress=False, **fields)
    facts = {"steps": options.steps, "cpu_minutes": (count_cpu() - start) / 60}
    prompts = ["{} {} ".format(*count_parts(smiles)) for smiles in others]
    content = {
        "free": sample(model, [""] * N_SAMPLES, 1, options.temperature),
        "conditioned": sample(model, prompts, 2, options.temperature),
        "training": training,
    }
    path = options.out / "samples.json"
    path.write_text(json.dumps(content))
    result = subprocess.run([options.python, __file__, "--judge", path], capture_output=True, text=True, check=True)
    print(json.dumps(facts | json.loads(result.stdout), indent=None if options.json else 1))


if __name__ == "__main__":
    main()
