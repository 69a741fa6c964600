"""Record docs/demo.webp: a training in the terminal, then the page of the server in a browser. Nothing of it is staged.

pip install -e '.[browser,serve]' pyte pillow     and a chromium ($CHROMIUM, or the one on the path)
python docs/record.py docs/demo.webp              about three minutes; the data set comes from the package registry

The commands run in a pseudo terminal, and their screen is drawn whenever it changes. A command that takes longer than
its share of the picture is shown faster, and the picture says how much.
"""

import argparse
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyte
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

COLUMNS, ROWS, WIDTH, HEIGHT, MARGIN = 98, 25, 960, 600, 22
FONT = ImageFont.truetype("DejaVuSansMono.ttf", 15)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAPER, INK = "#10141c", "#d5dbe6"
COLORS = {"red": "#f07178", "green": "#9ece6a", "brown": "#e0af68", "blue": "#7aa2f7", "magenta": "#bb9af7"}
COLORS |= {"cyan": "#7dcfff", "brightblack": "#7a8499", "white": INK, "black": PAPER}
TRAIN = "anyformer train plays --minutes {minutes} --out runs/plays"
SERVE = "anyformer serve runs/plays"
STEP = 0.2  # seconds between two frames
PROMPT = "KING RICHARD.\n"


@dataclass
class Film:
    frames: list[Image.Image] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)  # milliseconds

    def add(self, frame: Image.Image, seconds: float) -> None:
        """Append a frame, or show the last one for longer where nothing has changed."""
        if self.frames and self.frames[-1].tobytes() == frame.tobytes():
            self.durations[-1] += round(seconds * 1000)
        else:
            self.frames.append(frame)
            self.durations.append(round(seconds * 1000))

    def save(self, path: Path) -> None:
        first, *others = [frame.quantize(128, dither=Image.Dither.NONE).convert("RGB") for frame in self.frames]
        settings = {"save_all": True, "append_images": others, "duration": self.durations, "loop": 0}
        first.save(path, lossless=True, quality=100, method=4, minimize_size=True, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--minutes", default="2", help="of the training")
    options = parser.parse_args()
    picture, film = options.picture.resolve(), Film()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        terminal = Terminal(film)
        terminal.type(TRAIN.format(minutes=options.minutes))
        terminal.run(TRAIN.format(minutes=options.minutes), seconds=11)
        terminal.hold(4)
        terminal.type(SERVE)
        with terminal.serve(SERVE) as address:
            terminal.hold(2)
            film_page(film, address)
    film.save(picture)
    print(
        f"{picture}: {picture.stat().st_size / 1e6:.2f} MB, {len(film.frames)} frames, {sum(film.durations) // 1000} s"
    )


# --- the terminal ---


class Terminal:
    def __init__(self, film: Film):
        self.film = film
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)

    def type(self, command: str) -> None:
        """Show a prompt and a command that is typed."""
        self.stream.feed(b"\x1b[32m$\x1b[0m ")
        self.hold(0.6)
        for start in range(0, len(command), 3):
            self.stream.feed(command[start : start + 3].encode())
            self.hold(0.1)
        self.stream.feed(b"\r\n")
        self.hold(0.4)

    def hold(self, seconds: float, speed: float = 1) -> None:
        self.film.add(draw_screen(self.screen, speed), seconds)

    def run(self, command: str, seconds: float) -> None:
        """Run a command to its end and show its output within `seconds`."""
        pieces, start = [], time.monotonic()
        process, output = start_process(command)
        for data in read_output(output):
            pieces.append((time.monotonic() - start, data))
        if process.wait():
            sys.exit(f"{command}: exit {process.returncode}\n" + b"".join(data for _, data in pieces).decode())
        speed = max(1.0, (time.monotonic() - start) / seconds)
        shown = 0.0
        for moment, data in pieces:
            while shown + STEP < moment / speed:
                self.hold(STEP, speed)
                shown += STEP
            self.stream.feed(data)
        self.hold(STEP)

    def serve(self, command: str) -> "Serving":
        return Serving(self, command)


