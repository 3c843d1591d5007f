"""The checked form of a judge's reply."""

import json

import pytest

from datamodules.curation.rubric import CRITERIA, PROMPT, REPLY_SCHEMA, MalformedReplyError, parse_reply

GOOD = {"scores": dict.fromkeys(CRITERIA, 4), "verdict": "keep", "reason": "sharp and clean"}


def changed(**parts):
    return json.dumps({**GOOD, **parts})


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        json.dumps(GOOD, indent=2),
        f"```json\n{json.dumps(GOOD)}\n```",
        f"Here it is:\n```\n{json.dumps(GOOD)}\n```\nDone.",
        f"<think>I could say {{}} or {changed(verdict='drop')}, but no.</think>\n{json.dumps(GOOD)}",
        f"First {changed(verdict='drop')}, on second thoughts {json.dumps(GOOD)}",
        f"{{not json}} {{ {json.dumps(GOOD)}",
    ],
)
def test_a_reply_is_found_within_what_models_write_around_it(text):
    judged = parse_reply(text)
    assert judged.scores == GOOD["scores"]
    assert (judged.keep, judged.reason, judged.error) == (True, "sharp and clean", "")


def test_a_drop_keeps_its_scores_in_the_rubrics_order():
    scores = {name: 1 + number % 5 for number, name in enumerate(CRITERIA)}
    judged = parse_reply(changed(scores=dict(reversed(scores.items())), verdict="drop", reason=" two\n lines "))
    assert judged.keep is False
    assert list(judged.scores.items()) == list(scores.items())
    assert judged.reason == "two lines"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no JSON object"),
        ("I would keep it.", "I would keep it"),
        ('{"scores": {"sharpness": 3', "no JSON object"),
        (json.dumps([GOOD["verdict"]]), "no JSON object"),
        ("{" * 100_000, "no JSON object"),
        ('{"a":' * 100_000, "no JSON object"),
        (json.dumps({"verdict": "keep", "reason": "x"}), "lacks scores"),
        (json.dumps({**GOOD, "note": 1}), "note"),
        (changed(scores={name: 3 for name in CRITERIA if name != "content"}), "lacks content"),
        (changed(scores={**GOOD["scores"], "beauty": 3}), "beauty"),
        (changed(scores=[3, 3]), "scores"),
        (changed(scores={**GOOD["scores"], "exposure": 0}), '"exposure" is 0'),
        (changed(scores={**GOOD["scores"], "exposure": 6}), '"exposure" is 6'),
        (changed(scores={**GOOD["scores"], "exposure": 3.5}), '"exposure" is 3.5'),
        (changed(scores={**GOOD["scores"], "exposure": "3"}), '"exposure" is "3"'),
        (changed(scores={**GOOD["scores"], "exposure": True}), '"exposure" is true'),
        (changed(scores={**GOOD["scores"], "exposure": None}), '"exposure" is null'),
        (changed(verdict="maybe"), "maybe"),
        (changed(verdict=True), '"verdict" is true'),
        (changed(verdict=["keep"]), "verdict"),
        (changed(reason=""), "reason"),
        (changed(reason=5), '"reason" is 5'),
        (json.dumps(GOOD)[:-1] + ', "verdict": "drop"}', "verdict"),
        (f"<think>{json.dumps(GOOD)}</think> I cannot say.", "I cannot say"),
        (f"{json.dumps(GOOD)} or rather {{}}", "lacks scores"),
    ],
)
def test_a_reply_of_another_form_is_refused_by_name(text, named):
    with pytest.raises(MalformedReplyError, match=r"^[^\n]+$") as refused:
        parse_reply(text)
    assert named in str(refused.value)
    assert len(str(refused.value)) < 300


def test_the_prompt_and_the_schema_speak_of_the_same_keys():
    asked = set(CRITERIA) | {"scores", "verdict", "reason"}
    assert all(f'"{name}"' in PROMPT for name in asked)
    properties = REPLY_SCHEMA["properties"]
    assert set(properties) | set(properties["scores"]["properties"]) == asked
    assert set(properties["scores"]["required"]) == set(CRITERIA)
