"""What curation is told: bounds of every check, the models of the later stages; one sentence each."""

from dataclasses import dataclass, field


@dataclass
class PreliminaryBounds:
    """Stage 1: is it a whole, large, truly 4K colour photograph that is not there already?"""

    max_pixels: int = 300_000_000
    """More pixels than this are refused before decoding, as a decompression bomb."""
    short_side: int = 2160
    """Fewest px of the shorter side."""
    pixels: int = 8_000_000
    """Fewest px in all."""
    aspect: float = 3.0
    """Largest ratio of the longer to the shorter side."""
    bit_depth: int = 8
    """Fewest bits per channel, 8 or 16."""
    chroma: float = 0.001
    """Least mean distance of the channels from grey, in units of [0,1]; below it the photograph counts as grey."""
    high_band: float = -14.0
    """Least detail above the band that an upscaling leaves, in dB: photographs -8 to 0, upscaled ones -15 to -45, and
    so are photographs as soft as after a blur of 1 px."""
    flat_share: float = 0.8
    """Largest share of blocks of 32 px without texture (less deviation than 1.5 of 255 levels)."""
    near_duplicate_bits: int = 48
    """Largest number of differing bits, of the hash's 256, at which two images are one picture; -1: none are."""


@dataclass
class QualityBounds:
    """Stage 2: bounds of degradation and aesthetics; scores that were not computed decide nothing."""

    sharpness: float = 0.24
    """Least share of their height that the sharpest edges rise by in one px: 0.5 and more is sharp, 0.2 a 2 px blur."""
    noise: float = 0.03
    """Largest deviation of the noise in the flattest blocks, in units of [0,1]; close-ups of grass come near it."""
    blockiness: float = 16.0
    """Largest step in which JPEG rounded low frequencies, as in its tables: 6 at quality 75, 12 at 50, 21 at 30."""
    dark_share: float = 0.5
    """Largest share of pixels darker than 1/8 of white; night skies have more."""
    bright_share: float = 0.2
    """Largest share of pixels brighter than 0.97 of white; white walls and product shots have more."""
    saturated_share: float = 0.3
    """Largest share of pixels of full saturation (HSV, 98 % or more) that are not dark."""
    niqe: float = 8.0
    """Largest NIQE: 2-4 good, above 6 rarely so."""
    clip_quality: float = 0.0
    """Least probability of the good prompt, 0-1."""
    aesthetic: float = 0.0
    """Least score of the aesthetic head; LAION's give 1 to 10; for a head of negative scores set a bound below them."""
    pyiqa: dict[str, float] = field(default_factory=dict)
    """Bound of each pyiqa metric by its name: least value where higher is better, else largest."""


@dataclass
class ScoreModels:
    """Local files behind the scores of stage 2; an empty one skips its score with one line."""

    niqe: str = ""
    """NIQE's pristine parameters (.npz with mu_pris_param, cov_pris_param, gaussian_window), as BasicSR ships them."""
    clip: str = ""
    """Local folder of a CLIPModel with its tokenizer, in transformers format (safetensors)."""
    good_prompt: str = "Good photo."
    """Prompt whose probability against bad_prompt is the quality score (CLIP-IQA's pair, one pair alone)."""
    bad_prompt: str = "Bad photo."
    """The prompt it is weighed against."""
    aesthetic: str = ""
    """Safetensors file of a linear head, or of linear layers in a row, on the normalised image embedding of `clip`."""
    pyiqa: dict[str, str] = field(default_factory=dict)
    """pyiqa metrics by name with their file of weights, "none" for piqe (extra `pyiqa`, non-commercial licence)."""


@dataclass
class JudgeModel:
    """Stage 3: a vision-language model judges a contact sheet; off unless folder or endpoint is given."""

    folder: str = ""
    """Local folder of an image-text model in transformers format (safetensors)."""
    endpoint: str = ""
    """Address of an OpenAI-compatible server, such as http://localhost:8000/v1; contact sheets are sent there."""
    name: str = ""
    """Name of the endpoint's model."""
    key_variable: str = ""
    """Environment variable that holds the endpoint's key; empty: none is sent."""
    timeout: float = 60.0
    """Seconds to wait for a reply of the endpoint."""
    pause: float = 1.0
    """Seconds before a failed request is repeated, doubled each time."""
    attempts: int = 3
    """Most times that a model is asked about one image, malformed replies included, before it counts as not judged."""
    reply_tokens: int = 1024
    """Most tokens of a reply of the folder's model."""
    least_score: int = 3
    """Least of the rubric's scores, 1-5, that is kept."""


@dataclass
class Curation:
    """All options of `make curate`."""

    preliminary: PreliminaryBounds = field(default_factory=PreliminaryBounds)
    quality: QualityBounds = field(default_factory=QualityBounds)
    models: ScoreModels = field(default_factory=ScoreModels)
    judge: JudgeModel = field(default_factory=JudgeModel)
    workers: int = 0
    """Processes; 0: one per core."""
