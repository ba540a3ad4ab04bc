"""A picture of the top of a tournament's report, from its lead to its win matrix, as the README shows it.

    python scripts/picture.py runs/TOURNAMENT/report.html docs/report.png

It needs Chromium, which opens a copy of the report that shows nothing below the win matrix.
"""

import argparse
import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

WIDTH, HEIGHT, SCALE = 1100, 2400, 2  # of the window in CSS pixels, and device pixels for each of them
MARGIN = 24  # CSS pixels left free around what is shown
LARGEST = 150_000  # bytes: the README is often read over a slow connection
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TOP = "<style>main > .scroll ~ *, footer { display: none !important } :root { color-scheme: light !important }</style>"


class PictureError(Exception):
    """Why there is no picture, in one line."""


def browser() -> str:
    """The first browser of `BROWSERS` that is installed."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise PictureError(f"no browser found ({', '.join(BROWSERS)}): install Chromium")


def top(report: Path) -> str:
    """The report's page without what follows its win matrix."""
    try:
        html = report.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PictureError(f"{report}: cannot be read: {error}") from None
    if 'class="matrix' not in html or "</head>" not in html:
        raise PictureError(f"{report}: has no win matrix; take the report.html of `alignrun eval`")
    return html.replace("</head>", f"{TOP}</head>", 1)


def screenshot(html: str, chromium: str) -> Image.Image:
    """The page as the browser shows it, in a window higher than any win matrix."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page, picture = folder / "page.html", folder / "page.png"
        page.write_text(html, encoding="utf-8")
        command = [
            chromium, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}",
            "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}",
            f"--screenshot={picture}", page.as_uri(),
        ]  # fmt: skip
        if os.geteuid() == 0:
            command.insert(1, "--no-sandbox")  # Chromium refuses to start as root otherwise; the page runs nothing
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=120)
            return Image.open(io.BytesIO(picture.read_bytes())).convert("RGB")
        except (subprocess.SubprocessError, OSError) as error:
            raise PictureError(f"{chromium}: took no picture: {error}") from None


def cropped(image: Image.Image) -> Image.Image:
    """The image without the empty paper below and to the right, up to a margin."""
    paper = Image.new("RGB", image.size, image.getpixel((0, 0)))
    box = ImageChops.difference(image, paper).getbbox()
    if box is None:
        raise PictureError("the browser showed an empty page")
    if box[3] == image.height:
        raise PictureError(f"the win matrix ends below {HEIGHT} pixels: take a tournament of fewer policies")
    margin = MARGIN * SCALE
    return image.crop((0, max(box[1] - margin, 0), min(box[2] + margin, image.width), box[3] + margin))


def compressed(image: Image.Image) -> bytes:
    """A PNG of at most `LARGEST` bytes, with as many colours as that allows."""
    for colours in (256, 128, 64, 32, 16):
        buffer = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= LARGEST:
            return buffer.getvalue()
    raise PictureError(f"the picture is larger than {LARGEST} bytes: take a tournament of fewer policies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.html of a tournament")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    arguments = parser.parse_args()
    try:
        image = cropped(screenshot(top(arguments.report), browser()))
        content = compressed(image)
        arguments.picture.write_bytes(content)
    except (PictureError, OSError) as error:
        parser.exit(2, f"picture: {error}\n")
    print(f"{arguments.picture}: {image.width} × {image.height} pixels, {len(content) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
