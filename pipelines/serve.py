"""Serve a page and a JSON API that segment uploaded videos, until Ctrl-C.

It listens on the loopback interface. On any other interface it demands the key in the environment's QDFORMER_API_KEY.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cli import command_main, preset_parser
from pipelines.demo import STAMPS_CACHE
from pipelines.environment import PROJECT
from pipelines.predict import load_segmenter, predict
from pipelines.settings import preset_settings
from pipelines.workspace import open_workspace
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from qdformer.inference import Segmenter

LOOPBACK = "127.0.0.1"
API_KEY = "QDFORMER_API_KEY"
MIN_KEY_LENGTH = 16
EXAMPLES = Path(".cache", "examples")
EXAMPLE_SECONDS, EXAMPLE_SEEDS, EXAMPLE_SIZE = 12, (3, 5, 7), (480, 360)


def segment_upload(
    segmenter: Segmenter, video: Path, name: str, folder: Path, on_second: Callable[[int], None]
) -> None:
    """Write all files of the prediction, and the masks as one archive."""
    predict(segmenter, video, folder, name=name, on_second=on_second)
    shutil.make_archive(str(folder / "masks"), "zip", folder, "masks")


def example_videos(classes: tuple[str, ...], project: Path = PROJECT) -> dict[str, Path]:
    """Short composed videos of `stamps`, made once; none for a model of other classes, or without the pictures."""
    from qdformer.data.film import Film, load_film_assets
    from qdformer.data.readers.stamps.catalogue import catalogue_classes, read_catalogue
    from qdformer.inference.writer import VideoWriter
    from qdformer.utils.constants import SAMPLE_RATE

    if classes != tuple(info.name for info in catalogue_classes(read_catalogue())):
        return {}
    paths = {seed: project / EXAMPLES / f"composed-{seed}.mp4" for seed in EXAMPLE_SEEDS}
    if not all(path.is_file() for path in paths.values()):
        print("Composing the examples ...", flush=True)
        try:
            assets = load_film_assets(project / STAMPS_CACHE)
        except InputError as error:
            warnings.warn(f"no examples: {error}", stacklevel=2)
            return {}
        for seed, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            film, partial = Film(assets, EXAMPLE_SECONDS, seed, size=EXAMPLE_SIZE), path.with_suffix(".part")
            with VideoWriter(partial, film.size, film.frame_rate, SAMPLE_RATE) as writer:
                writer.write_sound(film.sound()[None])
                for time, image_HW3, _ in film.frames():
                    writer.write_frame(image_HW3, time)
            partial.replace(path)
    return {f"composed video {number}": path for number, path in enumerate(paths.values(), start=1)}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the interface `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_api_key(host: str) -> str:
    """The key that requests must have: from the environment, where it may be left out only on the loopback interface.

    Raises `InputError` if it is missing or short.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not key and not is_loopback(host):
        raise InputError(f"--host {host}: other machines reach it; expected a key for its users in {API_KEY}")
    if key and (len(key) < MIN_KEY_LENGTH or not key.isascii()):
        raise InputError(f"{API_KEY}: expected at least {MIN_KEY_LENGTH} ASCII characters")
    return key


def main() -> None:
    parser = preset_parser(__doc__)
    parser.add_argument("--host", default=LOOPBACK, help=f"the interface to listen on (default: {LOOPBACK})")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    parser.add_argument("--model", default="", help="as for make predict")
    parser.add_argument("--max-mib", type=int, default=200, help="largest upload in MiB (default: 200)")
    parser.add_argument("--max-seconds", type=int, default=600, help="longest video (default: 600)")
    arguments = parser.parse_args()
    if not 0 <= arguments.port < 65536 or arguments.max_mib < 1 or arguments.max_seconds < 1:
        raise InputError("expected a port of 0 to 65535, and limits of at least 1")
    api_key = read_api_key(arguments.host)
    settings, workspace = preset_settings(arguments.data), open_workspace(arguments.data)
    segmenter = load_segmenter(settings, workspace, arguments.model)

    import uvicorn

    from qdformer.inference.service.app import LOCAL_HOSTS, make_app
    from qdformer.inference.service.jobs import JobQueue, Limits

    limits = Limits(max_bytes=arguments.max_mib * 2**20, max_seconds=arguments.max_seconds)
    queue = JobQueue(lambda *job: segment_upload(segmenter, *job), limits)
    hosts = (*LOCAL_HOSTS, arguments.host) if is_loopback(arguments.host) else ("*",)
    app = make_app(queue, segmenter.classes, example_videos(segmenter.classes), hosts, api_key)
    config = uvicorn.Config(app, arguments.host, arguments.port, log_level="warning", timeout_graceful_shutdown=3)
    socket = config.bind_socket()
    print(f"Page: http://{arguments.host}:{socket.getsockname()[1]}/  (Ctrl-C stops it)", flush=True)
    uvicorn.Server(config).run(sockets=[socket])


if __name__ == "__main__":
    command_main(main)
