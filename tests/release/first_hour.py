"""The first hour of a newcomer with a stopwatch: a wheel into an empty environment, then seven kinds of their own data.

python tests/release/first_hour.py dist/anyformer-0.1.0-py3-none-any.whl build/first-hour [--minutes 0.5]

Text, a table, photos, sound, conversations, serving and looking inside, each with the commands of the README and the
files made up here. Prints the seconds of each command and of the first result, and exits with 1 at the first command
that fails. Seconds depend on the machine and the registry: nothing is checked but that all of it works.
"""

import argparse
import json
import math
import random
import struct
import subprocess
import sys
import time
import urllib.request
import wave
import zlib
from pathlib import Path

import try_wheel

EXTRAS = "serve,vision,audio"
COMMANDS = """\
detect diary.txt
train diary.txt --minutes {minutes} --out runs/diary
sample runs/diary --prompt "the cat" --tokens 30
train flats.csv --minutes {minutes} --out runs/flats
predict runs/flats
worth runs/flats
train photos --minutes {minutes} --out runs/photos
predict runs/photos photos/light/0.png
train sounds --minutes {minutes} --out runs/sounds
predict runs/sounds sounds/0.wav
train chats.jsonl --minutes {minutes} --out runs/chats
sample runs/chats --chat "reverse: abc"
lens runs/diary --input "the cat sat" --out lens.html
export runs/diary --to hf exported
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path, help="of the environment and of what the commands write; is made anew")
    parser.add_argument("--minutes", type=float, default=0.5, help="of each training")
    options = parser.parse_args()
    folder, begin = options.folder.resolve(), time.monotonic()
    try:
        seconds, megabytes = try_wheel.install(f"{options.wheel.resolve()}[{EXTRAS}]", folder)
        print(f"{seconds:5.1f} s  pip install 'anyformer[{EXTRAS}]', {megabytes:,.0f} MB", flush=True)
        write_data(folder, random.Random(0))
        for number, command in enumerate(COMMANDS.format(minutes=options.minutes).splitlines()):
            try_wheel.run(folder, f"anyformer {command}")
            if number == 2:
                print(f"{time.monotonic() - begin:5.1f} s  until the first text was written, with the installation")
        serve(folder)
    except try_wheel.TrialError as failure:
        print(f"FAILED  {failure}", file=sys.stderr)
        return 1
    print(f"{time.monotonic() - begin:5.1f} s  in all")
    return 0


def write_data(folder: Path, rng: random.Random) -> None:
    """Write a file or folder of each kind, small and with something to learn."""
    subjects, verbs, places = ["the cat", "the dog", "my aunt"], ["sat", "slept", "sang"], ["mat", "sofa", "roof"]
    lines = [f"{rng.choice(subjects)} {rng.choice(verbs)} on the {rng.choice(places)}." for _ in range(3000)]
    (folder / "diary.txt").write_text("\n".join(lines))
    rows = [(rng.randint(20, 150), rng.choice(["north", "south"]), rng.randint(0, 9)) for _ in range(400)]
    table = [f"{size},{side},{floor},{size * (12 if side == 'south' else 9) + 5 * floor}" for size, side, floor in rows]
    (folder / "flats.csv").write_text("\n".join(["size,side,floor,rent", *table]))
    chats = []
    for _ in range(400):
        word = "".join(rng.choices("abcdefg", k=rng.randint(2, 4)))
        task, answer = rng.choice([("reverse", word[::-1]), ("repeat", word)])
        messages = [{"role": "user", "content": f"{task}: {word}"}, {"role": "assistant", "content": answer}]
        chats.append(json.dumps({"messages": messages}))
    (folder / "chats.jsonl").write_text("\n".join(chats))
    for label, low in (("dark", 0), ("light", 128)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(60):
            pixels = bytes(rng.randrange(low, low + 128) for _ in range(32 * 32 * 3))
            (folder / "photos" / label / f"{number}.png").write_bytes(encode_png(pixels, 32))
    (folder / "sounds").mkdir()
    for number in range(60):
        text, pitch = rng.choice([("low", 220.0), ("high", 880.0)])
        write_tone(folder / "sounds" / f"{number}.wav", pitch * rng.uniform(0.95, 1.05))
        (folder / "sounds" / f"{number}.txt").write_text(text)


def encode_png(pixels: bytes, size: int) -> bytes:
    """Return a square RGB image as PNG, without any library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[3 * size * y : 3 * size * (y + 1)] for y in range(size))
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def write_tone(path: Path, pitch: float, rate: int = 8000) -> None:
    samples = [int(8000 * math.sin(2 * math.pi * pitch * i / rate)) for i in range(rate // 2)]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))


def serve(folder: Path) -> None:
    """Serve all runs, ask one of them over HTTP, open the page, and stop the server as Ctrl-C does."""
    start = time.monotonic()
    runs = sorted(str(path) for path in (folder / "runs").iterdir())
    command = [folder / "venv" / "bin" / "anyformer", "serve", *runs, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            url = next((word for word in line.split() if word.startswith("http")), "")
            if not url:
                raise try_wheel.TrialError(f"anyformer serve: {line!r} names no address")
            body = json.dumps({"model": "diary", "prompt": "the cat", "max_tokens": 10}).encode()
            request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as response:
                text = json.load(response)["choices"][0]["text"]
            with urllib.request.urlopen(url, timeout=120) as response:
                page = response.read()
            if not text or b"<html" not in page:
                raise try_wheel.TrialError("anyformer serve: no text, or no page")
        finally:
            process.terminate()
    print(f"{time.monotonic() - start:5.1f} s  anyformer serve with {len(runs)} models, a completion and the page")


if __name__ == "__main__":
    sys.exit(main())
