"""What a run shows in TensorBoard: its event files, and the real program in a headless browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from experiments.build import CODEC_METRICS
from experiments.final_scores import final_tags, table_overrides, write_final_scores
from experiments.options import load_options
from experiments.study_options import StudyOptions
from experiments.study_options import TestOptions as Evaluation
from experiments.train import train

SPEED = {f"speed/{name}" for name in ("data_wait_s", "degrade_s", "step_s", "images_per_s", "peak_memory_gib")}


@pytest.fixture(scope="module")
def events(tiny_student_run):
    return EventAccumulator(str(tiny_student_run), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_scalars_of_training_validation_and_speed_are_logged(events):
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/l1"} | {f"val/{name}" for name in CODEC_METRICS} | SPEED <= tags
    values = [event.value for tag in tags for event in events.Scalars(tag)]
    assert np.isfinite(values).all()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1]


def decoded(events, tag):
    return np.asarray(Image.open(BytesIO(events.Images(tag)[-1].encoded_image_string)))


def test_panels_spectra_and_autocorrelation_maps_are_logged(events):
    tags = events.Tags()["images"]
    groups = {
        group: {tag.split("/", 1)[1] for tag in tags if tag.startswith(f"{group}/")}
        for group in ("panel", "spectrum", "autocorrelation")
    }
    assert groups["panel"] == groups["spectrum"] == groups["autocorrelation"]
    assert len(groups["panel"]) == 2, "as many as data.val_count"
    for tag in tags:
        picture = decoded(events, tag)
        assert picture.shape[1] > 2 * picture.shape[0], "lr, sr and hr side by side"
        assert picture.std() > 1, f"{tag} is empty"


def test_the_hparams_row_is_filled(events):
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    row = HParamsPluginData.FromString(content).session_start_info.hparams
    assert row["transformer.rope.theta"].number_value == 10000
    assert row["optimizer.learning_rate"].number_value == 1e-3
    columns = HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/experiment"].plugin_data.content
    ).experiment
    metrics = {info.name.tag for info in columns.metric_infos}
    assert metrics == {f"val/{name}" for name in CODEC_METRICS}
    assert metrics <= set(events.Tags()["scalars"]), "TensorBoard fills a cell from the scalar of that tag"


@contextmanager
def serving(runs, *flags):
    """Address of a running TensorBoard on a folder of runs."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--host", "localhost", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://localhost:{port}"
    try:
        wait_until(lambda: fetch(f"{address}/data/plugin/scalars/tags"), process)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def board(tiny_student_run):
    with serving(tiny_student_run.parents[1], "--load_fast", "false") as address:
        yield address


def fetch(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)
    except OSError:
        return None


def wait_until(ready, process, seconds=90):
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "tensorboard ended"
        assert time.monotonic() < end, f"tensorboard served no data within {seconds} s"
        time.sleep(0.5)


def chromium_command(profile, *arguments):
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no program chromium on the PATH, which this test looks at TensorBoard with")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --window-size=1600,1200"
    return [program, *flags.split(), f"--user-data-dir={profile}", *arguments]


def screenshot(url, picture, profile):
    arguments = ["--virtual-time-budget=15000", f"--screenshot={picture}", url]
    subprocess.run(chromium_command(profile, *arguments), capture_output=True, timeout=120, check=True)


# innerText of the document and of all shadow roots in it: the HParams tab is made of web components.
TEXT_OF_PAGE = """
(function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data + "\\n";
  const roots = [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes];
  return roots.map(text).join("");
})(document.body)
"""

# The same, but of what lies wholly in the window, without any scrolling.
TEXT_IN_WINDOW = """
(function text(node) {
  if (node.nodeType === Node.TEXT_NODE) {
    const range = document.createRange();
    range.selectNode(node);
    const box = range.getBoundingClientRect();
    const inside = box.width && box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight;
    return inside ? node.data.trim() + "\\n" : "";
  }
  const roots = [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes];
  return roots.map(text).join("");
})(document.body)
"""


