"""Every option of an experiment: its type, its default, its unit, and one sentence.

The root is one of `OneStepFlux` and `Autoencoder`, chosen by the key `system` of the YAML. `experiments/options.py`
merges a YAML file and `SET="a.b=1"` over it, `experiments/checks.py` refuses impossible values.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class DataOptions:
    train: str = "bundled"
    """Folder of training images (searched recursively), or "bundled" for scikit-image's photographs."""
    val: str = "bundled"
    """Folder of held-out images for validation, or "bundled"."""
    scale: int = 4
    """Upscaling factor from lr to hr."""
    crop: int = 256
    """Side of the square HR training crops in px; a multiple of the model's size unit."""
    batch_size: int = 8
    """Samples per step over all ranks; divisible by the number of ranks."""
    workers: int = 0
    """Data loader processes per rank."""
    crops_per_image: int = 16
    """Crops taken from each image in one pass over the data."""
    procedural_share: float = 0.25
    """Share of the training samples that are procedural images instead of crops of photographs, 0-1."""
    val_crop: int = 256
    """Side of the square validation crops in px."""
    val_count: int = 6
    """Number of fixed validation crops."""
    val_batch_size: int = 1
    """Validation crops per batch and rank."""
    degradation: str = "omgsr"
    """Preset that makes lr from hr: omgsr (two orders, no sinc filter) or bicubic."""


@dataclass
class CodecOptions:
    path: str = ""
    """Local folder of a trained codec (config.json and safetensors); its training writes <run>/codec."""
    latent_channels: int = 64
    """Channels of the latent; read only where the codec itself is trained, else taken from `path`."""
    widths: list[int] = field(default_factory=lambda: [48, 96, 192])
    """Channels of the residual CNN at strides 4, 8 and 16; read only where the codec itself is trained."""
    blocks: int = 1
    """Residual blocks per stride; read only where the codec itself is trained."""


@dataclass
class CodecTrainingOptions:
    pca_crops: int = 400
    """Training crops whose 16 x 16 patches give the PCA that starts the linear path."""
    linear_learning_rate: float = 0.05
    """Learning rate of the linear path, as a factor of optimizer.learning_rate: PCA is already its best value."""


@dataclass
class RopeOptions:
    theta: float = 10000.0
    """Base frequency of the rotary position embedding; RFR (OP4KSR) lowers it to 100."""


@dataclass
class TransformerOptions:
    path: str = ""
    """Local folder of a FluxTransformer2DModel in diffusers format; empty: one is built from the sizes below."""
    double_blocks: int = 2
    """Blocks with separate streams for text and image."""
    single_blocks: int = 4
    """Blocks with one joint stream."""
    heads: int = 2
    """Attention heads of 128 channels each."""
    prompt_tokens: int = 4
    """Tokens of the fixed prompt embedding (seeded noise; a small transformer has no text encoder behind it)."""
    prompt_width: int = 64
    """Channels of the fixed prompt embedding, pooled and per token; a transformer from `path` says its own."""
    rope: RopeOptions = field(default_factory=RopeOptions)


@dataclass
class StudentOptions:
    sigma: float = 0.505
    """Noise level at which the transformer is entered, 0-1; the same in training and inference (OMGSR: 0.505)."""


@dataclass
class PerceptualOptions:
    net: str = "squeeze"
    """Backbone of LPIPS: squeeze, alex or vgg."""
    backbone: str = ""
    """Local file with the backbone's `features` weights (torchvision); empty: no trained network is used."""
    linear: str = ""
    """Local file with LPIPS's linear weights; empty: those that the package lpips brings along."""


@dataclass
class WeightOptions:
    weight: float = 0.0
    """Factor of this term in the sum; 0 leaves it out."""


@dataclass
class TextureOptions:
    weight: float = 0.0
    """Factor of this term in the sum; 0 leaves it out."""
    levels: int = 3
    """Octaves of band-pass filters."""
    window: int = 11
    """Side of the window in px over which a band's energy is measured."""
    epsilon: float = 0.01
    """Energy below which bands count as flat, in units of the image range [0,1]."""


