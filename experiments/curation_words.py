"""What the reasons and scores of curation mean to a reader of its report."""

STAGES = {1: "preliminary", 2: "degradation and aesthetics", 3: "multimodal judge"}

REASONS = {
    "unreadable": ("Unreadable", "The file does not decode as a whole image."),
    "too_many_pixels": ("Too many pixels", "Refused before decoding, as a decompression bomb would be."),
    "out_of_memory": ("Out of memory", "The memory did not suffice to decode and measure the file."),
    "crashed": ("Crashed", "Decoding or measuring the file failed in a way that was not foreseen."),
    "name": ("Name", "The name of the file is not UTF-8 or holds a line break; its form is given here."),
    "short_side": ("Short side", "The shorter side has too few pixels."),
    "pixels": ("Pixels", "Too few pixels in all."),
    "aspect": ("Aspect ratio", "The longer side is too long for the shorter one."),
    "grey": ("Grey", "Next to no colour."),
    "palette": ("Palette", "Too few colours for a photograph."),
    "bit_depth": ("Bit depth", "Too few bits per channel."),
    "upscaled": ("Upscaled", "More pixels than detail: next to nothing above the band that an upscaling would leave."),
    "flat": ("Flat", "Too large a share of the image has no texture."),
    "exact_duplicate": ("Exact duplicates", "The same bytes as another file."),
    "near_duplicate": ("Near duplicates", "The same picture as another file: re-encoded, resized or slightly cropped."),
    "blurred": ("Blurred", "Too little sharpness."),
    "noisy": ("Noisy", "Too much noise."),
    "blocky": ("Blocky", "JPEG's grid of 8 px can be seen."),
    "dark": ("Dark", "Too large a share of the pixels is nearly black."),
    "bright": ("Bright", "Too large a share of the pixels is nearly white."),
    "saturated": ("Saturated", "Too large a share of the pixels is fully saturated."),
    "niqe": ("NIQE", "Too far from the statistics of natural images."),
    "clip_quality": ("CLIP quality", "CLIP finds the bad prompt too likely."),
    "aesthetic": ("Aesthetic", "The aesthetic head's score is too low."),
    "judge": ("Judged unfit", "The vision-language model judged it unfit; its words stand with the image."),
}
"""Title and meaning of each reason."""
