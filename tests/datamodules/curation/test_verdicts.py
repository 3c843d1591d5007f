from dataclasses import replace

import pytest

from datamodules.curation.duplicates import HASH_LENGTH, VIEWS
from datamodules.curation.settings import Curation, JudgeModel, PreliminaryBounds, QualityBounds
from datamodules.curation.verdicts import OPTIONS, PIXELS, QUALITY, SIZE, decide

BOUNDS = Curation(
    PreliminaryBounds(bit_depth=16, chroma=0.1, high_band=0.1, flat_share=0.5, near_duplicate_bits=4),
    QualityBounds(0.5, 0.5, 2.0, 0.5, 0.5, 0.5, 8.0, 0.5, 5.0, {"musiq": 50.0, "piqe": 40.0}),
)
GOOD = {
    "fingerprint": "aa",
    "bytes": 1000,
    "width": 3840,
    "height": 2160,
    "mode": "RGB",
    "bit_depth": 16,
    "hash": "0" * HASH_LENGTH,
    "chroma": 0.2,
    "high_band": 0.2,
    "flat_share": 0.2,
    "sharpness": 0.8,
    "noise": 0.1,
    "blockiness": 1.0,
    "dark_share": 0.1,
    "bright_share": 0.1,
    "saturated_share": 0.1,
    "niqe": 4.0,
    "clip_quality": 0.8,
    "aesthetic": 6.0,
    "pyiqa_musiq": 60.0,
    "pyiqa_piqe": 30.0,
}
BAD = {
    "too_many_pixels": {"width": 300_000, "height": 2160},
    "short_side": {"width": 2159},
    "pixels": {"width": 2160, "height": 2160},
    "aspect": {"width": 9000},
    "palette": {"mode": "P"},
    "grey": {"chroma": 0.05},
    "bit_depth": {"bit_depth": 8},
    "upscaled": {"high_band": 0.05},
    "flat": {"flat_share": 0.6},
    "blurred": {"sharpness": 0.4},
    "noisy": {"noise": 0.6},
    "blocky": {"blockiness": 3.0},
    "dark": {"dark_share": 0.6},
    "bright": {"bright_share": 0.6},
    "saturated": {"saturated_share": 0.6},
    "niqe": {"niqe": 9.0},
    "clip_quality": {"clip_quality": 0.4},
    "aesthetic": {"aesthetic": 4.0},
    "pyiqa_musiq": {"pyiqa_musiq": 40.0},
    "pyiqa_piqe": {"pyiqa_piqe": 50.0},
}


def image(path, **more):
    return {**GOOD, "path": path, "fingerprint": f"of {path}", **more}


def off_by(bits):
    """A hash that differs from GOOD's by so many bits in each view."""
    return f"{(1 << bits) - 1:0{HASH_LENGTH // len(VIEWS)}x}" * len(VIEWS)


def verdicts(rows, settings=BOUNDS):
    return {row["path"]: (row["stage"], row["verdict"], row["reason"]) for row in decide(rows, settings)}


def test_every_check_drops_with_its_reason_and_nothing_else_does():
    stages = {reason: 1 if i < 9 else 2 for i, reason in enumerate(BAD)}
    for reason, values in BAD.items():
        assert verdicts([image("a", **values)]) == {"a": (stages[reason], "drop", reason)}
    assert verdicts([image("a")]) == {"a": (2, "keep", "")}
    assert {bound.reason for bound in (*SIZE, *PIXELS, *QUALITY)} <= set(BAD)


def test_a_value_at_its_bound_is_kept():
    at = {"width": 3840, "height": 2160, "chroma": 0.1, "flat_share": 0.5, "sharpness": 0.5, "noise": 0.5, "niqe": 8.0}
    assert verdicts([image("a", **at)])["a"][1] == "keep"


def test_the_first_of_several_reasons_is_given():
    reasons = list(BAD)
    for i, reason in enumerate(reasons[:-1]):
        for later in reasons[i + 1 :]:
            assert verdicts([image("a", **{**BAD[later], **BAD[reason]})])["a"][2] == reason


def test_the_detail_has_value_bound_and_an_option_that_is_there():
    details = [decide([image("a", **values)], BOUNDS)[0]["detail"] for values in BAD.values()]
    assert details[1] == "short side 2159, least 2160 (preliminary.short_side)"
    assert details[10] == "noise 0.6, most 0.5 (quality.noise)"
    assert details[-2] == "pyiqa.musiq 40, least 50 (quality.pyiqa.musiq)"
    for option in OPTIONS.values():
        group, _, name = option.partition(".")
        assert hasattr(getattr(BOUNDS, group), name), option


def test_scores_that_were_not_computed_decide_nothing():
    missing = {name: None for name in GOOD if name in ("chroma", "sharpness", "niqe", "aesthetic", "pyiqa_musiq")}
    assert verdicts([image("a", **missing)])["a"][1] == "keep"


