"""Every option of an experiment: its type, its default, its unit, and one sentence.

The root is one of the classes in `SYSTEMS`, chosen by the key `system` of the YAML. `experiments/options.py`
merges a YAML file and `SET="a.b=1"` over it, `experiments/checks.py` refuses impossible values.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class DataOptions:
    train: str = "bundled"
    """Folder of training images (searched recursively), or "bundled" for scikit-image's photographs."""
    val: str = "bundled"
    """Folder of held-out images for validation, or "bundled"; with HR/ and LR/ inside (RT4KSR only) its pairs."""
    scale: int = 4
    """Upscaling factor from lr to hr."""
    sample: str = "crop"
    """What a training sample is: crop, or whole for whole images, shrunk into buckets of like shapes (patch-free)."""
    crop: int = 256
    """Side in px of square HR training crops, of whole images the least shorter one; a multiple of the size unit."""
    crop_preference: str = "uniform"
    """Where crops are taken: uniform, or the most detailed or the flattest of crop_candidates places."""
    crop_candidates: int = 4
    """Places that a preference chooses from; the more, the stronger it is."""
    whole_side: int = 1024
    """Side in px of the square whose area whole images have at most."""
    batch_size: int = 8
    """Samples per step over all ranks; divisible by the number of ranks."""
    workers: int = 0
    """Data loader processes per rank."""
    decoded_mb: int = 512
    """MB of decoded images that each process keeps, the data loader's among them."""
    cache: str = "runs/cache"
    """Folder for local copies of images from remote shards."""
    cache_gb: float = 50.0
    """Most GB that these copies take; what was used longest ago goes first."""
    crops_per_image: int = 16
    """Crops taken from each image in one pass over the data."""
    crops_per_decode: int = 1
    """Crops of an image that follow one another, so that it is decoded once for all; a divisor of crops_per_image."""
    procedural_share: float = 0.25
    """Share of the training samples that are procedural images instead of crops of photographs, 0-1."""
    val_crop: int = 256
    """Side of the square validation crops in px; of whole pairs, of the centre that the panels show."""
    val_count: int = 6
    """Number of fixed validation crops; pairs are all used."""
    val_batch_size: int = 1
    """Validation crops per batch and rank."""
    degradation: str = "omgsr"
    """Preset that makes lr: real_esrgan, omgsr (milder), bicubic (MATLAB's), ntire (+ JPEG 90) or none (scale 1)."""


@dataclass
class LoraOptions:
    rank: int = 0
    """Rank of the adapters; 0: none, see the section's own sentence for what is trained then."""
    alpha: float = 0.0
    """Scale of the adapters, applied as alpha / rank; 0: as large as the rank."""


@dataclass
class CodecOptions:
    path: str = ""
    """Local folder of a codec: SmallF16Codec, AutoencoderKL or AutoencoderTiny; codecs' trainings write <run>/codec."""
    layout: str = "f16"
    """How an AutoencoderKL is run: f8, or f16 (stride 2 in front, nearest x2 behind); other codecs have one layout."""
    lora: LoraOptions = field(default_factory=LoraOptions)
    """Adapters of the encoder of a one-step student; the codec is frozen at rank 0."""
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
    variant: str = "plain"
    """plain, interpolation, ntk or yarn: what happens to an image with more tokens than `window` per side."""
    window: int = 0
    """Tokens per side that the variants take as trained; 0: those of data.crop, or of the longest whole image."""


