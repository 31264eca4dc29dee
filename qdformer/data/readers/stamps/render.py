"""Renders a planned scene: frames, label maps and the mixed sound.

* Label maps follow the order in which the objects lie; a pixel belongs to an object if its alpha exceeds 0.5.
* Only objects that are visible and sound in the same second are labeled.
* If two objects of one class are visible and the class sounds, both are labeled, because no listener could tell which
  of them it is.

Shapes: T frames (one per second), side S of the square frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from qdformer.audio.io.views import random_view
from qdformer.data.readers.composition import composition_of
from qdformer.data.readers.stamps.sounds import render_sound_event

if TYPE_CHECKING:
    from qdformer.config.download import Download
    from qdformer.data.readers.stamps.assets import Assets
    from qdformer.data.readers.stamps.plan import Actor, Scene


def render_scene(
    scene: Scene, assets: Assets, download: Download, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Render a scene: frames uint8 [T, S, S, 3], label maps uint8 [T, S, S], audio float32 [samples], and the part of
    each sound event in the audio.
    """
    _, _, count, size = composition_of(download)
    sprites = [_jitter_color(assets.pictures[actor.item], generator) for actor in scene.actors]
    backgrounds_TSS3 = _pan(assets.pictures[scene.background], size, count, generator)
    gain, blur, noise = generator.uniform(0.8, 1.15), generator.uniform(0, 0.7), generator.uniform(0, 5)
    sounding_T = [{event.label for event in scene.sound_events if event.on_T[second]} for second in range(count)]

    frames_TSS3 = np.empty((count, size, size, 3), dtype=np.uint8)
    labels_TSS = np.zeros((count, size, size), dtype=np.uint8)
    for second in range(count):
        picture = backgrounds_TSS3[second].astype(np.float32)
        for actor, sprite in zip(scene.actors, sprites, strict=True):
            alpha, color, (rows, columns) = _pose(sprite, actor, second, size)
            picture[rows, columns] += alpha[..., None] * (color - picture[rows, columns])
            label = actor.label if actor.label in sounding_T[second] else 0
            labels_TSS[second, rows, columns][alpha > 0.5] = label
        bright = Image.fromarray(np.clip(picture * gain, 0, 255).astype(np.uint8))
        blurred = bright.filter(ImageFilter.GaussianBlur(blur))
        grain = generator.normal(0, noise, (size, size, 1))
        frames_TSS3[second] = np.clip(np.asarray(blurred) + grain, 0, 255).round()

    tracks = []
    for event in scene.sound_events:
        recording = assets.sounds[event.item]
        if event.varied:
            recording = random_view(recording, generator)
        sound = render_sound_event(recording, event.on_T, event.speed, generator)
        tracks.append(10 ** (event.gain_db / 20) * sound)
    audio = np.sum(tracks, axis=0)
    peak = max(1.0, *(float(np.abs(sound).max()) for sound in (audio, *tracks)))
    return frames_TSS3, labels_TSS, audio / peak, [track / peak for track in tracks]


def _pose(
    sprite: Image.Image, actor: Actor, second: int, size: int
) -> tuple[np.ndarray, np.ndarray, tuple[slice, slice]]:
    """Alpha [h, w] and color [h, w, 3] of a cut-out in a second, and the rows and columns of the frame it covers."""
    scale = actor.side_T[second] * size / max(sprite.size)
    width, height = (max(2, round(length * scale)) for length in sprite.size)
    posed = sprite.resize((width, height), Image.Resampling.LANCZOS)
    if actor.flip:
        posed = posed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    posed = posed.rotate(actor.angle_T[second], Image.Resampling.BICUBIC, expand=True)
    left, top = (np.round(actor.center_T2[second] * size) - np.array(posed.size) // 2).astype(int)
    inside_x, inside_y = max(0, -left), max(0, -top)
    pixels = np.asarray(posed, dtype=np.float32)[inside_y : size - top, inside_x : size - left]
    top, left = max(0, top), max(0, left)
    area = slice(top, top + pixels.shape[0]), slice(left, left + pixels.shape[1])
    return pixels[..., 3] / 255, pixels[..., :3], area


def _pan(photo: Image.Image, size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """A slow camera movement over a photo, which is flipped at random: uint8 [T, S, S, 3]."""
    if generator.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = generator.uniform(0.55, 0.95) * min(photo.size)
    side_T = side * np.linspace(1, generator.uniform(0.93, 1.05), count)
    room_2 = np.array(photo.size) - side_T.max()
    first_2 = generator.uniform(0, 1, 2)
    last_2 = np.clip(first_2 + generator.uniform(-0.25, 0.25, 2), 0, 1)
    frames = []
    for left, top, length in zip(*(np.linspace(first_2, last_2, count) * room_2).T, side_T, strict=True):
        box = (left, top, left + length, top + length)
        frames.append(np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC, box)))
    return np.stack(frames)


def _jitter_color(sprite: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A cut-out with small random changes of brightness, contrast, saturation and tint."""
    pixels = np.asarray(sprite, dtype=np.float32)
    color, weight = pixels[..., :3], pixels[..., 3:] / 255
    mean = (color * weight).sum((0, 1)) / weight.sum()
    gray = color.mean(-1, keepdims=True)
    color = gray + generator.uniform(0.7, 1.3) * (color - gray)
    color = mean + generator.uniform(0.85, 1.15) * (color - mean)
    color = color * generator.uniform(0.8, 1.2) * generator.uniform(0.94, 1.06, 3)
    shifted = np.concatenate([np.clip(color, 0, 255), pixels[..., 3:]], axis=-1)
    return Image.fromarray(shifted.astype(np.uint8), "RGBA")
