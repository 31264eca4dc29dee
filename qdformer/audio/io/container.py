"""Opens the media files that a user names, with FFmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import av

from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer


@contextmanager
def open_container(path: Path, kind: str, error: type[InputError]) -> Iterator[InputContainer]:
    """Open a file with FFmpeg for the block, to be read as `kind` (audio, a video).

    FFmpeg gets the open file and no other input: a playlist, which names files or addresses, is refused. Raises
    `error`, naming the file, if it is missing, empty or cannot be opened.
    """
    if path.is_dir():
        raise error(f"{path}: a folder; expected a file")
    if not path.is_file():
        raise error(f"{path}: no such file")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
            if not path.stat().st_size:
                raise error(f"{path}: the file is empty (0 bytes)")
            container = av.open(file, "r", options={"protocol_whitelist": "none"})
            stack.callback(container.close)
        except (av.FFmpegError, OSError) as reason:
            raise error(f"{path}: cannot be read as {kind}: {reason.strerror or reason}") from None
        yield container