@contextmanager
def devtools(profile):
    """Function (method, session, **parameters) -> result of a headless browser, over the DevTools protocol's pipe."""
    to_browser, from_browser = os.pipe(), os.pipe()

    # The browser reads commands from descriptor 3 and answers on 4.
    launch = "import os, sys; [os.dup2(int(sys.argv[i]), i + 2) for i in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
    command = [sys.executable, "-c", launch, str(to_browser[0]), str(from_browser[1])]
    command += chromium_command(profile, "--remote-debugging-pipe")
    process = subprocess.Popen(
        command, pass_fds=(to_browser[0], from_browser[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    answers = os.fdopen(from_browser[0], "rb")
    pending = b""
    number = 0

    def call(method, session=None, **parameters):
        nonlocal pending, number
        number += 1
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(to_browser[1], json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in pending:
                chunk = answers.read1(65536)
                assert chunk, "the browser ended"
                pending += chunk
            line, pending = pending.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == number:
                return answer["result"]

    try:
        yield call
    finally:
        process.terminate()
        process.wait()
        os.close(to_browser[1])
        answers.close()


def page_text(url, profile, awaited, expression=TEXT_OF_PAGE, seconds=120):
    """Text of a page once all of `awaited` stands in it."""
    with devtools(profile) as call:
        target = call("Target.createTarget", url=url)["targetId"]
        session = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        end = time.monotonic() + seconds
        while True:
            result = call("Runtime.evaluate", session, expression=expression, returnByValue=True)["result"]
            shown = result.get("value", "")
            missing = [text for text in awaited if text not in shown]
            if not missing:
                return shown
            assert time.monotonic() < end, f"{url} never showed {missing}"
            time.sleep(0.5)


@pytest.mark.slow
def test_tensorboard_serves_and_shows_the_run(board, tiny_student_run, tmp_path):
    (run,) = fetch(f"{board}/data/runs")
    query = urllib.parse.urlencode({"run": run, "tag": "val/psnr_y"})
    assert len(fetch(f"{board}/data/plugin/scalars/scalars?{query}")) == 2
    images = fetch(f"{board}/data/plugin/images/tags")[run]
    assert {tag.split("/")[0] for tag in images} == {"panel", "spectrum", "autocorrelation"}
    statuses = [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
    wanted = {"allowedStatuses": statuses, "colParams": [], "startIndex": 0, "sliceSize": 10}
    groups = fetch(f"{board}/data/plugin/hparams/session_groups", wanted)["sessionGroups"]
    assert len(groups) == 1
    assert {value["name"]["tag"] for value in groups[0]["metricValues"]} == {f"val/{name}" for name in CODEC_METRICS}

    values = {value["name"]["tag"]: f"{value['value']:.5g}" for value in groups[0]["metricValues"]}
    text = page_text(f"{board}/#hparams", tmp_path / "browser", awaited=[values["val/psnr_y"]])
    assert all(tag in text for tag in values), "the table offers the metrics' columns"
    opened = [f"val/{name}" for name in CODEC_METRICS[:5]]  # TensorBoard opens five columns, the others by a click
    assert {values[tag] for tag in opened} <= set(text.split())

    shots = Path(os.environ.get("SR_SCREENSHOTS", tmp_path / "screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    for tab in ("timeseries", "scalars", "images", "hparams"):
        picture = shots / f"{tab}.png"
        screenshot(f"{board}/#{tab}", picture, tmp_path / tab)
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        assert pixels.shape == (1200, 1600, 3)
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, f"{tab} is blank"


STUDY = StudyOptions(
    base="rt4ksr/s_x2_mini",
    arms={"conv": ["network.block=conv", "network.start=random"], "rep": []},
    seeds=[0, 1],
    tests={"whole": Evaluation()},
    method="rt4ksr",
    metrics={"psnr_y": "higher", "ssim_y": "higher", "perceptual": "lower"},
)


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    """A study of two arms and two seeds, tiny, with made-up final scores."""
    folder = tmp_path_factory.mktemp("study")
    for number, (arm, seed) in enumerate([(arm, seed) for arm in STUDY.arms for seed in STUDY.seeds]):
        place = [f"runs={folder / arm}", f"name=seed{seed}", f"seed={seed}"]
        table = table_overrides(STUDY, {"arm": arm, "seed": seed})
        given = [*STUDY.arms[arm], *place, *table, "trainer.threads=1", "trainer.accelerator=cpu"]
        run = train(load_options(STUDY.base, given, tiny=True))
        write_final_scores(run, {tag: made_up(number, tag) for tag in final_tags(STUDY)}, step=2)
    return folder


def made_up(run, tag):
    return 31 + run + final_tags(STUDY).index(tag) / 8


RUNS = [f"{arm}/seed{seed}" for arm in STUDY.arms for seed in STUDY.seeds]


@pytest.mark.slow
def test_a_study_s_table_is_filled_and_its_arms_line_up(study_folder, tmp_path):
    with serving(study_folder) as address:  # as make board starts it
        wait = time.monotonic() + 120
        while set(fetch(f"{address}/data/runs") or ()) != set(RUNS):
            assert time.monotonic() < wait, "TensorBoard does not know all runs"
            time.sleep(0.5)
        opened = final_tags(STUDY)[:3]
        cells = [f"{made_up(run, tag):.5g}" for run in range(len(RUNS)) for tag in opened]
        names = [*RUNS, *STUDY.arms, "arm", "seed", "0.0000", "1.0000"]
        page_text(f"{address}/#hparams", tmp_path / "hparams", [*names, *cells], TEXT_IN_WINDOW)

        tags = fetch(f"{address}/data/plugin/images/tags")
        assert sorted(tags) == sorted(RUNS)
        assert all(run.keys() == tags[RUNS[0]].keys() for run in tags.values())
        shown = page_text(
            f"{address}/#images", tmp_path / "images", [f"panel/{name}" for name in ("chelsea", "coffee")]
        )
        titles = [line.strip() for line in shown.splitlines() if line.strip().startswith("panel/")]
        cards = [title for title, after in zip(titles, ["", *titles], strict=False) if title != after]
        assert cards == ["panel/chelsea", "panel/coffee"], "the same crop of all runs stands together"
        assert len(titles) % len(RUNS) == 0

        shots = Path(os.environ.get("SR_SCREENSHOTS", tmp_path / "screenshots"))
        shots.mkdir(parents=True, exist_ok=True)
        for tab in ("images", "hparams", "text"):
            screenshot(f"{address}/#{tab}", shots / f"study_{tab}.png", tmp_path / f"shot_{tab}")