class Serving:
    """The server of a command, while the block runs; its address is what it prints."""

    def __init__(self, terminal: Terminal, command: str):
        self.terminal, self.command = terminal, command

    def __enter__(self) -> str:
        self.process, output = start_process(self.command)
        text = ""
        for data in read_output(output):
            self.terminal.stream.feed(data)
            text += data.decode()
            if match := re.search(r"http://[\d.]+:\d+", text):
                return match[0]
        raise SystemExit(f"{self.command} ended: {text}")

    def __exit__(self, *error: object) -> None:
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait()


def start_process(command: str) -> tuple[subprocess.Popen, int]:
    """Start a command in a pseudo terminal. Returns it and the descriptor that its output is read from."""
    main_end, its_end = pty.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color"}
    program, *arguments = command.split()
    words = [shutil.which(program) or sys.executable, *arguments]
    if shutil.which(program) is None:
        words[1:1] = ["-m", program]
    process = subprocess.Popen(
        words, stdin=its_end, stdout=its_end, stderr=its_end, env=environment, start_new_session=True
    )
    os.close(its_end)
    return process, main_end


def read_output(descriptor: int) -> Iterator[bytes]:
    while True:
        select.select([descriptor], [], [])
        try:
            data = os.read(descriptor, 65_536)
        except OSError:  # the other end is closed
            return
        if not data:
            return
        yield data


def draw_screen(screen: pyte.Screen, speed: float) -> Image.Image:
    """Draw the screen of a terminal, with a note where it is shown faster than it was."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    step, height = FONT.getlength("m"), (HEIGHT - 2 * MARGIN) / ROWS
    for row in range(ROWS):
        for column, cell in screen.buffer[row].items():
            if cell.data.strip():
                color = COLORS.get(cell.fg) or (f"#{cell.fg}" if re.fullmatch("[0-9a-f]{6}", cell.fg) else INK)
                position = (MARGIN + column * step, MARGIN + row * height)
                draw.text(position, cell.data, fill=PAPER if cell.reverse else color, font=FONT)
    if speed > 1.05:
        note = f"shown {speed:.0f} times faster"
        draw.text((WIDTH - MARGIN - FONT.getlength(note), HEIGHT - 30), note, fill=COLORS["brightblack"], font=FONT)
    return image


# --- the page ---


def film_page(film: Film, address: str) -> None:
    """Have a text continued in the form of the page, and look at what the model did."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(address)
        text = page.get_by_label("Text to continue")
        text.wait_for()
        shoot(film, page, 1)
        text.fill("")
        for end in range(3, len(PROMPT) + 3, 3):
            text.fill(PROMPT[:end])
            shoot(film, page, 0.12)
        shoot(film, page, 0.4)
        start = time.monotonic()
        page.locator("form.card button.primary").click()
        while time.monotonic() - start < 25:
            shoot(film, page, STEP)
            if not page.evaluate("document.body.classList.contains('busy')"):
                break
        shoot(film, page, 2.5)
        film_lens(film, page)
        browser.close()


def film_lens(film: Film, page: Any) -> None:
    """Open the lens on what is in the form, and scroll to its attention."""
    page.get_by_role("button", name="Look inside").click()
    frame = page.frame_locator("dialog.lens iframe")
    frame.get_by_role("heading", name="Inside").wait_for(timeout=120_000)
    page.mouse.move(WIDTH / 2, HEIGHT / 2)
    shoot(film, page, 2)
    for _ in range(9):
        page.mouse.wheel(0, 50)
        page.wait_for_timeout(80)
        shoot(film, page, 0.12)
    shoot(film, page, 4)


def shoot(film: Film, page: Any, seconds: float) -> None:
    image = Image.open(BytesIO(page.screenshot())).convert("RGB")
    film.add(image if image.size == (WIDTH, HEIGHT) else image.resize((WIDTH, HEIGHT)), seconds)


if __name__ == "__main__":
    main()