@dataclass
class PeriodicityOptions:
    weight: float = 0.0
    """Factor of L_AP in the sum; 0 leaves it out."""
    period: int = 0
    """Period p in px; 0: the pitch of the student's tokens (32 for an F16 codec)."""
    lags: int = 2
    """Multiples K of the period that are looked at along each axis."""
    quadrants: int = 2
    """Parts per axis that the image is split into, each scored on its own; 2 is the paper's Q = 4."""
    highpass: int = 17
    """Side in px of the box mean that is subtracted first."""
    clip: float = 1.5
    """Soft clip of the high-passed luma, in units of its mean absolute value."""


@dataclass
class LossOptions:
    l1: WeightOptions = field(default_factory=WeightOptions)
    l2: WeightOptions = field(default_factory=WeightOptions)
    lpips: WeightOptions = field(default_factory=WeightOptions)
    texture: TextureOptions = field(default_factory=TextureOptions)
    periodicity: PeriodicityOptions = field(default_factory=PeriodicityOptions)


@dataclass
class OptimizerOptions:
    learning_rate: float = 5e-4
    """Peak learning rate of AdamW."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    warmup_steps: int = 30
    """Steps of linear warm-up."""
    decay_share: float = 0.4
    """Last share of the run over which the learning rate falls linearly, 0-1."""
    final_factor: float = 0.05
    """Learning rate at the end of the run, as a factor of the peak."""


@dataclass
class EmaOptions:
    decay: float = 0.99
    """Decay per step of the average of the trainable weights; 0 turns the average off."""


@dataclass
class TrainerOptions:
    steps: int = 500
    """Optimiser steps of the run."""
    accelerator: str = "auto"
    """cpu, gpu or auto (Lightning)."""
    devices: int = 1
    """Processes on this machine, one per GPU."""
    strategy: str = "auto"
    """auto or ddp (Lightning)."""
    precision: str = "bf16-mixed"
    """32-true or bf16-mixed; on CPUs with AVX512-BF16 or AMX mixed precision is 1.7 times faster."""
    threads: int = 0
    """CPU threads of torch per process; 0: its own choice."""
    accumulate: int = 1
    """Batches whose gradients are added up before an optimiser step."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    validate_every: int = 100
    """Optimiser steps between validations."""
    checkpoint_every: int = 100
    """Optimiser steps between checkpoints; last.ckpt is always the newest."""
    log_every: int = 10
    """Optimiser steps between logged scalars."""
    panel_images: int = 4
    """Validation crops shown as panel, spectrum and autocorrelation map."""


@dataclass
class Experiment:
    system: str = MISSING
    """one_step_flux or autoencoder."""
    name: str = MISSING
    """Name of the run's folder under `runs`; a file's own path under experiments/ unless given."""
    runs: str = "runs"
    """Folder for the runs."""
    seed: int = 0
    """Seed of weights, data order, crops and degradations."""
    data: DataOptions = field(default_factory=DataOptions)
    codec: CodecOptions = field(default_factory=CodecOptions)
    perceptual: PerceptualOptions = field(default_factory=PerceptualOptions)
    losses: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    ema: EmaOptions = field(default_factory=EmaOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)


@dataclass
class OneStepFlux(Experiment):
    """OP4KSR's student: a one-step Flux between the encoder and the frozen decoder of an F16 codec."""

    transformer: TransformerOptions = field(default_factory=TransformerOptions)
    student: StudentOptions = field(default_factory=StudentOptions)


@dataclass
class Autoencoder(Experiment):
    """The small F16 codec, trained from scratch."""

    codec_training: CodecTrainingOptions = field(default_factory=CodecTrainingOptions)


SYSTEMS: dict[str, type[Experiment]] = {"one_step_flux": OneStepFlux, "autoencoder": Autoencoder}
