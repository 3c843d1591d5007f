from collections import Counter

from datamodules.curation.scan import RawFile, scan


def test_images_by_path_others_by_suffix_hidden_ones_and_the_output_left_out(tmp_path):
    raw = tmp_path / "raw"
    names = ["b/2.JPG", "a.png", "b/1.webp", ".hidden.png", ".trash/c.png", "b/._1.webp", "out/report/1.jpg", "z.TIF"]
    for name in [*names, "notes", "y.tif"]:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"12345")
    files, others = scan(raw, raw / "out")
    assert [file.relative for file in files] == ["a.png", "b/1.webp", "b/2.JPG"]
    assert {file.size for file in files} == {5}
    assert others == Counter({".tif": 2, "without suffix": 1})


def test_links_are_followed_each_folder_once(tmp_path):
    raw, disk = tmp_path / "raw", tmp_path / "disk"
    raw.mkdir()
    disk.mkdir()
    (disk / "a.png").write_bytes(b"1")
    (raw / "b.png").symlink_to(disk / "a.png")
    (raw / "c.png").symlink_to(disk / "nowhere.png")
    (raw / "x").symlink_to(disk)
    (raw / "y").symlink_to(disk)
    (disk / "back").symlink_to(raw)
    files, _ = scan(raw, tmp_path / "out")
    assert [(file.relative, file.size) for file in files] == [("b.png", 1), ("c.png", -1), ("x/a.png", 1)]


def test_a_folder_that_is_named_like_an_image_is_walked(tmp_path):
    (tmp_path / "raw/album.jpg").mkdir(parents=True)
    (tmp_path / "raw/album.jpg/a.png").write_bytes(b"1")
    assert [file.relative for file in scan(tmp_path / "raw", tmp_path / "out")[0]] == ["album.jpg/a.png"]


def test_names_that_no_table_holds(tmp_path):
    def nameable(relative):
        return RawFile(tmp_path, relative, 1, 1).is_nameable

    assert nameable("Grüße 👨‍👩‍👧 a b.jpg")
    assert not nameable("two\nlines.jpg")
    assert not nameable(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"))
