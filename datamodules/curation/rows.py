"""What is known of one image, by name; apart from the table, so that a process that measures does without pyarrow."""

from typing import Any

Row = dict[str, Any]
"""What is known of one image, by column; a score that was not computed is missing or None."""

PRELIMINARY_SCORES = ("chroma", "high_band", "flat_share")
QUALITY_SCORES = (
    "sharpness",
    "noise",
    "blockiness",
    "dark_share",
    "bright_share",
    "saturated_share",
    "niqe",
    "clip_quality",
    "aesthetic",
)
PYIQA = "pyiqa_"
"""What the columns of pyiqa's metrics begin with."""
JUDGE = "judge_"
"""What the columns of stage 3 begin with: judge_<criterion>, judge_keep, judge_reason, judge_error."""
