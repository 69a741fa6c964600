"""Startup time: `import anyformer` and `anyformer --help`, compared with `import torch`.

python -m bench.startup
"""

import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import anyformer": ["-c", "import anyformer"],
    "anyformer --help": ["-m", "anyformer", "--help"],
    "import torch": ["-c", "import torch"],
}


def main() -> None:
    for name, command in COMMANDS.items():
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        print(f"{name:<20} {sorted(times)[2]:.3f} s")


if __name__ == "__main__":
    main()