@dataclass
class TransformerOptions:
    path: str = ""
    """Local folder of a FluxTransformer2DModel in diffusers format; empty: one is built from the sizes below."""
    dtype: str = "float32"
    """Type of a loaded base's weights: float32, or bfloat16 for half the memory; that needs adapters and bf16-mixed."""
    double_blocks: int = 2
    """Blocks with separate streams for text and image."""
    single_blocks: int = 4
    """Blocks with one joint stream."""
    heads: int = 2
    """Attention heads of 128 channels each."""
    prompt: str = ""
    """Safetensors file of the fixed prompt's embeddings, as `make prompt` writes it; empty: seeded noise (ours)."""
    prompt_tokens: int = 4
    """Tokens of that seeded noise; a small transformer has no text encoder behind it."""
    prompt_width: int = 64
    """Channels of the fixed prompt embedding, pooled and per token; a transformer from `path` says its own."""
    gradient_checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass, the codec's too: less memory, a third more time."""
    rope: RopeOptions = field(default_factory=RopeOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    """Adapters of the transformer; it is trained whole at rank 0."""


@dataclass
class StudentOptions:
    sigma: float = 0.505
    """Noise level at which the transformer is entered, 0-1; the same in training and inference (OMGSR: 0.505)."""
    noise: float = 0.0
    """Deviation of the seeded noise added to the lr image's latent, in units of the latent's own (ours; OMGSR: 0)."""
    color_fix: str = "none"
    """Whose colours the result has: none (its own), adain or wavelet (those of lr); at inference alone."""


@dataclass
class NetworkOptions:
    variant: str = "S"
    """Blocks and channels by the paper's name: XXS, XS, S, M, L, XL, XXL or XXXL (table 3b)."""
    blocks: int = 0
    """Blocks of the body; 0: the variant's."""
    channels: int = 0
    """Channels; 0: the variant's."""
    hf_branch: bool = True
    """Add the refined high frequencies of lr to the deep features (the paper); false as in the released weights."""
    extraction: str = "gaussian"
    """What is taken from lr to leave its high frequencies: gaussian or down_up (table 2a)."""
    block: str = "layer_norm"
    """Basic block: layer_norm, plain or residual of RT4KSR (table 2b); conv or nafnet of those before it (table 1)."""
    features: str = "full"
    """Where the body of conv and nafnet works: full, down_up, unshuffle or squeeze (table 1)."""
    shared_head: bool = False
    """For conv and nafnet: one first convolution for lr and its high frequencies, as in RT4KSR and table 1's row b."""
    start: str = "random"
    """Weights to start from: random, as in the paper, or linear, a filter by least squares (ours), above bicubic."""
    start_crops: int = 64
    """Training crops for that filter."""
    online_folding: bool = True
    """Train each RRB as the one convolution it folds to (ours): the same function and gradients, 2.5 times faster."""


@dataclass
class FlowOptions:
    logit_mean: float = 0.0
    """Mean of the normal draw whose sigmoid is a sample's noise level."""
    logit_std: float = 1.0
    """Deviation of that draw."""
    sigma: float = 0.505
    """Noise level of validation: set it to student.sigma of the students to come."""


@dataclass
class DecoderTrainingOptions:
    scale_consistency: float = 0.0
    """Weight of the distance to what the F8 decoder's last convolution sees (Diffusion-4K: 1); 0 needs no teacher."""


@dataclass
class PerceptualOptions:
    net: str = "squeeze"
    """Backbone of LPIPS: squeeze, alex or vgg."""
    backbone: str = ""
    """Local file with the backbone's `features` weights (torchvision); empty: no trained network is used."""
    linear: str = ""
    """Local file with LPIPS's linear weights; empty: those that the package lpips brings along."""


@dataclass
class DistsOptions:
    model: str = "convnext_tiny.dinov3_lvd1689m"
    """timm's name of the frozen network over which losses.dists compares; its tag says how images are normalised."""
    weights: str = ""
    """Local file with its weights in timm's layout; empty: seeded random ones (ours)."""
    stages: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    """Feature maps that are compared, beside the image itself."""


@dataclass
class AdversaryOptions:
    model: str = "convnext_tiny.dinov3_lvd1689m"
    """timm's name of the discriminator's frozen backbone; its tag says how images are normalised."""
    weights: str = ""
    """Local file with its weights in timm's layout; empty: seeded random ones (ours)."""
    stages: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Feature maps on which a head each judges; of a ViT these are blocks, 2, 5 and 8 with OMGSR."""
    channels: int = 64
    """Channels of the heads."""
    kind: str = "bce"
    """Loss: bce or hinge."""
    real_label: float = 0.8
    """Label of real images in bce, above 0.5 and at most 1."""
    augment: bool = True
    """DiffAugment (colour, translation, cutout) of all that the discriminator sees."""
    adaptive: bool = False
    """Scale the term to the gradient of the others' weighted sum at the last trained layer (after VQGAN)."""
    learning_rate_factor: float = 1.0
    """Learning rate of the heads as a factor of the generator's."""


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
    dists: WeightOptions = field(default_factory=WeightOptions)
    high_frequency: WeightOptions = field(default_factory=WeightOptions)
    wavelet: WeightOptions = field(default_factory=WeightOptions)
    lrr: WeightOptions = field(default_factory=WeightOptions)
    adversarial: WeightOptions = field(default_factory=WeightOptions)
    texture: TextureOptions = field(default_factory=TextureOptions)
    periodicity: PeriodicityOptions = field(default_factory=PeriodicityOptions)


@dataclass
class OptimizerOptions:
    learning_rate: float = 5e-4
    """Peak learning rate of AdamW, which is Adam at weight_decay=0."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    warmup_steps: int = 30
    """Steps of linear warm-up."""
    decay: str = "linear"
    """How the learning rate falls: linear or cosine at the run's end, or steps along the whole run."""
    decay_share: float = 0.4
    """Last share of the run over which a linear or cosine decay falls, 0-1."""
    final_factor: float = 0.05
    """Learning rate at the end of a linear or cosine decay, as a factor of the peak."""
    step_share: float = 0.2
    """Share of the run after which decay=steps lowers the learning rate, each time anew (RT4KSR: 20 of 100 epochs)."""
    step_factor: float = 0.5
    """What the learning rate is multiplied by then."""


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
    """auto or ddp; auto is ddp where there is more than one device."""
    precision: str = "auto"
    """32-true, bf16-mixed, or auto: bf16-mixed where the machine computes in it; emulated it is 15 times slower."""
    threads: int = 0
    """CPU threads of torch per process; 0: its own choice."""
    accumulate: int = 1
    """Batches whose gradients are added up before an optimiser step."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: not limited."""
    validate_every: int = 100
    """Optimiser steps between validations."""
    checkpoint_every: int = 100
    """Optimiser steps between checkpoints; last.ckpt is always the newest."""
    log_every: int = 10
    """Optimiser steps between logged scalars."""
    panel_images: int = 4
    """Validation crops shown as panel, spectrum and autocorrelation map."""


@dataclass
class TableOptions:
    labels: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Names of the run in TensorBoard's HParams table, such as its arm; a study sets them."""
    columns: list[str] = field(default_factory=list)
    """Options that stand beside the labels there; without labels all options do."""
    metrics: list[str] = field(default_factory=list)
    """Tags that are measured after the training and fill the row, too; a study sets them."""


@dataclass
class Experiment:
    system: str = MISSING
    """one_step_flux, latent_flow, autoencoder, f16_decoder or real_time_cnn."""
    name: str = MISSING
    """Name of the run's folder under `runs`; a file's own path under experiments/ unless given."""
    runs: str = "runs"
    """Folder for the runs."""
    seed: int = 0
    """Seed of weights, data order, crops and degradations."""
    data: DataOptions = field(default_factory=DataOptions)
    perceptual: PerceptualOptions = field(default_factory=PerceptualOptions)
    dists: DistsOptions = field(default_factory=DistsOptions)
    adversary: AdversaryOptions = field(default_factory=AdversaryOptions)
    losses: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    ema: EmaOptions = field(default_factory=EmaOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    table: TableOptions = field(default_factory=TableOptions)


@dataclass
class CodecExperiment(Experiment):
    codec: CodecOptions = field(default_factory=CodecOptions)


@dataclass
class OneStepFlux(CodecExperiment):
    """OP4KSR's student: a one-step Flux between the encoder and the frozen decoder of an F16 codec."""

    transformer: TransformerOptions = field(default_factory=TransformerOptions)
    student: StudentOptions = field(default_factory=StudentOptions)


@dataclass
class LatentFlow(CodecExperiment):
    """A Flux transformer pretrained by flow matching on latents: the base of a student's adapters."""

    transformer: TransformerOptions = field(default_factory=TransformerOptions)
    flow: FlowOptions = field(default_factory=FlowOptions)


@dataclass
class Autoencoder(CodecExperiment):
    """The small F16 codec, trained from scratch."""

    codec_training: CodecTrainingOptions = field(default_factory=CodecTrainingOptions)


@dataclass
class F16Decoder(CodecExperiment):
    """The decoder of an AutoencoderKL in F16 layout, trained from its F8 weights."""

    decoder_training: DecoderTrainingOptions = field(default_factory=DecoderTrainingOptions)


@dataclass
class RealTimeCnn(Experiment):
    """RT4KSR: a small CNN from lr to sr."""

    network: NetworkOptions = field(default_factory=NetworkOptions)


SYSTEMS: dict[str, type[Experiment]] = {
    "one_step_flux": OneStepFlux,
    "latent_flow": LatentFlow,
    "autoencoder": Autoencoder,
    "f16_decoder": F16Decoder,
    "real_time_cnn": RealTimeCnn,
}
