"""Pictures that a cell showed, made to fit what MCP clients accept.

A client shows a few hundred kilobytes of picture well and breaks on megabytes. What is larger is re-encoded
inside the
sandbox (with the template's Pillow: nothing a sandbox produced is decoded outside it); what then still does
not
fit, or is one too many, stays a file in the sandbox and is named in the text.
"""

import base64
import logging
import struct
from dataclasses import dataclass

import httpx
from e2b import SandboxException
from e2b_code_interpreter import AsyncSandbox, Result

_log = logging.getLogger(__name__)

MAX_SHOWN = 4
MAX_BYTES = 256 * 1024
MAX_TOTAL_BYTES = 480 * 1024
MAX_EDGE = 1536
_MAX_SOURCE = 24 * 1024 * 1024
_REENCODE = """
import io, sys
from PIL import Image
source, target, edge, budget = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
image = Image.open(source)
image = image.convert("RGBA")
flat = Image.new("RGB", image.size, "white")
flat.paste(image, mask=image.getchannel("A"))
for scale in (1.0, 0.75, 0.5, 0.35):
    small = flat.copy()
    small.thumbnail((int(edge * scale), int(edge * scale)))
    for quality in (88, 75, 60):
        out = io.BytesIO()
        small.save(out, "JPEG", quality=quality, optimize=True)
        if out.tell() <= budget:
            open(target, "wb").write(out.getvalue())
            sys.exit(0)
sys.exit(3)
"""


@dataclass
class Picture:
    """One picture of a cell. `data` is base64, None when it is not shown; `path` is its file in the
    sandbox, if any.
    """

    mime_type: str
    size: int
    data: str | None = None
    path: str | None = None
    note: str = ""

    def describe(self) -> dict[str, object]:
        """The picture without its data, for structured results."""
        described: dict[str, object] = {
            "mime_type": self.mime_type,
            "bytes": self.size,
            "shown": self.data is not None,
        }
        if self.path is not None:
            described["path"] = self.path
        if self.note:
            described["note"] = self.note
        return described


async def fit_pictures(sandbox: AsyncSandbox, results: list[Result], directory: str) -> list[Picture]:
    """The pictures of `results` within the budget; `directory` (inside the sandbox) takes what does not
    fit.
    """
    pictures: list[Picture] = []
    shown = total = 0
    for result in results:
        picture = _picture_of(result)
        if picture is None:
            continue
        pictures.append(picture)
        budget = min(MAX_BYTES, MAX_TOTAL_BYTES - total)
        if shown >= MAX_SHOWN or budget < 8 * 1024:
            await _keep_as_file(sandbox, picture, directory, len(pictures))
            picture.data = None
            continue
        if picture.data is None or _too_large(picture, budget):
            await _shrink(sandbox, picture, directory, len(pictures), budget)
        if picture.data is not None:
            shown += 1
            total += len(picture.data) * 3 // 4
    return pictures


def _picture_of(result: Result) -> Picture | None:
    for mime_type, data in (("image/png", result.png), ("image/jpeg", result.jpeg)):
        if data:
            data = "".join(data.split())
            return Picture(mime_type, len(data) * 3 // 4, data)
    if result.svg:
        return Picture(
            "image/svg+xml", len(result.svg.encode()), base64.b64encode(result.svg.encode()).decode()
        )
    return None


def _too_large(picture: Picture, budget: int) -> bool:
    if picture.mime_type == "image/svg+xml" or picture.size > budget:
        return True
    return max(png_size(picture.data or "")) > MAX_EDGE


def png_size(data: str) -> tuple[int, int]:
    """Width and height of a PNG given in base64; zeros for anything else."""
    try:
        head = base64.b64decode(data[:32])
    except ValueError:
        return 0, 0
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        return 0, 0
    width, height = struct.unpack(">II", head[16:24])
    return width, height


async def _keep_as_file(sandbox: AsyncSandbox, picture: Picture, directory: str, number: int) -> None:
    suffix = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}[picture.mime_type]
    path = f"{directory}/figure-{number}.{suffix}"
    if picture.data is None or picture.size > _MAX_SOURCE:
        picture.note = "too large to keep"
        return
    try:
        await sandbox.files.write(path, base64.b64decode(picture.data))
        picture.path = path
    except (SandboxException, httpx.HTTPError, ValueError) as error:
        _log.info("a picture could not be kept: %s", error)
        picture.note = f"could not be kept as a file ({type(error).__name__})"


async def _shrink(sandbox: AsyncSandbox, picture: Picture, directory: str, number: int, budget: int) -> None:
    """Replace the picture's data by a JPEG within `budget` bytes, or by nothing; the original becomes a
    file.
    """
    await _keep_as_file(sandbox, picture, directory, number)
    picture.data = None
    if picture.path is None:
        return
    if picture.mime_type == "image/svg+xml":
        picture.note = "a vector drawing; read it as a file"
        return
    small = f"{directory}/figure-{number}.small.jpg"
    try:
        await sandbox.files.write(f"{directory}/reencode.py", _REENCODE)
        command = f"python3 {directory}/reencode.py {picture.path} {small} {MAX_EDGE} {budget}"
        await sandbox.commands.run(command, timeout=20)
        data = bytes(await sandbox.files.read(small, format="bytes"))
    except (SandboxException, httpx.HTTPError) as error:
        _log.info("a picture could not be re-encoded: %s", error)
        picture.note = "too large to show"
        return
    if len(data) <= budget and data[:3] == b"\xff\xd8\xff":
        picture.data = base64.b64encode(data).decode()
        picture.mime_type = "image/jpeg"
        picture.note = "shown smaller"
