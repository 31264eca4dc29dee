"""Digests change with their content and with nothing else."""

import hashlib

from qdformer.utils.digests import file_sha256, rendezvous_hash, short_digest, tree_sha256


def test_file_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_a_tree_digest_covers_names_and_contents(tmp_path):
    def tree(name, files):
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return tree_sha256(tmp_path / name)

    first = tree("a", {"x": "1", "deep/y": "2"})
    assert tree("b", {"deep/y": "2", "x": "1", "__pycache__/x.pyc": "cache"}) == first
    assert tree("c", {"x": "1", "deep/y": "3"}) != first
    assert tree("d", {"x": "1", "deep/z": "2"}) != first


def test_short_digest_distinguishes_its_parts():
    assert short_digest(["ab", "c"]) != short_digest(["a", "bc"])
    assert short_digest([None, 1]) == short_digest([None, 1])
    assert len(short_digest([])) == 16


def test_rendezvous_hash():
    assert rendezvous_hash(3, "clip", "a.flac") == hashlib.sha256(b"3/clip/a.flac").digest()