def test_a_failed_measurement_keeps_its_reason_and_needs_no_scores():
    failed = {"path": "a", "failure": "unreadable", "failure_detail": "the file is an empty file"}
    (row,) = decide([failed], BOUNDS)
    assert row == {
        "path": "a",
        "stage": 1,
        "verdict": "drop",
        "reason": "unreadable",
        "detail": "the file is an empty file",
    }


def test_of_equal_files_the_first_by_path_is_kept():
    rows = [image(path, fingerprint="same") for path in "cab"]
    assert verdicts(rows) == {"a": (2, "keep", ""), **dict.fromkeys("bc", (1, "drop", "exact_duplicate"))}
    assert decide(rows, BOUNDS)[2]["detail"] == "the same file as a"


def test_of_pictures_that_look_the_same_the_largest_is_kept():
    rows = [
        image("a"),
        image("b", hash=off_by(2), width=4000),
        image("c", hash=off_by(1), width=4000, bytes=2000),
        image("d", hash=off_by(8), width=9000, height=4000),
    ]
    found = {row["path"]: row for row in decide(rows, BOUNDS)}
    assert [found[path]["verdict"] for path in "abcd"] == ["drop", "drop", "keep", "keep"]
    assert {found[path]["reason"] for path in "ab"} == {"near_duplicate"}
    assert found["b"]["detail"] == "like c of 4000 x 2160 px (preliminary.near_duplicate_bits)"


def test_of_a_pan_only_what_is_like_a_kept_picture_is_dropped():
    rows = [image(path, hash=off_by(2 * place), bytes=1000 - place) for place, path in enumerate("abcdefg")]
    found = {row["path"]: row["detail"].split()[1:2] for row in decide(reversed(rows), BOUNDS)}
    assert found == {"a": [], "b": ["a"], "c": ["a"], "d": [], "e": ["d"], "f": ["d"], "g": []}


def test_a_broken_file_of_too_many_pixels_has_too_many_pixels_whether_it_was_decoded_or_not():
    broken = {"failure": "unreadable", "failure_detail": "it is truncated"}
    head = {name: GOOD[name] for name in ("fingerprint", "bytes", "width", "height", "mode")} | {"path": "a"}
    settings = Curation(replace(BOUNDS.preliminary, max_pixels=1000), BOUNDS.quality)
    assert verdicts([head | broken])["a"][2] == "unreadable"
    assert decide([head | broken], settings) == decide([head], settings)
    assert verdicts([head], settings)["a"][2] == "too_many_pixels"


@pytest.mark.parametrize(("bits", "kept"), [(-1, "ab"), (0, "ab"), (1, "ab"), (2, "a"), (4, "a")])
def test_how_far_near_duplicates_are_apart_is_an_option(bits, kept):
    settings = Curation(replace(BOUNDS.preliminary, near_duplicate_bits=bits), BOUNDS.quality)
    rows = [image("a"), image("b", hash=off_by(2))]
    assert [row["path"] for row in decide(rows, settings) if row["verdict"] == "keep"] == list(kept)


def test_an_image_that_is_dropped_for_itself_takes_no_other_with_it():
    rows = [image("a", width=8000, height=6000, noise=0.9), image("b"), image("c", chroma=0.0)]
    assert verdicts(rows)["b"] == (2, "keep", "")


def test_the_same_rows_whatever_was_measured_before():
    judged = {"judge_content": 2, "judge_keep": False, "judge_reason": "dull", "judge_error": ""}
    (row,) = decide([image("a", chroma=0.0, **judged)], BOUNDS)
    assert not {"sharpness", "niqe", "pyiqa_musiq", "judge_content"} & set(row)
    (row,) = decide([image("a", width=300_000)], BOUNDS)
    assert not {"hash", "bit_depth", "chroma", "flat_share"} & set(row)
    assert {"width", "height", "fingerprint"} <= set(row)


JUDGED = {"judge_content": 4, "judge_sharpness": 3, "judge_keep": True, "judge_reason": "rich", "judge_error": ""}


@pytest.mark.parametrize(
    ("judged", "verdict", "detail"),
    [
        (JUDGED, (3, "keep", ""), ""),
        ({**JUDGED, "judge_content": 2}, (3, "drop", "judge"), "content 2, least 3 (judge.least_score): rich"),
        ({**JUDGED, "judge_keep": False}, (3, "drop", "judge"), "rich"),
        ({"judge_keep": None, "judge_error": "not judged: slow"}, (2, "keep", ""), "not judged: slow"),
        ({}, (2, "keep", ""), "not judged"),
    ],
)
def test_the_judge_has_the_last_word_where_it_was_asked(judged, verdict, detail):
    settings = Curation(BOUNDS.preliminary, BOUNDS.quality, judge=JudgeModel(folder="model"))
    (row,) = decide([image("a", **judged)], settings)
    assert (row["stage"], row["verdict"], row["reason"]) == verdict
    assert row["detail"] == detail
    assert verdicts([image("a", **judged)]) == {"a": (2, "keep", "")}


def test_rows_are_left_as_they_were():
    rows = [image("a", fingerprint="same"), image("b", fingerprint="same"), image("c", chroma=0.0)]
    before = [dict(row) for row in rows]
    decide(rows, BOUNDS)
    assert rows == before
