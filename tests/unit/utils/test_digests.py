"""Digests change with what they stand for, and with nothing else."""

import hashlib

from qdformer.utils.digests import file_sha256, short_digest, tree_sha256


def test_file_sha256_is_that_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_a_tree_is_its_names_and_contents(tmp_path):
    def tree(name, files):
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return tree_sha256(tmp_path / name)

    first = tree("a", {"x": "1", "deep/y": "2"})
    assert tree("b", {"deep/y": "2", "x": "1", "__pycache__/x.pyc": "cache"}) == first
    assert tree("c", {"x": "1", "deep/y": "3"}) != first
    assert tree("d", {"x": "1", "deep/z": "2"}) != first


def test_identity_tells_parts_apart():
    assert short_digest(["ab", "c"]) != short_digest(["a", "bc"])
    assert short_digest([None, 1]) == short_digest([None, 1])
    assert len(short_digest([])) == 16
